//! Measures the locks beside what they stand on and beside their peers, on real servers that it starts
//! itself, and writes what came of it into `docs/benchmarks.md`, `docs/benchmarks/appendix.md` and three
//! pictures.
//!
//! `make bench` builds all that it needs and starts it; `make bench SECONDS=60` passes a setting on. Started
//! by hand it reads them from the environment, as `BENCH_SECONDS` and so on:
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `SECONDS` | how long all parts together may take, about | 700 |
//! | `ONLY` | the parts to run, with commas; each takes the time that it takes in a whole run | all |
//! | `DOCS` | the folder to write to | `docs` |
//! | `CHECK` | anything: these settings are checked, and that is all | |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

mod baseline;
mod contention;
mod cycle;
mod handover;
mod held;
mod machine;
mod peers;
mod profile;
mod report;
mod rows;
mod serve;
mod servers;
mod settings;
mod start;
mod stats;
mod subject;
mod svg;
mod syscalls;
mod taker;
mod tasks;
mod wire_counter;
mod worker;

use crate::report::{Section, goals, replace, table};
use crate::servers::Servers;
use crate::settings::Settings;

/// What the table of peers is made of, by the keys of rows.
#[derive(Debug, Default)]
struct Results {
    cycles: BTreeMap<String, cycle::Measured>,
    /// With the name of the row.
    counts: Vec<(String, String, syscalls::Counts)>,
    /// The median, in milliseconds.
    handovers: BTreeMap<String, f64>,
}

type Run = fn(&Servers, Duration, &mut Results) -> Section;

/// One part of the appendix: its name, what share of the time it takes, and what measures it.
struct Part {
    name: &'static str,
    share: f64,
    run: Run,
}

const fn part(name: &'static str, share: f64, run: Run) -> Part {
    Part { name, share, run }
}

const PARTS: [Part; 8] = [
    part("cycle", 0.32, cycle::run),
    part("syscalls", 0.10, syscalls::run),
    part("handover", 0.17, handover::run),
    part("held", 0.24, held::run),
    part("tasks", 0.05, tasks::run),
    part("idle", 0.03, held::idle),
    part("contention", 0.07, contention::run),
    part("start", 0.02, start::run),
];

/// The repository.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().unwrap_or(here)
}

#[allow(
    clippy::print_stderr,
    reason = "the one who started it wants to see how it goes"
)]
fn say(line: &str) {
    eprintln!("bench: {line}");
}

/// Ends the process where something hangs: no part takes so much longer than its share.
fn watch_over(expected: Duration) {
    let most = expected * 3 + Duration::from_secs(900);
    std::thread::spawn(move || {
        testkit::time::sleep(most);
        say(&format!("given up after {} s", most.as_secs()));
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
        ["profile", folder] => profile::run(Path::new(folder)),
        _ => Err(format!(
            "not understood: {}; see `make bench`",
            args.join(" ")
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&why);
            ExitCode::FAILURE
        }
    }
}

/// A document, of which a run replaces the blocks that it measured.
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
    let settings = Settings::read(&PARTS.map(|part| part.name), &root(), |name| {
        std::env::var(format!("BENCH_{name}")).ok()
    })?;
    // Before `make` installs what a run needs.
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
    say(&format!(
        "about {:.0} s: {}",
        expected.as_secs_f64(),
        list.join(", ")
    ));
    watch_over(expected);
    if machine::filesystem(&std::env::temp_dir()) == "tmpfs" {
        say(
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
        // After each part: what is interrupted has lost the one that ran alone.
        appendix.put(part.name, &section.text)?;
        say(&format!(
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
        // Those of a part are to be seen without the page.
        say(&format!("the goals of these parts:\n{}", goals(&reached)));
    }
    say(&format!("written: {}", settings.docs.display()));
    Ok(())
}
