//! One run: a database, processes, faults; then what they left behind, checked.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use database_locks::Locks;
use testkit::time::{now, sleep};

use crate::check::{self, Evidence, Kind, Numbers, Outage, Row, Violation};
use crate::clock;
use crate::engine::{Database, Engine};
use crate::faults::{self, Actor, Fault};
use crate::history;
use crate::network::Network;
use crate::plan::{self, plan};
use crate::process::{Client, Settings};
use crate::store::Sql;

/// The length of all leases: short, so that much comes to pass in two minutes; long enough that a busy
/// machine renews in time more often than not.
pub const TTL: Duration = Duration::from_millis(1500);
/// The longest that everybody may take to finish: to be served, each after the other, is part of it.
const FINISHED_WITHIN: Duration = Duration::from_secs(45);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// On which database.
    pub engine: Engine,
    /// What all choices come from.
    pub seed: u64,
    /// For how long faults come.
    pub length: Duration,
    /// Who takes part.
    pub clients: Vec<Client>,
    /// On how many locks.
    pub locks: usize,
    /// The program of a worker of ours.
    pub worker: PathBuf,
    /// A Python that has the package, for [`Client::Python`].
    pub python: Option<PathBuf>,
    /// A Python that has the package that it replaces, for [`Client::Replaced`].
    pub old_python: Option<PathBuf>,
    /// Which faults; `None`: all that the client is to go through.
    pub kinds: Option<Vec<plan::Kind>>,
    /// Where histories are kept; they are removed after a run that went well.
    pub folder: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// As it was asked for.
    pub options: Options,
    /// When it began, in microseconds.
    pub began: u64,
    /// When the last one had ended.
    pub ended: u64,
    /// What the processes left behind.
    pub evidence: Evidence,
    /// In numbers.
    pub numbers: Numbers,
    /// What was done to them.
    pub faults: Vec<Fault>,
    /// What must not be.
    pub violations: Vec<Violation>,
    /// Why the run proves nothing: faults that did not land, processes that broke.
    pub problems: Vec<String>,
}

impl Options {
    /// Whether these are not ours: they go through faults of their own, and must be caught.
    pub fn is_control(&self) -> bool {
        !matches!(self.clients.first(), Some(Client::Rust | Client::Python))
    }

    fn program(&self, client: Client) -> Vec<String> {
        let script = |name: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
            folder.join(name).display().to_string()
        };
        let python = |python: &Option<PathBuf>| {
            let path = python.as_ref().expect("asked for only where it is there");
            path.display().to_string()
        };
        match client {
            Client::Python => vec![python(&self.python), script("worker.py")],
            Client::Replaced => vec![python(&self.old_python), script("old_worker.py")],
            _ => vec![self.worker.display().to_string()],
        }
    }
}

/// Run it. `None`, with a line that says so, where this machine has no such database.
///
/// # Panics
///
/// When the server cannot be started, or the tables not be made or read.
pub fn run(options: &Options) -> Option<Outcome> {
    let database = Database::start(options.engine, options.is_control())?;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let locks: Vec<String> = (0..options.locks)
        .map(|number| char::from(b'a' + number as u8).to_string())
        .collect();
    runtime.block_on(prepare(&database, &locks, options.is_control()));

    let folder = options.folder.join(format!(
        "{}-{}-{}",
        options.engine.as_str(),
        options.clients[0].as_str(),
        options.seed
    ));
    // Of an earlier run of the same seed: it would be read as a part of this one.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the folder can be written to");
    let can_fake = faults::faketime().is_some();
    let mut clocks = Vec::new();
    let mut actors = Vec::new();
    for (at, client) in options.clients.iter().enumerate() {
        let name = format!("{}-{at}", client.as_str());
        // Those in Python ask a library that would be told a wrong boot-time clock too.
        let clock = can_fake && at % 2 == 0 && !matches!(client, Client::Python | Client::Replaced);
        if clock {
            clocks.push(at);
        }
        let network = database.network(at);
        let by = |network: &Network| {
            (
                network.url(&database.url),
                network.first_url(&database.data),
            )
        };
        let past = || (database.url.clone(), database.data.clone());
        let (url, data) = network.as_ref().map_or_else(past, by);
        let settings = Settings {
            client: *client,
            who: name.clone(),
            url,
            data,
            locks: locks.clone(),
            ttl: TTL,
            seed: options.seed ^ (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            history: folder.join(&name),
        };
        let clock = clock.then(|| folder.join(format!("{name}.clock")));
        let program = options.program(*client);
        actors.push(Mutex::new(Actor::start(
            &name, settings, program, network, clock,
        )));
    }

    let mut problems = Vec::new();
    for actor in &mut actors {
        let actor = actor.get_mut().expect("nobody has it yet");
        if !actor.ready() {
            problems.push(format!("{} did not begin", actor.settings.who));
        }
    }
    let planned = plan(
        options
            .kinds
            .clone()
            .unwrap_or_else(|| plan::kinds(options.clients[0], options.engine)),
        options.seed,
        options.length,
        TTL,
        actors.len(),
        &clocks,
    );
    let database = Mutex::new(database);
    let (began, start) = (clock::now(), now());
    let mut faults: Vec<Fault> = std::thread::scope(|scope| {
        let (actors, database) = (&actors, &database);
        let making: Vec<_> = planned
            .into_iter()
            .map(|fault| {
                scope.spawn(move || {
                    sleep(Duration::from_millis(fault.at).saturating_sub(start.elapsed()));
                    faults::make(fault, TTL, actors, database)
                })
            })
            .collect();
        let made = making.into_iter().map(|fault| fault.join());
        made.map(|fault| fault.expect("a fault can be made"))
            .collect()
    });
    sleep(options.length.saturating_sub(start.elapsed()));

    let mut unfinished = Vec::new();
    for actor in &mut actors {
        let actor = actor.get_mut().expect("nobody has it any more");
        if actor.ended() {
            problems.push(format!("{} ended by itself", actor.settings.who));
        }
        actor.finish();
    }
    let finishing = now();
    for actor in &mut actors {
        let actor = actor.get_mut().expect("nobody has it any more");
        match actor.wait(FINISHED_WITHIN.saturating_sub(finishing.elapsed())) {
            Some(true) => {}
            Some(false) => problems.push(format!("{} failed", actor.settings.who)),
            None => {
                unfinished.push(actor.settings.who.clone());
                actor.kill();
            }
        }
    }
    let ended = clock::now();
    database.lock().expect("nobody has it any more").settle();
    let database = database.into_inner().expect("nobody has it any more");
    let (rows, counters) = runtime
        .block_on(left_behind(&database.data))
        .expect("what was written can be read");
    let events = history::read(&folder).expect("histories can be read");
    for fault in &mut faults {
        faults::confirm(fault, &events);
        if let Some(why) = &fault.missed {
            let (kind, at) = (fault.planned.kind.as_str(), fault.planned.at);
            problems.push(format!("{kind} at {at} ms did not land: {why}"));
        }
    }
    let kills = [
        plan::Kind::KillHolding,
        plan::Kind::KillInFence,
        plan::Kind::KillWaiting,
    ];
    let outages = faults.iter().map(|fault| Outage {
        who: (!fault.who.is_empty()).then(|| fault.who.clone()),
        from: fault.from,
        until: fault.until,
        killed: kills.contains(&fault.planned.kind),
    });
    let evidence = Evidence {
        outages: outages.collect(),
        events,
        rows,
        counters,
        ttl: TTL.as_micros() as u64,
    };
    let mut violations = check::check(&evidence);
    violations.extend(unfinished.into_iter().map(|who| Violation {
        kind: Kind::ForgottenWaiter,
        lock: String::new(),
        at: ended,
        text: format!("{who} was not served within {FINISHED_WITHIN:?} after the last fault"),
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
    if outcome.is_good() {
        let _ = std::fs::remove_dir_all(&folder);
    } else {
        outcome.keep(&folder);
    }
    Some(outcome)
}

impl Outcome {
    /// Whether all faults landed, and there are no violations; of a control: whether there are some.
    pub fn is_good(&self) -> bool {
        let right = self.options.clients[0] == Client::Naive || !self.options.is_control();
        self.problems.is_empty() && self.violations.is_empty() == right
    }

    /// The command that repeats it, as far as a busy machine lets anything be repeated.
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

async fn prepare(database: &Database, locks: &[String], controls: bool) {
    let all = Locks::connect(&database.url).await.expect("it was started");
    all.migrate().await.expect("the table can be made");
    database
        .prepare(locks)
        .await
        .expect("the tables can be made");
    if controls {
        let mut sql = Sql::connect(&database.url).await.expect("it was started");
        for lock in locks {
            sql.run(&format!(
                "INSERT INTO database_locks_lock (name) VALUES ('{lock}')"
            ))
            .await
            .expect("the table was made");
        }
    }
    if let Some(data) = database.data.strip_prefix("sqlite://") {
        // Writers of one lock do not hold up those of another for long.
        let file = rusqlite::Connection::open(data).expect("it was made");
        file.pragma_update(None, "journal_mode", "wal")
            .expect("WAL");
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
