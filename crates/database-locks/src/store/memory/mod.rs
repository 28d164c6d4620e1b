//! Locks within one process, for tests and for programs that have no database.
//!
//! The whole table is one mutex. The boot-time clock takes the place of the database's clock.

mod rows;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use self::rows::{Ends, Row, Rows};
use crate::doctor::Report;
use crate::runtime::clock;
use crate::runtime::fork::PerProcess;
use crate::store::api::{Barrier, DirectConnection, Reply, Store};
use crate::store::connect::table::Table;
use crate::store::doctor::{Counts, ReportBuilder};
use protocol::{
    AcquireCommand, AllOutcome, Force, Gone, Grant, GrantId, Holder, ListFilter, LockInfo,
    LockName, LockRow, LostReason, Outcome, Page, Pruned, ReleaseCommand, Released, Renewal,
    ResumeCommand, Semaphore, Slot, TakeOverCommand, Ttl, Version, failed_renewal_outcome,
    reader_in_the_way,
};

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
    slot: Slot,
    grant: GrantId,
}

impl Drop for Fence {
    fn drop(&mut self) {
        let mut rows = self.shared.rows();
        if let Some(row) = rows.of(&self.name, self.slot, self.grant) {
            row.fences -= 1;
        }
        drop(rows);
    }
}

/// The engine `memory:`.
#[derive(Debug)]
pub(crate) struct Memory(Arc<Shared>);

impl Memory {
    /// The table of that name in this process. It lasts as long as a handle to it.
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

/// There is nothing to connect to, and each request is answered at once.
impl DirectConnection for Shared {
    fn connect(&self) -> Reply<'_, ()> {
        ready(())
    }

    fn acquire<'a>(&'a self, commands: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        let mut rows = self.rows();
        ready(
            commands
                .iter()
                .map(|command| rows::acquire(&mut rows, command))
                .collect(),
        )
    }

    fn release<'a>(&'a self, commands: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        let mut rows = self.rows();
        let done = commands
            .iter()
            .map(|command| rows::release(&mut rows, command))
            .collect();
        drop(rows);
        ready(done)
    }

    fn give_up(&self) {}
}

impl Store for Memory {
    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        Some(Arc::clone(&self.0) as Arc<dyn DirectConnection>)
    }

    fn connect(&self, _: Duration) -> Reply<'_, ()> {
        ready(())
    }

    fn acquire<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        _: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        DirectConnection::acquire(&*self.0, commands)
    }

    fn acquire_all<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        _: Duration,
    ) -> Reply<'a, AllOutcome> {
        ready(rows::acquire_all(&mut self.rows(), commands))
    }

    fn renew<'a>(&'a self, grants: &'a [(Grant, Ttl)], _: Duration) -> Reply<'a, Vec<Renewal>> {
        let mut rows = self.rows();
        ready(
            grants
                .iter()
                .map(|(grant, ttl)| rows::renew(&mut rows, grant, *ttl))
                .collect(),
        )
    }

    fn release<'a>(
        &'a self,
        commands: &'a [ReleaseCommand],
        _: Duration,
    ) -> Reply<'a, Vec<Released>> {
        DirectConnection::release(&*self.0, commands)
    }

    fn read<'a>(&'a self, names: &'a [LockName], _: Duration) -> Reply<'a, Vec<LockInfo>> {
        let (now, rows) = (clock::now(), self.rows());
        ready(
            rows.locks
                .iter()
                .filter(|(name, _)| names.contains(name))
                .map(|(name, row)| row.seen(name, Slot::Lock, now).into_info())
                .collect(),
        )
    }

    /// All rows are on one page, since no renewal waits behind it.
    fn page<'a>(&'a self, filter: &'a ListFilter, _: Option<i64>, _: Duration) -> Reply<'a, Page> {
        let (now, rows) = (clock::now(), self.rows());
        let locks = rows.locks.iter();
        let matching =
            locks.filter(|(name, row)| filter.matches(name.as_str(), row.expires.is_none()));
        ready(Page {
            rows: matching
                .map(|(name, row)| row.seen(name, Slot::Lock, now).into_info())
                .collect(),
            last: None,
        })
    }

    fn semaphore<'a>(&'a self, name: &'a LockName, _: Duration) -> Reply<'a, Semaphore> {
        let (now, mut rows) = (clock::now(), self.rows());
        let limit = rows.limits.get(name).copied();
        let permits = rows.permits_of(name);
        let permits =
            permits.map(|(slot, row)| row.seen(name, Slot::Permit(slot), now).into_info());
        ready(Semaphore::new(name.clone(), limit, permits.collect()))
    }

    fn page_of_permits<'a>(
        &'a self,
        filter: &'a ListFilter,
        _: Option<i64>,
        _: Duration,
    ) -> Reply<'a, Page> {
        let (now, rows) = (clock::now(), self.rows());
        let matching = rows
            .permits
            .iter()
            .filter(|((name, _), row)| filter.matches(name.as_str(), row.expires.is_none()));
        ready(Page {
            rows: matching
                .filter_map(|((name, slot), row)| {
                    Some(row.seen(name, Slot::from_db(*slot)?, now).into_info())
                })
                .collect(),
            last: None,
        })
    }

    fn limits(&self, _: Duration) -> Reply<'_, Vec<(LockName, u32)>> {
        let limits = &self.rows().limits;
        ready(
            limits
                .iter()
                .map(|(name, limit)| (name.clone(), *limit))
                .collect(),
        )
    }

    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        _: Duration,
    ) -> Reply<'a, ()> {
        let mut rows = self.rows();
        match limit {
            Some(limit) => rows.limits.insert(name.clone(), limit),
            None => rows.limits.remove(name),
        };
        ready(())
    }

    fn holders<'a>(&'a self, names: &'a [LockName], _: Duration) -> Reply<'a, Vec<Option<Holder>>> {
        let (now, rows) = (clock::now(), self.rows());
        let holder = |name: &LockName| {
            let row = rows.locks.get(name).filter(|row| !row.is_free(now));
            row.map(|row| row.seen(name, Slot::Lock, now).holder())
        };
        ready(names.iter().map(holder).collect())
    }

    fn take_over<'a>(&'a self, command: &'a TakeOverCommand, _: Duration) -> Reply<'a, Outcome> {
        ready(rows::take_over(&mut self.rows(), command))
    }

    fn resume<'a>(&'a self, command: &'a ResumeCommand, _: Duration) -> Reply<'a, Renewal> {
        ready(rows::resume(&mut self.rows(), command))
    }

    fn prune(
        &self,
        idle: Duration,
        include_legacy: bool,
        _: Option<i64>,
        _: Duration,
    ) -> Reply<'_, Pruned> {
        let (now, mut rows) = (clock::now(), self.rows());
        let before = rows.locks.len();
        rows.locks
            .retain(|_, row| !row.is_idle(idle, include_legacy, now));
        ready(Pruned {
            deleted: (before - rows.locks.len()) as u64,
            last: None,
        })
    }

    fn prune_permits(&self, idle: Duration, _: Option<i64>, _: Duration) -> Reply<'_, Pruned> {
        let (now, mut rows) = (clock::now(), self.rows());
        let before = rows.permits.len();
        rows.permits.retain(|_, row| !row.is_idle(idle, false, now));
        ready(Pruned {
            deleted: (before - rows.permits.len()) as u64,
            last: None,
        })
    }

    fn force<'a>(&'a self, name: &'a LockName, _: Duration) -> Reply<'a, Force> {
        let row = self.rows().locks.get_mut(name).map(Row::force);
        ready(row.unwrap_or(Force::WasFree))
    }

    fn shared<'a>(&'a self, name: &'a LockName, _: Duration) -> Reply<'a, Vec<LockInfo>> {
        let rows = self.rows().shared_of(name);
        ready(rows.into_iter().map(LockRow::into_info).collect())
    }

    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        _: &'a [(Slot, Version)],
        _: Duration,
    ) -> Reply<'a, Option<Holder>> {
        ready(reader_in_the_way(&self.rows().readers(name)))
    }

    fn force_permit<'a>(&'a self, name: &'a LockName, slot: Slot, _: Duration) -> Reply<'a, Force> {
        let mut rows = self.rows();
        let row = rows.permits.get_mut(&(name.clone(), slot.range().0));
        ready(row.map(Row::force).unwrap_or(Force::WasFree))
    }

    fn expire(&self, name: &LockName) -> Option<Vec<String>> {
        let (now, mut rows) = (clock::now(), self.rows());
        let Rows { locks, permits, .. } = &mut *rows;
        let shared = permits.range_mut((name.clone(), i32::MIN)..=(name.clone(), -2));
        let all = locks.get_mut(name).into_iter();
        let all = all.chain(shared.map(|(_, row)| row));
        let ended = all.filter(|row| !row.is_free(now)).filter_map(|row| {
            row.expires = Some(Ends::At(now));
            row.grant.clone()
        });
        Some(ended.collect())
    }

    fn open_fence<'a>(&'a self, grant: &'a Grant, _: Duration) -> Reply<'a, Result<Barrier, Gone>> {
        let (now, mut rows) = (clock::now(), self.rows());
        let mut row = rows.of(&grant.name, grant.slot, grant.id);
        let seen = row
            .as_ref()
            .map(|row| row.seen(&grant.name, grant.slot, now));
        ready(
            match (failed_renewal_outcome(grant, seen.as_ref()), &mut row) {
                (Renewal::Busy | Renewal::Renewed { .. }, Some(row)) => {
                    row.fences += 1;
                    Ok(Barrier::new(Fence {
                        shared: Arc::clone(&self.0),
                        name: grant.name.clone(),
                        slot: grant.slot,
                        grant: grant.id,
                    }))
                }
                (Renewal::Lost(gone), _) => Err(gone),
                (_, None) => Err(LostReason::RowGone.into()),
            },
        )
    }

    fn install(&self, _: Duration) -> Reply<'_, ()> {
        ready(())
    }

    fn examine(&self, _: Duration) -> Reply<'_, Report> {
        let (now, rows) = (clock::now(), self.rows());
        let minute_ago = now - Duration::from_secs(60);
        let day_ago = now - Duration::from_secs(86_400);
        let such = |matches: &dyn Fn(&Row) -> bool| {
            let mut found = rows.locks.iter().filter(|(_, row)| matches(row));
            let first = found.next().map(|(name, _)| name.to_string());
            (first.iter().len() as i64 + found.count() as i64, first)
        };
        let counts = Counts {
            rows: rows.locks.len() as i64,
            held: such(&|row| !row.is_free(now) && row.grant.is_some()).0,
            // A row without a grant id rests.
            expired: such(&|row| {
                let ended = matches!(row.expires, Some(Ends::At(end)) if end <= minute_ago);
                ended && row.grant.is_some()
            }),
            infinite: such(&|row| {
                row.expires == Some(Ends::Never) && row.acquired.is_some_and(|at| at <= day_ago)
            }),
            legacy: (0, None),
        };
        let mut report = ReportBuilder::new("memory");
        report.fine(
            "server",
            "the memory of this process: lost when it ends, invisible to other processes",
        );
        report.locks(&counts);
        ready(report.into_report())
    }
}
