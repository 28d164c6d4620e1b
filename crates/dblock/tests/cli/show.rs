//! `list`, `show`, `release` and `init`.

use crate::support::Lab;
use serde_json::Value;
use testkit::time;

const HOLD: &str = "BEGUN; exec sleep 1000";

#[test]
fn a_list_says_who_holds_what_and_what_for() {
    let lab = Lab::new();
    assert_eq!(lab.run(["list"]).out, "");
    let options = [
        "--holder",
        "the holder",
        "--meta",
        "why=weekly",
        "--meta",
        "n=2",
    ];
    let _holder = lab.start_run(&options, "backup", HOLD);
    lab.run(["run", "report", "--", "true"]);

    let list = lab.run(["list"]).out;
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    assert!(lines[0].starts_with("NAME    STATE  HOLDER"), "{list}");
    assert!(lines[1].starts_with("backup  held   the holder"), "{list}");
    assert!(lines[1].ends_with("sh n=2 why=weekly"), "{list}");
    let all = lab.run(["list", "--all"]).out;
    assert!(all.contains("\nreport  free "), "{all}");
}

#[test]
fn a_list_for_programs_is_one_array() {
    let lab = Lab::new();
    assert_eq!(lab.run(["list", "--json"]).out, "[]\n");
    let _holder = lab.start_run(&["--holder", "me", "--meta", "why=weekly"], "backup", HOLD);
    let _endless = lab.start_run(&["--ttl", "inf"], "endless", HOLD);
    lab.run(["run", "report", "--", "true"]);
    let held: Value = serde_json::from_str(&lab.run(["list", "--json"]).out).unwrap();
    assert_eq!(held.as_array().map(Vec::len), Some(2));
    let all: Value = serde_json::from_str(&lab.run(["list", "--all", "--json"]).out).unwrap();

    let [backup, endless, report] = &all.as_array().unwrap()[..] else {
        panic!("{all}")
    };
    assert_eq!(
        (&backup["name"], &backup["state"]),
        (&"backup".into(), &"held".into())
    );
    assert_eq!(
        (&backup["holder"], &backup["metadata"]["meta"]["why"]),
        (&"me".into(), &"weekly".into())
    );
    assert!(backup["token"].is_i64() && backup["grant"].is_string());
    assert!(backup["held_for"].as_f64().unwrap() >= 0.0);
    let left = backup["free_in"].as_f64().unwrap();
    assert!(left > 0.0 && left <= 30.0, "{left}");
    let expires = backup["expires_at"].as_str().unwrap();
    assert!(expires.ends_with('Z') && expires.len() == "2026-01-01T00:00:00.000Z".len());

    assert_eq!(endless["state"], "held");
    assert!(endless["free_in"].is_null() && endless["expires_at"].is_null());
    assert_eq!(report["state"], "free");
    for none in ["grant", "held_for", "free_in", "expires_at", "metadata"] {
        assert!(report[none].is_null(), "{none}: {report}");
    }
}

#[test]
fn a_lock_whose_holder_died_is_shown_as_expired() {
    let lab = Lab::new();
    let holder = lab.start_run(&["--ttl", "1s", "--grace", "100ms"], "job", HOLD);
    drop(holder);
    let expired = time::wait_until(crate::support::SOON, || {
        let shown = lab.run(["show", "job", "--json"]).out;
        shown.contains(r#""state":"expired""#) && shown.contains(r#""free_in":0.0"#)
    });
    assert!(expired, "{:?}", lab.run(["show", "job"]));
    assert!(
        lab.run(["list"]).out.contains("job   expired"),
        "{:?}",
        lab.run(["list"])
    );
}

#[test]
fn show_says_all_about_one_lock_and_1_of_an_unknown_one() {
    let lab = Lab::new();
    let said = lab.run(["show", "nope"]).refused(1).to_owned();
    assert!(said.contains("`nope`"), "{said}");
    lab.run(["show", "nope", "--json"]).refused(1);
    let _holder = lab.start_run(&["--holder", "me", "--meta", "why=weekly"], "job", HOLD);
    let shown = lab.run(["show", "job"]).out;
    for line in [
        "name      job",
        "state     held",
        "holder    me",
        "why       weekly",
    ] {
        assert!(shown.lines().any(|one| one == line), "{line}: {shown}");
    }
    let shown: Value = serde_json::from_str(&lab.run(["show", "job", "--json"]).out).unwrap();
    assert_eq!(shown["name"], "job");
}

/// Anybody who can take a lock can name it: what is shown of it neither begins a line nor drives the
/// terminal of whoever looks.
#[test]
fn what_others_wrote_stays_on_its_line() {
    let lab = Lab::new();
    let name = "a\nheld  \u{1b}[2J\u{202e}job";
    let escaped = r"a\nheld  \u{1b}[2J\u{202e}job";
    let _holder = lab.start_run(
        &["--holder", "x\r\u{9b}31m", "--meta", "k=v\n\u{7}"],
        "job",
        HOLD,
    );
    lab.run(["run", name, "--", "true"]);
    for args in [&["list", "--all"][..], &["show", "job"], &["show", name]] {
        let shown = lab.run(args).out;
        let plain = |c: char| c == '\n' || !c.is_control();
        assert!(
            shown.chars().all(plain) && !shown.contains('\u{202e}'),
            "{shown:?}"
        );
    }
    let list = lab.run(["list", "--all"]).out;
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.contains(escaped), "{list}");
    // For programs it is exact.
    let shown: Value = serde_json::from_str(&lab.run(["show", name, "--json"]).out).unwrap();
    assert_eq!(shown["name"], name);
    let refused = lab.run(["show", "no\nsuch"]);
    assert!(refused.refused(1).contains(r"no\nsuch"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let lab = Lab::new();
    lab.run(["run", "job", "--", "true"]);
    for args in [
        &["list", "--all"][..],
        &["show", "job", "--json"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = lab
            .dblock(args)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn();
        let done = child.unwrap().wait_with_output().unwrap();
        assert_eq!(
            (done.status.code(), done.stderr),
            (Some(0), vec![]),
            "{args:?}"
        );
    }
}

#[test]
fn a_release_by_force_names_who_had_it() {
    let lab = Lab::new();
    assert_eq!(
        lab.run(["release", "job", "--force"]).refused(0),
        "dblock: lock `job` was free already\n"
    );
    let _holder = lab.start_run(&["--holder", "me"], "job", HOLD);
    let said = lab.run(["release", "job"]).refused(2).to_owned();
    assert!(said.contains("--force if its holder is dead"), "{said}");
    assert!(lab.is_held("job"));
    let done = lab.run(["release", "job", "--force"]);
    assert!(
        done.refused(0)
            .starts_with("dblock: lock `job` released by force: me had held it for "),
        "{done:?}"
    );
    assert_eq!(lab.run(["run", "-n", "job", "--", "true"]).code(), 0);
}

#[test]
fn init_may_be_run_twice() {
    let lab = Lab::new();
    for _ in 0..2 {
        let done = lab.run(["init"]);
        assert_eq!(done.code(), 0);
        let place = lab.database().display().to_string();
        assert_eq!(
            done.out,
            format!("table `database_locks_lock` is ready in {place}\n")
        );
    }
}

#[test]
fn the_help_is_one_to_work_from() {
    let lab = Lab::new();
    let help = lab.run(["--help"]).out;
    for word in [
        "Examples:",
        "Exit codes:",
        "DATABASE_LOCKS_URL",
        "75",
        "76",
        "69",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    let help = lab.run(["run", "--help"]).out;
    for word in [
        "Examples:",
        "DBLOCK_TICKET",
        "500ms, 30s, 5m, 2h, 1d",
        "inf",
        "may survive",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    // The value of the variable may hold a password.
    let mut asked = lab.dblock(["--help"]);
    let asked = asked.env("DATABASE_LOCKS_URL", "postgres://u:hunter2@h/d");
    assert!(!lab.start(asked).end().out.contains("hunter2"));
    assert!(lab.run(["--version"]).out.starts_with("dblock 1."));
}
