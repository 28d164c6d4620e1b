//! The scripts of `docs/protocol.md` that fence a transaction, run by the servers' own clients.

use std::process::{Command, Output};

use database_locks::LockGuard;
use testkit::{MariaDb, MySql, Postgres, TestDb, db_tests, promise};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
const MARK: &str = "<!-- A test runs these. -->";

/// The script for the client of that name.
fn script(client: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(MARK).expect("the mark");
    let mut blocks = rest.split("```sh\n").skip(1);
    let found = blocks.find_map(|block| {
        let script = block.split("```").next()?;
        script.contains(client).then_some(script)
    });
    found.unwrap_or_else(|| panic!("no script for {client}"))
}

/// Runs it as `dblock run` would, with a client that knows where the server is.
fn run(db: &TestDb, guard: &LockGuard) -> Output {
    let database = db.url.rsplit('/').next().unwrap();
    let (client, at) = match db.engine {
        "postgres" => {
            let bin = Postgres::shared().unwrap().bin().join("psql");
            let at = format!(
                "psql() {{ {} --no-psqlrc '{}' \"$@\"; }}",
                bin.display(),
                db.url
            );
            ("psql -v", at)
        }
        _ => {
            let server = match db.engine {
                "mysql" => MySql::shared(),
                _ => MariaDb::shared(),
            };
            let socket = server.unwrap().socket();
            let at = format!(
                "mariadb() {{ command mariadb --no-defaults -uroot -S '{}' {database} \"$@\"; }}",
                socket.display()
            );
            ("| mariadb", at)
        }
    };
    Command::new("bash")
        .args(["-c", &format!("{at}\n{}", script(client))])
        .env("DBLOCK_NAME", guard.name().as_str())
        .env("DBLOCK_TOKEN", guard.token().to_string())
        .env("DBLOCK_GRANT", guard.grant_id())
        .output()
        .unwrap()
}

async fn a_script_can_fence_its_writes(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    db.sql("CREATE TABLE report (body text)");
    for name in ["job", "it's \"a\" näme \\ 100% :'name'"] {
        db.sql("DELETE FROM report");
        db.sql("INSERT INTO report VALUES ('old')");
        let guard = locks.lock(name).acquire().await.unwrap();
        let done = run(db, &guard);
        assert!(done.status.success(), "{name}: {done:?}");
        assert_eq!(db.sql("SELECT body FROM report"), "new");

        other.force_release(name).await.unwrap().expect("held");
        let _next = other.lock(name).acquire().await.unwrap();
        db.sql("UPDATE report SET body = 'of its successor'");
        let refused = run(db, &guard);
        assert!(!refused.status.success(), "{name}: {refused:?}");
        assert_eq!(db.sql("SELECT body FROM report"), "of its successor");
    }
    promise("P9", db.engine);
}

db_tests!(postgres: a_script_can_fence_its_writes);
db_tests!(mariadb: a_script_can_fence_its_writes);
db_tests!(mysql: a_script_can_fence_its_writes);
