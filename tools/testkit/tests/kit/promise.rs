//! What was promised is recorded, and what was not is missed.

use std::path::Path;
use std::process::{Command, Output};

use testkit::cleanup::ScratchDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/check-promises");

/// Set for the process in which [`keeper`] records something: elsewhere that would count as
/// promises of the product.
const KEEPER: &str = "DBLOCK_TEST_KEEPER";

/// Run by the tests below in a process of its own, which has a file of its own.
#[test]
fn keeper() {
    if std::env::var_os(KEEPER).is_some() {
        testkit::promise("P1", "postgres");
        testkit::promise("P2", "sqlite");
    }
}

fn keep_promises(file: &Path) {
    let kept = Command::new(std::env::current_exe().expect("this is a program"))
        .args(["promise::keeper", "--exact"])
        .env(KEEPER, "1")
        .env("DBLOCK_PROMISES", file)
        .output()
        .expect("this program runs");
    assert!(kept.status.success());
    let message = String::from_utf8_lossy(&kept.stdout);
    assert!(
        !message.contains("promise P1"),
        "libtest no longer swallows it: {message}"
    );
}

fn check(file: &Path, expected: &Path) -> (Output, String) {
    check_without(file, expected, &[])
}

fn check_without(file: &Path, expected: &Path, absent: &[&str]) -> (Output, String) {
    let output = Command::new(SCRIPT)
        .args([file, expected])
        .args(absent)
        .output()
        .expect("the script can be run");
    let message = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into();
    (output, message)
}

#[test]
fn a_promise_that_was_not_kept_is_named() {
    let dir = ScratchDir::new("promise");
    let (file, expected) = (dir.join("kept"), dir.join("expected"));
    keep_promises(&file);
    keep_promises(&file);

    std::fs::write(&expected, "# all\nP1 postgres\n\nP2 sqlite\n").expect("it is our directory");
    let (output, message) = check(&file, &expected);
    assert!(output.status.success(), "{message}");
    assert!(
        message.contains("P1 postgres 2\n") && message.contains("P2 sqlite 2\n"),
        "{message}"
    );

    std::fs::write(&expected, "P1 postgres\nP1 sqlite\nP2 sqlite\n").expect("it is our directory");
    let (output, message) = check(&file, &expected);
    assert!(!output.status.success(), "{message}");
    assert!(message.contains("missing: P1 sqlite\n"), "{message}");
    assert!(!message.contains("missing: P1 postgres"), "{message}");
}

#[test]
fn without_a_record_every_promise_is_missing() {
    let dir = ScratchDir::new("promise");
    let expected = dir.join("expected");
    std::fs::write(&expected, "P1 postgres\n").expect("it is our directory");
    let (output, message) = check(&dir.join("nothing"), &expected);
    assert!(
        !output.status.success() && message.contains("missing: P1 postgres\n"),
        "{message}"
    );
}

#[test]
fn an_engine_that_is_left_out_is_not_demanded_and_named_in_the_last_line() {
    let dir = ScratchDir::new("promise");
    let (file, expected) = (dir.join("kept"), dir.join("expected"));
    keep_promises(&file);
    let pairs = "P1 postgres\nP1 mysql\nP2 mysql\nP1 mysql-group\nP2 sqlite\n";
    std::fs::write(&expected, pairs).expect("it is our directory");
    let (output, message) = check_without(&file, &expected, &["mysql", "mysql-group"]);
    assert!(output.status.success(), "{message}");
    assert!(message.contains("promises: 2 of 2 tested\n"), "{message}");
    let last = "not demanded of mysql mysql-group: 3";
    assert_eq!(message.lines().last(), Some(last));

    let (output, message) = check_without(&file, &expected, &["mysql"]);
    assert!(!output.status.success(), "{message}");
    assert!(message.contains("missing: P1 mysql-group\n"), "{message}");
}
