//! `dblock prune`: deletes the rows of locks that have been free for long, and no others.

use crate::support::Sandbox;
use rusqlite::Connection;

/// One row each: held, held without end, expired, just released, released long ago, and a legacy
/// row, which does not say since when it is free.
fn rows_of_all_ages(sandbox: &Sandbox) -> Connection {
    for (name, ttl) in [("held", "1h"), ("endless", "inf"), ("expired", "1h")] {
        assert_eq!(sandbox.run(["acquire", name, "--ttl", ttl]).code(), 0);
    }
    for name in ["new", "old"] {
        assert_eq!(sandbox.run(["run", name, "--", "true"]).code(), 0);
    }
    let file = Connection::open(sandbox.database()).expect("opens");
    file.execute_batch(
        "UPDATE database_locks_lock SET renewed_at = '2001-01-01 00:00:00.000000'
          WHERE name = 'old';
         UPDATE database_locks_lock SET expires_at = '2001-01-01 00:00:00.000000',
                granted_until = '2001-01-01 00:00:00.000000' WHERE name = 'expired';
         INSERT INTO database_locks_lock (name) VALUES ('legacy');",
    )
    .expect("aged");
    file
}

fn left(file: &Connection) -> Vec<String> {
    let mut names = file
        .prepare("SELECT name FROM database_locks_lock ORDER BY name")
        .expect("a query");
    let names = names.query_map([], |row| row.get(0)).expect("rows");
    names.map(|name| name.expect("a name")).collect()
}

#[test]
fn rows_that_have_been_free_for_so_long_are_deleted_and_counted() {
    let sandbox = Sandbox::new();
    let file = rows_of_all_ages(&sandbox);
    let done = sandbox.run(["prune", "--older-than", "30d"]);
    assert_eq!((done.code(), &*done.err), (0, ""));
    assert_eq!(
        done.out,
        "2 rows deleted of locks that have been free for 30d\n"
    );
    assert_eq!(left(&file), ["endless", "held", "legacy", "new"]);
    let again = sandbox.run(["prune", "--older-than", "30d"]);
    assert!(again.out.starts_with("0 rows deleted"), "{again:?}");
}

#[test]
fn legacy_rows_are_deleted_only_with_include_legacy() {
    let sandbox = Sandbox::new();
    let file = rows_of_all_ages(&sandbox);
    let done = sandbox.run(["prune", "--older-than", "30d", "--include-legacy"]);
    assert!(done.out.starts_with("3 rows deleted"), "{done:?}");
    assert_eq!(left(&file), ["endless", "held", "new"]);
}

#[test]
fn the_row_of_a_held_lock_is_never_deleted() {
    let sandbox = Sandbox::new();
    let file = rows_of_all_ages(&sandbox);
    sandbox.run(["prune", "--older-than", "0", "--include-legacy"]);
    assert_eq!(left(&file), ["endless", "held"]);
}

/// P2: a token that went backwards would let a stale holder's writes through.
#[test]
fn tokens_go_on_growing_after_a_prune() {
    let sandbox = Sandbox::new();
    let token = || {
        let done = sandbox.run(["run", "job", "--", "sh", "-c", "echo $DBLOCK_TOKEN"]);
        done.out.trim().parse::<i64>().expect("a token")
    };
    let before = token();
    let pruned = sandbox.run(["prune", "--older-than", "0"]);
    assert_eq!(
        pruned.out,
        "1 row deleted of locks that have been free for 0ms\n"
    );
    assert!(token() > before);
    testkit::promise("P2", "sqlite");
}

#[test]
fn prune_requires_older_than() {
    let sandbox = Sandbox::new();
    assert!(sandbox.run(["prune"]).only_line(2).contains("--older-than"));
    let message = sandbox.run(["prune", "--older-than", "long"]);
    assert!(
        message.only_line(2).contains("30s, 5m, 2h, 1d"),
        "{message:?}"
    );
}
