//! Runs the examples of `docs/cli.md` as they are printed there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{DBLOCK, Finished, Sandbox, is_running, wait_until_gone};
use testkit::programs::{find_binary, require};

const GUIDE: &str = include_str!("../../../../docs/cli.md");
const LEADER: &str = include_str!("../../../../docs/leader.md");

/// The code blocks of a language in the section of the guide with this heading.
fn blocks(heading: &str, language: &str) -> Vec<&'static str> {
    blocks_of(GUIDE, heading, language)
}

fn blocks_of(page: &'static str, heading: &str, language: &str) -> Vec<&'static str> {
    let (_, rest) = page
        .split_once(&format!("\n{heading}\n"))
        .expect("a heading");
    let level = heading.split(' ').next().expect("its marks");
    let part = rest
        .split(&format!("\n{level} "))
        .next()
        .unwrap_or_default();
    let begin = format!("```{language}\n");
    let found = part.split(&begin).skip(1);
    let found: Vec<&str> = found.filter_map(|rest| rest.split("```").next()).collect();
    assert!(!found.is_empty(), "nothing in {language} below {heading}");
    found
}

/// Creates a program in the folder of the test.
fn program(sandbox: &Sandbox, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = sandbox.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
    path
}

/// Runs a script with `dblock` in PATH.
fn shell(sandbox: &Sandbox, script: &str) -> Finished {
    let folder = Path::new(DBLOCK).parent().expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = sandbox.command("sh");
    shell.args(["-c", script]);
    shell.env("PATH", format!("{}:{path}", folder.display()));
    sandbox.start(&mut shell).end()
}

#[test]
fn the_first_example_of_the_guide_runs_as_it_is() {
    let sandbox = Sandbox::new();
    program(&sandbox, "report.sh", "echo reported");
    let block = GUIDE.split("```sh\n").nth(1).expect("a block");
    let script = block.split("```").next().unwrap_or_default();
    let done = shell(&sandbox, &format!("set -e\n{script}"));
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(
        done.out.starts_with("reported\nreported\nNAME "),
        "{done:?}"
    );
    assert!(done.out.contains("\nreport  free "), "{done:?}");
}

#[test]
fn the_script_of_the_guide_prints_nothing_while_all_is_well() {
    let sandbox = Sandbox::new();
    program(&sandbox, "build.sh", "dblock list --json >while-building");
    program(&sandbox, "publish.sh", "touch published");
    let script = blocks("## Across the steps of a script", "sh")[0];
    let done = shell(&sandbox, script);
    assert_eq!((done.code(), &*done.out, &*done.err), (0, "", ""));
    assert!(sandbox.path("published").exists());
    assert!(
        sandbox
            .read("while-building")
            .contains(r#""name":"deploy","state":"held""#),
        "{}",
        sandbox.read("while-building")
    );
    assert!(!sandbox.is_held("deploy"));
    // A lock that was released by force keeps the script from publishing.
    std::fs::remove_file(sandbox.path("published")).expect("was there");
    program(&sandbox, "build.sh", "dblock -q release deploy --force");
    let done = shell(&sandbox, script);
    assert_eq!(done.code(), 76, "{done:?}");
    assert!(!sandbox.path("published").exists(), "{done:?}");
}

#[test]
fn the_crontab_of_the_guide_prints_nothing_if_another_machine_has_the_lock() {
    let sandbox = Sandbox::new();
    let crontab = blocks("### cron", "crontab")[0];
    let line = crontab.lines().find(|line| line.starts_with("*/5"));
    let line = line
        .and_then(|line| line.split_once("*  "))
        .expect("a job")
        .1;
    let report = program(&sandbox, "report", "echo reported");
    let line = line.replace("/usr/local/bin/report", &report.display().to_string());
    let holder = sandbox.start_run(&[], "report", "BEGUN; exec sleep 1000");
    let done = shell(&sandbox, &line);
    assert_eq!((done.code(), &*done.out, &*done.err), (0, "", ""));
    drop(holder);
    sandbox.run(["release", "report", "--force"]);
    assert_eq!(shell(&sandbox, &line).out, "reported\n");
    let away = format!("DATABASE_LOCKS_URL=postgres://u@127.0.0.1:1/d {line}");
    assert!(
        shell(&sandbox, &away)
            .only_line(69)
            .contains("cannot be reached")
    );
}

#[test]
fn the_first_example_of_the_page_on_leader_election_runs_as_it_is() {
    let sandbox = Sandbox::new();
    let block = LEADER.split("```sh\n").nth(1).expect("a block");
    let mut script = block.split("```").next().unwrap_or_default().to_owned();
    // With more time for each step, for a busy machine.
    for (short, long) in [
        ("--ttl 3s", "--ttl 8s"),
        ("\nsleep 1\n", "\nsleep 4\n"),
        ("\nsleep 2\n", "\nsleep 5\n"),
        ("; sleep 5 ", "; sleep 14 "),
    ] {
        assert!(script.contains(short), "{short:?}");
        script = script.replace(short, long);
    }
    let done = shell(&sandbox, &script);
    assert_eq!(done.code(), 0, "{done:?}");
    let (before, after) = done.out.split_once("name").expect("the output of `show`");
    assert!(
        before.starts_with("one leads") && !before.contains("two leads"),
        "{done:?}"
    );
    assert!(
        after.contains("two leads\n") && after.contains("\ndemo  free "),
        "{done:?}"
    );
    assert!(
        done.err.contains("dblock: leading `demo`, term "),
        "{done:?}"
    );
}

/// Also the name of another pod that begins in the same way.
#[test]
fn the_readiness_probe_succeeds_in_the_leading_pod_alone() {
    let sandbox = Sandbox::new();
    let probe = LEADER
        .lines()
        .find(|line| line.trim().starts_with("command: [\"sh\""));
    let (_, list) = probe
        .expect("a probe")
        .split_once("command: ")
        .expect("its list");
    let command: Vec<String> = serde_json::from_str(list).expect("a list");
    let script = &command[2];
    let ready = |pod: &str| shell(&sandbox, &format!("POD={pod}; {script}")).code() == 0;
    assert!(!ready("worker-1"), "there is no such lock");
    let run = [
        "lead",
        "--holder",
        "worker-1",
        "worker",
        "--",
        "sh",
        "-c",
        "touch begun; exec sleep 1000",
    ];
    let leader = sandbox.start(&mut sandbox.dblock(run));
    sandbox.wait_for("begun");
    assert!(ready("worker-1") && !ready("worker-2") && !ready("worker-"));
    leader.signal(rustix::process::Signal::TERM);
    assert_eq!(leader.end().code(), 143);
    assert!(!ready("worker-1"), "it leads no more");
}

#[test]
fn the_units_of_the_guide_are_accepted_by_systemd() {
    let found = find_binary("systemd-analyze", &[]);
    let Some(analyze) = require("systemd-analyze", "systemd", found) else {
        return;
    };
    let sandbox = Sandbox::new();
    let recipes = "## Recipes";
    let mut units = blocks(recipes, "ini");
    assert_eq!(units.len(), 2);
    units.extend(blocks_of(LEADER, "## systemd", "ini"));
    let program = program(&sandbox, "work", "true");
    let mut paths = Vec::new();
    for unit in units {
        let name = unit.lines().next().and_then(|line| line.strip_prefix("# "));
        let path = sandbox.path(name.expect("its name"));
        let text = unit.replace("/usr/local/bin/dblock", DBLOCK);
        let text = text.replace("/usr/local/bin/report", &program.display().to_string());
        let text = text.replace("/usr/local/bin/worker", &program.display().to_string());
        std::fs::write(&path, text).expect("written");
        paths.push(path);
    }
    let output = Command::new(analyze)
        .arg("verify")
        .args(&paths)
        .output()
        .expect("runs");
    let message = String::from_utf8_lossy(&output.stderr);
    // systemd-analyze also reports the units of the machine.
    let names = ["report.service", "report.timer", "worker.service"];
    let line = message
        .lines()
        .filter(|line| names.iter().any(|name| line.contains(name)));
    assert_eq!(line.collect::<Vec<_>>(), Vec::<&str>::new(), "{message}");
}

#[test]
fn a_background_process_keeps_the_lock_only_if_cmd_waits_for_it() {
    let sandbox = Sandbox::new();
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let done = sandbox.run(["run", "job", "--", "sh", "-c", script]);
    let left = done.out.trim();
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(is_running(left) && !sandbox.is_held("job"), "{done:?}");
    shell(&sandbox, &format!("kill {left}"));
    wait_until_gone(left);
    let script = "(while [ ! -e go ]; do sleep 0.02; done) & BEGUN; wait";
    let running = sandbox.start_run(&[], "job", script);
    assert!(sandbox.is_held("job"));
    sandbox.touch("go");
    assert_eq!(running.end().code(), 0);
}
