//! A primary and its standby do what the tests of failovers assume.

use std::time::Duration;

use testkit::{Commits, Pair, Postgres, SqlError, SqlSession};

/// Long enough for anything a living server does, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Long enough to be sure that no answer comes.
const A_WHILE: Duration = Duration::from_millis(500);

fn pair(commits: Commits) -> Option<Pair> {
    let pair = Pair::start(Postgres::options(), commits)?;
    let primary = pair.primary();
    primary
        .query("postgres", "CREATE TABLE t(a int)")
        .expect("it is empty");
    pair.catch_up();
    Some(pair)
}

fn rows(of: &Postgres) -> Result<String, SqlError> {
    of.query("postgres", "SELECT a FROM t ORDER BY a")
}

fn timeline(of: &Postgres) -> String {
    let sql = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    of.query("postgres", sql).expect("it takes writes")
}

/// An INSERT that is sent, and whose answer is still to come.
fn inserting(into: &Postgres, value: u32) -> SqlSession {
    let mut session = into.sql_session("postgres");
    session.run("SELECT 1").expect("it runs");
    session.send(&format!("INSERT INTO t VALUES ({value})"));
    session
}

#[test]
#[ignore = "make prove"]
fn a_synchronous_standby_has_all_that_was_answered() {
    let Some(mut pair) = pair(Commits::Synchronous) else {
        return;
    };
    let mut session = inserting(pair.primary(), 1);
    assert_eq!(session.answer(TIMEOUT), Some(Ok(vec![])));
    pair.part();
    let mut session = inserting(pair.primary(), 2);
    assert_eq!(session.answer(A_WHILE), None, "answered by one alone");

    pair.primary_mut().kill();
    pair.promote();
    assert_eq!(rows(pair.standby()), Ok("1".into()));
    let mut session = inserting(pair.standby(), 3);
    assert_eq!(
        session.answer(TIMEOUT),
        Some(Ok(vec![])),
        "it waits for no standby"
    );
    assert_eq!(timeline(pair.standby()), "00000002");

    // Brought back as it was, with what it never answered, it answers nothing.
    pair.primary_mut().restart();
    assert_eq!(timeline(pair.primary()), "00000001");
    assert_eq!(rows(pair.primary()), Ok("1\n2".into()));
    let mut session = inserting(pair.primary(), 4);
    assert_eq!(session.answer(A_WHILE), None);
}

#[test]
#[ignore = "make prove"]
fn an_asynchronous_standby_lacks_what_did_not_reach_it() {
    let Some(pair) = pair(Commits::Asynchronous) else {
        return;
    };
    pair.part();
    let mut session = inserting(pair.primary(), 1);
    assert_eq!(session.answer(TIMEOUT), Some(Ok(vec![])));
    pair.promote();
    assert_eq!(rows(pair.standby()), Ok(String::new()));
    assert_eq!(rows(pair.primary()), Ok("1".into()), "both are there");
}
