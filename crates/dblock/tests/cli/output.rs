//! Output that cannot be written, `--quiet` and `--verbose`, and help.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::support::{DBLOCK, Finished, Sandbox};

fn to_a_full_disk(sandbox: &Sandbox, args: &[&str]) -> Finished {
    let full = File::options().write(true).open("/dev/full").expect("full");
    let mut command = sandbox.dblock(args);
    let output = command
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("runs");
    Finished {
        status: output.status,
        out: String::new(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn output_that_cannot_be_written_ends_with_1_and_one_line() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(["run", "job", "--", "true"]).code(), 0);
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
        let done = to_a_full_disk(&sandbox, &args);
        let message = done.only_line(1);
        assert!(
            message.contains("No space left on device"),
            "{args:?}: {message}"
        );
    }
}

#[test]
fn a_closed_pipe_is_no_failure_of_help_and_man() {
    let sandbox = Sandbox::new();
    for args in ["man", "completions bash", "--help", "help run"] {
        let script =
            format!(r#""$DBLOCK" {args} | head -c 1 >/dev/null; echo "${{PIPESTATUS[0]}}""#);
        let mut bash = sandbox.command("bash");
        let done = sandbox
            .start(bash.args(["-c", &script]).env("DBLOCK", DBLOCK))
            .end();
        assert_eq!((&*done.out, &*done.err), ("0\n", ""), "{args}");
    }
}

#[test]
fn a_ticket_that_finds_stdout_closed_is_released_again() {
    let sandbox = Sandbox::new();
    for args in ["acquire job", "acquire job --json"] {
        let script = format!(r#""$DBLOCK" {args} >&-; exit $?"#);
        let mut shell = sandbox.command("sh");
        let done = sandbox
            .start(shell.args(["-c", &script]).env("DBLOCK", DBLOCK))
            .end();
        let message = done.only_line(1);
        assert!(
            message.contains("closed") && message.contains("released again"),
            "{message}"
        );
        assert!(!sandbox.is_held("job"));
    }
    // This is intended by the caller: the lock is held until its ttl ends.
    let mut shell = sandbox.command("sh");
    let script = r#""$DBLOCK" acquire job >/dev/null"#;
    let done = sandbox
        .start(shell.args(["-c", script]).env("DBLOCK", DBLOCK))
        .end();
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(sandbox.is_held("job"));
}

#[test]
fn quiet_prints_errors_only() {
    let sandbox = Sandbox::new();
    let acquired = sandbox.run(["-q", "acquire", "job"]);
    assert_eq!((acquired.code(), &*acquired.err), (0, ""), "{acquired:?}");
    let ticket = acquired.out.trim();
    let silent = |args: &[&str]| {
        let done = sandbox.run(args);
        assert_eq!(
            (done.code(), &*done.out, &*done.err),
            (0, "", ""),
            "{done:?}"
        );
    };
    sandbox
        .run(["run", "-q", "-n", "job", "--", "true"])
        .only_line(75);
    silent(&["renew", "-q", "job", "--ticket", ticket]);
    silent(&["release", "-q", "job", "--ticket", ticket]);
    silent(&["release", "job", "--force", "--quiet"]);
    silent(&["-q", "prune", "--older-than", "0"]);
    silent(&["-q", "init"]);
}

#[test]
fn verbose_reports_a_wait_and_who_holds_the_lock() {
    let sandbox = Sandbox::new();
    let holder = sandbox.start_run(&["--holder", "the holder"], "job", "BEGUN; exec sleep 1000");
    let usual = sandbox.run(["run", "-w", "2s", "job", "--", "true"]);
    assert_eq!(usual.only_line(75).lines().count(), 1);
    let done = sandbox.run(["-v", "run", "-w", "2s", "job", "--", "true"]);
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
    sandbox.run(["release", "job", "--force"]);
    assert!(
        !sandbox
            .run(["run", "job", "--", "true"])
            .err
            .contains("dblock")
    );
}

#[test]
fn every_command_has_its_help_and_its_manual_page() {
    let sandbox = Sandbox::new();
    let commands = "run acquire renew release list show init prune completions man doctor help";
    let whole = sandbox.run(["--help"]).out;
    for command in commands.split(' ') {
        assert!(whole.contains(&format!("\n  {command} ")), "{command}");
        for args in [["help", command], ["man", command], [command, "--help"]] {
            let done = sandbox.run(args);
            assert_eq!((done.code(), &*done.err), (0, ""), "{args:?}");
            assert!(done.out.contains(command), "{args:?}");
        }
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = sandbox.run(["completions", shell]);
        assert_eq!((done.code(), &*done.err), (0, ""), "{shell}");
        assert!(done.out.contains("strict"), "{shell}");
    }
    assert_eq!(
        sandbox.run(["help", "run"]).out,
        sandbox.run(["run", "--help"]).out
    );
    assert_eq!(sandbox.run(["help"]).out, sandbox.run(["--help"]).out);
    sandbox.run(["help", "nope"]).only_line(2);
    sandbox.run(["man", "nope"]).only_line(2);
}

/// They are no results: stdout stays empty.
#[test]
fn renew_and_release_report_on_stderr() {
    let sandbox = Sandbox::new();
    let ticket = sandbox.run(["acquire", "job"]).out;
    for (args, message) in [
        (["renew", "job", "--ticket", ticket.trim()], "is renewed"),
        (["release", "job", "--ticket", ticket.trim()], "is released"),
    ] {
        let done = sandbox.run(args);
        assert_eq!((done.code(), &*done.out), (0, ""), "{done:?}");
        assert!(done.err.contains(message), "{done:?}");
    }
    assert!(
        sandbox
            .run(["release", "job", "--force"])
            .only_line(0)
            .contains("was free already")
    );
}

#[test]
fn a_script_does_not_run_on_without_the_lock() {
    let sandbox = Sandbox::new();
    let script = r#"set -e; TICKET=$("$DBLOCK" acquire -n -E 0 job); touch ran"#;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script])
        .env("DBLOCK", DBLOCK)
        .current_dir(sandbox.path(""));
    let done = sandbox.start(&mut shell).end();
    assert!(done.only_line(2).contains("without the lock"), "{done:?}");
    assert!(!sandbox.path("ran").exists());
}
