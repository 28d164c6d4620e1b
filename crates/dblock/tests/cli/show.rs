//! `list`, `show`, `release` and `init`.

use crate::support::Sandbox;
use serde_json::Value;
use testkit::time;

const HOLD: &str = "BEGUN; exec sleep 1000";

#[test]
fn list_shows_who_holds_which_lock_and_what_for() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(["list"]).out, "");
    let options = [
        "--holder",
        "the holder",
        "--meta",
        "why=weekly",
        "--meta",
        "n=2",
    ];
    let _holder = sandbox.start_run(&options, "backup", HOLD);
    sandbox.run(["run", "report", "--", "true"]);

    let list = sandbox.run(["list"]).out;
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    assert!(lines[0].starts_with("NAME    STATE  HOLDER"), "{list}");
    assert!(lines[1].starts_with("backup  held   the holder"), "{list}");
    assert!(lines[1].ends_with("sh n=2 why=weekly"), "{list}");
    let all = sandbox.run(["list", "--all"]).out;
    assert!(all.contains("\nreport  free "), "{all}");
}

#[test]
fn list_json_is_one_array() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(["list", "--json"]).out, "[]\n");
    let _holder = sandbox.start_run(&["--holder", "me", "--meta", "why=weekly"], "backup", HOLD);
    let _endless = sandbox.start_run(&["--ttl", "inf"], "endless", HOLD);
    sandbox.run(["run", "report", "--", "true"]);
    let held: Value = serde_json::from_str(&sandbox.run(["list", "--json"]).out).unwrap();
    assert_eq!(held.as_array().map(Vec::len), Some(2));
    let all: Value = serde_json::from_str(&sandbox.run(["list", "--all", "--json"]).out).unwrap();

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
    let sandbox = Sandbox::new();
    let holder = sandbox.start_run(&["--ttl", "5s", "--grace", "100ms"], "job", HOLD);
    drop(holder);
    let expired = time::wait_until(crate::support::TIMEOUT, || {
        let shown = sandbox.run(["show", "job", "--json"]).out;
        shown.contains(r#""state":"expired""#) && shown.contains(r#""free_in":0.0"#)
    });
    assert!(expired, "{:?}", sandbox.run(["show", "job"]));
    assert!(
        sandbox.run(["list"]).out.contains("job   expired"),
        "{:?}",
        sandbox.run(["list"])
    );
}

#[test]
fn show_prints_all_about_a_lock_and_ends_with_1_for_an_unknown_one() {
    let sandbox = Sandbox::new();
    let message = sandbox.run(["show", "nope"]).only_line(1).to_owned();
    assert!(message.contains("`nope`"), "{message}");
    sandbox.run(["show", "nope", "--json"]).only_line(1);
    let _holder = sandbox.start_run(&["--holder", "me", "--meta", "why=weekly"], "job", HOLD);
    let shown = sandbox.run(["show", "job"]).out;
    for line in [
        "name      job",
        "state     held",
        "holder    me",
        "why       weekly",
    ] {
        assert!(shown.lines().any(|one| one == line), "{line}: {shown}");
    }
    let shown: Value = serde_json::from_str(&sandbox.run(["show", "job", "--json"]).out).unwrap();
    assert_eq!(shown["name"], "job");
}

/// Any client can choose names and metadata: they must neither start a line nor control the
/// terminal of the user who lists them.
#[test]
fn text_from_the_table_is_escaped_and_stays_on_its_line() {
    let sandbox = Sandbox::new();
    let name = "a\nheld  \u{1b}[2J\u{202e}job";
    let escaped = r"a\nheld  \u{1b}[2J\u{202e}job";
    let _holder = sandbox.start_run(
        &["--holder", "x\r\u{9b}31m", "--meta", "k=v\n\u{7}"],
        "job",
        HOLD,
    );
    sandbox.run(["run", name, "--", "true"]);
    for args in [&["list", "--all"][..], &["show", "job"], &["show", name]] {
        let shown = sandbox.run(args).out;
        let plain = |c: char| c == '\n' || !c.is_control();
        assert!(
            shown.chars().all(plain) && !shown.contains('\u{202e}'),
            "{shown:?}"
        );
    }
    let list = sandbox.run(["list", "--all"]).out;
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.contains(escaped), "{list}");
    // JSON has the exact text.
    let shown: Value = serde_json::from_str(&sandbox.run(["show", name, "--json"]).out).unwrap();
    assert_eq!(shown["name"], name);
    let refused = sandbox.run(["show", "no\nsuch"]);
    assert!(refused.only_line(1).contains(r"no\nsuch"));
}

#[test]
fn a_closed_pipe_is_no_failure_of_list_and_show() {
    let sandbox = Sandbox::new();
    sandbox.run(["run", "job", "--", "true"]);
    for args in [
        &["list", "--all"][..],
        &["show", "job", "--json"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = sandbox
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
fn a_release_by_force_names_the_previous_holder() {
    let sandbox = Sandbox::new();
    assert_eq!(
        sandbox.run(["release", "job", "--force"]).only_line(0),
        "dblock: there is no lock `job`; `dblock list --all` has all names\n"
    );
    let _holder = sandbox.start_run(&["--holder", "me"], "job", HOLD);
    let message = sandbox.run(["release", "job"]).only_line(2).to_owned();
    assert!(
        message.contains("--force if its holder is dead"),
        "{message}"
    );
    assert!(sandbox.is_held("job"));
    let done = sandbox.run(["release", "job", "--force"]);
    assert!(
        done.only_line(0)
            .starts_with("dblock: lock `job` released by force: me had held it for "),
        "{done:?}"
    );
    assert_eq!(sandbox.run(["run", "-n", "job", "--", "true"]).code(), 0);
}

#[test]
fn init_may_be_run_twice() {
    let sandbox = Sandbox::new();
    for _ in 0..2 {
        let done = sandbox.run(["init"]);
        assert_eq!(done.code(), 0);
        let place = sandbox.database().display().to_string();
        assert_eq!(
            done.out,
            format!(
                "tables `database_locks_lock` and `database_locks_permit` are ready in {place}\n"
            )
        );
    }
}

#[test]
fn the_help_has_examples_exit_codes_and_variables_but_no_values() {
    let sandbox = Sandbox::new();
    let help = sandbox.run(["--help"]).out;
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
    let help = sandbox.run(["run", "--help"]).out;
    for word in [
        "Examples:",
        "DBLOCK_TICKET",
        "500ms, 30s, 5m, 2h, 1d",
        "inf",
        "may survive",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    // The value of the variable may contain a password.
    let mut asked = sandbox.dblock(["--help"]);
    let asked = asked.env("DATABASE_LOCKS_URL", "postgres://u:hunter2@h/d");
    assert!(!sandbox.start(asked).end().out.contains("hunter2"));
    assert!(sandbox.run(["--version"]).out.starts_with("dblock 1."));
}
