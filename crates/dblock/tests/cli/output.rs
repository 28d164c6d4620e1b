//! Output that does not arrive, and how much of it there is.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::support::{DBLOCK, Done, Lab};

fn to_a_full_disk(lab: &Lab, args: &[&str]) -> Done {
    let full = File::options().write(true).open("/dev/full").expect("full");
    let mut command = lab.dblock(args);
    let output = command
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("runs");
    Done {
        status: output.status,
        out: String::new(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn output_that_cannot_be_written_is_1_and_one_line() {
    let lab = Lab::new();
    assert_eq!(lab.run(["run", "job", "--", "true"]).code(), 0);
    for args in [
        "list --all",
        "list --all --json",
        "show job",
        "show job --json",
        "doctor",
        "doctor --json",
        "prune --older-than 1000d",
        "init",
        "completions bash",
        "man",
        "man run",
        "help",
        "help run",
        "--version",
        "--help",
        "run --help",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let done = to_a_full_disk(&lab, &args);
        let said = done.refused(1);
        assert!(said.contains("No space left on device"), "{args:?}: {said}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let lab = Lab::new();
    for args in ["man", "completions bash", "--help", "help run"] {
        let script =
            format!(r#""$DBLOCK" {args} | head -c 1 >/dev/null; echo "${{PIPESTATUS[0]}}""#);
        let mut bash = lab.command("bash");
        let done = lab
            .start(bash.args(["-c", &script]).env("DBLOCK", DBLOCK))
            .end();
        assert_eq!((&*done.out, &*done.err), ("0\n", ""), "{args}");
    }
}

#[test]
fn a_ticket_is_not_lost_where_stdout_is_closed() {
    let lab = Lab::new();
    for args in ["acquire job", "acquire job --json"] {
        let script = format!(r#""$DBLOCK" {args} >&-; exit $?"#);
        let mut shell = lab.command("sh");
        let done = lab
            .start(shell.args(["-c", &script]).env("DBLOCK", DBLOCK))
            .end();
        let said = done.refused(1);
        assert!(
            said.contains("closed") && said.contains("released again"),
            "{said}"
        );
        assert!(!lab.is_held("job"));
    }
    // This is meant: the lock is held until its ttl ends.
    let mut shell = lab.command("sh");
    let script = r#""$DBLOCK" acquire job >/dev/null"#;
    let done = lab
        .start(shell.args(["-c", script]).env("DBLOCK", DBLOCK))
        .end();
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(lab.is_held("job"));
}

#[test]
fn quiet_leaves_out_what_is_no_error() {
    let lab = Lab::new();
    let acquired = lab.run(["-q", "acquire", "job"]);
    assert_eq!((acquired.code(), &*acquired.err), (0, ""), "{acquired:?}");
    let ticket = acquired.out.trim();
    let silent = |args: &[&str]| {
        let done = lab.run(args);
        assert_eq!(
            (done.code(), &*done.out, &*done.err),
            (0, "", ""),
            "{done:?}"
        );
    };
    lab.run(["run", "-q", "-n", "job", "--", "true"])
        .refused(75);
    silent(&["renew", "-q", "job", "--ticket", ticket]);
    silent(&["release", "-q", "job", "--ticket", ticket]);
    silent(&["release", "job", "--force", "--quiet"]);
    silent(&["-q", "prune", "--older-than", "0"]);
    silent(&["-q", "init"]);
}

#[test]
fn verbose_reports_a_wait_and_who_holds_the_lock() {
    let lab = Lab::new();
    let holder = lab.start_run(&["--holder", "the holder"], "job", "BEGUN; exec sleep 1000");
    let usual = lab.run(["run", "-w", "300ms", "job", "--", "true"]);
    assert_eq!(usual.refused(75).lines().count(), 1);
    let done = lab.run(["-v", "run", "-w", "300ms", "job", "--", "true"]);
    assert_eq!(done.code(), 75);
    let waiting = done
        .err
        .lines()
        .find(|line| line.contains("(the holder for "));
    assert!(
        waiting.is_some_and(|line| line.starts_with("dblock: lock `job`: ")),
        "{done:?}"
    );
    drop(holder);
    lab.run(["release", "job", "--force"]);
    assert!(!lab.run(["run", "job", "--", "true"]).err.contains("dblock"));
}

#[test]
fn every_command_has_its_help_and_its_page() {
    let lab = Lab::new();
    let commands = "run acquire renew release list show init prune completions man doctor help";
    let whole = lab.run(["--help"]).out;
    for command in commands.split(' ') {
        assert!(whole.contains(&format!("\n  {command} ")), "{command}");
        for args in [["help", command], ["man", command], [command, "--help"]] {
            let done = lab.run(args);
            assert_eq!((done.code(), &*done.err), (0, ""), "{args:?}");
            assert!(done.out.contains(command), "{args:?}");
        }
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = lab.run(["completions", shell]);
        assert_eq!((done.code(), &*done.err), (0, ""), "{shell}");
        assert!(done.out.contains("strict"), "{shell}");
    }
    assert_eq!(lab.run(["help", "run"]).out, lab.run(["run", "--help"]).out);
    assert_eq!(lab.run(["help"]).out, lab.run(["--help"]).out);
    lab.run(["help", "nope"]).refused(2);
    lab.run(["man", "nope"]).refused(2);
}

/// Notices are no output: a script that prints nothing of its own mails nothing on stdout.
#[test]
fn what_was_done_with_a_ticket_is_told_on_stderr() {
    let lab = Lab::new();
    let ticket = lab.run(["acquire", "job"]).out;
    for (args, said) in [
        (["renew", "job", "--ticket", ticket.trim()], "is renewed"),
        (["release", "job", "--ticket", ticket.trim()], "is released"),
    ] {
        let done = lab.run(args);
        assert_eq!((done.code(), &*done.out), (0, ""), "{done:?}");
        assert!(done.err.contains(said), "{done:?}");
    }
    assert!(
        lab.run(["release", "job", "--force"])
            .refused(0)
            .contains("was free already")
    );
}

#[test]
fn a_script_may_not_run_on_without_the_lock() {
    let lab = Lab::new();
    let script = r#"set -e; TICKET=$("$DBLOCK" acquire -n -E 0 job); touch ran"#;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script])
        .env("DBLOCK", DBLOCK)
        .current_dir(lab.path(""));
    let done = lab.start(&mut shell).end();
    assert!(done.refused(2).contains("without the lock"), "{done:?}");
    assert!(!lab.path("ran").exists());
}
