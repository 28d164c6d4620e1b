//! `dblock prune`: what nobody has had for long goes, and nothing else.

use crate::support::Lab;
use rusqlite::Connection;

/// One row each: held, without end, just released, and long ago released, expired, used by
/// django-database-locks 0.5, which writes no times of ours.
fn rows_of_all_ages(lab: &Lab) -> Connection {
    for (name, ttl) in [("held", "1h"), ("endless", "inf"), ("expired", "1h")] {
        assert_eq!(lab.run(["acquire", name, "--ttl", ttl]).code(), 0);
    }
    for name in ["new", "old"] {
        assert_eq!(lab.run(["run", name, "--", "true"]).code(), 0);
    }
    let file = Connection::open(lab.database()).expect("opens");
    file.execute_batch(
        "UPDATE database_locks_lock SET renewed_at = '2001-01-01 00:00:00.000000'
          WHERE name = 'old';
         UPDATE database_locks_lock SET expires_at = '2001-01-01 00:00:00.000000',
                granted_until = '2001-01-01 00:00:00.000000' WHERE name = 'expired';
         INSERT INTO database_locks_lock (name) VALUES ('unknown');",
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
fn what_nobody_has_had_for_so_long_is_deleted_and_counted() {
    let lab = Lab::new();
    let file = rows_of_all_ages(&lab);
    let done = lab.run(["prune", "--older-than", "30d"]);
    assert_eq!((done.code(), &*done.err), (0, ""));
    assert_eq!(
        done.out,
        "2 rows deleted of locks that have been free for 30d\n"
    );
    assert_eq!(left(&file), ["endless", "held", "new", "unknown"]);
    let again = lab.run(["prune", "--older-than", "30d"]);
    assert!(again.out.starts_with("0 rows deleted"), "{again:?}");
}

#[test]
fn rows_of_which_nobody_knows_since_when_go_only_where_that_is_asked_for() {
    let lab = Lab::new();
    let file = rows_of_all_ages(&lab);
    let done = lab.run(["prune", "--older-than", "30d", "--include-unknown"]);
    assert!(done.out.starts_with("3 rows deleted"), "{done:?}");
    assert_eq!(left(&file), ["endless", "held", "new"]);
}

#[test]
fn what_is_held_is_never_deleted() {
    let lab = Lab::new();
    let file = rows_of_all_ages(&lab);
    lab.run(["prune", "--older-than", "0", "--include-unknown"]);
    assert_eq!(left(&file), ["endless", "held"]);
}

/// P2: a token that went backwards would let a stale holder's writes through.
#[test]
fn tokens_go_on_growing_over_a_prune() {
    let lab = Lab::new();
    let token = || {
        let done = lab.run(["run", "job", "--", "sh", "-c", "echo $DBLOCK_TOKEN"]);
        done.out.trim().parse::<i64>().expect("a token")
    };
    let before = token();
    let pruned = lab.run(["prune", "--older-than", "0"]);
    assert_eq!(
        pruned.out,
        "1 row deleted of locks that have been free for 0ms\n"
    );
    assert!(token() > before);
    testkit::promise("P2", "sqlite");
}

#[test]
fn how_old_must_be_said() {
    let lab = Lab::new();
    assert!(lab.run(["prune"]).refused(2).contains("--older-than"));
    let said = lab.run(["prune", "--older-than", "long"]);
    assert!(said.refused(2).contains("30s, 5m, 2h, 1d"), "{said:?}");
}
