//! One run: starts a database and the processes, injects faults, and checks the histories.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use testkit::faketime;
use testkit::time::{now, sleep};

use crate::check::{self, Evidence, Kind, LimitChange, Outage, Violation};
use crate::clock;
use crate::engine::Database;
use crate::faults::{self, Fault};
use crate::history;
use crate::options::Options;
use crate::outcome::Outcome;
use crate::plan::{self, Planned, Processes, plan};
use crate::tables::{self, Left};
use crate::worker::{Client, Settings};
use crate::worker_process::WorkerProcess;

/// The length of all leases: short, for many grants in two minutes, but long enough for a busy
/// machine to renew most leases in time.
pub const TTL: Duration = Duration::from_millis(1500);
/// How long all processes may take to finish; each is served once more, one after another.
const FINISHED_WITHIN: Duration = Duration::from_secs(45);

/// Runs it. `None`, and a printed line, if this machine does not have the database.
///
/// # Panics
///
/// If the server cannot be started, or the tables cannot be made or read.
pub fn run(options: &Options) -> Option<Outcome> {
    let database = Database::start(options.engine, options.is_control())?;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(tables::prepare(
        &database,
        &options.targets,
        options.clients[0],
    ));
    let folder = fresh_folder(options);

    let mut workers = start_workers(options, &database, &folder);
    let mut problems = Vec::new();
    for worker in &mut workers {
        let worker = unlocked(worker);
        if !worker.ready() {
            problems.push(format!("{} did not begin", worker.settings.process));
        }
    }
    let database = Mutex::new(database);
    let (began, start) = (clock::now(), now());
    let mut faults = inject_faults(options, &workers, &database);
    sleep(options.length.saturating_sub(start.elapsed()));
    let unserved = finish(&mut workers, &mut problems);
    let ended = clock::now();

    let database = database.into_inner().expect("no thread has it any more");
    database.settle();
    let Left {
        rows,
        guarded,
        counters,
    } = runtime
        .block_on(tables::left_behind(&database.data))
        .expect("the tables can be read");
    let events = history::read(&folder).expect("histories can be read");
    for fault in &mut faults {
        faults::confirm(fault, &events);
        if let Some(why) = &fault.missed {
            let (kind, at) = (fault.planned.kind.as_str(), fault.planned.at);
            problems.push(format!("{kind} at {at} ms did not land: {why}"));
        }
    }
    let evidence = Evidence {
        limits: limits(&faults),
        outages: faults.iter().filter_map(outage).collect(),
        events,
        rows,
        guarded,
        counters,
        ttl: TTL.as_micros() as u64,
    };
    let mut violations = check::check(&evidence);
    violations.extend(unserved.into_iter().map(|process| Violation {
        kind: Kind::ForgottenWaiter,
        lock: String::new(),
        at: ended,
        text: format!("{process} was not served within {FINISHED_WITHIN:?} after the last fault"),
    }));
    let numbers = check::numbers(&evidence);
    problems.extend(options.unexercised(&numbers));
    let outcome = Outcome {
        numbers,
        options: options.clone(),
        began,
        ended,
        evidence,
        faults,
        violations,
        problems,
    };
    match outcome.is_good() {
        true => drop(std::fs::remove_dir_all(&folder)),
        false => outcome.keep(&folder),
    }
    Some(outcome)
}

fn unlocked(worker: &mut Mutex<WorkerProcess>) -> &mut WorkerProcess {
    worker.get_mut().expect("no thread has it")
}

/// The folder of the histories, empty: those of an earlier run of the same seed would be read too.
fn fresh_folder(options: &Options) -> PathBuf {
    let folder = options.folder.join(format!(
        "{}-{}-{}",
        options.engine.as_str(),
        options.clients[0].as_str(),
        options.seed
    ));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the folder can be written to");
    folder
}

/// Whether the process at this place has a wall clock of its own. Processes in Python have not: the
/// library would give them a wrong boot-time clock too.
fn has_clock(at: usize, client: Client) -> bool {
    at.is_multiple_of(2)
        && !matches!(client, Client::Python | Client::Legacy)
        && faketime::library().is_some()
}

fn start_workers(
    options: &Options,
    database: &Database,
    folder: &Path,
) -> Vec<Mutex<WorkerProcess>> {
    let start = |(at, client): (usize, &Client)| {
        let name = format!("{}-{at}", client.as_str());
        let network = database.network(at);
        let (url, data) = match &network {
            Some(network) => (
                network.url(&database.url),
                network.first_url(&database.data),
            ),
            None => (database.url.clone(), database.data.clone()),
        };
        let settings = Settings {
            client: *client,
            process: name.clone(),
            url,
            data,
            targets: options.targets.clone(),
            ttl: TTL,
            seed: options.seed ^ (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            history: folder.join(&name),
        };
        let clock = has_clock(at, *client).then(|| folder.join(format!("{name}.clock")));
        let program = options.program(*client);
        Mutex::new(WorkerProcess::start(
            &name, settings, program, network, clock,
        ))
    };
    options.clients.iter().enumerate().map(start).collect()
}

/// Injects the planned faults, each on a thread of its own, and waits until all are over.
fn inject_faults(
    options: &Options,
    workers: &[Mutex<WorkerProcess>],
    database: &Mutex<Database>,
) -> Vec<Fault> {
    let client = options.clients[0];
    let kinds = options.kinds.clone();
    let kinds = kinds.unwrap_or_else(|| options.suitable_kinds(client));
    let clients = options.clients.iter().enumerate();
    let clocks: Vec<usize> = clients
        .filter_map(|(at, client)| has_clock(at, *client).then_some(at))
        .collect();
    let guarded = options.clients.iter().enumerate();
    let guarded = guarded.filter(|(_, client)| !matches!(client, Client::Python | Client::Legacy));
    let processes = Processes {
        count: workers.len(),
        clocks,
        guarded: guarded.map(|(at, _)| at).collect(),
    };
    let planned = plan(kinds, options.seed, options.length, TTL, &processes);
    let start = now();
    std::thread::scope(|scope| {
        let inject = |fault: Planned| {
            scope.spawn(move || {
                sleep(Duration::from_millis(fault.at).saturating_sub(start.elapsed()));
                faults::inject(fault, TTL, workers, database, &options.targets)
            })
        };
        let threads: Vec<_> = planned.into_iter().map(inject).collect();
        let faults = threads.into_iter().map(|thread| thread.join());
        faults
            .map(|fault| fault.expect("the fault can be injected"))
            .collect()
    })
}

/// Asks all processes to finish; those that were not served in time.
fn finish(workers: &mut [Mutex<WorkerProcess>], problems: &mut Vec<String>) -> Vec<String> {
    for worker in &mut *workers {
        let worker = unlocked(worker);
        if worker.ended() {
            problems.push(format!("{} ended by itself", worker.settings.process));
        }
        worker.finish();
    }
    let (begun, mut unserved) = (now(), Vec::new());
    for worker in workers {
        let worker = unlocked(worker);
        match worker.wait(FINISHED_WITHIN.saturating_sub(begun.elapsed())) {
            Some(true) => {}
            Some(false) => problems.push(format!("{} failed", worker.settings.process)),
            None => {
                unserved.push(worker.settings.process.clone());
                worker.kill();
            }
        }
    }
    unserved
}

/// The operator's changes, in order of time.
fn limits(faults: &[Fault]) -> Vec<LimitChange> {
    let mut changes: Vec<_> = faults
        .iter()
        .flat_map(|fault| &fault.limits)
        .cloned()
        .collect();
    changes.sort_by_key(|change| change.from);
    changes
}

fn outage(fault: &Fault) -> Option<Outage> {
    if !fault.planned.kind.delays() {
        return None;
    }
    let kills = [
        plan::Kind::KillHolding,
        plan::Kind::KillInFence,
        plan::Kind::KillInGuarded,
        plan::Kind::KillWaiting,
    ];
    Some(Outage {
        process: (!fault.process.is_empty()).then(|| fault.process.clone()),
        from: fault.from,
        until: fault.until,
        killed: kills.contains(&fault.planned.kind),
    })
}
