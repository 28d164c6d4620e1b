//! The time of a whole process: `dblock run`.

use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::time;

use crate::child::since;
use crate::console::progress;
use crate::report::{Section, digits};
use crate::results::Results;
use crate::servers::Servers;
use crate::settings::repository;
use crate::stats::spread;

pub(crate) fn run(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let mut section = Section::default();
    let dblock = repository().join("target/release/dblock");
    let mut flock = Command::new("flock");
    flock.arg("-n").arg(servers.files.join("flock")).arg("true");
    let mut commands = vec![
        ("`true` alone".to_owned(), Command::new("true")),
        ("`flock -n FILE true` (util-linux)".to_owned(), flock),
    ];
    if !dblock.exists() {
        progress(&format!("left out: no {}", dblock.display()));
        return section;
    }
    for engine in servers.engines() {
        let mut init = Command::new(&dblock);
        init.args(["--url", &engine.url, "init"])
            .stdout(Stdio::null());
        assert!(
            init.status().is_ok_and(|status| status.success()),
            "dblock init"
        );
        let mut run = Command::new(&dblock);
        run.args(["--url", &engine.url, "run", "-n", "x", "--", "true"]);
        commands.push((format!("`dblock run -n x -- true`, {}", engine.name), run));
    }
    let mut found = vec![Vec::new(); commands.len()];
    let mut order: Vec<usize> = (0..commands.len()).collect();
    let began = time::now();
    while began.elapsed() < length || found[0].len() < 5 {
        fastrand::shuffle(&mut order);
        for &at in &order {
            let before = time::now();
            let status = commands[at].1.stdin(Stdio::null()).status();
            let took = since(before);
            match status {
                Ok(status) if status.success() => found[at].push(took),
                // The program is not on this machine.
                Err(_) => {}
                Ok(status) => panic!("{}: {status}", commands[at].0),
            }
        }
    }
    section.paragraph(format!(
        "Milliseconds from the start of a process until it has ended. Each command ran {} times.",
        found[0].len()
    ));
    let mut rows = Vec::new();
    for ((name, _), values) in commands.iter().zip(&found) {
        let Some(of) = spread(values) else { continue };
        rows.push(vec![
            name.clone(),
            digits(of.p10),
            digits(of.p50),
            digits(of.p90),
        ]);
        if name.ends_with("SQLite") {
            section.goal(
                &name.clone(),
                "at most 6 ms, the whole process",
                Some(format!("{} ms", digits(of.p50))),
                of.p50 <= 6.0,
            );
        }
    }
    section.table(&["", "p10", "median", "p90"], &rows);
    section
}
