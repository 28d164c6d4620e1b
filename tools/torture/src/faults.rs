//! Injects faults, and observes that each took effect.

use std::os::unix::process::ExitStatusExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use testkit::process::is_stopped;
use testkit::time::{now, sleep, wait_until};

use crate::check::LimitChange;
use crate::clock;
use crate::engine::Database;
use crate::history::{Event, What};
use crate::lock_rows::{LockRow, Rows};
use crate::operator;
use crate::plan::{Kind, Planned};
use crate::target::Target;
use crate::worker::Breakpoint;
use crate::worker_process::{JUMP, WorkerProcess};

mod guarded;

/// How long it may take until a holder sends something: it renews at each third of its ttl.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// How long the process waits for its lock to be free before it asks for it in any case.
const FREE_WITHIN: Duration = Duration::from_secs(3);
/// How long a grant of a free lock may take.
const GRANTED_WITHIN: Duration = Duration::from_millis(500);
/// How long it may take until a grant is made while replies are held back: another process may be
/// faster, and a node may be down.
const LATE_GRANT_WITHIN: Duration = Duration::from_secs(90);
/// How long it may take until a lock is free.
const PUT_BACK_WITHIN: Duration = Duration::from_secs(10);

/// A fault, and whether it took effect.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its plan.
    pub planned: Planned,
    /// The process; empty for a fault of the server.
    pub process: String,
    /// The lock that the process had, or waited for.
    pub lock: Option<String>,
    /// The token of its grant.
    pub token: i64,
    /// Its beginning, in microseconds.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// The operator's changes of a limit.
    pub limits: Vec<LimitChange>,
    /// Why it did not take effect; `None` if it did.
    pub missed: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Injects a fault, and blocks until it is over.
pub fn inject(
    planned: Planned,
    ttl: Duration,
    workers: &[Mutex<WorkerProcess>],
    database: &Mutex<Database>,
    targets: &[Target],
) -> Fault {
    if planned.kind.of_the_server() {
        return of_the_server(planned, targets, &mut lock(database));
    }
    let url = lock(database).url_beside(planned.victim);
    let mut worker = lock(&workers[planned.victim]);
    let mut fault = Fault {
        planned,
        process: worker.settings.process.clone(),
        lock: None,
        token: 0,
        from: clock::now(),
        until: 0,
        limits: Vec::new(),
        missed: None,
    };
    let made = match planned.kind {
        Kind::LateGrant => late_grant(&mut fault, &mut worker, &url),
        _ => of_a_process(&mut fault, ttl, &mut worker, &url),
    };
    if let Err(why) = made {
        fault.missed = Some(why);
    }
    if fault.until == 0 {
        fault.until = clock::now();
    }
    fault
}

fn of_a_process(
    fault: &mut Fault,
    ttl: Duration,
    worker: &mut WorkerProcess,
    url: &str,
) -> Result<(), String> {
    let kind = fault.planned.kind;
    let breakpoint = match kind {
        Kind::KillInFence | Kind::FreezeInFence | Kind::LongFence => Breakpoint::Fenced,
        Kind::KillWaiting => Breakpoint::Waiting,
        Kind::FreezeHolding => Breakpoint::Blind,
        Kind::SlowClaim => Breakpoint::Looked,
        Kind::FreezeBeforeGuarded => Breakpoint::Shown,
        kind if kind.is_in_guarded() => Breakpoint::Written,
        _ => Breakpoint::Holding,
    };
    let (held, token) = worker.pause_at(breakpoint)?;
    (fault.lock, fault.token) = (Some(held), token);
    fault.from = clock::now();
    match kind {
        Kind::KillHolding | Kind::KillInFence | Kind::KillInGuarded | Kind::KillWaiting => {
            kill(fault, worker)
        }
        // On a cluster the COMMIT is sent as soon as a node shows that the lock was taken over.
        Kind::FreezeInGuarded => freeze(fault, ttl, worker, |fault| {
            guarded::wait_for_race(fault.token, url, lasting(fault));
            Ok(())
        }),
        Kind::FreezeHolding | Kind::FreezeInFence => freeze(fault, ttl, worker, |fault| {
            sleep(lasting(fault));
            Ok(())
        }),
        Kind::FreezeBeforeGuarded => freeze(fault, ttl, worker, |fault| {
            sleep(lasting(fault));
            guarded::wait_for_take_over(fault.token, url)
        }),
        _ => {
            let made = match kind {
                Kind::LongFence | Kind::SlowClaim => {
                    sleep(lasting(fault));
                    Ok(())
                }
                Kind::StallShort | Kind::StallLong | Kind::StallReplies => stall(fault, worker),
                Kind::Cut | Kind::Refuse | Kind::CutInGuarded => cut(fault, worker),
                Kind::LoseReply | Kind::LoseRequest => lose(fault, worker),
                Kind::LoseGuardedReply => guarded::lose_reply_to_commit(worker),
                Kind::Clock => worker.jump_clock().map(|()| sleep(CLOCK_SEEN_WITHIN)),
                _ => unreachable!("{kind:?} is a fault of the server"),
            };
            worker.resume();
            made
        }
    }
}

/// How long it takes until a paused process has seen its clock jump.
const CLOCK_SEEN_WITHIN: Duration = Duration::from_millis(300);

fn lasting(fault: &Fault) -> Duration {
    Duration::from_millis(fault.planned.lasting)
}

fn kill(fault: &mut Fault, worker: &mut WorkerProcess) -> Result<(), String> {
    let status = worker.process.kill9();
    fault.until = clock::now();
    worker.respawn();
    match status.signal() {
        Some(9) => Ok(()),
        _ => Err(format!("it had ended before: {status}")),
    }
}

fn freeze(
    fault: &mut Fault,
    ttl: Duration,
    worker: &mut WorkerProcess,
    wait: impl FnOnce(&Fault) -> Result<(), String>,
) -> Result<(), String> {
    worker.process.freeze();
    fault.from = clock::now();
    // The frozen process reads this as soon as it is thawed.
    worker.resume();
    let waited = wait(fault);
    let stopped = is_stopped(worker.process.pid());
    fault.until = clock::now();
    worker.process.thaw();
    match stopped && lasting(fault) > ttl {
        true => waited,
        false => Err("it was not stopped for longer than its ttl".into()),
    }
}

fn stall(fault: &Fault, worker: &WorkerProcess) -> Result<(), String> {
    let network = worker.network()?;
    let hits = network.faults_hit();
    match fault.planned.kind {
        Kind::StallReplies => network.stall_replies(),
        _ => network.stall(),
    }
    let hit = wait_until(HEARD_WITHIN, || network.faults_hit() > hits);
    sleep(lasting(fault));
    network.resume();
    match hit {
        true => Ok(()),
        false => Err("nothing was held back".into()),
    }
}

fn cut(fault: &Fault, worker: &WorkerProcess) -> Result<(), String> {
    let network = worker.network()?;
    let open = network.open_connections();
    let refuses = fault.planned.kind == Kind::Refuse;
    network.refuse(refuses);
    network.cut();
    if refuses {
        sleep(lasting(fault));
        network.refuse(false);
    }
    match open {
        0 => Err("there was no connection".into()),
        _ => Ok(()),
    }
}

fn lose(fault: &Fault, worker: &WorkerProcess) -> Result<(), String> {
    let network = worker.network()?;
    let hits = network.faults_hit();
    match fault.planned.kind {
        Kind::LoseReply => network.lose_next_reply(),
        _ => network.lose_next_request(),
    }
    let hit = wait_until(HEARD_WITHIN, || network.faults_hit() > hits);
    network.cancel_losses();
    match hit {
        true => Ok(()),
        false => Err("nothing was lost".into()),
    }
}

/// Holds back the replies to a process that asks for a free lock, until after the end of the lease
/// that its row shows.
fn late_grant(fault: &mut Fault, worker: &mut WorkerProcess, url: &str) -> Result<(), String> {
    let (begun, mut why) = (now(), "replies were never held back".to_owned());
    while begun.elapsed() < LATE_GRANT_WITHIN {
        // Another fault may have the server or a node down: try again.
        let mut rows = match Rows::connect(url) {
            Ok(rows) => rows,
            Err(error) => {
                why = error;
                sleep(Duration::from_millis(200));
                continue;
            }
        };
        let (name, _) = worker.pause_at(Breakpoint::Asking)?;
        let target = worker.settings.targets.iter().find(|one| one.name == name);
        let target = target.ok_or("no such lock")?.clone();
        let granted = try_late_grant(fault, worker, &mut rows, &target);
        worker.network()?.resume();
        worker.resume();
        match granted {
            Ok(true) => return Ok(()),
            Ok(false) => why = "it was granted nothing while replies were held back".into(),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// One try of [`late_grant`]: whether the process was granted the lock.
fn try_late_grant(
    fault: &mut Fault,
    worker: &mut WorkerProcess,
    rows: &mut Rows,
    target: &Target,
) -> Result<bool, String> {
    rows.wait_for(target, FREE_WITHIN, |row| row.free)?;
    let before = rows.read(target)?;
    let newer = |row: &LockRow| {
        let same = before.iter().find(|before| before.key() == row.key());
        row.token > same.map_or(0, |before| before.token)
    };
    fault.from = clock::now();
    worker.network()?.stall_replies();
    worker.resume();
    let granted = |row: &LockRow| newer(row) && !row.free && worker.is_holder(row);
    let Some(row) = rows.wait_for(target, GRANTED_WITHIN, granted)? else {
        return Ok(false);
    };
    (fault.lock, fault.token) = (Some(target.name.clone()), row.token);
    sleep(lasting(fault));
    Ok(true)
}

fn of_the_server(planned: Planned, targets: &[Target], database: &mut Database) -> Fault {
    let lasting = Duration::from_millis(planned.lasting);
    let node = planned.victim % testkit::galera::NODES;
    let (from, before) = (clock::now(), database.pid());
    let (mut missed, mut limits) = (None, Vec::new());
    match planned.kind {
        Kind::Restart => database.restart(),
        Kind::KillServer => database.kill_and_restart(Duration::from_millis(300)),
        Kind::FreezeServer => database.freeze(lasting),
        Kind::KillNode => missed = database.kill_node(node, Duration::from_millis(500)).err(),
        Kind::FreezeNode => missed = database.freeze_node(node, lasting).err(),
        Kind::CutNode => {
            missed = database
                .isolate_node(node, Duration::from_millis(500))
                .err()
        }
        Kind::ClockOfNode => missed = database.jump_node().err(),
        Kind::Limit => missed = operator::change(database, targets, lasting, &mut limits).err(),
        Kind::Restore => missed = restore(&database.url, lasting).err(),
        _ => missed = busy_file(database, lasting).err(),
    }
    let restarted = matches!(planned.kind, Kind::Restart | Kind::KillServer);
    if restarted && (before.is_none() || before == database.pid()) {
        missed = Some("it is the same server".into());
    }
    Fault {
        planned,
        process: String::new(),
        lock: None,
        token: 0,
        from,
        until: clock::now(),
        limits,
        missed,
    }
}

/// Copies the tokens, and puts each back as soon as its lock or slot has been granted again and is free, as
/// if a backup were restored while no lock is held.
fn restore(url: &str, lasting: Duration) -> Result<(), String> {
    let mut rows = Rows::connect(url)?;
    let mut copy = rows.all()?;
    sleep(lasting);
    let (begun, mut put_back) = (now(), 0);
    while !copy.is_empty() && begun.elapsed() < PUT_BACK_WITHIN {
        let before = copy.len();
        let mut left = Vec::new();
        for row in copy {
            if !rows.put_back(&row)? {
                left.push(row);
            }
        }
        put_back += before - left.len();
        copy = left;
        sleep(Duration::from_millis(2));
    }
    match put_back {
        0 => Err("no lock was free".into()),
        _ => Ok(()),
    }
}

fn busy_file(database: &Database, lasting: Duration) -> Result<(), String> {
    let work = || {
        let path = database.file().unwrap_or_default();
        let file = rusqlite::Connection::open(path)?;
        file.busy_timeout(Duration::from_secs(20))?;
        file.execute_batch("BEGIN IMMEDIATE")?;
        sleep(lasting);
        file.execute_batch("ROLLBACK")
    };
    work().map_err(|error: rusqlite::Error| error.to_string())
}

/// Checks by the histories that a process held its lock, or saw its clock jump.
pub fn confirm(fault: &mut Fault, events: &[Event]) {
    if fault.missed.is_some() || fault.process.is_empty() {
        return;
    }
    let mine = || events.iter().filter(|event| event.process == fault.process);
    let seen =
        match fault.planned.kind {
            // The row has shown it already.
            Kind::KillWaiting | Kind::LateGrant => true,
            Kind::Clock => mine().any(|event| {
                let jumped = matches!(event.what, What::Clock { skew } if skew.abs() > JUMP / 2);
                jumped && event.at >= fault.from && event.at <= fault.until
            }),
            // At this breakpoint the process is within its transaction.
            Kind::KillInFence | Kind::FreezeInFence | Kind::LongFence => mine()
                .any(|event| matches!(event.what, What::Write { .. }) && event.at <= fault.from),
            kind if kind.is_in_guarded() => mine()
                .any(|event| matches!(event.what, What::Guarded { .. }) && event.at <= fault.from),
            // At this breakpoint the process holds nothing.
            Kind::SlowClaim => mine()
                .any(|event| matches!(event.what, What::Asked { .. }) && event.at <= fault.from),
            // It trusted its lock when it was paused: its latest check was at most a ttl ago.
            _ => mine().any(|event| {
                matches!(event.what, What::Trusted { before, lasting, .. }
                if event.at <= fault.until && before + lasting.max(1_000_000) >= fault.from)
            }),
        };
    if !seen {
        fault.missed = Some("its history shows nothing of it".into());
    }
}
