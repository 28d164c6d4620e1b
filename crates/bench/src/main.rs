//! Measures the locks beside what they stand on and beside their peers, on real servers that it starts
//! itself, and writes what came of it into `docs/benchmarks.md` and `docs/benchmarks/*.svg`.
//!
//! `make bench` builds all that it needs and starts it; `make bench SECONDS=60` passes a setting on. Started
//! by hand it reads them from the environment, as `BENCH_SECONDS` and so on:
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `SECONDS` | how long all parts together may take, about | 700; of a long run by itself 1,300 |
//! | `ROUNDS` | how often each contender comes in the comparison | 10 |
//! | `ONLY` | the parts to run, with commas; each takes the time that it takes in a whole run | all |
//! | `LONG` | `1`: the long run on a hot table, and longer than in a whole run | |
//! | `DOCS` | the folder to write to | `docs` |
//! | `CHECK` | anything: these settings are checked, and that is all | |

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

mod contender;
mod cycle;
mod flame;
mod floors;
mod galera;
mod handover;
mod held;
mod long;
mod machine;
mod ours;
mod report;
mod servers;
mod settings;
mod spans;
mod start;
mod stats;
mod storm;
mod svg;
mod tap;
mod throughput;
mod waiting;
mod worker;

use crate::report::{Section, goals, replace, table};
use crate::servers::Servers;
use crate::settings::Settings;

/// One part of the document: its name, what share of the time it takes, and what measures it.
struct Part {
    name: &'static str,
    share: f64,
    run: fn(&Settings, &Servers, Duration) -> Section,
}

const PARTS: [Part; 10] = [
    part("cycle", 0.21, cycle::run),
    part("throughput", 0.09, throughput::run),
    part("handover", 0.10, handover::run),
    part("held", 0.18, held::run),
    part("idle", 0.03, waiting::idle),
    part("storm", 0.08, storm::run),
    part("start", 0.02, start::run),
    part("spans", 0.04, spans::run),
    part("galera", 0.07, galera::run),
    part("long", 0.18, long::run),
];

const fn part(
    name: &'static str,
    share: f64,
    run: fn(&Settings, &Servers, Duration) -> Section,
) -> Part {
    Part { name, share, run }
}

/// The repository.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().unwrap_or(here)
}

/// A runtime for many tasks.
fn tasks_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

/// To whoever watches.
#[allow(
    clippy::print_stderr,
    reason = "who started it wants to see how it goes"
)]
fn say(line: &str) {
    eprintln!("bench: {line}");
}

/// Ends the process where something hangs: no part takes so much longer than its share.
fn watch_over(expected: Duration) {
    let most = expected * 3 + Duration::from_secs(300);
    std::thread::spawn(move || {
        testkit::time::sleep(most);
        say(&format!("given up after {} s", most.as_secs()));
        std::process::exit(1);
    });
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["worker", rest @ ..] = args.as_slice() {
        worker::run(rest);
        return ExitCode::SUCCESS;
    }
    let done = match args.as_slice() {
        [] => measure(),
        ["flame", folder] => flame::run(std::path::Path::new(folder)),
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

fn measure() -> Result<(), String> {
    let settings = Settings::read(&PARTS.map(|part| part.name), &root())?;
    // Before `make` installs what a run needs.
    if std::env::var_os("BENCH_CHECK").is_some() {
        return Ok(());
    }
    let file = settings.docs.join("benchmarks.md");
    let plots = settings.docs.join("benchmarks");
    let cannot = |what: &std::path::Path, why: std::io::Error| format!("{}: {why}", what.display());
    std::fs::create_dir_all(&plots).map_err(|why| cannot(&plots, why))?;
    let mut document = std::fs::read_to_string(&file).unwrap_or_default();
    let parts = PARTS
        .iter()
        .filter(|part| settings.parts.contains(&part.name));
    let parts: Vec<&Part> = parts.collect();

    let expected = settings.share(parts.iter().map(|part| part.share).sum());
    let list = parts.iter().map(|part| {
        format!(
            "{} {:.0} s",
            part.name,
            settings.share(part.share).as_secs_f64()
        )
    });
    say(&format!(
        "about {:.0} s: {}",
        expected.as_secs_f64(),
        list.collect::<Vec<_>>().join(", ")
    ));
    watch_over(expected);
    if machine::filesystem(&std::env::temp_dir()) == "tmpfs" {
        say(
            "the databases lie on tmpfs, where no commit waits for a disk; TMPDIR names another folder",
        );
    }
    let load = machine::load();
    let servers = Servers::start();
    let mut reached = Vec::new();
    for part in &parts {
        let began = testkit::time::now();
        let mut section = (part.run)(&settings, &servers, settings.share(part.share));
        for (file, svg) in &section.plots {
            let file = plots.join(file);
            std::fs::write(&file, svg).map_err(|why| cannot(&file, why))?;
        }
        document = replace(&document, part.name, &section.text);
        reached.append(&mut section.goals);
        // After each part: what is interrupted has lost the one that ran alone.
        std::fs::write(&file, &document).map_err(|why| cannot(&file, why))?;
        say(&format!(
            "{}: done in {:.0} s",
            part.name,
            began.elapsed().as_secs_f64()
        ));
    }
    if parts.len() == PARTS.len() {
        document = replace(&document, "goals", &goals(&reached));
        let facts = table(&["", ""], &machine::facts(&servers, &load)).replace("---:", "---");
        document = replace(&document, "machine", &facts);
        std::fs::write(&file, document).map_err(|why| cannot(&file, why))?;
    }
    say(&format!("written: {}", file.display()));
    Ok(())
}
