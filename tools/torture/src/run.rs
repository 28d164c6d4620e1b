//! One run: starts a database and the processes, injects faults, and checks the histories.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use database_locks::Locks;
use testkit::faketime;
use testkit::time::{now, sleep};

use crate::check::{self, Evidence, Kind, LimitChange, Numbers, Outage, Row, Violation};
use crate::clock;
use crate::engine::{Database, Engine};
use crate::faults::{self, Fault};
use crate::history;
use crate::plan::{self, Planned, plan};
use crate::sql::Sql;
use crate::target::{self, Target};
use crate::worker::{Client, Settings};
use crate::worker_process::WorkerProcess;

/// The length of all leases: short, for many grants in two minutes, but long enough for a busy
/// machine to renew most leases in time.
pub const TTL: Duration = Duration::from_millis(1500);
/// How long all processes may take to finish; each is served once more, one after another.
const FINISHED_WITHIN: Duration = Duration::from_secs(45);

/// A run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database.
    pub engine: Engine,
    /// The seed of all choices.
    pub seed: u64,
    /// How long faults are injected.
    pub length: Duration,
    /// The client of each process.
    pub clients: Vec<Client>,
    /// The locks and semaphores.
    pub targets: Vec<Target>,
    /// The program of a worker in Rust.
    pub worker: PathBuf,
    /// A Python that has the package, for [`Client::Python`].
    pub python: Option<PathBuf>,
    /// A Python that has legacy (django-database-locks 0.5), for [`Client::Legacy`].
    pub old_python: Option<PathBuf>,
    /// The faults; `None`: all that suit the client.
    pub kinds: Option<Vec<plan::Kind>>,
    /// Where the histories of failed runs are kept.
    pub folder: PathBuf,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run.
    pub options: Options,
    /// When it began, in microseconds.
    pub began: u64,
    /// When the last process had ended.
    pub ended: u64,
    /// What the processes left behind.
    pub evidence: Evidence,
    /// Its numbers.
    pub numbers: Numbers,
    /// The faults.
    pub faults: Vec<Fault>,
    /// The violations.
    pub violations: Vec<Violation>,
    /// Why the run proves nothing: faults that did not land, processes that failed.
    pub problems: Vec<String>,
}

impl Options {
    /// Whether the clients are a control: it has faults of its own, and must be caught.
    pub fn is_control(&self) -> bool {
        !matches!(self.clients.first(), Some(Client::Rust | Client::Python))
    }

    /// The faults that suit a client, the engine and the targets.
    fn suitable_kinds(&self, client: Client) -> Vec<plan::Kind> {
        let is_semaphore = |target: &Target| matches!(target.kind, target::Kind::Semaphore(_));
        let limited = self.targets.iter().any(is_semaphore);
        // A control takes a lock by one statement, and enters elsewhere by two.
        let locks = self.targets.iter().any(|t| t.kind == target::Kind::Lock);
        let mut kinds = plan::kinds(client, self.engine);
        kinds.retain(|kind| match kind {
            plan::Kind::Limit => limited,
            plan::Kind::SlowClaim => !locks,
            plan::Kind::LateGrant => locks,
            _ => true,
        });
        kinds
    }

    fn program(&self, client: Client) -> Vec<String> {
        let script = |name: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
            folder.join(name).display().to_string()
        };
        let python = |python: &Option<PathBuf>| {
            let path = python.as_ref().expect("a run with Python has one");
            path.display().to_string()
        };
        match client {
            Client::Python => vec![python(&self.python), script("worker.py")],
            Client::Legacy => vec![python(&self.old_python), script("legacy_worker.py")],
            _ => vec![self.worker.display().to_string()],
        }
    }
}

/// Runs it. `None`, and a printed line, if this machine does not have the database.
///
/// # Panics
///
/// If the server cannot be started, or the tables cannot be made or read.
pub fn run(options: &Options) -> Option<Outcome> {
    let database = Database::start(options.engine, options.is_control())?;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(prepare(&database, &options.targets, options.is_control()));
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
    let (rows, counters) = runtime
        .block_on(left_behind(&database.data))
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
    let outcome = Outcome {
        numbers: check::numbers(&evidence),
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
    let planned = plan(
        kinds,
        options.seed,
        options.length,
        TTL,
        workers.len(),
        &clocks,
    );
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
        plan::Kind::KillWaiting,
    ];
    Some(Outage {
        process: (!fault.process.is_empty()).then(|| fault.process.clone()),
        from: fault.from,
        until: fault.until,
        killed: kills.contains(&fault.planned.kind),
    })
}

impl Outcome {
    /// Of the faults that landed: how many hit a reader, and how many a writer of a shared lock or a process
    /// that waited for it.
    pub fn faults_of_readers_and_writers(&self) -> (usize, usize) {
        let is_shared = |name: &&String| {
            let mut targets = self.options.targets.iter();
            targets.any(|t| t.kind == target::Kind::Shared && t.name == **name)
        };
        let grants = check::grants(&self.evidence.events);
        let hit = self.faults.iter().filter(|fault| fault.missed.is_none());
        let hit = hit.filter(|fault| fault.lock.as_ref().filter(is_shared).is_some());
        let (readers, writers): (Vec<_>, Vec<_>) = hit.partition(|fault| {
            let of = |grant: &&check::Grant| {
                grant.process == fault.process && grant.token == fault.token
            };
            let grant = grants.iter().find(of);
            grant.is_some_and(|grant| grant.mode == target::Mode::Shared)
        });
        (readers.len(), writers.len())
    }

    /// Whether all faults landed without violations; a control must have some.
    pub fn is_good(&self) -> bool {
        let correct = self.options.clients[0] == Client::Correct || !self.options.is_control();
        self.problems.is_empty() && self.violations.is_empty() == correct
    }

    /// The command that repeats it, as far as the scheduling of the machine allows.
    pub fn command(&self) -> String {
        let Options {
            engine,
            seed,
            length,
            ..
        } = &self.options;
        format!(
            "make torture ENGINE={} SECONDS={} SEED={seed}",
            engine.as_str(),
            length.as_secs()
        )
    }

    fn keep(&self, folder: &Path) {
        let mut text = String::new();
        for problem in &self.problems {
            text.push_str(&format!("problem: {problem}\n"));
        }
        for violation in &self.violations {
            text.push_str(&format!("{violation}\n"));
        }
        for fault in &self.faults {
            text.push_str(&format!("{fault:?}\n"));
        }
        for row in &self.evidence.rows {
            text.push_str(&format!("{row:?}\n"));
        }
        let _ = std::fs::write(folder.join("findings.txt"), text);
    }
}

async fn prepare(database: &Database, targets: &[Target], controls: bool) {
    let all = Locks::connect(&database.url).await.expect("it was started");
    all.migrate().await.expect("the table can be made");
    database
        .prepare(targets)
        .await
        .expect("the tables can be made");
    if controls {
        let mut sql = Sql::connect(&database.url).await.expect("it was started");
        for row in targets.iter().flat_map(rows_of) {
            sql.run(&row).await.expect("the table was made");
        }
    }
    if !controls && targets.iter().any(|t| t.kind == target::Kind::Shared) {
        database
            .slow_readers()
            .await
            .expect("a trigger can be made");
    }
    if let Some(data) = database.data.strip_prefix("sqlite://") {
        // In WAL mode a writer delays the others less.
        let file = rusqlite::Connection::open(data).expect("it was made");
        file.pragma_update(None, "journal_mode", "wal")
            .expect("WAL");
    }
}

/// The statements that make the rows of a target: the controls make none.
fn rows_of(target: &Target) -> Vec<String> {
    let name = &target.name;
    match target.kind {
        target::Kind::Semaphore(permits) => (0..permits)
            .map(|slot| {
                format!("INSERT INTO database_locks_permit (name, slot) VALUES ('{name}', {slot})")
            })
            .collect(),
        target::Kind::Lock | target::Kind::Shared => {
            vec![format!(
                "INSERT INTO database_locks_lock (name) VALUES ('{name}')"
            )]
        }
    }
}

type Left = (Vec<Row>, std::collections::BTreeMap<String, i64>);

async fn left_behind(data: &str) -> Result<Left, String> {
    let mut sql = Sql::connect(data).await?;
    let rows = sql
        .run("SELECT name, place, token, write_id FROM torture_write ORDER BY name, place")
        .await?;
    let number = |text: &String| text.parse().map_err(|_| format!("no number: {text}"));
    let row = |row: &Vec<String>| {
        Ok(Row {
            lock: row[0].clone(),
            place: number(&row[1])?,
            token: number(&row[2])?,
            id: row[3].clone(),
        })
    };
    let rows: Result<Vec<Row>, String> = rows.rows.iter().map(row).collect();
    let counters = sql.run("SELECT name, value FROM torture_counter").await?;
    let counter = |row: &Vec<String>| Ok((row[0].clone(), number(&row[1])?));
    let counters: Result<_, String> = counters.rows.iter().map(counter).collect();
    Ok((rows?, counters?))
}
