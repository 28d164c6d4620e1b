//! Observed expiry: how a lease ends on a cluster whose nodes have several clocks.
//!
//! If several nodes of a cluster accept writes, `expires_at` comes from the clock of one node, and
//! another node would compare it with its own clock. So a waiter does not compare `expires_at` with
//! any clock.
//! It reads the row several times. When it has seen the same *version* of the row for the whole
//! length of the lease, by its own clock, the holder has not renewed the lease for at least that
//! long, and has stopped trusting it: the trust of a holder counts from before it sent its latest
//! renewal, which was before any client could see the result.
//!
//! Why the rule is safe:
//!
//! - Each write makes another version. So if a version was seen twice, the row had it all the time
//!   in between, and need not be read continuously.
//! - An observation begins after the first reply that shows the version, and ends before the
//!   statement that acquires the lock is sent. Slow replies only make it longer.
//! - The statement requires the version that was observed. If another node has written the row, and
//!   the node that executes the statement has not received that write yet, the cluster detects that
//!   two transactions changed the same row, and only the first commits. So a stale read cannot
//!   grant a lock.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::values::time::BootInstant;

/// The time after an observation for the statement that acquires the lock, and its reply.
const ACQUIRE_TIME: Duration = Duration::from_secs(1);
/// How much longer than its lease an observation is kept without a reply that confirms it. It spans
/// the pauses of a job that tries once every few minutes.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// The number of observations from which old ones are dropped.
const CLEAN_UP_FROM: usize = 64;

/// How the expiry of a lease is observed: the same version of its row has to be seen for the length
/// of the lease, by the clock of the client that wants the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedExpiry {
    /// The version of the row.
    pub version: Version,
    /// For how long the version has to be seen.
    pub length: Duration,
    /// Whether the lease has ended, or was renewed in the future, by the clock of the node that was
    /// asked. If so, its holder may be dead.
    pub overdue: bool,
}

/// The version of a row. Each write makes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The column `token`.
    pub token: i64,
    /// The column `expires_at`, in microseconds since 1970.
    pub expires_at: i64,
    /// The column `renewed_at`, in microseconds since 1970.
    pub renewed_at: Option<i64>,
}

/// The version of one row, and since when it has been seen.
#[derive(Clone, Debug)]
struct Observation<V> {
    version: V,
    since: BootInstant,
    length: Duration,
    overdue: bool,
    last_seen: BootInstant,
}

impl<V: Clone + Eq> Observation<V> {
    /// The observation of a version that a reply, which arrived at `now`, shows for the first time.
    /// See [`ObservedExpiry`] for `length` and `overdue`.
    fn new(version: V, length: Duration, overdue: bool, now: BootInstant) -> Self {
        Self {
            version,
            since: now,
            length,
            overdue,
            last_seen: now,
        }
    }

    /// Record that another reply shows this version, which may be the same.
    fn record(&mut self, version: V, length: Duration, overdue: bool, now: BootInstant) {
        let since = if self.version == version {
            self.since
        } else {
            now
        };
        *self = Self {
            since,
            ..Self::new(version, length, overdue, now)
        };
    }

    /// When the version will have been seen for the whole length.
    fn ends_at(&self) -> BootInstant {
        self.since + self.length
    }

    /// How long the version still has to be seen.
    fn left(&self, now: BootInstant) -> Duration {
        self.ends_at() - now
    }

    /// The version that a statement sent after `now` may replace.
    fn ended(&self, now: BootInstant) -> Option<&V> {
        (now >= self.ends_at()).then_some(&self.version)
    }

    /// Whether it is dropped, because no reply has confirmed it for a long time.
    fn is_outdated(&self, now: BootInstant) -> bool {
        let kept = self.length.saturating_add(KEPT_FOR);
        now > self.last_seen + kept
    }
}

/// The rows that this process observes, shared by all its waiters.
#[derive(Debug)]
pub struct Observations<K, V>(Mutex<HashMap<K, Observation<V>>>);

impl<K, V> Default for Observations<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone + Eq> Observations<K, V> {
    fn all(&self) -> MutexGuard<'_, HashMap<K, Observation<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Record that a reply, which arrived at `now`, shows this version of a row. Returns how long
    /// the version still has to be seen.
    pub fn record(
        &self,
        name: &K,
        version: &V,
        length: Duration,
        overdue: bool,
        now: BootInstant,
    ) -> Duration {
        let (mut all, version) = (self.all(), version.clone());
        if let Some(observation) = all.get_mut(name) {
            observation.record(version, length, overdue, now);
            return observation.left(now);
        }
        // Only when the map would grow, so that the cost per call is constant.
        if all.len() >= CLEAN_UP_FROM && all.len() == all.capacity() {
            all.retain(|_, observation| !observation.is_outdated(now));
        }
        let observation = Observation::new(version, length, overdue, now);
        let left = observation.left(now);
        all.insert(name.clone(), observation);
        left
    }

    /// Record that the row has no lease whose expiry has to be observed.
    pub fn forget(&self, name: &K) {
        self.all().remove(name);
    }

    /// The rows that are observed and match.
    pub fn matching(&self, matches: impl Fn(&K) -> bool) -> Vec<K> {
        let all = self.all();
        all.keys().filter(|key| matches(key)).cloned().collect()
    }

    /// How long ago the observation ended; `None` if it has not ended.
    pub fn ended_for(&self, name: &K, now: BootInstant) -> Option<Duration> {
        now.checked_duration_since(self.all().get(name)?.ends_at())
    }

    /// The version that a statement sent after `now` may replace; `None` if the observation has not
    /// ended.
    pub fn ended(&self, name: &K, now: BootInstant) -> Option<V> {
        self.all().get(name)?.ended(now).cloned()
    }

    /// The observation of a row whose holder may be dead.
    fn overdue(&self, name: &K) -> Option<Observation<V>> {
        let observation = self.all().get(name).cloned()?;
        observation.overdue.then_some(observation)
    }
}

/// The extension of a wait beyond its limit, for a lease whose holder may be dead.
///
/// The wait continues until the expiry of that lease has been observed. Without the extension, a
/// job that waits for less than the length of the lease would never acquire the lock of a crashed
/// run: none of its runs would observe the lease for long enough.
#[derive(Debug)]
pub struct WaitExtension<V>(Option<V>);

impl<V> Default for WaitExtension<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V: Clone + Eq> WaitExtension<V> {
    /// When a wait that reached its limit by `now` ends. `None`: at once, because the holder does
    /// not seem dead, or because the row has another version since: its holder renewed the lease,
    /// or another client has the lock.
    pub fn until<K: Clone + Eq + Hash>(
        &mut self,
        observations: &Observations<K, V>,
        name: &K,
        now: BootInstant,
    ) -> Option<BootInstant> {
        let observation = observations.overdue(name)?;
        let version = self.0.get_or_insert_with(|| observation.version.clone());
        let end = observation.ends_at() + ACQUIRE_TIME;
        (*version == observation.version && now < end).then_some(end)
    }
}

#[cfg(test)]
mod tests;
