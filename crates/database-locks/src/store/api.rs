//! The interface between the client and the engines.
//!
//! Requests take slices, since one statement for many locks is much cheaper than many statements.
//! One lock is the common case. Times go in and out as durations, never as points in time, so that
//! the client cannot compare two clocks by mistake.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use crate::doctor::Report;
use crate::store::connect::table::Rows;
pub use crate::store::direct_connection::{DirectConnection, Reply};
pub use crate::store::error::StoreError;
use protocol::{
    AcquireCommand, AllOutcome, Force, Gone, Grant, GuardCommand, Holder, ListFilter, LockInfo,
    LockName, LockRow, Outcome, Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand,
    Semaphore, Slot, TableGuard, TakeOverCommand, Ttl, Version,
};

/// One engine's table of locks.
///
/// Every request has a deadline, `within`. When it passes, the engine gives up the connection and
/// answers [`StoreError::Unavailable`]. The effect of a failed request is *unknown*: the database
/// may have carried it out, or may still do so. Answers are in the order of the commands.
///
/// Dropping a reply leaves the effect unknown, too. As long as the connection lasts, later requests
/// are carried out after it.
pub trait Store: Send + Sync + fmt::Debug {
    /// The direct connection to the same database, if the engine has one. Every call returns the
    /// same one.
    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        None
    }

    /// Connect unless connected, and reject a server that cannot serve: too old, read-only.
    fn connect(&self, within: Duration) -> Reply<'_, ()>;

    /// Grant the locks that are free. Never waits for a row. A lock that is held or rests, or whose
    /// latest grant is too recent for the command, is not written to.
    fn acquire<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>>;

    /// Grant all of these locks, or none. Never waits for a row.
    ///
    /// The commands are ordered by name, and differ in name, grant id and observed version alone.
    ///
    /// If it is repeated because the reply was lost, it recognizes its grants.
    fn acquire_all<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, AllOutcome>;

    /// Extend the leases of these grants, if they still hold their locks.
    fn renew<'a>(&'a self, grants: &'a [(Grant, Ttl)], within: Duration)
    -> Reply<'a, Vec<Renewal>>;

    /// Whether [`renew_waiting`](Store::renew_waiting) waits. If not, it is not used.
    fn renews_waiting(&self) -> bool {
        false
    }

    /// [`renew`](Store::renew) for one grant, which waits for its row for a second or two, in the order
    /// of the requests for it. On a connection of its own, so that no other request waits behind it.
    ///
    /// A lease that ends while the request waits is not renewed.
    fn renew_waiting<'a>(
        &'a self,
        renewal: &'a (Grant, Ttl),
        within: Duration,
    ) -> Reply<'a, Renewal> {
        let _ = (renewal, within);
        Box::pin(std::future::ready(Ok(Renewal::Busy)))
    }

    /// Free the locks of these grants, or let them rest, if the grants still hold them.
    fn release<'a>(
        &'a self,
        commands: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>>;

    /// Read the rows of these names, ordered by name and slot. Takes no lock. An operator's limit is
    /// a row with [`Slot::AnyPermit`].
    fn rows<'a>(
        &'a self,
        of: Rows,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<LockRow>>;

    /// Read these locks, ordered by name.
    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>> {
        Box::pin(async move {
            let rows = self.rows(Rows::Locks, names, within).await?;
            Ok(rows.into_iter().map(LockRow::into_info).collect())
        })
    }

    /// Read a page of rows with ids greater than `after`, ordered by id. Takes no lock. An operator's
    /// limit is no row of it.
    ///
    /// A page covers at most [`PAGE`](protocol::PAGE) rows, whether they match the filter or not,
    /// so that renewals behind it do not wait long.
    fn page<'a>(
        &'a self,
        of: Rows,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page>;

    /// The holder of each of these locks, or the latest one of a lock that rests. `None`: the lock
    /// looks free, so an acquire may succeed.
    ///
    /// Takes no lock and waits for no row. On a cluster the answer is what the connected node has
    /// applied, so it only decides when to try.
    fn holders<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        Box::pin(async move {
            let rows = self.rows(Rows::Locks, names, within).await?;
            Ok(LockRow::holders(names, &rows))
        })
    }

    /// Replace a grant by another one of the same holder, with a new token, if it still holds the
    /// lock. It does not end a rest.
    fn take_over<'a>(
        &'a self,
        command: &'a TakeOverCommand,
        within: Duration,
    ) -> Reply<'a, Outcome>;

    /// Replace a grant by another one with the same token, if it still holds the lock.
    fn resume<'a>(&'a self, command: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal>;

    /// Free a lock, a permit or a shared grant, whichever grant holds it, or end its rest.
    fn force<'a>(&'a self, name: &'a LockName, slot: Slot, within: Duration) -> Reply<'a, Force>;

    /// Delete rows that have been free for `idle`, among one page of rows with ids greater than
    /// `after`. An operator's limit stays.
    ///
    /// A row that legacy (django-database-locks 0.5) wrote does not tell when it was released. It
    /// is deleted only if `include_legacy` is set.
    fn prune(
        &self,
        of: Rows,
        idle: Duration,
        include_legacy: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned>;

    /// Read a semaphore: its permits in order of their numbers, and the operator's limit.
    fn semaphore<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Semaphore> {
        Box::pin(async move {
            let rows = self.rows(Rows::Permits, slice::from_ref(name), within);
            Ok(LockRow::semaphore(name.clone(), rows.await?))
        })
    }

    /// The limits that operators have set.
    fn limits(&self, within: Duration) -> Reply<'_, Vec<(LockName, u32)>>;

    /// Set the operator's limit of a semaphore, or remove it.
    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        within: Duration,
    ) -> Reply<'a, ()>;

    /// Read the shared grants of a lock, dead ones among them.
    fn shared<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Vec<LockInfo>> {
        Box::pin(async move {
            let rows = self.rows(Rows::Permits, slice::from_ref(name), within);
            let shared = rows.await?.into_iter().filter(|row| row.slot.is_shared());
            Ok(shared.map(LockRow::into_info).collect())
        })
    }

    /// Delete the dead shared grants of a lock: those that were released by force, and those whose
    /// leases have ended. Answers the holder of one that is left, and with it all whose expiry has to
    /// be observed; `None`: there is none. A dead one with an open fence stays.
    ///
    /// The client asks after it was granted the lock, in a later transaction. Until the answer is
    /// `None`, its exclusive grant only keeps new shared ones out.
    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        expired: &'a [(Slot, Version)],
        within: Duration,
    ) -> Reply<'a, Option<Holder>>;

    /// Create the table, or add missing columns to it. A second run changes nothing.
    fn install(&self, within: Duration) -> Reply<'_, ()>;

    /// Put a table under the guard of a lock. A second run changes nothing.
    fn guard_table<'a>(&'a self, command: &'a GuardCommand, within: Duration) -> Reply<'a, ()> {
        let _ = (command, within);
        Box::pin(std::future::ready(Err(StoreError::no_guards())))
    }

    /// Remove the guard of a table. Answers whether there was one.
    fn unguard_table<'a>(&'a self, table: &'a str, within: Duration) -> Reply<'a, bool> {
        let _ = (table, within);
        Box::pin(std::future::ready(Err(StoreError::no_guards())))
    }

    /// The guarded tables that this user can see, ordered by name.
    fn guarded_tables(&self, within: Duration) -> Reply<'_, Vec<TableGuard>> {
        let _ = within;
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Examine the server, the table and the user's rights. Changes nothing, and needs no special
    /// rights.
    fn examine(&self, within: Duration) -> Reply<'_, Report>;

    /// For tests: let the lease of a lock end now, and those of its shared grants. Answers the grant
    /// ids that held it. `None` if the engine cannot do that.
    fn expire(&self, name: &LockName) -> Option<Vec<String>> {
        let _ = name;
        None
    }

    /// The statements by which a transaction commits only while the grant in this row holds the lock.
    /// `None` if the engine fences by [`open_fence`](Store::open_fence) alone.
    fn fence(&self, slot: Slot) -> Option<FenceText> {
        let _ = slot;
        None
    }

    /// Whether a lease can be renewed while a fenced transaction is open.
    fn renews_under_fence(&self) -> bool {
        true
    }

    /// Keep other clients from acquiring the lock until the [`Barrier`] is dropped, if the engine
    /// fences without a statement. Answers why the grant is gone if it no longer holds the lock.
    fn open_fence<'a>(
        &'a self,
        grant: &'a Grant,
        within: Duration,
    ) -> Reply<'a, Result<Barrier, Gone>> {
        let _ = (grant, within);
        Box::pin(std::future::ready(Ok(Ok(Barrier::none()))))
    }

    /// Announce to other clients that this process waits for `name`, for at least `pause`, so that
    /// its release is notified to the handler of [`on_notified`](Store::on_notified). With a `limit`
    /// it waits for a permit of a semaphore, and the release of any permit is notified.
    ///
    /// `false`: no notification will come, or the lock or a permit may be free already, and the caller
    /// polls. It also polls after `pause`, since a notification may be lost.
    ///
    /// Without `anew`, no request is sent for a lock if an earlier announcement lasts that long.
    fn announce<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        pause: Duration,
        anew: bool,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        let _ = (name, limit, pause, anew);
        Box::pin(std::future::ready(false))
    }

    /// Set the handler of notifications, which must tolerate spurious ones. Called once, before the
    /// first acquire.
    fn on_notified(&self, handler: NoticeHandler) {
        drop(handler);
    }

    /// The session that blocks the statements of this store at present, if it is known: one that
    /// has locked the table.
    fn blocked_by(&self) -> Option<String> {
        None
    }

    /// The session whose transaction has the row of this lock or permit locked, and how to end it, for
    /// people to read; `None` if no transaction has. [`UNKNOWN_SESSION`] if the server does not tell this
    /// user.
    ///
    /// Connections of its own wait for the row and ask the server: some milliseconds as a rule.
    fn row_locker<'a>(
        &'a self,
        name: &'a LockName,
        slot: Slot,
        within: Duration,
    ) -> Reply<'a, Option<String>> {
        let _ = (name, slot, within);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Connect in the background unless connected: a renewal is due within seconds.
    fn prepare_to_renew(&self) {}

    /// Send the next renewal on a new connection. Pending requests still get their answers.
    fn reconnect(&self) {}

    /// Whether waiters of other processes poll. If so, a release cannot tell whether there are any.
    fn waiters_poll(&self) -> bool {
        true
    }
}

/// A session of which the server tells this user nothing.
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) const UNKNOWN_SESSION: &str = "a session that the database does not show to this user";

/// A notification from another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// The lock was released, released by force, or taken over. With the number of the backend that
    /// notified; `None` if that may be a backend of this process.
    Released(&'a LockName, Option<i32>),
    /// Notifications may have been missed: the connection that listens has ended or is a new one.
    Missed,
}

/// Receives notifications.
pub type NoticeHandler = Arc<dyn Fn(Notice<'_>) + Send + Sync>;

/// The statements of a fence, with the name of the table. Their parameters are name, token and
/// grant id in this order, written `$1`, `$2`, `$3`, or `?` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceText {
    /// Runs before the fence. One row affected: the snapshot of the transaction is not older than the
    /// grant.
    pub before: Option<String>,
    /// The fence. One row found or changed: the grant holds the lock.
    pub fence: String,
    /// The transaction may run on a node that has not applied the grant yet.
    pub may_lag: bool,
}

/// Keeps other clients from acquiring a lock until it is dropped.
pub struct Barrier(Option<Box<dyn std::any::Any + Send + Sync>>);

impl Barrier {
    /// A barrier without effect, for engines that fence by a statement.
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(guard: impl std::any::Any + Send + Sync) -> Self {
        Self(Some(Box::new(guard)))
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Barrier").field(&self.0.is_some()).finish()
    }
}

/// A duration in microseconds, as statements take it.
pub(crate) fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

/// The rest that a release asks for, as statements take it; null: the lock is free at once.
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) fn rest_micros(command: &ReleaseCommand) -> Option<i64> {
    (!command.rest.is_zero()).then(|| micros(command.rest))
}

/// The length of a lease, as statements take it; null: it has no end.
pub(crate) fn ttl_micros(ttl: Ttl) -> Option<i64> {
    match ttl {
        Ttl::Finite(length) => Some(micros(length)),
        Ttl::Infinite => None,
    }
}

/// A duration that every engine can subtract from its clock: at most a thousand years.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite-unbundled"))]
pub(crate) fn bounded(length: Duration) -> Duration {
    length.min(Duration::from_secs(1_000 * 31_557_600))
}

/// Await a reply until its deadline. When it passes, `give_up` drops the connection.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite-unbundled"))]
pub(crate) async fn with_deadline<T>(
    within: Duration,
    reply: impl Future<Output = Result<T, StoreError>>,
    give_up: impl FnOnce(),
) -> Result<T, StoreError> {
    match tokio::time::timeout(within, reply).await {
        Ok(answer) => answer,
        Err(_) => {
            give_up();
            Err(StoreError::late(within))
        }
    }
}
