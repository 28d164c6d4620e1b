//! A user with exactly the privileges that `SECURITY.md` names can do what that page says.

use std::time::Duration;

use database_locks::{Error, Locks, Prune};
use testkit::{TestDb, contract_tests};

macro_rules! all_but_pruning {
    ($engine:ident, $db:expr) => {
        contract_tests!(
            $engine,
            $db,
            a_held_lock_names_its_holder,
            an_expired_lock_is_free,
            a_released_lock_is_free,
            tokens_grow,
            the_first_token_is_the_time_of_the_database,
            a_repeated_acquire_recognises_its_own_grant,
            renewed_leases_outlive_their_first_length,
            a_renewal_shortens_nothing,
            a_renewal_may_be_repeated,
            an_endless_lease_ends_only_by_release,
            a_stale_grant_can_neither_renew_nor_release,
            the_same_holder_is_another_grant,
            a_late_renewal_revives_nothing,
            a_grant_that_differs_in_any_part_is_refused,
            a_release_by_force_is_a_loss_for_the_holder,
            a_grant_whose_token_is_unknown_can_be_released,
            a_ticket_resumes_a_lock_once,
            a_dead_ticket_revives_nothing,
            distinct_names_are_distinct_locks,
            a_batch_of_acquires_is_answered_one_by_one,
            a_batch_that_asks_for_a_lock_twice_gets_it_once,
            a_batch_writes_for_each_what_it_asked_for,
            a_batch_of_releases_is_answered_one_by_one,
            a_batch_of_renewals_is_answered_one_by_one,
            first_use_by_twenty_at_once_has_one_winner,
            an_expired_lease_has_one_successor,
            a_reader_sees_what_the_holder_wrote,
            installing_twice_changes_nothing,
            the_same_holder_takes_over,
            only_the_observed_grant_is_taken_over,
            a_free_lock_is_not_taken_over,
            as_many_permits_are_granted_as_the_limit_says,
            shared_holders_come_together_and_an_exclusive_one_alone,
            a_dead_shared_holder_does_not_keep_an_exclusive_one_out,
            a_dead_exclusive_holder_does_not_keep_shared_ones_out,
        );
    };
}

all_but_pruning!(postgres, TestDb::postgres_least().await);
all_but_pruning!(mariadb, TestDb::mariadb_least().await);
all_but_pruning!(mysql, TestDb::mysql_least().await);
contract_tests!(
    postgres_with_a_sequence,
    TestDb::postgres_serial().await,
    an_expired_lock_is_free,
    first_use_by_twenty_at_once_has_one_winner,
    a_batch_of_acquires_is_answered_one_by_one,
);

/// The error names the missing privilege and its purpose, and comes only when it is needed.
async fn missing_privileges_are_named(db: TestDb) {
    let locks = Locks::connect(&db.url).await.unwrap();
    let report = locks.doctor().await.unwrap();
    let rights = report
        .findings
        .iter()
        .filter(|found| found.area == "rights");
    let ids: Vec<&str> = rights.map(|found| found.id).collect();
    assert_eq!(ids, ["no-delete"], "{report:#?}");
    locks.migrate().await.unwrap();

    let refused = |error: Error, right: &str| {
        assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
        let message = error.chain();
        assert!(message.contains(right), "{message}");
    };
    // It deletes nothing, since there is nothing: the right is missing all the same.
    let long = Duration::from_secs(86_400);
    let error = locks.prune(Prune::older_than(long)).await.unwrap_err();
    refused(error, "DELETE to prune");
    let other = Locks::builder(&db.url)
        .table("another_table")
        .connect()
        .await
        .unwrap();
    refused(other.migrate().await.unwrap_err(), "CREATE");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_are_named_on_postgres() {
    if let Some(db) = TestDb::postgres_least().await {
        missing_privileges_are_named(db).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_are_named_on_mariadb() {
    if let Some(db) = TestDb::mariadb_least().await {
        missing_privileges_are_named(db).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_are_named_on_mysql() {
    if let Some(db) = TestDb::mysql_least().await {
        missing_privileges_are_named(db).await;
    }
}

/// Another role has put a table under guard; this one reads the lists all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_guard_of_another_role_keeps_no_program_from_listing_on_postgres() {
    let Some(db) = TestDb::postgres_least().await else {
        return;
    };
    let (_, server) = db.url.split_once('@').unwrap();
    let owner = Locks::connect(format!("postgres://postgres@{server}"))
        .await
        .unwrap();
    db.sql("CREATE TABLE invoices (id int PRIMARY KEY)");
    owner.guard_table("invoices", "ledger").await.unwrap();
    let locks = Locks::connect(&db.url).await.unwrap();
    let report = locks.doctor().await.unwrap();
    assert!(
        report.checks.iter().any(|check| check.area == "guards"),
        "{report:#?}"
    );
    let guards = locks.guarded_tables().await.unwrap();
    assert_eq!(guards.len(), 1, "{guards:?}");
}

/// The server tells only a user with the right PROCESS which session it is.
async fn a_locked_row_is_reported_without_the_right_to_see_sessions(db: TestDb) {
    let locks = Locks::connect(&db.url).await.unwrap();
    let lock = locks.lock("ledger").ttl(Duration::from_secs(60));
    let guard = lock.acquire().await.unwrap();
    let mut session = db.sql_session();
    session.run("BEGIN").unwrap();
    let locked = "SELECT id FROM database_locks_lock WHERE name = 'ledger' FOR UPDATE";
    session.run(locked).unwrap();
    let error = locks.force_release("ledger").await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    let message = error.chain();
    assert!(message.contains("does not show to this user"), "{message}");
    session.run("ROLLBACK").unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_is_reported_without_the_right_to_see_sessions_on_mariadb() {
    if let Some(db) = TestDb::mariadb_least().await {
        a_locked_row_is_reported_without_the_right_to_see_sessions(db).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_is_reported_without_the_right_to_see_sessions_on_mysql() {
    if let Some(db) = TestDb::mysql_least().await {
        a_locked_row_is_reported_without_the_right_to_see_sessions(db).await;
    }
}
