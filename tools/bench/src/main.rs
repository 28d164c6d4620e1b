//! The benchmark: measures the locks beside bare commits and beside other lock libraries, on real
//! servers that it starts, and writes `docs/benchmarks.md`, `docs/benchmarks/appendix.md` and three
//! plots.
//!
//! `make bench` builds everything and runs it; `make bench SECONDS=60` passes a setting on. The
//! program reads its settings from the environment, as `BENCH_SECONDS` and so on:
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `SECONDS` | about how long all parts together take | 900 |
//! | `ONLY` | the parts to run, separated by commas; each takes as long as in a whole run | all |
//! | `DOCS` | the folder to write to | `docs` |
//! | `CHECK` | any value: checks these settings and ends | |

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

mod baseline;
mod cases;
mod child;
mod console;
mod contention;
mod cycle;
mod drive;
mod guards;
mod handover;
mod held;
mod kinds;
mod machine;
mod peers;
mod proc;
mod process_time;
mod report;
mod results;
mod serve;
mod servers;
mod settings;
mod stats;
mod strace;
mod subject;
mod svg;
mod syscalls;
mod tasks;
mod wire_counter;
mod worker;

use crate::console::progress;
use crate::report::{Section, goals, replace, table};
use crate::results::Results;
use crate::servers::Servers;
use crate::settings::{Settings, repository};

type Run = fn(&Servers, Duration, &mut Results) -> Section;

/// One part of the appendix: its name, its share of the time, and the function that measures it.
struct Part {
    name: &'static str,
    share: f64,
    run: Run,
}

const fn part(name: &'static str, share: f64, run: Run) -> Part {
    Part { name, share, run }
}

const PARTS: [Part; 10] = [
    part("cycle", 0.215, cycle::run),
    part("syscalls", 0.075, syscalls::run),
    part("handover", 0.13, handover::run),
    part("held", 0.17, held::run),
    part("tasks", 0.04, tasks::run),
    part("idle", 0.025, held::idle),
    part("contention", 0.055, contention::run),
    part("kinds", 0.19, kinds::run),
    part("guards", 0.08, guards::run),
    part("start", 0.02, process_time::run),
];

/// Ends the process if something hangs.
fn set_watchdog(expected: Duration) {
    let limit = expected * 3 + Duration::from_secs(900);
    std::thread::spawn(move || {
        testkit::time::sleep(limit);
        progress(&format!("given up after {} s", limit.as_secs()));
        std::process::exit(1);
    });
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["worker", rest @ ..] => {
            worker::run(rest);
            Ok(())
        }
        [] => measure(),
        _ => Err(format!(
            "not understood: {}; see `make bench`",
            args.join(" ")
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            progress(&why);
            ExitCode::FAILURE
        }
    }
}

/// A document; a run replaces the blocks that it measured.
struct Document {
    file: PathBuf,
    text: String,
}

impl Document {
    fn open(file: PathBuf) -> Self {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Self { file, text }
    }

    fn put(&mut self, block: &str, content: &str) -> Result<(), String> {
        self.text = replace(&self.text, block, content);
        write(&self.file, &self.text)
    }
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    std::fs::write(file, text).map_err(|why| format!("{}: {why}", file.display()))
}

fn measure() -> Result<(), String> {
    let settings = Settings::read(&PARTS.map(|part| part.name), &repository(), |name| {
        std::env::var(format!("BENCH_{name}")).ok()
    })?;
    // `make` checks the settings before it installs the servers.
    if std::env::var_os("BENCH_CHECK").is_some() {
        return Ok(());
    }
    let folder = settings.docs.join("benchmarks");
    std::fs::create_dir_all(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let mut page = Document::open(settings.docs.join("benchmarks.md"));
    let mut appendix = Document::open(folder.join("appendix.md"));
    let parts = PARTS
        .iter()
        .filter(|part| settings.parts.contains(&part.name));
    let parts: Vec<&Part> = parts.collect();

    let expected = settings.share(parts.iter().map(|part| part.share).sum());
    let length = |part: &Part| {
        format!(
            "{} {:.0} s",
            part.name,
            settings.share(part.share).as_secs_f64()
        )
    };
    let list: Vec<String> = parts.iter().map(|part| length(part)).collect();
    progress(&format!(
        "about {:.0} s: {}",
        expected.as_secs_f64(),
        list.join(", ")
    ));
    set_watchdog(expected);
    if machine::filesystem(&std::env::temp_dir()) == "tmpfs" {
        progress(
            "the databases lie on tmpfs, where no commit waits for a disk; TMPDIR names another folder",
        );
    }
    let load = machine::load();
    let servers = Servers::start();
    let (mut reached, mut results) = (Vec::new(), Results::default());
    for part in &parts {
        let began = testkit::time::now();
        let length = settings.share(part.share);
        let mut section = (part.run)(&servers, length, &mut results);
        for (file, svg) in &section.plots {
            write(&folder.join(file), svg)?;
        }
        reached.append(&mut section.goals);
        // After each part, so that an interrupted run loses only its current part.
        appendix.put(part.name, &section.text)?;
        progress(&format!(
            "{}: done in {:.0} s",
            part.name,
            began.elapsed().as_secs_f64()
        ));
    }
    if parts.len() == PARTS.len() {
        page.put("goals", &goals(&reached))?;
        page.put("peers", &peers::text(&results))?;
        let facts = table(&["", ""], &machine::facts(&servers, &load)).replace("---:", "---");
        appendix.put("machine", &facts)?;
    } else {
        // A partial run leaves the page alone, and prints its goals.
        progress(&format!("the goals of these parts:\n{}", goals(&reached)));
    }
    progress(&format!("written: {}", settings.docs.display()));
    Ok(())
}
