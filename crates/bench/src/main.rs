//! Measures the locks beside what they stand on and beside their peers, on real servers that it starts
//! itself, and writes what came of it into `docs/benchmarks.md` and `docs/benchmarks/*.svg`.
//!
//! `make bench` builds all that it needs and starts it; `make bench SECONDS=60` passes a setting on. Started
//! by hand it reads them from the environment, as `BENCH_SECONDS` and so on:
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `SECONDS` | how long all of it may take, about | 330; of a long run 240 |
//! | `ROUNDS` | how often each contender comes in the comparison | 10 |
//! | `ONLY` | the parts to run, with commas: `cycle`, `throughput`, `handover`, `held`, `idle`, `storm`, `start`, `spans` | all |
//! | `LONG` | `1`: the long run on a hot table instead | |
//! | `DOCS` | the folder to write to | `docs` |

use std::path::PathBuf;
use std::time::Duration;

mod contender;
mod cycle;
mod floors;
mod handover;
mod held;
mod long;
mod machine;
mod ours;
mod report;
mod servers;
mod spans;
mod start;
mod stats;
mod svg;
mod tap;
mod throughput;
mod waiting;
mod worker;

use crate::report::{Section, goals, replace, table};
use crate::servers::Servers;

/// What was asked for.
#[derive(Debug)]
struct Settings {
    seconds: f64,
    rounds: usize,
    only: Vec<String>,
    long: bool,
    docs: PathBuf,
}

impl Settings {
    fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let long = text("BENCH_LONG").is_some();
        let number = |name: &str, default: f64| {
            text(name).map_or(default, |text| {
                text.parse()
                    .unwrap_or_else(|_| panic!("{name}={text} is no number"))
            })
        };
        Self {
            seconds: number("BENCH_SECONDS", if long { 240.0 } else { 330.0 }),
            rounds: number("BENCH_ROUNDS", 10.0) as usize,
            only: text("BENCH_ONLY")
                .map(|only| only.split(',').map(|part| part.trim().to_owned()).collect())
                .unwrap_or_default(),
            long,
            docs: text("BENCH_DOCS").map_or_else(|| root().join("docs"), PathBuf::from),
        }
    }

    /// So much of the time.
    fn share(&self, of: f64) -> Duration {
        Duration::from_secs_f64(self.seconds * of)
    }
}

type Part = fn(&Settings, &Servers) -> Section;

const PARTS: [(&str, Part); 8] = [
    ("cycle", cycle::run),
    ("throughput", throughput::run),
    ("handover", handover::run),
    ("held", held::run),
    ("idle", waiting::idle),
    ("storm", waiting::storm),
    ("start", start::run),
    ("spans", spans::run),
];

/// The repository.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().unwrap_or(here)
}

/// To whoever watches.
#[allow(
    clippy::print_stderr,
    reason = "who started it wants to see how it goes"
)]
fn say(line: &str) {
    eprintln!("bench: {line}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["worker", rest @ ..] = args.as_slice() {
        return worker::run(rest);
    }
    let (settings, load) = (Settings::read(), machine::load());
    let servers = Servers::start();
    let file = settings.docs.join("benchmarks.md");
    let plots = settings.docs.join("benchmarks");
    std::fs::create_dir_all(&plots).expect("the folder can be made");
    let mut document = std::fs::read_to_string(&file).unwrap_or_default();
    let parts: Vec<(&str, Part)> = match settings.long {
        true => vec![("long", long::run as Part)],
        false => PARTS
            .into_iter()
            .filter(|(name, _)| {
                settings.only.is_empty() || settings.only.iter().any(|only| only == name)
            })
            .collect(),
    };
    assert!(
        !parts.is_empty(),
        "ONLY names no part that there is: {:?}",
        settings.only
    );
    let mut reached = Vec::new();
    for (name, part) in &parts {
        let mut section = part(&settings, &servers);
        for (file, svg) in &section.plots {
            std::fs::write(plots.join(file), svg).expect("the plot can be written");
        }
        if settings.long {
            section.paragraph(format!(
                "Load average when it began: {load}; when it ended: {}.",
                machine::load()
            ));
        }
        document = replace(&document, name, &section.text);
        reached.append(&mut section.goals);
    }
    if parts.len() == PARTS.len() {
        document = replace(&document, "goals", &goals(&reached));
        let facts = table(&["", ""], &machine::facts(&servers, &load)).replace("---:", "---");
        document = replace(&document, "machine", &facts);
    }
    std::fs::write(&file, document).expect("the document can be written");
    say(&format!("written: {}", file.display()));
}
