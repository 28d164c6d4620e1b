//! Tickets: a lock that is held across the steps of a script, with the command and the library.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{DBLOCK, Finished, Sandbox, TIMEOUT};
use database_locks::blocking::Locks;
use database_locks::{Error, LostReason, Ticket};
use serde_json::Value;
use testkit::time;

/// Names that must be quoted or encoded in a shell, a URL or a ticket.
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

fn library(sandbox: &Sandbox) -> Locks {
    // `init` creates the file and its folders.
    assert_eq!(sandbox.run(["init"]).code(), 0);
    Locks::connect(format!("sqlite://{}", sandbox.database().display())).expect("connects")
}

fn acquired(sandbox: &Sandbox, options: &[&str], name: &str) -> String {
    let done = sandbox.run([&["acquire"], options, &["--", name]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
    let ticket = done.out.strip_suffix('\n').expect("a line").to_owned();
    assert!(!ticket.contains(char::is_whitespace), "{ticket:?}");
    ticket
}

fn with_stdin(sandbox: &Sandbox, args: &[&str], input: &str) -> Finished {
    std::fs::write(sandbox.path("input"), input).expect("written");
    let file = File::open(sandbox.path("input")).expect("opens");
    sandbox.start(sandbox.dblock(args).stdin(file)).end()
}

#[track_caller]
fn wait_until_expired(sandbox: &Sandbox, name: &str) {
    let expired = time::wait_until(TIMEOUT, || {
        let shown = sandbox.run(["show", name, "--json"]).out;
        shown.contains(r#""state":"expired""#)
    });
    assert!(expired, "its lease never ends");
}

#[test]
fn the_ticket_is_alone_on_stdout_and_messages_are_on_stderr() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(["acquire", "a job", "--ttl", "20m"]);
    assert_eq!(done.code(), 0);
    assert_eq!(done.out.lines().count(), 1, "{done:?}");
    let ticket: Ticket = done.out.parse().expect("a ticket");
    assert_eq!(ticket.name().as_str(), "a job");
    assert_eq!(done.err.lines().count(), 1, "{done:?}");
    for message in [
        "lock `a job` is held until 2",
        "), and is not renewed in the background",
        "`dblock renew 'a job' --ticket TICKET`",
        "`dblock release 'a job' --ticket TICKET`",
    ] {
        assert!(done.err.contains(message), "{message}: {done:?}");
    }
    assert!(
        done.err.contains("(20m)") || done.err.contains("(19m 5"),
        "{done:?}"
    );
    assert!(
        !done.err.contains(&ticket.token().to_string()),
        "no ticket in a log: {done:?}"
    );
    let listed = sandbox.run(["list"]).out;
    assert!(listed.trim_end().ends_with("dblock acquire"), "{listed}");
}

#[test]
fn acquire_json_is_one_object_with_the_ticket_and_its_grant() {
    let sandbox = Sandbox::new();
    let args = ["acquire", "job", "--json", "--holder", "me", "--ttl", "90s"];
    let done = sandbox.run(args);
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

    let endless = sandbox.run(["acquire", "endless", "--json", "--ttl", "inf"]);
    assert!(
        endless
            .out
            .ends_with("\"expires_at\":null,\"free_in\":null}\n"),
        "{endless:?}"
    );
    let advice = "is held without end: release it with `dblock release endless --ticket TICKET`";
    assert!(endless.err.contains(advice), "{endless:?}");
}

#[test]
fn an_acquired_lock_is_held_until_it_is_released() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &["--holder", "the script", "--ttl", "10m"], "job");
    let message = sandbox
        .run(["run", "-n", "job", "--", "true"])
        .only_line(75)
        .to_owned();
    assert!(message.contains("held by the script"), "{message}");
    sandbox.run(["acquire", "-n", "job"]).only_line(75);
    sandbox
        .run(["acquire", "-n", "-E", "9", "job"])
        .only_line(9);
    sandbox.run(["acquire", "-w", "2s", "job"]).only_line(75);
    let done = sandbox.run(["release", "job", "--ticket", &ticket]);
    assert_eq!(done.only_line(0), "dblock: lock `job` is released\n");
    assert_eq!(sandbox.run(["run", "-n", "job", "--", "true"]).code(), 0);
}

#[test]
fn a_signal_during_the_wait_leaves_no_lock_held_and_prints_no_ticket() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &[], "job");
    let waiter = sandbox.start(&mut sandbox.dblock(["acquire", "job"]));
    sandbox.wait_until_opened_by(&waiter);
    waiter.signal(rustix::process::Signal::INT);
    let done = waiter.end();
    assert_eq!((done.code(), &*done.out), (130, ""));
    sandbox.run(["release", "job", "--ticket", &ticket]);
    assert!(!sandbox.is_held("job"));
}

/// Without its ticket the lock would stay held until the ttl ends.
#[test]
fn a_ticket_that_cannot_be_printed_is_released_again() {
    let sandbox = Sandbox::new();
    let full = File::options().write(true).open("/dev/full").expect("full");
    let child = sandbox
        .dblock(["acquire", "job"])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn();
    let done = child.unwrap().wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let message = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        message.contains("cannot be printed") && message.contains("released again"),
        "{message}"
    );
    assert!(!sandbox.is_held("job"));
}

#[test]
fn a_renewal_lasts_as_long_as_the_lease_before_or_as_ttl_and_never_shortens() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &["--ttl", "10s"], "job");
    let left = || {
        let shown = sandbox.run(["show", "job", "--json"]).out;
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown["free_in"].as_f64().expect("held")
    };
    time::sleep(Duration::from_secs(6));
    let renewed = sandbox.run(["renew", "job", "--ticket", &ticket]);
    assert!(
        renewed
            .only_line(0)
            .starts_with("dblock: lock `job` is renewed, and held until ")
    );
    time::sleep(Duration::from_secs(6));
    assert!(sandbox.is_held("job"), "12 s after the start");
    sandbox.run(["renew", "job", "--ticket", &ticket, "--ttl", "1h"]);
    assert!(left() > 3500.0);
    sandbox.run(["renew", "job", "--ticket", &ticket, "--ttl", "1s"]);
    assert!(left() > 3500.0, "it is never shortened");
    let endless = sandbox.run(["renew", "job", "--ticket", &ticket, "--ttl", "inf"]);
    let without_end = "dblock: lock `job` is renewed, and held without end\n";
    assert_eq!(endless.only_line(0), without_end);
    let again = sandbox.run(["renew", "job", "--ticket", &ticket]);
    assert_eq!(again.only_line(0), without_end);
}

#[test]
fn a_dead_ticket_ends_with_76_and_the_message_says_why() {
    let sandbox = Sandbox::new();
    let refused = |args: &[&str]| sandbox.run(args).only_line(76).to_owned();
    let all = |ticket: &str, why: &str| {
        for args in [
            &["renew", "job", "--ticket", ticket][..],
            &["release", "job", "--ticket", ticket],
            &["run", "job", "--ticket", ticket, "--", "touch", "ran"],
        ] {
            let message = refused(args);
            assert!(
                message.contains("ticket for lock `job` is dead") && message.contains(why),
                "{message}"
            );
        }
    };
    let released = acquired(&sandbox, &[], "job");
    sandbox.run(["release", "job", "--ticket", &released]);
    all(&released, "it was released already");

    let successor = acquired(&sandbox, &["--ttl", "10m"], "job");
    all(&released, "another client has had it since");
    all(&released, "; it is now held by ");
    all(&released, ", token ");
    assert!(sandbox.is_held("job"), "the successor is untouched");
    sandbox.run(["release", "job", "--force"]);
    all(&successor, "or it was released by force");

    let expired = acquired(&sandbox, &["--ttl", "3s"], "job");
    wait_until_expired(&sandbox, "job");
    for args in [
        &["renew", "job", "--ticket", &*expired][..],
        &["run", "job", "--ticket", &expired, "--", "touch", "ran"],
    ] {
        assert!(refused(args).contains("its lease has expired"));
    }
    sandbox.run(["prune", "--older-than", "0"]);
    all(&expired, "its row was deleted");
    assert!(!sandbox.path("ran").exists());
    assert!(!sandbox.is_held("job"), "nothing was revived");
    testkit::promise("P3", "sqlite");
}

/// The lease has expired, but no other client was granted the lock.
#[test]
fn a_late_release_succeeds_if_no_other_client_has_had_the_lock() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &["--ttl", "3s"], "job");
    wait_until_expired(&sandbox, "job");
    assert_eq!(
        sandbox.run(["release", "job", "--ticket", &ticket]).code(),
        0
    );
}

#[test]
fn a_ticket_of_another_lock_is_refused() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &[], "one");
    for args in [
        &["renew", "other", "--ticket", &*ticket][..],
        &["release", "other", "--ticket", &ticket],
        &["run", "other", "--ticket", &ticket, "--", "touch", "ran"],
    ] {
        let done = sandbox.run(args);
        let message = done.only_line(2);
        assert!(
            message.contains("for lock `one`, not for `other`"),
            "{message}"
        );
    }
    assert!(sandbox.is_held("one") && !sandbox.path("ran").exists());
}

/// It may be a valid ticket with a typing error, which a reader of the log could correct.
#[test]
fn a_malformed_ticket_ends_with_2_and_is_not_printed() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &[], "job");
    let spoilt = format!("x{ticket}");
    for command in ["renew", "release"] {
        let done = sandbox.run([command, "job", "--ticket", &spoilt]);
        let message = done.only_line(2);
        assert!(message.contains("TOKEN.GRANT.NAME"), "{message}");
        assert!(!message.contains(&ticket[5..30]), "{message}");
        let empty = sandbox.run([command, "job", "--ticket", ""]);
        assert!(empty.only_line(2).contains("the ticket is empty"));
    }
}

#[test]
fn a_ticket_may_come_from_standard_input() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &[], "job");
    for input in [
        format!("{ticket}\n"),
        ticket.clone(),
        format!("  {ticket} \r\n"),
    ] {
        let done = with_stdin(&sandbox, &["renew", "job", "--ticket", "-"], &input);
        assert_eq!(done.code(), 0, "{done:?}");
    }
    let none = with_stdin(&sandbox, &["release", "job", "--ticket", "-"], "");
    assert!(none.only_line(2).contains("no ticket on standard input"));
    let done = with_stdin(&sandbox, &["release", "job", "--ticket", "-"], &ticket);
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(!sandbox.is_held("job"));
}

#[test]
fn the_ticket_in_the_environment_serves_renew_and_never_release() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &[], "job");
    let with = |args: &[&str]| {
        let mut command = sandbox.dblock(args);
        sandbox.start(command.env("DBLOCK_TICKET", &ticket)).end()
    };
    assert_eq!(with(&["renew", "job"]).code(), 0);
    assert!(with(&["renew", "other"]).only_line(2).contains("`other`"));
    sandbox.run(["renew", "job"]).only_line(2);

    // Either --ticket or --force must be given.
    assert!(with(&["release", "job"]).only_line(2).contains("--ticket"));
    assert!(sandbox.is_held("job"));
    with(&["release", "job", "--force", "--ticket", &ticket]).only_line(2);
    let forced = with(&["release", "job", "--force"]);
    assert!(forced.err.contains("released by force"), "{forced:?}");
    // `run` does not read it either.
    assert_eq!(with(&["run", "-n", "own", "--", "true"]).code(), 0);
}

#[test]
fn a_command_can_be_run_under_a_lock_that_was_acquired() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &["--ttl", "8s"], "job");
    let script = r#"cat; echo "$DBLOCK_TOKEN"; [ "$DBLOCK_TICKET" != "$OLD" ]; echo $?; sleep 10
        "$DBLOCK" run -n job -- true; echo $?"#;
    let args = [
        "run", "job", "--ticket", "-", "--ttl", "8s", "--grace", "500ms", "--", "sh", "-c", script,
    ];
    // Only the first line is read: the rest belongs to the command.
    std::fs::write(sandbox.path("input"), format!("{ticket}\nthe rest\n")).unwrap();
    let mut command = sandbox.dblock(args);
    command
        .stdin(File::open(sandbox.path("input")).unwrap())
        .env("DBLOCK", DBLOCK)
        .env("OLD", &ticket);
    let done = sandbox.start(&mut command).end();
    assert_eq!(done.code(), 0, "{done:?}");
    let token = ticket.split('.').next().unwrap();
    assert_eq!(done.out, format!("the rest\n{token}\n0\n2\n"), "{done:?}");
    // The lock is released when the command ends, and resuming it has ended the first ticket.
    assert!(!sandbox.is_held("job"));
    sandbox
        .run(["release", "job", "--ticket", &ticket])
        .only_line(76);
}

#[test]
fn a_ticket_resumes_a_lock_once() {
    let sandbox = Sandbox::new();
    let ticket = acquired(&sandbox, &[], "job");
    let holder = sandbox.start_run(&["--ticket", &ticket], "job", "BEGUN; exec sleep 1000");
    for args in [
        &["run", "job", "--ticket", &*ticket, "--", "touch", "ran"][..],
        &["renew", "job", "--ticket", &ticket],
        &["release", "job", "--ticket", &ticket],
    ] {
        let done = sandbox.run(args);
        assert!(done.only_line(76).contains("resumed already"), "{done:?}");
    }
    assert!(sandbox.is_held("job"));
    drop(holder);
}

#[test]
fn the_library_resumes_what_the_command_acquired() {
    let sandbox = Sandbox::new();
    let locks = library(&sandbox);
    for name in NAMES {
        let ticket: Ticket = acquired(&sandbox, &[], name).parse().expect("a ticket");
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
        sandbox.run(["acquire", "-n", "--", name]);
    }
}

#[test]
fn the_command_renews_and_releases_what_the_library_handed_over() {
    let sandbox = Sandbox::new();
    let locks = library(&sandbox);
    for name in NAMES {
        let guard = locks.lock(name).acquire().expect("acquired");
        let token = guard.token();
        let ticket = guard.into_ticket().expect("handed over").to_string();
        let renewed = sandbox.run(["renew", "--ticket", &ticket, "--ttl", "1h", "--", name]);
        assert_eq!(renewed.code(), 0, "{renewed:?}");
        let released = sandbox.run(["release", "--ticket", &ticket, "--", name]);
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

/// The guard is still in use when a script releases its lock.
#[test]
fn a_guard_in_the_library_learns_that_its_ticket_was_released() {
    let sandbox = Sandbox::new();
    let locks = library(&sandbox);
    let lock = locks.lock("job").ttl(Duration::from_secs(12));
    let guard = lock.acquire().expect("acquired");
    let ticket = guard.ticket().to_string();
    assert_eq!(
        sandbox.run(["release", "job", "--ticket", &ticket]).code(),
        0
    );
    assert_eq!(guard.wait_lost().reason(), LostReason::Released);
}

#[test]
fn a_script_holds_a_lock_across_its_steps_as_the_help_shows() {
    let sandbox = Sandbox::new();
    let script = r#"set -e
        TICKET=$("$DBLOCK" acquire deploy -w 5m --ttl 20m) || exit
        trap '"$DBLOCK" release deploy --ticket "$TICKET"' EXIT
        "$DBLOCK" run -n -E 0 deploy -- touch intruder
        printf '%s\n' "$TICKET" | "$DBLOCK" renew deploy --ticket -
        exit 3"#;
    std::fs::File::create(sandbox.path("script"))
        .and_then(|mut file| file.write_all(script.as_bytes()))
        .unwrap();
    let mut shell = sandbox.command("sh");
    let done = sandbox
        .start(shell.arg("script").env("DBLOCK", DBLOCK))
        .end();
    assert_eq!(done.code(), 3, "{done:?}");
    assert!(!sandbox.path("intruder").exists());
    assert!(!sandbox.is_held("deploy"));
}
