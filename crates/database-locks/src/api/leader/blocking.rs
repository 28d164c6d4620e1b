//! Leader election without async.

use std::ops::Deref;
use std::pin::pin;
use std::time::Duration;

use serde_json::Value;

use super::term::Over;
use crate::api::delegate::{settings, waits};
use crate::api::fence::{FenceTransaction, OpenFence};
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::runtime::{block_on, block_on_for};
use protocol::{LockInfo, Ttl};

/// [`crate::Leader`] without async.
///
/// # Example
///
/// ```
/// use database_locks::blocking::Locks;
///
/// # fn main() -> Result<(), database_locks::Error> {
/// # let url = "memory:";
/// let locks = Locks::connect(url)?;
/// let done = locks.leader("scheduler").run(|term| {
///     let mut done = 0;
///     while term.is_leader() && done < 3 {
///         done += 1; // … one step …
///     }
///     done
/// })?;
/// assert_eq!(done, 3);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a candidate does nothing until it runs"]
pub struct Leader(super::Leader);

impl Leader {
    pub(crate) fn new(leader: super::Leader) -> Self {
        Self(leader)
    }

    /// See [`crate::Leader::name`].
    pub fn name(&self) -> &str {
        self.0.name()
    }

    settings! { self.0, "crate::Leader";
        ttl(ttl: impl Into<Ttl>);
        margin(margin: Duration);
        renew_every(period: Duration);
        poll(longest: Duration);
        holder(holder: impl Into<String>);
        metadata(key: impl Into<String>, value: impl Into<Value>);
    }

    /// Campaign, run `body` while this process leads, and campaign again if the term ends first.
    ///
    /// Unlike the future of [`crate::Leader::run`], `body` cannot be stopped. **It has to check
    /// [`is_leader`](crate::Term::is_leader) between its steps, and return when that is `false`**;
    /// its output is then dropped, and the next campaign begins after it has returned. A step
    /// should be shorter than the [margin](Leader::margin), after which another process may lead.
    /// If the body returns while it leads, `run` returns its output.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Leader::run`]; [`Error::Config`] where
    /// [no call may block](crate::blocking#where-no-call-may-block).
    ///
    /// # Panics
    ///
    /// If `body` does; the lock is released in the background.
    pub fn run<T>(&self, mut body: impl FnMut(Term) -> T) -> Result<T, Error> {
        loop {
            let term = block_on(self.0.campaign())??;
            let output = body(Term(term.term()));
            match block_on(term.end())? {
                Over::ByBody => return Ok(output),
                Over::Resigned => block_on(self.0.let_others_lead())??,
                Over::Lost => {}
            }
        }
    }

    waits! { self, self.0, "crate::Leader";
        current() -> Option<LockInfo>;
    }

    /// See [`crate::Leader::observe`].
    pub fn observe(&self) -> LeaderObserver {
        LeaderObserver(self.0.observe())
    }
}

/// [`crate::Term`] without async.
///
/// It derefs to [`crate::Term`] for all methods that do not wait.
#[derive(Clone, Debug)]
pub struct Term(super::Term);

impl Term {
    /// See [`crate::LockGuard::check`].
    pub fn check(&self) -> Result<(), Error> {
        block_on(LockGuard::check(&self.0))?
    }

    /// See [`crate::LockGuard::fence`]: for a transaction that blocks, such as that of rusqlite.
    pub fn fence<T: FenceTransaction>(&self, tx: &mut T) -> Result<OpenFence, Error> {
        block_on(LockGuard::fence(&self.0, tx))?
    }

    /// Wait until the term has ended, for at most `at_most`; returns whether it has. See
    /// [`crate::Term::ended`].
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where [no call may block](crate::blocking#where-no-call-may-block).
    pub fn ended_within(&self, at_most: Duration) -> Result<bool, Error> {
        Ok(block_on_for(pin!(self.0.ended()), at_most)?.is_some())
    }
}

impl Deref for Term {
    type Target = super::Term;

    fn deref(&self) -> &super::Term {
        &self.0
    }
}

/// [`crate::LeaderObserver`] without async: an iterator that never ends.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// # use database_locks::blocking::Locks;
///
/// # fn main() -> Result<(), database_locks::Error> {
/// # let locks = Locks::connect("memory:")?;
/// let mut observer = locks.leader("scheduler").observe();
/// assert!(observer.next().is_some_and(|first| first.is_ok_and(|leader| leader.is_none())));
/// // No change within the time:
/// assert!(observer.next_within(Duration::from_millis(100)).is_none());
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "an observer reads nothing until it is asked"]
pub struct LeaderObserver(super::LeaderObserver);

impl LeaderObserver {
    /// Wait for the next change, for at most `at_most`; `None` if there is none in that time. See
    /// [`crate::LeaderObserver::next`].
    pub fn next_within(&mut self, at_most: Duration) -> Option<Result<Option<LockInfo>, Error>> {
        let next = block_on_for(pin!(self.0.next()), at_most);
        next.unwrap_or_else(|refused| Some(Err(refused.into())))
    }
}

impl Iterator for LeaderObserver {
    type Item = Result<Option<LockInfo>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = block_on(self.0.next());
        Some(next.unwrap_or_else(|refused| Err(refused.into())))
    }
}
