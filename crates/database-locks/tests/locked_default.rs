//! The locks of a program that did not say which. There is one default and one environment to a
//! process, so each test runs in a process of its own.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::process::Command;

use database_locks::{Error, Locks, blocking, locked};

const URL: &str = "DATABASE_LOCKS_URL";
const FILE: &str = "DATABASE_LOCKS_URL_FILE";
const TABLE: &str = "DATABASE_LOCKS_TABLE";
const CHILD: &str = "DBLOCK_TEST_CHILD";

/// Runs `body` in a child, with this in its environment; `test` is the name of the test.
fn in_child(test: &str, url: Option<&str>, body: fn()) {
    in_child_with(test, url, &[], body);
}

fn in_child_with(test: &str, url: Option<&str>, set: &[(&str, &str)], body: fn()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let mut child = Command::new(std::env::current_exe().expect("is known"));
    child.args([test, "--exact", "--nocapture"]).env(CHILD, "1");
    child.env_remove(URL).env_remove(FILE).env_remove(TABLE);
    if let Some(url) = url {
        child.env(URL, url);
    }
    child.envs(set.iter().copied());
    let output = child.output().expect("starts");
    let message = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && message.contains("1 passed"),
        "{output:?}"
    );
}

fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("starts").block_on(work)
}

#[locked("job", wait = "0")]
async fn job() -> Result<(), Error> {
    Ok(())
}

#[locked("job", wait = "0")]
fn blocking_job() -> Result<(), Error> {
    Ok(())
}

#[locked("job", wait = "0")]
fn unfallible_job() {}

fn is_busy(answer: Result<(), Error>) -> bool {
    matches!(answer, Err(Error::TimedOut { .. }))
}

#[test]
fn the_error_without_a_database_names_both_ways_to_set_one() {
    in_child(
        "the_error_without_a_database_names_both_ways_to_set_one",
        None,
        || {
            let check = |error: Error| {
                let all = error.chain();
                assert!(matches!(error, Error::Config { .. }), "{all}");
                assert!(
                    all.contains("Locks::set_default") && all.contains(URL),
                    "{all}"
                );
            };
            check(block_on(job()).unwrap_err());
            check(blocking_job().unwrap_err());
            let panicked = std::panic::catch_unwind(unfallible_job).unwrap_err();
            let message = panicked.downcast::<String>().expect("a text");
            assert!(message.contains("Locks::set_default"), "{message}");
        },
    );
}

#[test]
fn an_empty_variable_names_no_database() {
    in_child("an_empty_variable_names_no_database", Some(""), || {
        assert!(matches!(blocking_job(), Err(Error::Config { .. })));
    });
}

#[test]
fn the_environment_names_the_database() {
    in_child(
        "the_environment_names_the_database",
        Some("memory:env"),
        || {
            let other = blocking::Locks::connect("memory:env").unwrap();
            block_on(job()).unwrap();
            blocking_job().unwrap();
            let _guard = other.lock("job").acquire().unwrap();
            assert!(is_busy(block_on(job())) && is_busy(blocking_job()));
        },
    );
}

#[test]
fn set_default_takes_precedence_over_the_environment() {
    in_child(
        "set_default_takes_precedence_over_the_environment",
        Some("memory:env"),
        || {
            let set = blocking::Locks::connect("memory:set").unwrap();
            let _guard = set.lock("job").acquire().unwrap();
            blocking_job().unwrap();
            blocking::Locks::set_default(set);
            assert!(is_busy(block_on(job())) && is_busy(blocking_job()));
            Locks::set_default(block_on(Locks::connect("memory:again")).unwrap());
            blocking_job().unwrap();
        },
    );
}

#[test]
#[cfg(feature = "sqlite")]
fn a_failed_first_connect_is_repeated() {
    let folder = tempfile::tempdir().expect("is made");
    let url = format!("sqlite://{}/later/locks.sqlite3", folder.path().display());
    in_child("a_failed_first_connect_is_repeated", Some(&url), || {
        assert!(blocking_job().is_err());
        let file = std::env::var(URL).unwrap();
        let file = std::path::Path::new(file.strip_prefix("sqlite://").unwrap());
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        blocking_job().unwrap();
    });
}

#[test]
#[cfg(feature = "sqlite")]
fn a_file_has_the_url_and_a_variable_the_name_of_the_table() {
    let folder = tempfile::tempdir().expect("is made");
    let (url, file) = (folder.path().join("url"), folder.path().join("l.sqlite3"));
    std::fs::write(&url, format!("sqlite:{}\n", file.display())).unwrap();
    let set = [(FILE, url.to_str().unwrap()), (TABLE, "mine")];
    in_child_with(
        "a_file_has_the_url_and_a_variable_the_name_of_the_table",
        None,
        &set,
        || {
            block_on(job()).unwrap();
            let url = std::fs::read_to_string(std::env::var(FILE).unwrap()).unwrap();
            let of = |table: &str| {
                let locks = blocking::Locks::builder(&url).table(table);
                locks
                    .connect()
                    .unwrap()
                    .show("job")
                    .is_ok_and(|row| row.is_some())
            };
            assert!(of("mine") && !of("database_locks_lock"));
        },
    );
}

#[test]
fn a_url_and_a_file_with_one_are_refused() {
    in_child_with(
        "a_url_and_a_file_with_one_are_refused",
        Some("memory:env"),
        &[(FILE, "/no/such/file")],
        || {
            let message = blocking_job().unwrap_err().to_string();
            assert!(
                message.starts_with("`DATABASE_LOCKS_URL_FILE` is given although"),
                "{message}"
            );
        },
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    in_child_with(
        "a_file_that_cannot_be_read_is_named",
        None,
        &[(FILE, "/no/such/file")],
        || {
            let message = blocking_job().unwrap_err().to_string();
            assert!(
                message.contains("has a file that cannot be read: /no/such/file"),
                "{message}"
            );
        },
    );
}

#[locked("importer", via = locks, holder = "importer of node 7", preempt = again, wait = "0")]
async fn import(locks: &Locks, again: bool) -> Result<(), Error> {
    Ok(())
}

#[test]
#[cfg(feature = "sqlite")]
fn the_same_holder_takes_over_at_once_after_a_crash() {
    if std::env::var_os(CHILD).is_some() {
        let locks = block_on(Locks::get_default()).unwrap();
        let lock = locks.lock("importer").holder("importer of node 7");
        let _guard = block_on(lock.acquire()).unwrap();
        std::process::abort();
    }
    let folder = tempfile::tempdir().expect("is made");
    let url = format!("sqlite://{}/locks.sqlite3", folder.path().display());
    let mut child = Command::new(std::env::current_exe().expect("is known"));
    child.args([
        "the_same_holder_takes_over_at_once_after_a_crash",
        "--exact",
    ]);
    let output = child.env(CHILD, "1").env(URL, &url).output();
    assert!(!output.expect("starts").status.success());
    block_on(async {
        let locks = Locks::connect(&url).await.unwrap();
        assert!(is_busy(import(&locks, false).await));
        import(&locks, true).await.unwrap();
    });
}
