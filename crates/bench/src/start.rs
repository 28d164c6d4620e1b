//! A whole process: `dblock run`.

use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::time;

use crate::contender::since;
use crate::report::{Section, ms};
use crate::say;
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stats::spread;

pub(crate) fn run(_: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut section = Section::default();
    let dblock = crate::root().join("target/release/dblock");
    let mut commands: Vec<(String, Command)> = vec![
        ("`true` alone".to_owned(), Command::new("true")),
        ("`flock -n FILE true` (util-linux)".to_owned(), {
            let mut flock = Command::new("flock");
            flock.arg("-n").arg(servers.files.join("flock")).arg("true");
            flock
        }),
    ];
    let engines = servers.engines();
    if dblock.exists() {
        for engine in &engines {
            let mut init = Command::new(&dblock);
            let init = init
                .args(["--url", &engine.url, "init"])
                .stdout(Stdio::null())
                .status();
            assert!(init.is_ok_and(|status| status.success()), "dblock init");
            let mut run = Command::new(&dblock);
            run.args(["--url", &engine.url, "run", "-n", "x", "--", "true"]);
            let name = format!("`dblock run -n x -- true`, {}", engine.name);
            let name = match engine.name {
                "SQLite" => format!("**{name}**"),
                _ => name,
            };
            commands.push((name, run));
        }
    } else {
        say(&format!("not measured: no {}", dblock.display()));
    }
    let mut found = vec![Vec::new(); commands.len()];
    let mut order: Vec<usize> = (0..commands.len()).collect();
    let (began, budget) = (time::now(), length);
    while began.elapsed() < budget || found[0].len() < 5 {
        fastrand::shuffle(&mut order);
        for &at in &order {
            let t0 = time::now();
            let status = commands[at].1.stdin(Stdio::null()).status();
            let took = since(t0);
            match status {
                Ok(status) if status.success() => found[at].push(took),
                // No such program here.
                Err(_) => {}
                Ok(status) => panic!("{}: {status}", commands[at].0),
            }
        }
    }
    section.paragraph(format!(
        "Milliseconds from before a process is started until it has ended, {} times each.",
        found[0].len()
    ));
    let rows: Vec<_> = commands
        .iter()
        .zip(&found)
        .filter_map(|((name, _), values)| {
            let of = spread(values)?;
            Some(vec![name.clone(), ms(of.p10), ms(of.p50), ms(of.p90)])
        })
        .collect();
    section.table(&["", "p10", "median", "p90"], &rows);
    let reached = commands
        .iter()
        .zip(&found)
        .find(|((name, _), _)| name.contains("SQLite"))
        .and_then(|(_, values)| spread(values))
        .map(|of| of.p50);
    section.goal(
        "`dblock run -n x -- true`, SQLite",
        "15 ms, the whole process",
        reached.map(|reached| format!("{} ms", ms(reached))),
        reached.is_some_and(|reached| reached <= 15.0),
    );
    section
}
