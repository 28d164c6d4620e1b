//! Locks within one process, for tests and for programs that have no database.
//!
//! The whole table is one mutex. The boot-time clock takes the place of the database's clock.

mod row;
mod tables;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use self::row::{Ends, Row};
use self::tables::Tables;
use crate::doctor::Report;
use crate::runtime::clock;
use crate::runtime::fork::PerProcess;
use crate::store::api::{Barrier, DirectConnection, Reply, Store};
use crate::store::connect::table::{Rows, Table};
use crate::store::doctor::{Counts, ReportBuilder};
use protocol::{
    AcquireCommand, AllOutcome, Force, Gone, Grant, GrantId, Holder, ListFilter, LockName, LockRow,
    LostReason, Outcome, Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, Slot,
    TakeOverCommand, Ttl, Version, failed_renewal_outcome, reader_in_the_way,
};

#[derive(Debug, Default)]
struct Shared(Mutex<Tables>);

impl Shared {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut tables = self.shared.tables();
        if let Some(row) = tables.of(&self.name, self.slot, self.grant) {
            row.fences -= 1;
        }
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

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.tables()
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
        let mut tables = self.tables();
        let acquired = commands.iter().map(|it| tables::acquire(&mut tables, it));
        ready(acquired.collect())
    }

    fn release<'a>(&'a self, commands: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        let mut tables = self.tables();
        let released = commands.iter().map(|it| tables::release(&mut tables, it));
        ready(released.collect())
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
        ready(tables::acquire_all(&mut self.tables(), commands))
    }

    fn renew<'a>(&'a self, grants: &'a [(Grant, Ttl)], _: Duration) -> Reply<'a, Vec<Renewal>> {
        let mut tables = self.tables();
        let renewed = grants
            .iter()
            .map(|(grant, ttl)| tables::renew(&mut tables, grant, *ttl));
        ready(renewed.collect())
    }

    fn release<'a>(
        &'a self,
        commands: &'a [ReleaseCommand],
        _: Duration,
    ) -> Reply<'a, Vec<Released>> {
        DirectConnection::release(&*self.0, commands)
    }

    fn rows<'a>(&'a self, of: Rows, names: &'a [LockName], _: Duration) -> Reply<'a, Vec<LockRow>> {
        let tables = self.tables();
        ready(tables.seen(of, |name, _| names.contains(name)).collect())
    }

    /// All rows are on one page, since no renewal waits behind it.
    fn page<'a>(
        &'a self,
        of: Rows,
        filter: &'a ListFilter,
        _: Option<i64>,
        _: Duration,
    ) -> Reply<'a, Page> {
        let tables = self.tables();
        let matching = tables.seen(of, |name, row| {
            filter.matches(name.as_str(), row.expires.is_none())
        });
        let matching = matching.filter(|row| row.slot != Slot::AnyPermit);
        ready(Page {
            rows: matching.map(LockRow::into_info).collect(),
            last: None,
        })
    }

    fn limits(&self, _: Duration) -> Reply<'_, Vec<(LockName, u32)>> {
        let tables = self.tables();
        let rows = tables
            .all
            .keys()
            .filter(|(_, slot)| *slot == Slot::AnyPermit);
        let limits = rows.filter_map(|(name, _)| Some((name.clone(), tables.limit(name)?)));
        ready(limits.collect())
    }

    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        _: Duration,
    ) -> Reply<'a, ()> {
        let mut tables = self.tables();
        let row = tables.all.entry((name.clone(), Slot::AnyPermit));
        row.or_default().permits = limit.map(i64::from);
        ready(())
    }

    fn take_over<'a>(&'a self, command: &'a TakeOverCommand, _: Duration) -> Reply<'a, Outcome> {
        ready(tables::take_over(&mut self.tables(), command))
    }

    fn resume<'a>(&'a self, command: &'a ResumeCommand, _: Duration) -> Reply<'a, Renewal> {
        ready(tables::resume(&mut self.tables(), command))
    }

    fn prune(
        &self,
        of: Rows,
        idle: Duration,
        include_legacy: bool,
        _: Option<i64>,
        _: Duration,
    ) -> Reply<'_, Pruned> {
        let (now, mut tables) = (clock::now(), self.tables());
        let before = tables.all.len();
        tables.all.retain(|(_, slot), row| {
            let stays = Rows::of(*slot) != of || *slot == Slot::AnyPermit;
            stays || !row.is_idle(idle, include_legacy, now)
        });
        ready(Pruned {
            deleted: (before - tables.all.len()) as u64,
            last: None,
        })
    }

    fn force<'a>(&'a self, name: &'a LockName, slot: Slot, _: Duration) -> Reply<'a, Force> {
        let mut tables = self.tables();
        let row = tables.all.get_mut(&(name.clone(), slot));
        ready(row.map_or(Force::WasFree, Row::force))
    }

    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        _: &'a [(Slot, Version)],
        _: Duration,
    ) -> Reply<'a, Option<Holder>> {
        ready(reader_in_the_way(&self.tables().readers(name)))
    }

    fn expire(&self, name: &LockName) -> Option<Vec<String>> {
        let (now, mut tables) = (clock::now(), self.tables());
        let all = tables
            .all
            .iter_mut()
            .filter(|((of, slot), row)| of == name && slot.number().is_none() && !row.is_free(now));
        let ended = all.filter_map(|(_, row)| {
            row.expires = Some(Ends::At(now));
            row.grant.clone()
        });
        Some(ended.collect())
    }

    fn open_fence<'a>(&'a self, grant: &'a Grant, _: Duration) -> Reply<'a, Result<Barrier, Gone>> {
        let (now, mut tables) = (clock::now(), self.tables());
        let mut row = tables.of(&grant.name, grant.slot, grant.id);
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
        let (now, tables) = (clock::now(), self.tables());
        let minute_ago = now - Duration::from_secs(60);
        let day_ago = now - Duration::from_secs(86_400);
        let such = |matches: &dyn Fn(&Row) -> bool| {
            let locks = tables
                .all
                .iter()
                .filter(|((_, slot), _)| *slot == Slot::Lock);
            let mut found = locks.filter(|(_, row)| matches(row));
            let first = found.next().map(|((name, _), _)| name.to_string());
            (first.iter().len() as i64 + found.count() as i64, first)
        };
        let counts = Counts {
            rows: such(&|_| true).0,
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
