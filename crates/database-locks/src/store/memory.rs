//! Locks within one process, for tests and for programs that have no database.
//!
//! The whole table is one mutex; the boot-time clock is its clock, and so "the database's clock".

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use crate::doctor::{Counts, Notes, Report};
use crate::runtime::clock;
use crate::runtime::fork::PerProcess;
use crate::store::{
    api::{Barrier, Lane, Reply, Store},
    connect::table::Table,
};
use protocol::{
    AcquireCommand, BootInstant, Force, Gone, Grant, Holder, ListFilter, LockInfo, LockName,
    LockRow, LostReason, Outcome, Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand,
    TakeOverCommand, Token, Ttl, judge, judge_ticket,
};

#[derive(Debug, Default)]
struct Row {
    holder: Option<String>,
    token: i64,
    grant: Option<String>,
    expires: Option<Ends>,
    acquired: Option<BootInstant>,
    renewed: Option<BootInstant>,
    metadata: Option<String>,
    /// How many fences are open.
    fences: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ends {
    At(BootInstant),
    Never,
}

fn ends(now: BootInstant, ttl: Ttl) -> Ends {
    match ttl {
        Ttl::Finite(length) => Ends::At(now + length),
        Ttl::Infinite => Ends::Never,
    }
}

fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}

/// This engine's clock as microseconds since 1970: the boot-time clock, put in its place once.
#[allow(
    clippy::disallowed_methods,
    reason = "here it plays the database's clock, for display"
)]
fn stamp(at: BootInstant) -> i64 {
    static BOOT: OnceLock<i64> = OnceLock::new();
    let boot = BOOT.get_or_init(|| {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        micros(wall) - micros(clock::now().since_boot())
    });
    boot.saturating_add(micros(at.since_boot()))
}

/// This engine's clock in milliseconds since 1970, below which no token is made.
fn least_token(now: BootInstant) -> i64 {
    stamp(now) / 1000
}

/// The token of the next grant: greater than all before, those of a deleted row too.
fn next_token(token: i64, now: BootInstant) -> i64 {
    token.saturating_add(1).max(least_token(now))
}

impl Row {
    fn is_free(&self, now: BootInstant) -> bool {
        match self.expires {
            None => true,
            Some(Ends::At(end)) => end <= now,
            Some(Ends::Never) => false,
        }
    }

    fn is_of(&self, name: &LockName, grant: &Grant) -> bool {
        debug_assert_eq!(*name, grant.name);
        self.token == grant.token.get()
            && self.grant.as_deref() == Some(grant.id.as_str())
            && self.holder.as_deref() == Some(&*grant.holder)
    }

    fn grant(&mut self, ask: &AcquireCommand, now: BootInstant) -> Outcome {
        self.token = next_token(self.token, now);
        self.holder = Some(ask.holder.to_string());
        self.grant = Some(ask.grant.to_string());
        self.expires = Some(ends(now, Ttl::Finite(ask.length)));
        (self.acquired, self.renewed) = (Some(now), Some(now));
        self.metadata = Some(ask.metadata.to_string());
        Outcome::Granted {
            token: Token::from_db(self.token),
            length: ask.length,
        }
    }

    fn free(&mut self, now: BootInstant) {
        (self.expires, self.grant, self.renewed) = (None, None, Some(now));
    }

    fn seen(&self, name: &LockName, now: BootInstant) -> LockRow {
        LockRow {
            name: name.to_string(),
            holder: self.holder.clone(),
            token: self.token,
            grant: self.grant.clone(),
            expires_in: self.expires.map(|ends| match ends {
                Ends::At(end) => micros(end.since_boot()) - micros(now.since_boot()),
                Ends::Never => i64::MAX,
            }),
            is_infinite: self.expires == Some(Ends::Never),
            is_legacy: false,
            held_for: self.acquired.map(|at| micros(now - at)),
            acquired_at: self.acquired.map(stamp),
            renewed_at: self.renewed.map(stamp),
            expires_at: match self.expires {
                Some(Ends::At(end)) => Some(stamp(end)),
                _ => None,
            },
            metadata: self.metadata.clone(),
            ..LockRow::default()
        }
    }
}

type Rows = BTreeMap<LockName, Row>;

#[derive(Debug, Default)]
struct Shared {
    rows: Mutex<Rows>,
}

impl Shared {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open fence.
#[derive(Debug)]
struct Fence {
    shared: Arc<Shared>,
    name: LockName,
}

impl Drop for Fence {
    fn drop(&mut self) {
        let mut rows = self.shared.rows();
        if let Some(row) = rows.get_mut(&self.name) {
            row.fences -= 1;
        }
        drop(rows);
    }
}

/// The engine `memory:`.
#[derive(Debug)]
pub(crate) struct Memory(Arc<Shared>);

impl Memory {
    /// The table of that name in this process; it lasts as long as somebody uses it.
    pub(crate) fn named(name: &str, table: &Table) -> Self {
        static ALL: PerProcess<Mutex<HashMap<String, Weak<Shared>>>> = PerProcess::new();
        let Ok(all) = ALL.get_or_try_init(|| Ok::<_, Infallible>(Mutex::default()));
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, shared| shared.strong_count() > 0);
        let key = format!("{}/{name}", table.as_str());
        let shared = all.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(key, Arc::downgrade(&shared));
        Self(shared)
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.rows()
    }
}

fn ready<'a, T: Send + 'a>(answer: T) -> Reply<'a, T> {
    Box::pin(std::future::ready(Ok(answer)))
}

fn acquire(rows: &mut Rows, ask: &AcquireCommand) -> Outcome {
    let now = clock::now();
    let row = rows.entry(ask.name.clone()).or_default();
    if !row.is_free(now) {
        return row.seen(&ask.name, now).refusal(ask.grant.as_str());
    }
    if row.fences > 0 {
        return Outcome::Busy;
    }
    row.grant(ask, now)
}

fn take_over(rows: &mut Rows, what: &TakeOverCommand) -> Outcome {
    let (now, to) = (clock::now(), &what.to);
    let Some(row) = rows.get_mut(&to.name) else {
        return Outcome::Busy;
    };
    let as_seen = row.token == what.token.get()
        && row.grant == what.grant
        && row.holder.as_deref() == Some(&*to.holder);
    if as_seen && !row.is_free(now) && row.fences == 0 {
        row.grant(to, now)
    } else {
        row.seen(&to.name, now).not_taken_over(what)
    }
}

fn renew(rows: &mut Rows, grant: &Grant, ttl: Ttl) -> Renewal {
    let now = clock::now();
    match rows.get_mut(&grant.name) {
        Some(row) if row.is_of(&grant.name, grant) && !row.is_free(now) => {
            row.expires = row.expires.max(Some(ends(now, ttl)));
            row.renewed = Some(now);
            Renewal::Renewed
        }
        row => judge(grant, row.map(|row| row.seen(&grant.name, now)).as_ref()),
    }
}

fn resume(rows: &mut Rows, what: &ResumeCommand) -> Renewal {
    let (now, to) = (clock::now(), &what.to);
    let known = [what.from.as_str(), to.grant.as_str()];
    let ours = |row: &Row| {
        row.token == what.token.get()
            && row.grant.as_deref().is_some_and(|id| known.contains(&id))
            && !row.is_free(now)
            && row.fences == 0
    };
    let row = match rows.get_mut(&to.name) {
        Some(row) if ours(row) => row,
        row => return judge_ticket(what, row.map(|row| row.seen(&to.name, now)).as_ref()),
    };
    row.holder = Some(to.holder.to_string());
    row.grant = Some(to.grant.to_string());
    row.expires = row.expires.max(Some(ends(now, Ttl::Finite(to.length))));
    row.renewed = Some(now);
    row.metadata = Some(to.metadata.to_string());
    Renewal::Renewed
}

fn release(rows: &mut Rows, what: &ReleaseCommand) -> Released {
    match rows.get_mut(&what.name) {
        Some(row)
            if row.grant.as_deref() == Some(what.grant.as_str())
                && row.holder.as_deref() == Some(&*what.holder)
                && what.token.is_none_or(|token| token.get() == row.token) =>
        {
            row.free(clock::now());
            Released::Freed
        }
        _ => Released::NotHeld,
    }
}

/// There is nothing to connect to, and each call is answered at once.
impl Lane for Shared {
    fn connect(&self) -> Reply<'_, ()> {
        ready(())
    }

    fn acquire<'a>(&'a self, asks: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        let mut rows = self.rows();
        ready(asks.iter().map(|ask| acquire(&mut rows, ask)).collect())
    }

    fn release<'a>(&'a self, returns: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        let mut rows = self.rows();
        let done = returns
            .iter()
            .map(|what| release(&mut rows, what))
            .collect();
        drop(rows);
        ready(done)
    }

    fn give_up(&self) {}
}

impl Store for Memory {
    fn lane(&self) -> Option<Arc<dyn Lane>> {
        Some(Arc::clone(&self.0) as Arc<dyn Lane>)
    }

    fn connect(&self, _: Duration) -> Reply<'_, ()> {
        ready(())
    }

    fn acquire<'a>(&'a self, asks: &'a [AcquireCommand], _: Duration) -> Reply<'a, Vec<Outcome>> {
        Lane::acquire(&*self.0, asks)
    }

    fn renew<'a>(&'a self, grants: &'a [(Grant, Ttl)], _: Duration) -> Reply<'a, Vec<Renewal>> {
        let mut rows = self.rows();
        ready(
            grants
                .iter()
                .map(|(grant, ttl)| renew(&mut rows, grant, *ttl))
                .collect(),
        )
    }

    fn release<'a>(
        &'a self,
        returns: &'a [ReleaseCommand],
        _: Duration,
    ) -> Reply<'a, Vec<Released>> {
        Lane::release(&*self.0, returns)
    }

    fn read<'a>(&'a self, names: &'a [LockName], _: Duration) -> Reply<'a, Vec<LockInfo>> {
        let (now, rows) = (clock::now(), self.rows());
        ready(
            rows.iter()
                .filter(|(name, _)| names.contains(name))
                .map(|(name, row)| row.seen(name, now).into_info())
                .collect(),
        )
    }

    /// All on one page: there is nothing to be waited for.
    fn page<'a>(&'a self, filter: &'a ListFilter, _: Option<i64>, _: Duration) -> Reply<'a, Page> {
        let (now, rows) = (clock::now(), self.rows());
        let matching = rows
            .iter()
            .filter(|(name, row)| filter.matches(name.as_str(), row.expires.is_none()));
        ready(Page {
            rows: matching
                .map(|(name, row)| row.seen(name, now).into_info())
                .collect(),
            last: None,
        })
    }

    fn look<'a>(&'a self, names: &'a [LockName], _: Duration) -> Reply<'a, Vec<Option<Holder>>> {
        let (now, rows) = (clock::now(), self.rows());
        let holder = |name: &LockName| {
            let row = rows.get(name).filter(|row| !row.is_free(now));
            row.map(|row| row.seen(name, now).holder())
        };
        ready(names.iter().map(holder).collect())
    }

    fn take_over<'a>(&'a self, what: &'a TakeOverCommand, _: Duration) -> Reply<'a, Outcome> {
        ready(take_over(&mut self.rows(), what))
    }

    fn resume<'a>(&'a self, what: &'a ResumeCommand, _: Duration) -> Reply<'a, Renewal> {
        ready(resume(&mut self.rows(), what))
    }

    fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        _: Option<i64>,
        _: Duration,
    ) -> Reply<'_, Pruned> {
        let (now, mut rows) = (clock::now(), self.rows());
        let token = least_token(now);
        let before = rows.len();
        let old = |at: Option<BootInstant>| at.map_or(unknown, |at| at + idle <= now);
        rows.retain(|_, row| {
            let last = match row.expires {
                Some(Ends::At(end)) => Some(end),
                Some(Ends::Never) => return true,
                None => row.renewed,
            };
            row.fences > 0 || !(row.is_free(now) && old(last) && row.token < token)
        });
        ready(Pruned {
            deleted: (before - rows.len()) as u64,
            last: None,
        })
    }

    fn force<'a>(&'a self, name: &'a LockName, _: Duration) -> Reply<'a, Force> {
        let now = clock::now();
        let done = match self.rows().get_mut(name) {
            Some(row) if !row.is_free(now) && row.fences > 0 => Force::Busy,
            Some(row) if !row.is_free(now) => {
                let holder = row.seen(name, now).holder();
                row.free(now);
                row.token = next_token(row.token, now);
                Force::Freed(holder)
            }
            _ => Force::WasFree,
        };
        ready(done)
    }

    fn expire(&self, name: &LockName) -> Option<Option<String>> {
        let now = clock::now();
        let held = match self.rows().get_mut(name) {
            Some(row) if !row.is_free(now) => {
                row.expires = Some(Ends::At(now));
                row.grant.clone()
            }
            _ => None,
        };
        Some(held)
    }

    fn open_fence<'a>(&'a self, grant: &'a Grant, _: Duration) -> Reply<'a, Result<Barrier, Gone>> {
        let (now, mut rows) = (clock::now(), self.rows());
        let mut row = rows.get_mut(&grant.name);
        let seen = row.as_ref().map(|row| row.seen(&grant.name, now));
        ready(match (judge(grant, seen.as_ref()), &mut row) {
            (Renewal::Busy | Renewal::Renewed, Some(row)) => {
                row.fences += 1;
                Ok(Barrier::new(Fence {
                    shared: Arc::clone(&self.0),
                    name: grant.name.clone(),
                }))
            }
            (Renewal::Lost(gone), _) => Err(gone),
            (_, None) => Err(LostReason::RowGone.into()),
        })
    }

    fn install(&self, _: Duration) -> Reply<'_, ()> {
        ready(())
    }

    fn examine(&self, _: Duration) -> Reply<'_, Report> {
        let (now, rows) = (clock::now(), self.rows());
        let minute_ago = now - Duration::from_secs(60);
        let day_ago = now - Duration::from_secs(86_400);
        let such = |matches: &dyn Fn(&Row) -> bool| {
            let mut found = rows.iter().filter(|(_, row)| matches(row));
            let first = found.next().map(|(name, _)| name.to_string());
            (first.iter().len() as i64 + found.count() as i64, first)
        };
        let counts = Counts {
            rows: rows.len() as i64,
            held: such(&|row| !row.is_free(now)).0,
            expired: such(&|row| matches!(row.expires, Some(Ends::At(end)) if end <= minute_ago)),
            endless: such(&|row| {
                row.expires == Some(Ends::Never) && row.acquired.is_some_and(|at| at <= day_ago)
            }),
            old: (0, None),
        };
        let mut notes = Notes::new("memory");
        notes.fine(
            "server",
            "the memory of this process: forgotten when it ends, seen by nobody else",
        );
        notes.locks(&counts);
        ready(notes.into_report())
    }
}
