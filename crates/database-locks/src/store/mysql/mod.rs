//! Locks in MySQL and MariaDB.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::doctor::Report;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::{FenceText, Lane, Reply, Store, keep_to};
use crate::store::connect::source::Source;
use crate::store::connect::table::Table;
use crate::store::connect::url;
use protocol::{
    AcquireCommand, Force, Grant, Holder, ListFilter, LockInfo, LockName, LockRow, Outcome, Page,
    Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand, Ttl,
};

mod cluster;
mod connection;
mod doctor;
mod error;
mod lane;
mod rows;
mod statements;

use connection::config::Server;
use connection::session::Session;
use connection::{Line, place};
use lane::DirectPath;
#[cfg(test)]
pub(crate) use statements::PUBLISHED;

/// The engine `mysql://` and `mariadb://`.
pub(crate) struct Mysql {
    server: Arc<Server>,
    /// The connection of the background thread.
    line: Line,
    /// That of callers. While the other one cannot be had, renewals go over it.
    lane: Arc<DirectPath>,
    /// Where there is one server, and on a cluster.
    fence: [FenceText; 2],
}

/// Without the options of the driver, which hold the password.
impl fmt::Debug for Mysql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mysql")
            .field("at", &self.server.at())
            .field("table", &self.server.table)
            .finish_non_exhaustive()
    }
}

impl Mysql {
    pub(crate) fn new(
        said: url::Server,
        source: Arc<Source>,
        table: &Table,
    ) -> Result<Self, Error> {
        let server = Arc::new(Server::new(said, source, table)?);
        let fence = |may_lag| FenceText {
            before: Some(table.fill(statements::fence::BEFORE)),
            fence: table.fill(statements::fence::FENCE),
            may_lag,
        };
        Ok(Self {
            line: Line::new(Arc::clone(&server)),
            lane: Arc::new(DirectPath::new(Arc::clone(&server))),
            server,
            fence: [fence(false), fence(true)],
        })
    }
}

impl Store for Mysql {
    fn lane(&self) -> Option<Arc<dyn Lane>> {
        Some(Arc::clone(&self.lane) as Arc<dyn Lane>)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        let within = self.server.patience(within);
        Box::pin(self.line.call(within, |_| Box::pin(async { Ok(()) })))
    }

    fn acquire<'a>(
        &'a self,
        asks: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        let asks = asks.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.acquire(&asks).await })
        }))
    }

    /// A connection that cannot be had leaves half of the time to that of the lane.
    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        Box::pin(async move {
            let until = clock::now() + within;
            let first = match self.line.is_up() || !self.lane.is_up() {
                true => within,
                false => within / 2,
            };
            let sent = Arc::new(AtomicBool::new(false));
            let (asked, begun) = (grants.to_vec(), Arc::clone(&sent));
            let done = self.line.call_first(first, move |session| {
                begun.store(true, Ordering::Release);
                Box::pin(async move { session.renew(&asked).await })
            });
            let done = done.await;
            let left = until.saturating_sub(clock::now());
            let may_ask_again = !sent.load(Ordering::Acquire) && self.lane.is_up();
            let failure = match done {
                Err(failure) if may_ask_again && !left.is_zero() => failure,
                done => return done,
            };
            match self.lane.renew(grants.to_vec(), left).await {
                // It has none either: what the server said of the first stands.
                Err(other) if other.is_undone() => Err(failure),
                done => done,
            }
        })
    }

    fn prepare_to_renew(&self) {
        self.line.dial();
    }

    fn release<'a>(
        &'a self,
        returns: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        let returns = returns.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.release(&returns).await })
        }))
    }

    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>> {
        let names = names.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move {
                let rows = session.read_latest(&names).await?;
                Ok(rows.into_iter().map(LockRow::into_info).collect())
            })
        }))
    }

    fn page<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let filter = filter.clone();
        Box::pin(self.line.call(within, move |session| {
            Box::pin(async move { session.page(&filter, after).await })
        }))
    }

    fn look<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        let names = names.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move {
                let rows = session.read(&names).await?;
                Ok(LockRow::occupants(&names, &rows))
            })
        }))
    }

    fn take_over<'a>(&'a self, what: &'a TakeOverCommand, within: Duration) -> Reply<'a, Outcome> {
        let what = what.clone();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.take_over(&what).await })
        }))
    }

    fn resume<'a>(&'a self, what: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        let what = what.clone();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.resume(&what).await })
        }))
    }

    fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        Box::pin(self.line.call(within, move |session| {
            Box::pin(async move { session.prune(idle, unknown, after).await })
        }))
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        let name = name.clone();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.force(&name).await })
        }))
    }

    fn fence(&self) -> Option<&FenceText> {
        let cluster = self.server.clustered.load(Ordering::Relaxed);
        Some(&self.fence[usize::from(cluster)])
    }

    fn reconnect(&self) {
        self.line.reconnect();
    }

    /// It changes the row that the renewal would have to change.
    fn renews_under_fence(&self) -> bool {
        false
    }

    /// On a connection of its own: DDL may take long, and waits.
    fn install(&self, within: Duration) -> Reply<'_, ()> {
        let work = async move { Session::open(&self.server).await?.install().await };
        Box::pin(async move {
            let done = keep_to(within, work, || ()).await;
            done.map_err(|failure| place(&self.server, failure))
        })
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.examine().await })
        }))
    }
}
