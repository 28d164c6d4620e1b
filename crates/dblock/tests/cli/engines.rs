//! The command on each database server, with the URL in the environment.

use crate::support::{DBLOCK, Running, Sandbox};
use testkit::{Commits, Pair, Postgres};

const HOLD: &str = "touch begun; trap 'exit 0' TERM; while :; do sleep 0.02; done";

fn run_excludes_and_stops(server: Option<testkit::TestDb>) {
    // The test kit has reported that this is skipped.
    let Some(server) = server else { return };
    let sandbox = Sandbox::new();
    let dblock = |args: &[&str]| -> Running {
        let mut command = sandbox.command(DBLOCK);
        sandbox.start(command.args(args).env("DATABASE_LOCKS_URL", &server.url))
    };
    let missing = dblock(&["run", "job", "--", "true"]).end();
    assert!(missing.only_line(69).contains("dblock init"), "{missing:?}");
    for _ in 0..2 {
        let made = dblock(&["init"]).end();
        assert_eq!(made.code(), 0, "{made:?}");
        assert!(
            made.out.starts_with(
                "tables `database_locks_lock` and `database_locks_permit` are ready in "
            ),
            "{made:?}"
        );
    }
    assert_eq!(
        dblock(&["run", "job", "--", "sh", "-c", "exit 3"])
            .end()
            .code(),
        3
    );

    let options = [
        "run",
        "--holder",
        "the holder",
        "--ttl",
        "12s",
        "--grace",
        "500ms",
    ];
    let holder = dblock(&[&options, &["job", "--", "sh", "-c", HOLD][..]].concat());
    sandbox.wait_for("begun");
    let busy = dblock(&["run", "-n", "job", "--", "true"]).end();
    assert!(
        busy.only_line(75).contains("held by the holder for"),
        "{busy:?}"
    );
    assert!(dblock(&["list"]).end().out.contains("the holder"));
    let freed = dblock(&["release", "job", "--force"]).end();
    assert!(
        freed.err.contains("the holder had held it for"),
        "{freed:?}"
    );
    let lost = holder.end();
    assert!(
        lost.dblock_line(76).contains("released by force"),
        "{lost:?}"
    );
    assert_eq!(dblock(&["run", "-n", "job", "--", "true"]).end().code(), 0);
    testkit::promise("P1", server.engine);
}

#[test]
fn postgres_serves_the_command() {
    run_excludes_and_stops(testkit::TestDb::postgres());
}

#[test]
fn mariadb_serves_the_command() {
    run_excludes_and_stops(testkit::TestDb::mariadb());
}

#[test]
fn mysql_serves_the_command() {
    run_excludes_and_stops(testkit::TestDb::mysql());
}

/// The grant did not reach the standby that is promoted.
#[test]
fn a_failover_that_loses_the_grant_stops_the_command() {
    let Some(mut pair) = Pair::start(Postgres::options(), Commits::Asynchronous) else {
        return;
    };
    let url = pair.locker_url(&pair.primary().fresh_database());
    let sandbox = Sandbox::new();
    let dblock = |args: &[&str]| -> Running {
        let mut command = sandbox.command(DBLOCK);
        sandbox.start(command.args(args).env("DATABASE_LOCKS_URL", &url))
    };
    assert_eq!(dblock(&["init"]).end().code(), 0);
    pair.catch_up();
    pair.part();
    let running = dblock(&["run", "job", "--ttl", "30s", "--", "sh", "-c", HOLD]);
    sandbox.wait_for("begun");
    pair.primary_mut().kill();
    pair.promote();
    let done = running.end();
    let message = ": the database forgot the grant (failover)";
    assert_eq!(done.code(), 76, "{done:?}");
    // If the promotion took long, failed renewals were reported before.
    let lost = done.err.lines().last().unwrap_or_default();
    assert!(lost.contains(message), "{done:?}");
    testkit::promise("P4", "postgres");
}
