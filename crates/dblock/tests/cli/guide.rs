//! What `docs/cli.md` shows, as it stands there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{DBLOCK, Done, Lab, is_running, wait_until_gone};
use testkit::server::{find_binary, require};

const GUIDE: &str = include_str!("../../../../docs/cli.md");

/// The code blocks of that language below a heading, up to the next one of the same level.
fn blocks(heading: &str, language: &str) -> Vec<&'static str> {
    let (_, rest) = GUIDE
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

/// A program of that name, in the folder of the test.
fn program(lab: &Lab, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = lab.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
    path
}

/// `dblock` is on the PATH.
fn shell(lab: &Lab, script: &str) -> Done {
    let folder = Path::new(DBLOCK).parent().expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = lab.command("sh");
    shell.args(["-c", script]);
    shell.env("PATH", format!("{}:{path}", folder.display()));
    lab.start(&mut shell).end()
}

#[test]
fn the_script_of_the_guide_prints_nothing_while_all_is_well() {
    let lab = Lab::new();
    program(&lab, "build.sh", "dblock list --json >while-building");
    program(&lab, "publish.sh", "touch published");
    let script = blocks("## Across the steps of a script", "sh")[0];
    let done = shell(&lab, script);
    assert_eq!((done.code(), &*done.out, &*done.err), (0, "", ""));
    assert!(lab.path("published").exists());
    assert!(
        lab.read("while-building")
            .contains(r#""name":"deploy","state":"held""#),
        "{}",
        lab.read("while-building")
    );
    assert!(!lab.is_held("deploy"));
    // A lock that was taken from it keeps it from publishing.
    std::fs::remove_file(lab.path("published")).expect("was there");
    program(&lab, "build.sh", "dblock -q release deploy --force");
    let done = shell(&lab, script);
    assert_eq!(done.code(), 76, "{done:?}");
    assert!(!lab.path("published").exists(), "{done:?}");
}

#[test]
fn the_line_of_the_crontab_says_nothing_where_another_machine_has_the_lock() {
    let lab = Lab::new();
    let crontab = blocks("### cron", "crontab")[0];
    let line = crontab.lines().find(|line| line.starts_with("*/5"));
    let line = line
        .and_then(|line| line.split_once("*  "))
        .expect("a job")
        .1;
    let report = program(&lab, "report", "echo reported");
    let line = line.replace("/usr/local/bin/report", &report.display().to_string());
    let holder = lab.start_run(&[], "report", "BEGUN; exec sleep 1000");
    let done = shell(&lab, &line);
    assert_eq!((done.code(), &*done.out, &*done.err), (0, "", ""));
    drop(holder);
    lab.run(["release", "report", "--force"]);
    assert_eq!(shell(&lab, &line).out, "reported\n");
    let away = format!("DATABASE_LOCKS_URL=postgres://u@127.0.0.1:1/d {line}");
    assert!(shell(&lab, &away).refused(69).contains("cannot be reached"));
}

#[test]
fn the_units_of_the_guide_are_accepted_by_systemd() {
    let found = find_binary("systemd-analyze", &[]);
    let Some(analyze) = require("systemd-analyze", "systemd", found) else {
        return;
    };
    let lab = Lab::new();
    let recipes = "## Recipes";
    let units = blocks(recipes, "ini");
    assert_eq!(units.len(), 3);
    let program = program(&lab, "work", "true");
    let mut paths = Vec::new();
    for unit in units {
        let name = unit.lines().next().and_then(|line| line.strip_prefix("# "));
        let path = lab.path(name.expect("its name"));
        let text = unit.replace("/usr/local/bin/dblock", DBLOCK);
        let text = text.replace("/usr/local/bin/report", &program.display().to_string());
        std::fs::write(&path, text).expect("written");
        paths.push(path);
    }
    let output = Command::new(analyze)
        .arg("verify")
        .args(&paths)
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    // It looks at the machine's own units too, where there are any.
    let names = ["report.service", "report.timer", "worker.service"];
    let ours = said
        .lines()
        .filter(|line| names.iter().any(|name| line.contains(name)));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new(), "{said}");
}

#[test]
fn a_process_in_the_background_keeps_no_lock_unless_it_is_waited_for() {
    let lab = Lab::new();
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let done = lab.run(["run", "job", "--", "sh", "-c", script]);
    let left = done.out.trim();
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(is_running(left) && !lab.is_held("job"), "{done:?}");
    shell(&lab, &format!("kill {left}"));
    wait_until_gone(left);
    let script = "(while [ ! -e go ]; do sleep 0.02; done) & BEGUN; wait";
    let running = lab.start_run(&[], "job", script);
    assert!(lab.is_held("job"));
    lab.touch("go");
    assert_eq!(running.end().code(), 0);
}
