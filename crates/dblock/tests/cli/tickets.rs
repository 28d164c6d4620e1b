//! Tickets: a lock that is held across the steps of a script, by the command and by the library.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{DBLOCK, Done, Lab};
use database_locks::blocking::Locks;
use database_locks::{Error, LostReason, Ticket};
use serde_json::Value;
use testkit::time;

/// Names that a shell, a URL or a careless format would spoil.
const NAMES: &[&str] = &[
    "job",
    "a.b.c",
    "nightly report",
    "it's \"here\"",
    "Größe ✓ 仕事",
    "%41",
    "-n",
    "$HOME; `x` | & \\",
    " padded ",
    "two\nlines",
];

fn library(lab: &Lab) -> Locks {
    // The file is made, with its folders, by the command that comes first.
    assert_eq!(lab.run(["init"]).code(), 0);
    Locks::connect(format!("sqlite://{}", lab.database().display())).expect("connects")
}

fn acquired(lab: &Lab, options: &[&str], name: &str) -> String {
    let done = lab.run([&["acquire"], options, &["--", name]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
    let ticket = done.out.strip_suffix('\n').expect("a line").to_owned();
    assert!(!ticket.contains(char::is_whitespace), "{ticket:?}");
    ticket
}

fn with_stdin(lab: &Lab, args: &[&str], input: &str) -> Done {
    std::fs::write(lab.path("input"), input).expect("written");
    let file = File::open(lab.path("input")).expect("opens");
    lab.start(lab.dblock(args).stdin(file)).end()
}

#[test]
fn the_ticket_stands_alone_on_stdout_and_the_rest_is_said_on_stderr() {
    let lab = Lab::new();
    let done = lab.run(["acquire", "a job", "--ttl", "20m"]);
    assert_eq!(done.code(), 0);
    assert_eq!(done.out.lines().count(), 1, "{done:?}");
    let ticket: Ticket = done.out.parse().expect("a ticket");
    assert_eq!(ticket.name().as_str(), "a job");
    assert_eq!(done.err.lines().count(), 1, "{done:?}");
    for said in [
        "lock `a job` is held until 2",
        "(20m), and is not renewed by itself",
        "`dblock renew 'a job' --ticket TICKET`",
        "`dblock release 'a job' --ticket TICKET`",
    ] {
        assert!(done.err.contains(said), "{said}: {done:?}");
    }
    assert!(
        !done.err.contains(&ticket.token().to_string()),
        "no ticket in a log: {done:?}"
    );
    let listed = lab.run(["list"]).out;
    assert!(listed.trim_end().ends_with("dblock acquire"), "{listed}");
}

#[test]
fn as_json_a_ticket_comes_with_all_about_its_grant() {
    let lab = Lab::new();
    let args = ["acquire", "job", "--json", "--holder", "me", "--ttl", "90s"];
    let done = lab.run(args);
    let got: Value = serde_json::from_str(&done.out).expect("JSON");
    let ticket: Ticket = got["ticket"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        (&got["name"], &got["holder"]),
        (&"job".into(), &"me".into())
    );
    assert_eq!(got["token"].as_i64(), Some(ticket.token().get()));
    let grant = got["grant"].as_str().unwrap();
    assert!(ticket.to_string().contains(&format!(".{grant}.")), "{got}");
    let left = got["free_in"].as_f64().unwrap();
    assert!(left > 30.0 && left <= 90.0, "all of a long ttl: {left}");
    assert!(got["expires_at"].as_str().unwrap().ends_with('Z'), "{got}");
    assert_eq!(got.as_object().map(serde_json::Map::len), Some(7));

    let endless = lab.run(["acquire", "endless", "--json", "--ttl", "inf"]);
    assert!(
        endless
            .out
            .ends_with("\"expires_at\":null,\"free_in\":null}\n"),
        "{endless:?}"
    );
    assert!(endless.err.contains("is held without end"), "{endless:?}");
}

#[test]
fn what_was_acquired_is_held_until_it_is_released() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &["--holder", "the script"], "job");
    let said = lab
        .run(["run", "-n", "job", "--", "true"])
        .refused(75)
        .to_owned();
    assert!(said.contains("held by the script"), "{said}");
    lab.run(["acquire", "-n", "job"]).refused(75);
    lab.run(["acquire", "-n", "-E", "9", "job"]).refused(9);
    lab.run(["acquire", "-w", "200ms", "job"]).refused(75);
    let done = lab.run(["release", "job", "--ticket", &ticket]);
    assert_eq!(done.refused(0), "dblock: lock `job` is released\n");
    assert_eq!(lab.run(["run", "-n", "job", "--", "true"]).code(), 0);
}

#[test]
fn a_signal_while_it_waits_leaves_nothing_held_and_prints_no_ticket() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &[], "job");
    let waiter = lab.start(&mut lab.dblock(["acquire", "job"]));
    time::sleep(Duration::from_millis(300));
    waiter.signal(rustix::process::Signal::INT);
    let done = waiter.end();
    assert_eq!((done.code(), &*done.out), (130, ""));
    lab.run(["release", "job", "--ticket", &ticket]);
    assert!(!lab.is_held("job"));
}

/// Nobody would have it, and the lock would be held for nothing.
#[test]
fn a_ticket_that_cannot_be_printed_is_given_back() {
    let lab = Lab::new();
    let full = File::options().write(true).open("/dev/full").expect("full");
    let child = lab
        .dblock(["acquire", "job"])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn();
    let done = child.unwrap().wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        said.contains("cannot be printed") && said.contains("released again"),
        "{said}"
    );
    assert!(!lab.is_held("job"));
}

#[test]
fn a_renewal_goes_on_for_as_long_as_before_or_as_is_asked_for_and_never_shortens() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &["--ttl", "2s"], "job");
    let left = || {
        let shown = lab.run(["show", "job", "--json"]).out;
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown["free_in"].as_f64().expect("held")
    };
    time::sleep(Duration::from_millis(1200));
    let renewed = lab.run(["renew", "job", "--ticket", &ticket]);
    assert!(
        renewed
            .refused(0)
            .starts_with("dblock: lock `job` is renewed, and held until ")
    );
    time::sleep(Duration::from_millis(1200));
    assert!(lab.is_held("job"), "2.4 s after the start");
    lab.run(["renew", "job", "--ticket", &ticket, "--ttl", "1h"]);
    assert!(left() > 3500.0);
    lab.run(["renew", "job", "--ticket", &ticket, "--ttl", "1s"]);
    assert!(left() > 3500.0, "it is never shortened");
    let endless = lab.run(["renew", "job", "--ticket", &ticket, "--ttl", "inf"]);
    let without_end = "dblock: lock `job` is renewed, and held without end\n";
    assert_eq!(endless.refused(0), without_end);
    let again = lab.run(["renew", "job", "--ticket", &ticket]);
    assert_eq!(again.refused(0), without_end);
}

#[test]
fn a_dead_ticket_is_76_and_says_what_became_of_it() {
    let lab = Lab::new();
    let refused = |args: &[&str]| lab.run(args).refused(76).to_owned();
    let all = |ticket: &str, why: &str| {
        for args in [
            &["renew", "job", "--ticket", ticket][..],
            &["release", "job", "--ticket", ticket],
            &["run", "job", "--ticket", ticket, "--", "touch", "ran"],
        ] {
            let said = refused(args);
            assert!(
                said.contains("ticket for lock `job` is dead") && said.contains(why),
                "{said}"
            );
        }
    };
    let released = acquired(&lab, &[], "job");
    lab.run(["release", "job", "--ticket", &released]);
    all(&released, "it was released already");

    let successor = acquired(&lab, &[], "job");
    all(&released, "another client has had the lock since");
    all(&released, "; it is now held by ");
    all(&released, ", token ");
    assert!(lab.is_held("job"), "the successor is untouched");
    lab.run(["release", "job", "--force"]);
    all(&successor, "or it was released by force");

    let expired = acquired(&lab, &["--ttl", "100ms"], "job");
    time::sleep(Duration::from_millis(300));
    for args in [
        &["renew", "job", "--ticket", &*expired][..],
        &["run", "job", "--ticket", &expired, "--", "touch", "ran"],
    ] {
        assert!(refused(args).contains("its lease has expired"));
    }
    lab.run(["prune", "--older-than", "0"]);
    all(&expired, "the table does not know the lock any more");
    assert!(!lab.path("ran").exists());
    assert!(!lab.is_held("job"), "nothing was revived");
    testkit::promise("P3", "sqlite");
}

/// Late, but nobody has come in between: the work was alone, and the lock is given back.
#[test]
fn a_release_after_the_end_of_the_lease_is_none_to_complain_of_while_nobody_had_the_lock() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &["--ttl", "100ms"], "job");
    time::sleep(Duration::from_millis(300));
    assert_eq!(lab.run(["release", "job", "--ticket", &ticket]).code(), 0);
}

#[test]
fn a_ticket_is_for_its_own_lock_only() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &[], "one");
    for args in [
        &["renew", "other", "--ticket", &*ticket][..],
        &["release", "other", "--ticket", &ticket],
        &["run", "other", "--ticket", &ticket, "--", "touch", "ran"],
    ] {
        let done = lab.run(args);
        let said = done.refused(2);
        assert!(said.contains("for lock `one`, not for `other`"), "{said}");
    }
    assert!(lab.is_held("one") && !lab.path("ran").exists());
}

/// It may be a good one with a typing error: whoever reads the log could mend it.
#[test]
fn a_ticket_of_another_form_is_2_and_is_not_repeated() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &[], "job");
    let spoilt = format!("x{ticket}");
    for command in ["renew", "release"] {
        let done = lab.run([command, "job", "--ticket", &spoilt]);
        let said = done.refused(2);
        assert!(said.contains("TOKEN.GRANT.NAME"), "{said}");
        assert!(!said.contains(&ticket[5..30]), "{said}");
        let empty = lab.run([command, "job", "--ticket", ""]);
        assert!(empty.refused(2).contains("the ticket is empty"));
    }
}

#[test]
fn a_ticket_may_come_from_standard_input() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &[], "job");
    for input in [
        format!("{ticket}\n"),
        ticket.clone(),
        format!("  {ticket} \r\n"),
    ] {
        let done = with_stdin(&lab, &["renew", "job", "--ticket", "-"], &input);
        assert_eq!(done.code(), 0, "{done:?}");
    }
    let none = with_stdin(&lab, &["release", "job", "--ticket", "-"], "");
    assert!(none.refused(2).contains("no ticket on standard input"));
    let done = with_stdin(&lab, &["release", "job", "--ticket", "-"], &ticket);
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(!lab.is_held("job"));
}

#[test]
fn the_environment_has_the_ticket_for_a_renewal_and_never_for_a_release() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &[], "job");
    let with = |args: &[&str]| {
        let mut command = lab.dblock(args);
        lab.start(command.env("DBLOCK_TICKET", &ticket)).end()
    };
    assert_eq!(with(&["renew", "job"]).code(), 0);
    assert!(with(&["renew", "other"]).refused(2).contains("`other`"));
    lab.run(["renew", "job"]).refused(2);

    // Which of the two is meant must be said.
    assert!(with(&["release", "job"]).refused(2).contains("--ticket"));
    assert!(lab.is_held("job"));
    with(&["release", "job", "--force", "--ticket", &ticket]).refused(2);
    let forced = with(&["release", "job", "--force"]);
    assert!(forced.err.contains("released by force"), "{forced:?}");
    // A lock of its own, and not that of the environment.
    assert_eq!(with(&["run", "-n", "own", "--", "true"]).code(), 0);
}

#[test]
fn a_command_can_be_run_under_a_lock_that_was_acquired() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &["--ttl", "2s"], "job");
    let script = r#"cat; echo "$DBLOCK_TOKEN"; [ "$DBLOCK_TICKET" != "$OLD" ]; echo $?; sleep 3
        "$DBLOCK" run -n job -- true; echo $?"#;
    let args = [
        "run", "job", "--ticket", "-", "--ttl", "2s", "--grace", "500ms", "--", "sh", "-c", script,
    ];
    // Not a byte more than the ticket is read: the rest is for the command.
    std::fs::write(lab.path("input"), format!("{ticket}\nthe rest\n")).unwrap();
    let mut command = lab.dblock(args);
    command
        .stdin(File::open(lab.path("input")).unwrap())
        .env("DBLOCK", DBLOCK)
        .env("OLD", &ticket);
    let done = lab.start(&mut command).end();
    assert_eq!(done.code(), 0, "{done:?}");
    let token = ticket.split('.').next().unwrap();
    assert_eq!(done.out, format!("the rest\n{token}\n0\n2\n"), "{done:?}");
    // It is released when the command ends, and the first ticket died when it was resumed.
    assert!(!lab.is_held("job"));
    lab.run(["release", "job", "--ticket", &ticket]).refused(76);
}

#[test]
fn a_ticket_resumes_a_lock_once() {
    let lab = Lab::new();
    let ticket = acquired(&lab, &[], "job");
    let holder = lab.start_run(&["--ticket", &ticket], "job", "BEGUN; exec sleep 1000");
    for args in [
        &["run", "job", "--ticket", &*ticket, "--", "touch", "ran"][..],
        &["renew", "job", "--ticket", &ticket],
        &["release", "job", "--ticket", &ticket],
    ] {
        let done = lab.run(args);
        assert!(done.refused(76).contains("resumed already"), "{done:?}");
    }
    assert!(lab.is_held("job"));
    drop(holder);
}

/// The command may be long where the lock is needed for its beginning only.
#[test]
fn a_command_that_gave_its_lock_back_is_left_alone() {
    let lab = Lab::new();
    let script = r#""$DBLOCK" -q release "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" || exit 9
        BEGUN; sleep 2; echo went on"#;
    let run = |name: &str| {
        let mut command = lab.dblock(["run", "--ttl", "1s", "--grace", "200ms", name, "--"]);
        let script = script.replace("BEGUN", "touch begun");
        command.args(["sh", "-c", &script]).env("DBLOCK", DBLOCK);
        lab.start(&mut command)
    };
    let done = run("job").end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(done.out.ends_with("went on\n"), "{done:?}");
}

/// The row then says no more than that a later grant was made: what a theft would look like.
#[test]
fn it_is_left_alone_even_where_somebody_else_has_the_lock_by_then() {
    let lab = Lab::new();
    let script = r#""$DBLOCK" -q release "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" || exit 9
        touch released; while [ ! -e go ]; do sleep 0.02; done; sleep 1; echo went on"#;
    let mut first = lab.dblock([
        "run", "--ttl", "1s", "--grace", "200ms", "job", "--", "sh", "-c", script,
    ]);
    let first = lab.start(first.env("DBLOCK", DBLOCK));
    lab.wait_for("released");
    let next = lab.start_run(&["-n"], "job", "BEGUN; touch go; sleep 2; exit 4");
    let done = first.end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(done.out.ends_with("went on\n"), "{done:?}");
    assert_eq!(next.end().code(), 4, "and the other one is left alone too");
}

#[test]
fn a_command_that_goes_on_elsewhere_is_left_alone() {
    let lab = Lab::new();
    let script = r#""$DBLOCK" run "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" -- sh -c 'sleep 1; exit 3'
        echo inner=$?; sleep 1; echo went on"#;
    let mut outer = lab.dblock([
        "run", "--ttl", "1s", "--grace", "200ms", "job", "--", "sh", "-c", script,
    ]);
    let done = lab.start(outer.env("DBLOCK", DBLOCK)).end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert_eq!(done.out, "inner=3\nwent on\n");
}

/// That somebody tried to release it is no reason to trust it any longer.
#[test]
fn a_command_that_could_not_give_its_lock_back_is_stopped_when_that_is_lost() {
    let lab = Lab::new();
    let script = r#""$DBLOCK" --url sqlite:///no/such/folder/x release job --ticket "$DBLOCK_TICKET"
        touch tried; while :; do sleep 0.02; done"#;
    let mut command = lab.dblock([
        "run", "--ttl", "2s", "--grace", "500ms", "job", "--", "sh", "-c", script,
    ]);
    let running = lab.start(command.env("DBLOCK", DBLOCK));
    lab.wait_for("tried");
    lab.run(["release", "job", "--force"]);
    let done = running.end();
    assert_eq!(done.status.code(), Some(76), "{done:?}");
    assert!(done.err.contains("lock `job` lost "), "{done:?}");
    assert!(done.err.contains(": released by force"), "{done:?}");
}

#[test]
fn the_library_goes_on_with_what_the_command_acquired() {
    let lab = Lab::new();
    let locks = library(&lab);
    for name in NAMES {
        let ticket: Ticket = acquired(&lab, &[], name).parse().expect("a ticket");
        assert_eq!(ticket.name().as_str(), *name);
        let guard = locks.resume(&ticket).expect("resumed");
        assert_eq!(guard.token(), ticket.token());
        let twice = locks.resume(&ticket).unwrap_err();
        assert!(
            matches!(
                twice,
                Error::Lost {
                    reason: LostReason::Resumed,
                    ..
                }
            ),
            "{twice:?}"
        );
        guard.check().expect("held");
        guard.release().expect("released");
        lab.run(["acquire", "-n", "--", name]);
    }
}

#[test]
fn the_command_goes_on_with_what_the_library_handed_over() {
    let lab = Lab::new();
    let locks = library(&lab);
    for name in NAMES {
        let guard = locks.lock(name).acquire().expect("acquired");
        let token = guard.token();
        let ticket = guard.into_ticket().expect("handed over").to_string();
        let renewed = lab.run(["renew", "--ticket", &ticket, "--ttl", "1h", "--", name]);
        assert_eq!(renewed.code(), 0, "{renewed:?}");
        let released = lab.run(["release", "--ticket", &ticket, "--", name]);
        assert_eq!(released.code(), 0, "{released:?}");
        let next = locks
            .lock(name)
            .try_acquire()
            .expect("asked")
            .expect("free");
        assert!(next.token() > token, "tokens grow");
        next.release().expect("released");
    }
}

/// What a guard still in use is told when a script releases its lock.
#[test]
fn a_holder_in_the_library_learns_that_its_ticket_was_used() {
    let lab = Lab::new();
    let locks = library(&lab);
    let lock = locks.lock("job").ttl(Duration::from_millis(900));
    let guard = lock.acquire().expect("acquired");
    let ticket = guard.ticket().to_string();
    assert_eq!(lab.run(["release", "job", "--ticket", &ticket]).code(), 0);
    assert_eq!(guard.wait_lost().reason(), LostReason::Released);
}

#[test]
fn a_script_holds_a_lock_across_its_steps_as_the_help_shows() {
    let lab = Lab::new();
    let script = r#"set -e
        TICKET=$("$DBLOCK" acquire deploy -w 5m --ttl 20m) || exit
        trap '"$DBLOCK" release deploy --ticket "$TICKET"' EXIT
        "$DBLOCK" run -n -E 0 deploy -- touch intruder
        printf '%s\n' "$TICKET" | "$DBLOCK" renew deploy --ticket -
        exit 3"#;
    std::fs::File::create(lab.path("script"))
        .and_then(|mut file| file.write_all(script.as_bytes()))
        .unwrap();
    let mut shell = lab.command("sh");
    let done = lab.start(shell.arg("script").env("DBLOCK", DBLOCK)).end();
    assert_eq!(done.code(), 3, "{done:?}");
    assert!(!lab.path("intruder").exists());
    assert!(!lab.is_held("deploy"));
}
