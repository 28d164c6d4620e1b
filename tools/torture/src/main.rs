//! The command `torture`: see `make torture`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is a command: it answers by printing"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use torture::engine::{ENGINES, Engine};
use torture::process::Client;
use torture::run::{Options, Outcome, run};
use torture::{check, evidence, picture};

const USAGE: &str =
    "torture [--engine postgres|mariadb|mysql|sqlite|galera|all] [--seconds N] [--seed N]
        [--only ours|controls|replaced] [--control-seconds N] [--docs FOLDER]

DBLOCK_TORTURE_PYTHON: a Python that has the package, for workers in Python
DBLOCK_OLD_PYTHON: a Python that has django-database-locks 0.5, the control";

/// The controls that are written here; the replaced package is one more, where it is there.
const CONTROLS: [Client; 6] = [
    Client::Naive,
    Client::RenewalAcquires,
    Client::TrustFromReply,
    Client::ClientClock,
    Client::HandsOutEnded,
    Client::Unfenced,
];

struct Args {
    engines: Vec<Engine>,
    length: Duration,
    control_length: Duration,
    seed: u64,
    only: Option<String>,
    docs: Option<PathBuf>,
    folder: PathBuf,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut parsed = Args {
        engines: ENGINES.to_vec(),
        length: Duration::from_secs(120),
        control_length: Duration::from_secs(20),
        seed: fastrand::u64(1..1_000_000),
        only: None,
        docs: None,
        folder: PathBuf::from("target/torture"),
    };
    while let Some(option) = args.next() {
        let value = args
            .next()
            .ok_or_else(|| format!("{option} wants a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{option} {value}: no number"))
        };
        match option.as_str() {
            "--engine" if value == "all" => {}
            "--engine" => {
                let engine = Engine::of(&value).ok_or_else(|| format!("no engine `{value}`"))?;
                parsed.engines = vec![engine];
            }
            "--seconds" => match number()? {
                seconds @ 12..=3600 => parsed.length = Duration::from_secs(seconds),
                _ => return Err("--seconds: 12 to 3600".into()),
            },
            "--control-seconds" => parsed.control_length = Duration::from_secs(number()?),
            "--seed" => parsed.seed = number()?,
            "--only" => parsed.only = Some(value),
            "--docs" => parsed.docs = Some(value.into()),
            "--folder" => parsed.folder = value.into(),
            _ => return Err(format!("no option {option}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let worker = std::env::current_exe().expect("this program has a path");
    let worker = worker.with_file_name("torture-worker");
    let python = std::env::var_os("DBLOCK_TORTURE_PYTHON").map(PathBuf::from);
    let old_python = std::env::var_os("DBLOCK_OLD_PYTHON").map(PathBuf::from);
    println!("seed {}", args.seed);
    let wants = |what: &str| args.only.as_deref().is_none_or(|only| only == what);

    let mut outcomes = Vec::new();
    let mut good = true;
    for engine in &args.engines {
        let options = Options {
            engine: *engine,
            seed: args.seed,
            length: args.length,
            clients: Vec::new(),
            locks: 4,
            kinds: None,
            worker: worker.clone(),
            python: python.clone(),
            old_python: old_python.clone(),
            folder: args.folder.clone(),
        };
        let mut runs = Vec::new();
        if wants("ours") {
            let mut clients = vec![Client::Rust; 6];
            clients.extend(vec![Client::Python; if python.is_some() { 2 } else { 0 }]);
            runs.push(Options {
                clients,
                ..options.clone()
            });
        }
        let control = |client| Options {
            clients: vec![client; 4],
            locks: 1,
            length: args.control_length,
            ..options.clone()
        };
        // What they are to show they show on one server.
        let one = *engine != Engine::Galera;
        if one && wants("controls") {
            let fits = |client: &Client| client.can_be_wrong_on(*engine);
            runs.extend(CONTROLS.into_iter().filter(fits).map(control));
        }
        if one && wants("replaced") && old_python.is_some() && *engine != Engine::Sqlite {
            runs.push(control(Client::Replaced));
        }
        for options in runs {
            let Some(outcome) = run(&options) else {
                continue;
            };
            good &= told(&outcome);
            let name = format!(
                "torture-{}-{}",
                engine.as_str(),
                options.clients[0].as_str()
            );
            let svg = picture::draw(&outcome);
            if let Err(error) = std::fs::write(args.folder.join(format!("{name}.svg")), &svg) {
                eprintln!("no picture: {error}");
            }
            if let Some(docs) = &args.docs
                && !options.is_control()
            {
                let path = docs.join(format!("torture-{}.svg", engine.as_str()));
                std::fs::write(path, &svg).expect("the documents can be written to");
            }
            outcomes.push(outcome);
        }
    }
    println!("\n{}", evidence::tables(&outcomes));
    if let Some(docs) = &args.docs {
        evidence::put(&docs.join("evidence.md"), &outcomes)
            .expect("the documents can be written to");
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Say what came of a run.
fn told(outcome: &Outcome) -> bool {
    let options = &outcome.options;
    let landed = outcome
        .faults
        .iter()
        .filter(|fault| fault.missed.is_none())
        .count();
    let shares = check::shares(&outcome.evidence);
    println!(
        "{} {}: {} grants ({} to {} a process), {} faults landed, {} violations",
        options.engine.as_str(),
        evidence::clients(options),
        outcome.numbers.grants,
        shares.values().min().unwrap_or(&0),
        shares.values().max().unwrap_or(&0),
        landed,
        outcome.violations.len(),
    );
    if outcome.is_good() {
        return true;
    }
    for problem in &outcome.problems {
        println!("  {problem}");
    }
    if outcome.violations.is_empty() && outcome.problems.is_empty() {
        println!("  it must be caught, and was not");
    }
    for violation in outcome.violations.iter().take(20) {
        println!("  {violation}");
    }
    println!(
        "  histories: {}; again: {}",
        options.folder.display(),
        outcome.command()
    );
    false
}
