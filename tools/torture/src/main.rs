//! The command `torture`: see `make torture`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command prints its results"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use torture::engine::{ENGINES, Engine};
use torture::options::Options;
use torture::outcome::Outcome;
use torture::plan::Kind;
use torture::run::run;
use torture::target::Target;
use torture::worker::Client;
use torture::{check, report, timeline};

const USAGE: &str =
    "torture [--engine postgres|mariadb|mysql|sqlite|galera|all] [--seconds N] [--seed N]
        [--only library|shared|guarded|controls|NAME OF A CONTROL] [--control-seconds N] [--docs FOLDER]

DBLOCK_TORTURE_PYTHON: a Python that has the package, for workers in Python
DBLOCK_OLD_PYTHON: a Python that has legacy (django-database-locks 0.5), a control";

/// The engine whose timeline the documents show.
const DRAWN: Engine = Engine::Postgres;

/// The permits of the semaphore: fewer than processes want one.
const PERMITS: u32 = 2;

/// The controls in Rust, and what they contend for; legacy is one more.
fn controls() -> Vec<(Client, Target)> {
    let lock = [
        Client::Correct,
        Client::RenewalAcquires,
        Client::TrustFromReply,
        Client::ClientClock,
        Client::HandsOutEnded,
        Client::Unfenced,
    ];
    let mut controls: Vec<_> = lock
        .into_iter()
        .flat_map(|client| Target::locks(1).into_iter().map(move |lock| (client, lock)))
        .collect();
    for client in [Client::Correct, Client::CountsThenEnters] {
        controls.push((client, Target::semaphore(PERMITS)));
    }
    for client in [Client::Correct, Client::LooksThenEnters] {
        controls.push((client, Target::shared()));
    }
    controls.push((Client::Unguarded, Target::guarded()));
    controls
}

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
    println!("seed {}", args.seed);
    let mut outcomes = Vec::new();
    let mut good = true;
    for options in args.engines.iter().flat_map(|engine| runs(&args, *engine)) {
        let Some(outcome) = run(&options) else {
            continue;
        };
        good &= print_outcome(&outcome);
        draw(&outcome, &args.folder);
        if let Some(docs) = &args.docs
            && !options.is_control()
            && options.engine == DRAWN
        {
            draw(&outcome, docs);
        }
        outcomes.push(outcome);
    }
    println!("\n{}", report::tables(&outcomes));
    if let Some(docs) = &args.docs {
        report::put(&docs.join("evidence.md"), &outcomes).expect("the documents can be written to");
    }
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The runs on one engine: the library, and the controls that suit it.
fn runs(args: &Args, engine: Engine) -> Vec<Options> {
    let worker = std::env::current_exe().expect("this program has a path");
    let options = Options {
        engine,
        seed: args.seed,
        length: args.length,
        clients: Vec::new(),
        targets: Target::locks(4),
        kinds: None,
        worker: worker.with_file_name("torture-worker"),
        python: std::env::var_os("DBLOCK_TORTURE_PYTHON").map(PathBuf::from),
        old_python: std::env::var_os("DBLOCK_OLD_PYTHON").map(PathBuf::from),
        folder: args.folder.clone(),
    };
    let wants = |what: &str| args.only.as_deref().is_none_or(|only| only == what);
    let control = |(client, target)| Options {
        clients: vec![client; 4],
        targets: vec![target],
        length: args.control_length,
        ..options.clone()
    };
    let mut runs = Vec::new();
    // Only when asked for: the readers and writers of one lock, in fenced transactions.
    if args.only.as_deref() == Some("shared") {
        runs.push(Options {
            clients: vec![Client::Rust; 6],
            targets: vec![Target::shared()],
            kinds: Some(Kind::of_a_holder(engine)),
            ..options.clone()
        });
    }
    // And the writers of a guarded table alone.
    if args.only.as_deref() == Some("guarded") && engine.has_guards() {
        let mut kinds = Kind::of_a_holder(engine);
        kinds.extend(Kind::of_a_guarded_write());
        kinds.retain(|kind| {
            !matches!(
                kind,
                Kind::KillInFence | Kind::FreezeInFence | Kind::LongFence
            )
        });
        runs.push(Options {
            clients: vec![Client::Rust; 6],
            targets: vec![Target::guarded()],
            kinds: Some(kinds),
            ..options.clone()
        });
    }
    if wants("library") {
        let mut clients = vec![Client::Rust; 8];
        if options.python.is_some() {
            clients.extend([Client::Python; 2]);
        }
        let mut targets = options.targets.clone();
        targets.extend([Target::semaphore(PERMITS), Target::shared()]);
        if engine.has_guards() {
            targets.push(Target::guarded());
        }
        runs.push(Options {
            clients,
            targets,
            ..options.clone()
        });
    }
    let fits = |(client, _): &(Client, Target)| {
        client.can_be_wrong_on(engine) && (wants("controls") || wants(client.as_str()))
    };
    runs.extend(controls().into_iter().filter(fits).map(control));
    // One server suffices to expose it.
    let one_server = !matches!(engine, Engine::Sqlite | Engine::Galera);
    if wants("legacy") && options.old_python.is_some() && one_server {
        runs.extend(
            Target::locks(1)
                .into_iter()
                .map(|lock| control((Client::Legacy, lock))),
        );
    }
    runs
}

/// Writes the timeline of a run.
fn draw(outcome: &Outcome, folder: &Path) {
    let Options {
        engine,
        clients,
        targets,
        ..
    } = &outcome.options;
    let name = match outcome.options.is_control() {
        true => {
            let client = clients[0].as_str();
            format!(
                "torture-{}-{client}-{}.svg",
                engine.as_str(),
                targets[0].name
            )
        }
        false => format!("torture-{}.svg", engine.as_str()),
    };
    if let Err(error) = std::fs::write(folder.join(name), timeline::draw(outcome)) {
        eprintln!("the timeline cannot be written: {error}");
    }
}

/// Prints the result of a run; whether it is good.
fn print_outcome(outcome: &Outcome) -> bool {
    let options = &outcome.options;
    let landed = outcome
        .faults
        .iter()
        .filter(|fault| fault.missed.is_none())
        .count();
    let shares = check::grants_per_process(&outcome.evidence);
    println!(
        "{} {}: {} grants ({} to {} a process), {} faults landed, {} violations",
        options.engine.as_str(),
        report::clients(options),
        outcome.numbers.grants,
        shares.values().min().unwrap_or(&0),
        shares.values().max().unwrap_or(&0),
        landed,
        outcome.violations.len(),
    );
    if outcome.numbers.shared > 0 {
        let (readers, writers) = outcome.faults_of_readers_and_writers();
        println!(
            "  {} grants to readers; of the shared lock {readers} faults of readers, {writers} of writers",
            outcome.numbers.shared
        );
    }
    if let Some(guarded) = report::guarded(outcome) {
        println!("  guarded table: {guarded}");
    }
    if outcome.is_good() {
        return true;
    }
    for problem in &outcome.problems {
        println!("  {problem}");
    }
    if outcome.violations.is_empty() && outcome.problems.is_empty() {
        println!("  the control was not caught");
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
