//! Rows with values of another program, a dump or a manual change. Nothing panics, errors are
//! clear, and never two clients have the lock.

use std::time::Duration;

use database_locks::{Error, LockState, Locks, Prune};
use testkit::{TestDb, db_tests};

const LATER: &str = "'2999-01-01 00:00:00'";
const PAST: &str = "'2001-01-01 00:00:00'";

/// What stands in the row, as `SET` has it, and whether the lock can be had then.
fn invalid_values(engine: &str) -> Vec<(String, bool)> {
    let huge = "x".repeat(60_000);
    let mut all = vec![
        // Restored from a dump: it is plainly over.
        (
            format!("expires_at = {PAST}, granted_until = {PAST}, token = 41, grant_id = 'gone'"),
            true,
        ),
        ("locked_by = NULL, expires_at = NULL, grant_id = NULL, granted_until = NULL, acquired_at = NULL, renewed_at = NULL, waiting_until = NULL, metadata = NULL".into(), true),
        (format!("locked_by = NULL, expires_at = {LATER}, grant_id = NULL, granted_until = NULL, acquired_at = NULL"), false),
        (format!("expires_at = {LATER}, granted_until = {LATER}, acquired_at = {LATER}, renewed_at = {LATER}"), false),
        (format!("expires_at = {LATER}, granted_until = {PAST}, renewed_at = {LATER}"), false),
        ("token = 9223372036854775806".into(), true),
        ("metadata = '{\"meta\": [1, {\"a\": null}'".into(), true),
        (format!("metadata = '{huge}'"), true),
        ("metadata = '[]', grant_id = 'short'".into(), true),
        ("grant_id = '', locked_by = ''".into(), true),
        ("grant_id = 'ÄÖÜ', locked_by = '\u{1b}[31mred\n\u{202e}'".into(), true),
    ];
    match engine {
        "postgres" => all.extend(
            [
                ("token = -5", true),
                ("token = -9223372036854775808", true),
                ("expires_at = 'infinity', granted_until = 'infinity', acquired_at = '-infinity', renewed_at = 'infinity'", false),
                ("expires_at = '-infinity', granted_until = '-infinity', acquired_at = 'infinity'", true),
                ("expires_at = '4713-01-01 BC', acquired_at = '4713-01-01 BC', renewed_at = '4713-01-01 BC'", true),
                ("expires_at = '294276-12-31', granted_until = '294276-12-31', acquired_at = '294276-12-31'", false),
            ]
            .map(|(set, free)| (set.to_owned(), free)),
        ),
        "mariadb" | "mysql" => all.extend(
            [
                ("expires_at = '0000-00-00 00:00:00', granted_until = '0000-00-00 00:00:00', acquired_at = '0000-00-00', renewed_at = '0000-00-00'", true),
                ("expires_at = '9999-12-31 23:59:59.999999', granted_until = '9999-12-31 23:59:59.999999', acquired_at = '0001-01-01'", false),
            ]
            .map(|(set, free)| (set.to_owned(), free)),
        ),
        _ => all.extend(
            [
                ("token = -5", true),
                ("token = -9223372036854775808", true),
                ("expires_at = '9999-12-31 23:59:59', granted_until = '9999-12-31 23:59:59'", false),
                ("acquired_at = 'yesterday', renewed_at = '', waiting_until = x'00ff'", true),
            ]
            .map(|(set, free)| (set.to_owned(), free)),
        ),
    }
    all
}

fn fill(db: &TestDb, set: &str) {
    // What the strict mode refuses came in before that was switched on.
    let mode = match db.engine {
        "mariadb" | "mysql" => "SET sql_mode = ''; ",
        _ => "",
    };
    let all =
        "token = 7, locked_by = 'me', expires_at = NULL, grant_id = NULL, granted_until = NULL,
               acquired_at = NULL, renewed_at = NULL, metadata = NULL";
    db.sql(&format!(
        "{mode}UPDATE database_locks_lock SET {all} WHERE name = 'job';
         UPDATE database_locks_lock SET {set} WHERE name = 'job'"
    ));
}

/// Everything that reads it answers.
async fn look(locks: &Locks, set: &str) {
    let row = locks
        .show("job")
        .await
        .unwrap_or_else(|e| panic!("{set}: {}", e.chain()));
    let row = row.unwrap_or_else(|| panic!("{set}: not shown"));
    let _ = (row.description(), row.to_json(), row.parsed_metadata());
    let all = locks.list().await.unwrap();
    assert_eq!(all.len(), 1, "{set}");
    locks.doctor().await.unwrap();
}

async fn invalid_values_in_a_row_do_no_harm(db: &TestDb) {
    let locks = db.locks().await;
    let other = db.locks().await;
    for (set, free) in invalid_values(db.engine) {
        db.sql("DELETE FROM database_locks_lock; INSERT INTO database_locks_lock (name) VALUES ('job')");
        fill(db, &set);
        look(&locks, &set).await;
        let before = locks.show("job").await.unwrap().unwrap();
        let tried = locks.lock("job").try_acquire().await;
        let tried = tried.unwrap_or_else(|e| panic!("{set}: {}", e.chain()));
        assert_eq!(tried.is_some(), free, "{set}: {before:?}");
        let guard = match tried {
            Some(guard) => guard,
            None => {
                locks
                    .force_release("job")
                    .await
                    .unwrap_or_else(|e| panic!("{set}: {}", e.chain()));
                locks
                    .lock("job")
                    .try_acquire()
                    .await
                    .unwrap()
                    .unwrap_or_else(|| panic!("{set}"))
            }
        };
        assert!(guard.token() > before.token, "{set}: {:?}", guard.token());
        assert!(
            other.lock("job").try_acquire().await.unwrap().is_none(),
            "{set}"
        );
        guard
            .check()
            .await
            .unwrap_or_else(|e| panic!("{set}: {}", e.chain()));
        guard
            .extend(Duration::from_secs(20))
            .await
            .unwrap_or_else(|e| panic!("{set}: {}", e.chain()));
        look(&locks, &set).await;
        guard
            .release()
            .await
            .unwrap_or_else(|e| panic!("{set}: {}", e.chain()));
        fill(db, &set);
        locks
            .prune(Prune::older_than(Duration::from_secs(3600)).include_legacy())
            .await
            .unwrap_or_else(|e| panic!("{set}: {}", e.chain()));
    }
}

/// There is no greater token: no client is granted the lock, and the error names the cause and the
/// fix.
async fn a_row_with_the_greatest_token_is_refused(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("INSERT INTO database_locks_lock (name) VALUES ('job')");
    // What is below zero is mended like any other token that is behind the clock.
    for token in [-5, i64::MIN] {
        fill(db, &format!("token = {token}"));
        let guard = locks.lock("job").try_acquire().await.unwrap().unwrap();
        assert!(guard.token().get() > 1_000_000_000_000, "{guard:?}");
        guard.release().await.unwrap();
    }
    for token in [i64::MAX] {
        let refused = |error: Error| {
            assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
            let message = error.chain();
            assert!(message.contains("its token is out of range"), "{message}");
        };
        fill(db, &format!("token = {token}"));
        refused(locks.lock("job").try_acquire().await.unwrap_err());
        let row = locks.show("job").await.unwrap().unwrap();
        assert_eq!((row.token.get(), row.state), (token, LockState::Free));
        if token == i64::MAX {
            fill(db, &format!("token = {token}, expires_at = {LATER}"));
            refused(locks.force_release("job").await.unwrap_err());
            let row = locks.show("job").await.unwrap().unwrap();
            assert_eq!(row.token.get(), token);
        }
    }
    // Others are not held up by it.
    let guard = locks.lock("other").try_acquire().await.unwrap().unwrap();
    guard.release().await.unwrap();
}

/// SQLite accepts any value in any column. The error names an unreadable one, and other locks work.
async fn a_value_of_another_type_is_refused(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("INSERT INTO database_locks_lock (name) VALUES ('job')");
    for (set, column) in [
        ("locked_by = x'ff00'", "locked_by"),
        ("token = 'abc'", "token"),
        ("token = 1.5", "token"),
        ("metadata = x'00'", "metadata"),
    ] {
        fill(db, set);
        let error = locks.show("job").await.unwrap_err();
        assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
        assert!(error.chain().contains(column), "{}", error.chain());
        if let Err(error) = locks.lock("job").try_acquire().await {
            assert!(error.chain().contains(column), "{}", error.chain());
        }
        let guard = locks.lock("other").try_acquire().await.unwrap().unwrap();
        guard.release().await.unwrap();
    }
}

db_tests!(sqlite: invalid_values_in_a_row_do_no_harm, a_row_with_the_greatest_token_is_refused,
    a_value_of_another_type_is_refused);
db_tests!(postgres: invalid_values_in_a_row_do_no_harm, a_row_with_the_greatest_token_is_refused);
db_tests!(mariadb: invalid_values_in_a_row_do_no_harm, a_row_with_the_greatest_token_is_refused);
db_tests!(mysql: invalid_values_in_a_row_do_no_harm, a_row_with_the_greatest_token_is_refused);
