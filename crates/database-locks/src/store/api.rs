//! The seam between the library and the engines, and what every engine shares.
//!
//! A store takes slices, since one statement for a thousand locks is what makes a thousand locks
//! cheap; one lock is the common case. It takes durations and gives durations, never a point in
//! time: so nobody above can compare two clocks by accident.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::doctor::Report;
use crate::error::{BoxError, Cause, Error};
use protocol::{
    AcquireCommand, Force, Gone, Grant, Holder, ListFilter, LockInfo, LockName, Outcome, Page,
    Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand, Ttl,
};

/// What to do where there is no id left for the row of a new name.
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) const NO_ID: &str = "the ids of its rows are used up: as the owner of the table, let its column id be a \
                     bigint (PostgreSQL: ALTER TABLE … ALTER COLUMN id TYPE bigint, and ALTER SEQUENCE … AS \
                     bigint for one made by serial; MySQL: ALTER TABLE … MODIFY id bigint AUTO_INCREMENT)";

/// What to do where a token cannot be raised: none is that great unless somebody else wrote it.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite-unbundled"))]
pub(crate) const NO_TOKEN: &str =
    "its token is out of range: delete its row once nobody works under the lock";

/// A reply that is under way.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// One engine's table of locks.
///
/// Every call has a deadline, `within`: past it the connection is given up and the answer is
/// [`StoreError::Unavailable`]. What a call that failed has done is *unknown*: it may have been
/// carried out, or may yet be. The answers stand in the order of what was asked.
///
/// Dropping a reply leaves it unknown as well, but orderly: calls that are made later are carried
/// out later, as long as the connection lasts.
pub trait Store: Send + Sync + fmt::Debug {
    /// The direct path to the same database; none where the engine has none. The same one at each
    /// call.
    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        None
    }

    /// Connect if need be, and refuse a server that cannot serve: too old, read-only.
    fn connect(&self, within: Duration) -> Reply<'_, ()>;

    /// Grant what is free. Never waits for a row; a losing try writes nothing.
    fn acquire<'a>(
        &'a self,
        asks: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>>;

    /// Lengthen what is still held by exactly these grants.
    fn renew<'a>(&'a self, grants: &'a [(Grant, Ttl)], within: Duration)
    -> Reply<'a, Vec<Renewal>>;

    /// Free what is still held by exactly these grants.
    fn release<'a>(
        &'a self,
        returns: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>>;

    /// Read the rows of these names, in the order of their names. Locks nothing.
    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>>;

    /// Read some of the rows, in the order in which they were made: those behind `after`. Locks
    /// nothing.
    ///
    /// A page looks at [`PAGE`](protocol::PAGE) rows at most, whatever matches, so that no renewal
    /// waits long behind it.
    fn page<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page>;

    /// Who has each of these locks; none: nobody does as it seems, so that an acquire is worth a
    /// try.
    ///
    /// Locks nothing and waits for no row. Where there are several servers it shows what the one at
    /// hand knows: so it decides when to try and nothing else.
    fn look<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>>;

    /// Put another grant in the place of one that is still held by the same holder, with a new
    /// token.
    fn take_over<'a>(&'a self, what: &'a TakeOverCommand, within: Duration) -> Reply<'a, Outcome>;

    /// Put another grant in the place of one that is still held, with the same token.
    fn resume<'a>(&'a self, what: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal>;

    /// Free a lock whoever has it.
    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force>;

    /// Delete rows of locks that nobody has had for so long, among those behind the id `after`; not
    /// more than a page of them.
    ///
    /// Rows that do not say when they were free last, since 0.5 wrote them, only where `unknown`.
    fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned>;

    /// Make the table, or add what it lacks. A second run changes nothing.
    fn install(&self, within: Duration) -> Reply<'_, ()>;

    /// Look for what is wrong, or could be better. Changes nothing, and needs no special rights.
    fn examine(&self, within: Duration) -> Reply<'_, Report>;

    /// Let the lease of a lock end now, for tests; none where nobody can set the engine's clock.
    /// Answers the grant id of who had it.
    fn expire(&self, name: &LockName) -> Option<Option<String>> {
        let _ = name;
        None
    }

    /// What a transaction runs to commit only while this grant is there; none where
    /// [`open_fence`](Store::open_fence) is all that it takes.
    fn fence(&self) -> Option<&FenceText> {
        None
    }

    /// Whether a renewal gets through while such a transaction is open.
    fn renews_under_fence(&self) -> bool {
        true
    }

    /// Keep everybody else from getting the lock until what comes back is dropped, where that does
    /// not take a statement in somebody's transaction; or say why it is not ours any more.
    fn open_fence<'a>(
        &'a self,
        grant: &'a Grant,
        within: Duration,
    ) -> Reply<'a, Result<Barrier, Gone>> {
        let _ = (grant, within);
        Box::pin(std::future::ready(Ok(Ok(Barrier::none()))))
    }

    /// Tell other clients that this process waits for `name`, for at least `pause`, so that a
    /// release is notified to [`on_notified`](Store::on_notified). Whether it will be, and the lock
    /// is not free yet: if not, the caller polls. It polls after `pause` in any case, since a
    /// notification may be lost.
    ///
    /// Without `anew`, nothing is asked if an earlier announcement lasts that long.
    fn announce<'a>(
        &'a self,
        name: &'a LockName,
        pause: Duration,
        anew: bool,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        let _ = (name, pause, anew);
        Box::pin(std::future::ready(false))
    }

    /// Whom to tell of notifications. It may be told in vain. Called once, before anything is held.
    fn on_notified(&self, tell: Tell) {
        drop(tell);
    }

    /// What keeps our statements from being carried out just now, where that is known: a session
    /// that has the table locked.
    fn blocked_by(&self) -> Option<String> {
        None
    }

    /// A renewal is due within seconds: make the connection for it in the background, unless it is
    /// there.
    fn prepare_to_renew(&self) {}

    /// Send the next renewal on a new connection. Calls that wait for an answer still get it.
    fn reconnect(&self) {}

    /// Whether waiters of other processes poll, so that a release does not know whether there are
    /// any.
    fn waiters_poll(&self) -> bool {
        true
    }
}

/// The direct path of a caller to the database: a connection of its own, whose I/O the runtime of
/// the caller drives, so that no thread has to wake another.
///
/// It is used on one runtime at a time, its *home*, within whose context every call is made and
/// polled. It connects by itself at the first call, and anew when the connection is gone: tasks
/// that it spawns (`tokio::spawn`) are tasks of the home, wrapped in
/// [`ForkSafeFuture`](crate::runtime::fork::ForkSafeFuture). When the home ends, so do they, and
/// the next call is made on another runtime.
///
/// There is one call at a time, unless calls [block](DirectConnection::blocks). It has no deadline
/// of its own: when it is late the client calls [`give_up`](DirectConnection::give_up), and drops
/// it as soon as its owner lets it. Otherwise a call that was polled once is never dropped, unless
/// its runtime ends. What a call that failed or was dropped has done is *unknown*, as for
/// [`Store`].
pub trait DirectConnection: Send + Sync + fmt::Debug {
    /// Whether a call blocks the thread that polls it. Then it is for callers that block, and for
    /// them alone.
    fn blocks(&self) -> bool {
        false
    }

    /// See [`Store::connect`].
    fn connect(&self) -> Reply<'_, ()>;

    /// See [`Store::acquire`].
    fn acquire<'a>(&'a self, asks: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>>;

    /// See [`Store::release`].
    fn release<'a>(&'a self, returns: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>>;

    /// A call was late, or the direct connection moves to another runtime: the next one is made on
    /// a new connection.
    fn give_up(&self);
}

/// What a client hears from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// The lock was released, also by force, or taken over, as the backend of this number says;
    /// none where that may be one of this process.
    Released(&'a LockName, Option<i32>),
    /// Notifications may have been missed, since the connection that hears them is a new one or
    /// none.
    Missed,
}

/// Who is told.
pub type Tell = Arc<dyn Fn(Notice<'_>) + Send + Sync>;

/// The statements of a fence, the name of the table put in. Their parameters are name, token and
/// grant id in this order, written `$1`, `$2`, `$3`, or `?` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceText {
    /// To be run before: it finds one row where what the transaction has read is no older than the
    /// grant.
    pub before: Option<String>,
    /// Finds one row, or changes one, where the grant is there.
    pub fence: String,
    /// The transaction may be on a server that has not heard of the grant yet.
    pub may_lag: bool,
}

/// Keeps everybody else from getting a lock, until it is dropped.
pub struct Barrier(Option<Box<dyn std::any::Any + Send + Sync>>);

impl Barrier {
    /// One that keeps nobody out: a statement does.
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(what: impl std::any::Any + Send + Sync) -> Self {
        Self(Some(Box::new(what)))
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Barrier").field(&self.0.is_some()).finish()
    }
}

/// Why a store has no answer. What it was asked to do may have been done all the same, unless it
/// was rejected or [`is_undone`](Self::is_undone).
#[derive(Debug)]
pub enum StoreError {
    /// The database ended a conflict in favour of somebody else. Try again soon.
    Contention(BoxError),
    /// It did not answer, or not in time, or cannot serve just now.
    Unavailable(BoxError),
    /// It answered no. Trying again will not help.
    Rejected {
        /// What to do about it, where that is known.
        hint: Option<String>,
        /// What it said.
        source: BoxError,
    },
}

impl StoreError {
    pub(crate) fn rejected(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Rejected {
            hint: hint.map(str::to_owned),
            source: message.into().into(),
        }
    }

    /// It answered that it cannot do it just now: that passes, or is seen to.
    pub(crate) fn cannot_serve(message: impl Into<String>) -> Self {
        let cause = Cause {
            message: message.into(),
            answered: true,
            undone: false,
        };
        Self::Unavailable(cause.into())
    }

    /// The same, and nothing was done: there was no connection to send it on, or it was refused.
    pub(crate) fn undone(self) -> Self {
        match self {
            Self::Unavailable(source) => {
                let cause = Cause::of(&source, source.to_string());
                let undone = true;
                Self::Unavailable(Cause { undone, ..cause }.into())
            }
            other => other,
        }
    }

    /// Whether it is known that nothing was done, and that nothing will be.
    pub fn is_undone(&self) -> bool {
        match self {
            Self::Unavailable(source) => Cause::of(source, String::new()).undone,
            Self::Rejected { .. } => true,
            Self::Contention(_) => false,
        }
    }

    /// The database answered, and that it cannot serve just now is its answer.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Unavailable(source) => Cause::of(source, String::new()).answered,
            Self::Contention(_) | Self::Rejected { .. } => true,
        }
    }

    /// The same once more, for another who was to be answered together.
    pub(crate) fn again(&self) -> Self {
        let message =
            |source: &BoxError| -> BoxError { Cause::of(source, source.to_string()).into() };
        match self {
            Self::Contention(source) => Self::Contention(message(source)),
            Self::Unavailable(source) => Self::Unavailable(message(source)),
            Self::Rejected { hint, source } => Self::Rejected {
                hint: hint.clone(),
                source: message(source),
            },
        }
    }

    pub(crate) fn late(within: Duration) -> Self {
        Self::Unavailable(format!("no answer within {}", protocol::Human(within)).into())
    }

    #[cfg(feature = "mysql")]
    pub(crate) fn late_for(within: Duration, what: &str) -> Self {
        Self::Unavailable(
            format!("no connection within {}: {what}", protocol::Human(within)).into(),
        )
    }

    /// The same in the words of the public API.
    pub fn into_error(self, op: impl Into<String>) -> Error {
        let op = op.into();
        match self {
            Self::Contention(source) => Error::Conflict { op, source },
            Self::Unavailable(source) => Error::Unavailable { op, source },
            Self::Rejected { hint, source } => Error::rejected(op, hint, source),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contention(source) => write!(f, "contention: {source}"),
            Self::Unavailable(source) => write!(f, "unavailable: {source}"),
            Self::Rejected { source, .. } => write!(f, "rejected: {source}"),
        }
    }
}

/// A length of the past that every engine can reckon with: nothing is as old as a thousand years.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite-unbundled"))]
pub(crate) fn bounded(length: Duration) -> Duration {
    length.min(Duration::from_secs(1_000 * 31_557_600))
}

/// Keep a reply to its deadline; `give_up` then drops the connection that owes it.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite-unbundled"))]
pub(crate) async fn keep_to<T>(
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
