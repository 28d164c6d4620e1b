//! At a terminal: Ctrl-C, Ctrl-Z, and reading from it. A script in Python types.

use std::process::Command;

use crate::support::{DBLOCK, Sandbox};

/// The prompt of the interactive shell.
const PROMPT: &str = "prompt> ";

/// Runs a command on a new terminal. The first argument is a JSON array of pairs: a text to wait
/// for in the output (after the text before), and what to type then. Prints the output and the exit
/// code.
const TYPIST: &str = r#"
import json, os, pty, select, signal, sys, time
steps, command = json.loads(sys.argv[1]), sys.argv[2:]
pid, tty = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
seen, at, deadline = b"", 0, time.monotonic() + 55
while True:
    while steps:
        found = seen.find(steps[0][0].encode(), at)
        if found < 0:
            break
        at = found + len(steps[0][0].encode())
        os.write(tty, steps.pop(0)[1].encode())
    left = deadline - time.monotonic()
    if left <= 0 or not select.select([tty], [], [], left)[0]:
        os.kill(pid, signal.SIGKILL)
        break
    try:
        more = os.read(tty, 4096)
    except OSError:
        break
    if not more:
        break
    seen += more
_, status = os.waitpid(pid, 0)
sys.stdout.write(seen.decode().replace("\r\n", "\n"))
if steps:
    sys.exit("never seen: %r" % steps[0][0])
print("\nexit=%d" % os.waitstatus_to_exitcode(status))
"#;

/// The output on the terminal; `None` without Python.
#[track_caller]
#[allow(clippy::print_stderr, reason = "shows what was not tested")]
fn at_terminal(sandbox: &Sandbox, steps: &[(&str, &str)], command: &[&str]) -> Option<String> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: no python3");
        return None;
    }
    let steps = serde_json::to_string(steps).expect("JSON");
    let mut typist = sandbox.command("python3");
    let rc = format!("PS1='{PROMPT}'; bind 'set enable-bracketed-paste off'");
    std::fs::write(sandbox.path("rc"), rc).expect("written");
    typist
        .args(["-c", TYPIST, &steps])
        .args(command)
        .env("DBLOCK", DBLOCK);
    let done = sandbox.start(&mut typist).end();
    assert_eq!(done.code(), 0, "{} {}", done.out, done.err);
    Some(done.out)
}

#[test]
fn ctrl_c_reaches_the_command_once_and_the_lock_is_released_after_it() {
    let sandbox = Sandbox::new();
    let script = r#"
        trap 'echo got-int; env -u DBLOCK_GRANTS "$DBLOCK" run -n job -- true; echo other=$?; kill $!; exit 3' INT
        sleep 1000 & echo ready; while :; do sleep 0.02; done"#;
    let run = [DBLOCK, "run", "job", "--", "sh", "-c", script];
    let Some(seen) = at_terminal(&sandbox, &[("ready", "\x03")], &run) else {
        return;
    };
    assert_eq!(seen.matches("got-int").count(), 1, "{seen}");
    assert!(
        seen.contains("other=75") && seen.contains("exit=3"),
        "{seen}"
    );
    assert!(!sandbox.is_held("job"));
}

#[test]
fn the_command_may_read_from_the_terminal() {
    let sandbox = Sandbox::new();
    let script = "echo ready; read line; echo line=$line";
    let run = [DBLOCK, "run", "job", "--", "sh", "-c", script];
    let Some(seen) = at_terminal(&sandbox, &[("ready", "hello\n")], &run) else {
        return;
    };
    assert!(
        seen.contains("line=hello") && seen.contains("exit=0"),
        "{seen}"
    );
}

/// Also if the command has the terminal, so that Ctrl-C reaches it alone.
#[test]
fn ctrl_c_ends_a_leader_and_not_only_its_command() {
    // The terminal shows what is typed, and then `cat` does.
    let reads: &[_] = &[
        ("ready\r\n", "typed\n"),
        ("typed\r\n", ""),
        ("typed\r\n", "\x03"),
    ];
    for (script, steps) in [
        ("echo ready; exec sleep 1000", &[("ready", "\x03")][..]),
        ("echo ready; cat; echo never", reads),
    ] {
        let sandbox = Sandbox::new();
        let lead = [DBLOCK, "lead", "job", "--", "sh", "-c", script];
        let Some(seen) = at_terminal(&sandbox, steps, &lead) else {
            return;
        };
        assert!(
            seen.contains("exit=130") && !seen.contains("campaigning"),
            "{seen}"
        );
        assert!(!sandbox.is_held("job"));
    }
}

/// The command gets the terminal when it first uses it.
#[test]
fn in_a_script_the_command_gets_the_terminal_and_returns_it() {
    let sandbox = Sandbox::new();
    let script = r#"
        "$DBLOCK" run job -- sh -c 'echo ready; read line; echo line=$line'
        echo again; read line; echo after=$line"#;
    let steps = [("ready", "one\n"), ("again", "two\n")];
    let Some(seen) = at_terminal(&sandbox, &steps, &["sh", "-c", script]) else {
        return;
    };
    assert!(
        seen.contains("line=one") && seen.contains("after=two"),
        "{seen}"
    );
}

/// As without `dblock`.
#[test]
fn ctrl_c_ends_a_script_as_well() {
    let sandbox = Sandbox::new();
    let script = r#""$DBLOCK" run job -- sh -c 'echo ready; exec sleep 1000'; echo went-on"#;
    let Some(seen) = at_terminal(&sandbox, &[("ready", "\x03")], &["sh", "-c", script]) else {
        return;
    };
    assert!(
        !seen.contains("went-on") && seen.contains("exit=-2"),
        "{seen}"
    );
    let freed = testkit::time::wait_until(crate::support::TIMEOUT, || !sandbox.is_held("job"));
    assert!(freed, "the lock outlived its command");
}

/// As in `dblock run … | less`: the other processes of a pipeline need the terminal too.
#[test]
fn a_pipeline_keeps_the_terminal() {
    let sandbox = Sandbox::new();
    let pipeline = r#""$DBLOCK" run job -- sh -c '
        touch begun; while [ ! -e go ]; do sleep 0.02; done; echo from-command' | sh -c '
        while [ ! -e begun ]; do sleep 0.02; done
        echo ready; read line < /dev/tty; echo line=$line; touch go; cat'; exit 6"#;
    let steps = [(PROMPT, &*format!("{pipeline}\n")), ("\nready", "hello\n")];
    let shell = ["bash", "--rcfile", "rc", "-i"];
    let Some(seen) = at_terminal(&sandbox, &steps, &shell) else {
        return;
    };
    assert!(
        seen.contains("line=hello\n") && seen.contains("from-command\n"),
        "{seen}"
    );
    assert!(seen.contains("exit=6"), "{seen}");
}

#[test]
fn ctrl_z_returns_to_the_shell_and_fg_continues() {
    let sandbox = Sandbox::new();
    let run = r#""$DBLOCK" run job -- sh -c 'echo re""ady; read line; echo line=$line; exit 5'"#;
    let steps = [
        (PROMPT, &*format!("{run}\n")),
        ("ready", "\x1a"),
        ("Stopped", "fg\n"),
        ("$DBLOCK", "hello\n"),
        ("line=hello", ""),
        (PROMPT, "echo code=$?\n"),
        ("code=5", "exit 6\n"),
    ];
    let shell = ["bash", "--rcfile", "rc", "-i"];
    let Some(seen) = at_terminal(&sandbox, &steps, &shell) else {
        return;
    };
    assert!(seen.contains("exit=6"), "{seen}");
}

/// A stopped dblock does not renew. When it is continued, the command gets TERM before it runs on.
///
/// The shell of the command starts nothing when Ctrl-Z is typed: inside vfork it cannot be stopped.
#[test]
fn a_lock_that_is_lost_while_stopped_ends_the_command() {
    let sandbox = Sandbox::new();
    let run = r#""$DBLOCK" run --ttl 10s --grace 3s job -- sh -c '
        trap "echo got-te""rm; exit 3" TERM; sleep 1000 & echo re""ady; wait'"#;
    let other = r#""$DBLOCK" run job -- echo ot""her"#;
    let steps = [
        (PROMPT, &*format!("{run}\n")),
        ("ready", "\x1a"),
        ("Stopped", &*format!("{other}\n")),
        ("other", ""),
        (PROMPT, "fg\n"),
        ("got-term", ""),
        (PROMPT, "echo code=$?\n"),
        ("code=76", "exit 6\n"),
    ];
    let shell = ["bash", "--rcfile", "rc", "-i"];
    let Some(seen) = at_terminal(&sandbox, &steps, &shell) else {
        return;
    };
    assert!(seen.contains("exit=6"), "{seen}");
}

/// Without a shell no process would continue dblock.
#[test]
fn without_a_shell_ctrl_z_stops_nothing() {
    let sandbox = Sandbox::new();
    let script = "echo ready; read line; echo line=$line";
    let run = [DBLOCK, "run", "job", "--", "sh", "-c", script];
    let Some(seen) = at_terminal(&sandbox, &[("ready", "\x1ahello\n")], &run) else {
        return;
    };
    assert!(
        seen.contains("line=hello") && seen.contains("exit=0"),
        "{seen}"
    );
}

/// A short wait, and one with a pipe as stderr, is silent.
#[test]
fn a_wait_of_more_than_a_second_is_reported_on_a_terminal_only() {
    let sandbox = Sandbox::new();
    let holder = sandbox.start_run(&["--holder", "the holder"], "job", "BEGUN; exec sleep 1000");
    let waited = |wait: &str, more: &str| {
        let script = format!("\"$0\" run {more} -w {wait} job -- true; echo code=$?");
        at_terminal(&sandbox, &[("code=75", "")], &["sh", "-c", &script, DBLOCK])
    };
    let waiting = "dblock: waiting for lock `job`, held by the holder for ";
    let Some(long) = waited("2500ms", "") else {
        return;
    };
    assert_eq!(long.matches(waiting).count(), 1, "{long}");
    let line = long.lines().find(|line| line.starts_with(waiting));
    assert!(line.is_some_and(|line| line.ends_with('s')), "{long}");
    for (wait, more) in [("500ms", ""), ("2500ms", "-q")] {
        let silent = waited(wait, more).expect("as before");
        assert!(!silent.contains("waiting"), "{silent}");
    }
    let piped = sandbox.run(["run", "-w", "2500ms", "job", "--", "true"]);
    assert!(!piped.only_line(75).contains("waiting"), "{piped:?}");
    drop(holder);
}

/// No line is wrapped in the middle of a word or of a table.
#[test]
fn help_and_tables_fit_a_terminal_of_80_columns() {
    let sandbox = Sandbox::new();
    let run = |script: &str| {
        let script = format!("stty rows 24 cols 80; {script}; echo ready; read _");
        let script = script.replace("dblock", DBLOCK);
        at_terminal(&sandbox, &[("ready", "\n")], &["sh", "-c", &script])
    };
    let Some(none) = run("dblock list") else {
        return;
    };
    assert!(none.contains("no lock is held"), "{none}");
    let owner = "build-server-17.example.org.4711.0a1b2c3d";
    let acquire = format!("dblock acquire nightly.report --holder {owner} --meta why=weekly 2>&1");
    let table = run(&format!("{acquire} >/dev/null; NO_COLOR=1 dblock list")).expect("as before");
    let head = table.lines().find(|line| line.starts_with("NAME"));
    let head = head.unwrap_or_default().split_whitespace();
    assert_eq!(
        head.collect::<Vec<_>>().join(" "),
        "NAME STATE HOLDER HELD FOR FREE IN WHAT FOR",
        "{table}"
    );
    assert!(table.contains(owner), "{table}");
    for command in [
        "", "run", "acquire", "renew", "release", "list", "prune", "doctor",
    ] {
        let help = run(&format!("NO_COLOR=1 dblock {command} --help")).expect("as before");
        let (_, below) = help.split_once("Examples:\n").unwrap_or_default();
        // A wrapped line continues without the indentation of an example.
        let examples = below.split("\n\n").next().unwrap_or_default();
        for line in examples.lines().take_while(|line| *line != "ready") {
            assert!(line.starts_with("  "), "{command}: {line:?}: {help}");
        }
        assert!(
            help.lines().all(|line| line.chars().count() <= 80),
            "{help}"
        );
    }
}
