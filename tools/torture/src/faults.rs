//! Faults, made and seen to have landed.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use testkit::Killable;
use testkit::time::{now, sleep, wait_until};

use crate::clock;
use crate::engine::Database;
use crate::history::{Event, What};
use crate::network::Network;
use crate::plan::{Kind, Planned};
use crate::process::{Client, Settings, Trap};
use crate::rows::{LockRow, Rows};

/// The longest that it takes until a process is in the state in which it is wanted: it may have to wait
/// for frozen holders, and for its turn.
const CAUGHT_WITHIN: Duration = Duration::from_secs(40);
/// The longest until a holder sends something: it renews each third of its ttl.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// The longest until a lock is free that a process is about to ask for; it is asked for after that in any
/// case.
const FREE_WITHIN: Duration = Duration::from_secs(3);
/// The longest until a process has been granted what it has just asked for, if the lock was free.
const GRANTED_WITHIN: Duration = Duration::from_millis(500);
/// The longest until a grant is made unheard: another process is often faster, and a node may be down.
const UNHEARD_WITHIN: Duration = Duration::from_secs(90);
/// The longest until a free lock is met.
const PUT_BACK_WITHIN: Duration = Duration::from_secs(10);
/// By how much a clock jumps.
const JUMP: i64 = 300;

/// What was done, and whether it came to pass.
#[derive(Clone, Debug)]
pub struct Fault {
    /// As it was planned.
    pub planned: Planned,
    /// To whom; of the server: empty.
    pub who: String,
    /// Which lock it had, or waited for.
    pub lock: Option<String>,
    /// With which token.
    pub token: i64,
    /// Its beginning, in microseconds.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// Why it did not come to pass; `None`: it did.
    pub missed: Option<String>,
}

/// One process, and what stands between it and the database.
#[derive(Debug)]
pub struct Actor {
    /// How it is started, with how often it was.
    pub settings: Settings,
    started: u32,
    name: String,
    program: Vec<String>,
    process: Killable,
    network: Option<Network>,
    clock: Option<PathBuf>,
    skew: i64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Actor {
    /// Start a process. `program` is what runs it, to which its settings are added; `clock` the file of
    /// its own clock, if it is to have one.
    pub fn start(
        name: &str,
        mut settings: Settings,
        program: Vec<String>,
        network: Option<Network>,
        clock: Option<PathBuf>,
    ) -> Self {
        if let Some(clock) = &clock {
            std::fs::write(clock, "+0\n").expect("the folder is ours");
        }
        let process = spawn(name, 1, &mut settings, &program, clock.as_ref());
        Self {
            settings,
            started: 1,
            name: name.to_owned(),
            program,
            process,
            network,
            clock,
            skew: 0,
        }
    }

    /// Which client it is.
    pub fn client(&self) -> Client {
        self.settings.client
    }

    fn respawn(&mut self) {
        self.started += 1;
        let clock = self.clock.as_ref();
        self.process = spawn(
            &self.name,
            self.started,
            &mut self.settings,
            &self.program,
            clock,
        );
    }

    /// Wait until it says that it has begun.
    pub fn ready(&self) -> bool {
        self.process
            .line(Duration::from_secs(60))
            .is_some_and(|line| line == "ready")
    }

    /// Whether it has ended, by itself.
    pub fn ended(&mut self) -> bool {
        self.process.wait(Duration::ZERO).is_some()
    }

    /// Let everything through to it, and tell it to finish.
    pub fn finish(&mut self) {
        if let Some(network) = &self.network {
            network.resume();
            network.refuse(false);
        }
        self.process.thaw();
        self.process.close_input();
    }

    /// Wait for its end; how it ended, if it did.
    pub fn wait(&mut self, within: Duration) -> Option<bool> {
        self.process.wait(within).map(|status| status.success())
    }

    /// Kill it.
    pub fn kill(&mut self) {
        self.process.kill9();
    }

    /// Have it stop where it is wanted.
    fn trap(&mut self, trap: Trap) -> Result<(String, i64), String> {
        let gone = |error| format!("{} does not listen: {error}", self.settings.who);
        self.process
            .send_line(&format!("trap {}", trap.as_str()))
            .map_err(gone)?;
        let begun = now();
        while let Some(line) = self
            .process
            .line(CAUGHT_WITHIN.saturating_sub(begun.elapsed()))
        {
            let mut words = line.split(' ');
            if words.next() == Some("trapped") {
                let lock = words.next().unwrap_or_default().to_owned();
                let token = words.next().and_then(|word| word.parse().ok());
                return Ok((lock, token.unwrap_or_default()));
            }
        }
        let _ = self.process.send_line("trap none");
        Err(format!("{} was never {}", self.settings.who, trap.as_str()))
    }

    fn go(&mut self) {
        // An error is that it has ended, which is noticed elsewhere.
        let _ = self.process.send_line("go");
    }

    /// Whether a row names it: `host.pid.random`, and a naive client by its own name.
    fn is_holder(&self, row: &LockRow) -> bool {
        let pid = format!(".{}.", self.process.pid());
        row.holder == self.settings.who || row.holder.contains(&pid)
    }

    fn network(&self) -> Result<&Network, String> {
        self.network.as_ref().ok_or_else(|| "no network".to_owned())
    }
}

fn spawn(
    name: &str,
    times: u32,
    settings: &mut Settings,
    program: &[String],
    clock: Option<&PathBuf>,
) -> Killable {
    settings.who = format!("{name}.{times}");
    settings
        .history
        .set_file_name(format!("{}.jsonl", settings.who));
    settings.seed = settings.seed.wrapping_add(u64::from(times) << 32);
    let mut command = std::process::Command::new(&program[0]);
    command
        .args(&program[1..])
        .arg(settings.to_json().to_string());
    command.env("PYTHONUNBUFFERED", "1");
    if let Some(clock) = clock {
        command
            .env("LD_PRELOAD", "libfaketimeMT.so.1")
            .env("LD_LIBRARY_PATH", faketime().expect("there is one"))
            .env("FAKETIME_TIMESTAMP_FILE", clock)
            .env("FAKETIME_NO_CACHE", "1")
            // What is measured stays as long as it is.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
    }
    Killable::spawn_command(&command)
}

/// Where the library that fakes clocks is.
pub fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    folders
        .map(|folder| folder.path().join("faketime"))
        .chain([PathBuf::from("/usr/lib/faketime")])
        .find(|folder| folder.join("libfaketimeMT.so.1").exists())
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// Make a fault, and say what became of it. Blocks until it is over.
pub fn make(
    planned: Planned,
    ttl: Duration,
    actors: &[Mutex<Actor>],
    database: &Mutex<Database>,
) -> Fault {
    if planned.kind.of_the_server() {
        return of_the_server(planned, &mut lock(database));
    }
    let url = lock(database).url.clone();
    let mut actor = lock(&actors[planned.victim]);
    let mut fault = Fault {
        planned,
        who: actor.settings.who.clone(),
        lock: None,
        token: 0,
        from: clock::now(),
        until: 0,
        missed: None,
    };
    let made = match planned.kind {
        Kind::LateGrant => late_grant(&mut fault, &mut actor, &url),
        _ => of_a_process(&mut fault, ttl, &mut actor),
    };
    if let Err(why) = made {
        fault.missed = Some(why);
    }
    if fault.until == 0 {
        fault.until = clock::now();
    }
    fault
}

fn of_a_process(fault: &mut Fault, ttl: Duration, actor: &mut Actor) -> Result<(), String> {
    let kind = fault.planned.kind;
    let lasting = Duration::from_millis(fault.planned.lasting);
    let trap = match kind {
        Kind::KillInFence | Kind::FreezeInFence | Kind::LongFence => Trap::Fenced,
        Kind::KillWaiting => Trap::Waiting,
        Kind::FreezeHolding => Trap::Blind,
        _ => Trap::Holding,
    };
    let (held, token) = actor.trap(trap)?;
    (fault.lock, fault.token) = (Some(held), token);
    fault.from = clock::now();
    match kind {
        Kind::KillHolding | Kind::KillInFence | Kind::KillWaiting => {
            let status = actor.process.kill9();
            fault.until = clock::now();
            actor.respawn();
            if status.signal() != Some(9) {
                return Err(format!("it had ended before: {status}"));
            }
        }
        Kind::FreezeHolding | Kind::FreezeInFence => {
            actor.process.freeze();
            fault.from = clock::now();
            // It goes on with this the moment it is thawed.
            actor.go();
            sleep(lasting);
            let stopped = is_stopped(actor.process.pid());
            fault.until = clock::now();
            actor.process.thaw();
            if !stopped || lasting <= ttl {
                return Err("it was not stopped for longer than its ttl".into());
            }
        }
        Kind::LongFence => {
            sleep(lasting);
            actor.go();
        }
        Kind::StallShort | Kind::StallLong | Kind::StallReplies => {
            let hits = actor.network()?.faults_hit();
            match kind {
                Kind::StallReplies => actor.network()?.stall_replies(),
                _ => actor.network()?.stall(),
            }
            let network = actor.network()?;
            let hit = wait_until(HEARD_WITHIN, || network.faults_hit() > hits);
            sleep(lasting);
            network.resume();
            actor.go();
            if !hit {
                return Err("nothing was held back".into());
            }
        }
        Kind::Cut | Kind::Refuse => {
            let network = actor.network()?;
            let open = network.open_connections();
            network.refuse(kind == Kind::Refuse);
            network.cut();
            if kind == Kind::Refuse {
                sleep(lasting);
                network.refuse(false);
            }
            actor.go();
            if open == 0 {
                return Err("there was no connection".into());
            }
        }
        Kind::LoseReply | Kind::LoseRequest => {
            let network = actor.network()?;
            let hits = network.faults_hit();
            match kind {
                Kind::LoseReply => network.lose_next_reply(),
                _ => network.lose_next_request(),
            }
            let hit = wait_until(HEARD_WITHIN, || network.faults_hit() > hits);
            network.lose_nothing();
            actor.go();
            if !hit {
                return Err("nothing was lost".into());
            }
        }
        Kind::Clock => {
            actor.skew = if actor.skew == JUMP { -JUMP } else { JUMP };
            let clock = actor.clock.as_ref().ok_or("it has no clock of its own")?;
            // In one step: half a number would be another one.
            let next = clock.with_extension("next");
            std::fs::write(&next, format!("{:+}\n", actor.skew))
                .and_then(|()| std::fs::rename(&next, clock))
                .map_err(|error| error.to_string())?;
            sleep(Duration::from_millis(300));
            actor.go();
        }
        _ => unreachable!("{kind:?} befalls everybody"),
    }
    Ok(())
}

/// Hold the replies back from when a process asks for a free lock, and for so long where the row says that
/// it was granted it.
fn late_grant(fault: &mut Fault, actor: &mut Actor, url: &str) -> Result<(), String> {
    let (begun, mut why) = (now(), "replies were never held back".to_owned());
    while begun.elapsed() < UNHEARD_WITHIN {
        // A server that is down just now, or a node of it, is not what this is about.
        let mut rows = match Rows::connect(url) {
            Ok(rows) => rows,
            Err(error) => {
                why = error;
                sleep(Duration::from_millis(200));
                continue;
            }
        };
        let (name, _) = actor.trap(Trap::Asking)?;
        let granted = unheard_grant(fault, actor, &mut rows, &name);
        actor.network()?.resume();
        actor.go();
        match granted {
            Ok(true) => return Ok(()),
            Ok(false) => why = "it was granted nothing while replies were held back".into(),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// One try of that: whether it was granted the lock that it was about to ask for.
fn unheard_grant(
    fault: &mut Fault,
    actor: &mut Actor,
    rows: &mut Rows,
    name: &str,
) -> Result<bool, String> {
    rows.wait_for(name, FREE_WITHIN, |row| row.free)?;
    let before = rows.read(name)?.map_or(0, |row| row.token);
    fault.from = clock::now();
    actor.network()?.stall_replies();
    actor.go();
    let granted = |row: &LockRow| row.token > before && !row.free && actor.is_holder(row);
    let Some(row) = rows.wait_for(name, GRANTED_WITHIN, granted)? else {
        return Ok(false);
    };
    (fault.lock, fault.token) = (Some(name.to_owned()), row.token);
    sleep(Duration::from_millis(fault.planned.lasting));
    Ok(true)
}

fn of_the_server(planned: Planned, database: &mut Database) -> Fault {
    let lasting = Duration::from_millis(planned.lasting);
    let node = planned.victim % testkit::galera::NODES;
    let (from, before) = (clock::now(), database.pid());
    let mut missed = None;
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
        Kind::Restore => missed = restore(&database.url, lasting).err(),
        _ => missed = busy_file(database, lasting).err(),
    }
    let other = matches!(planned.kind, Kind::Restart | Kind::KillServer);
    if other && (before.is_none() || before == database.pid()) {
        missed = Some("it is the same server".into());
    }
    Fault {
        planned,
        who: String::new(),
        lock: None,
        token: 0,
        from,
        until: clock::now(),
        missed,
    }
}

/// Copy the tokens, and put each back as soon as its lock has been granted again and is free: what a
/// backup does that is restored while nothing is held.
fn restore(url: &str, lasting: Duration) -> Result<(), String> {
    let mut rows = Rows::connect(url)?;
    let mut copy = rows.tokens()?;
    sleep(lasting);
    let (begun, mut put_back) = (now(), 0);
    while !copy.is_empty() && begun.elapsed() < PUT_BACK_WITHIN {
        let before = copy.len();
        let mut left = Vec::new();
        for (lock, token) in copy {
            if !rows.put_back(&lock, token)? {
                left.push((lock, token));
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

/// What only the histories can tell: whether a victim held its lock, and saw its clock jump.
pub fn confirm(fault: &mut Fault, events: &[Event]) {
    if fault.missed.is_some() || fault.who.is_empty() {
        return;
    }
    let mine = || events.iter().filter(|event| event.who == fault.who);
    let seen = match fault.planned.kind {
        // What a row has shown needs no history.
        Kind::KillWaiting | Kind::LateGrant => true,
        Kind::Clock => mine().any(|event| {
            let jumped = matches!(event.what, What::Clock { skew } if skew.abs() > JUMP / 2);
            jumped && event.at >= fault.from && event.at <= fault.until
        }),
        // What it says there it says within its transaction.
        Kind::KillInFence | Kind::FreezeInFence | Kind::LongFence => {
            mine().any(|event| matches!(event.what, What::Write { .. }) && event.at <= fault.from)
        }
        // It trusted its lock when it was caught: looked at since it was told to stop, at most a ttl ago.
        _ => mine().any(|event| {
            matches!(event.what, What::Trusted { before, lasting, .. }
                if event.at <= fault.until && before + lasting.max(1_000_000) >= fault.from)
        }),
    };
    if !seen {
        fault.missed = Some("its history shows nothing of it".into());
    }
}
