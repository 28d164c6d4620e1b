//! Leases that end by being watched: pure arithmetic on points in time that it is given.
//!
//! On a cluster that can be written to at several nodes, each with a clock of its own, `expires_at`
//! was reckoned by the clock of one node and would be compared with that of another. So a contender
//! compares nothing. It looks, and when it has seen the same *version* of a row for as long as the
//! lease lasts, on its own clock, then its holder has not renewed it for at least that long, and has
//! stopped trusting it: what a holder trusts counts from before it sent its latest renewal, which was
//! before anybody could see it.
//!
//! That a version was seen twice says that it stood there all the time in between, since every write
//! makes another; so nobody has to look all the time. What was watched begins after the reply that
//! showed it first, and ends before the statement is sent that takes the lease: slow replies only make
//! it longer. The statement asks for the version that was watched. If another node has written the
//! row and this one has not heard of it yet, then the cluster finds that two transactions changed the
//! same row, each without having seen the other, and lets only the first commit. So a reply that is
//! stale cannot give a lock away.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::values::time::Time;

/// After a watch is over: for the statement that takes the lease, and its reply.
const TAKING: Duration = Duration::from_secs(1);
/// How much longer than its lease lasts a row is remembered that nobody looks at: whoever tries once
/// every few minutes need not begin anew each time.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How many rows are remembered before those that nobody looks at are forgotten.
const MANY: usize = 64;

/// How a lease ends where the database has several clocks: when the same version of its row has been
/// seen for as long as it lasts, by whoever wants it, on a clock of his own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedExpiry {
    /// What was seen.
    pub version: Version,
    /// For how long it is to be seen.
    pub length: Duration,
    /// Going by the clock that happened to be asked, the lease has ended, or was renewed in the future:
    /// its holder may be dead.
    pub overdue: bool,
}

/// How a row stood when it was seen. Each write makes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The column `token`.
    pub token: i64,
    /// In microseconds since 1970.
    pub expires_at: i64,
    /// In microseconds since 1970.
    pub renewed_at: Option<i64>,
}

/// How one row was seen, and since when.
#[derive(Clone, Debug)]
struct Observation<V> {
    version: V,
    since: Time,
    length: Duration,
    overdue: bool,
    looked: Time,
}

impl<V: Clone + Eq> Observation<V> {
    /// A reply that has come by now shows this version, of a lease of that length. `overdue`: going by
    /// the clock of the node that was asked it has ended, or was renewed in the future.
    fn begun(version: V, length: Duration, overdue: bool, now: Time) -> Self {
        Self {
            version,
            since: now,
            length,
            overdue,
            looked: now,
        }
    }

    /// Another reply, which may show another version.
    fn saw(&mut self, version: V, length: Duration, overdue: bool, now: Time) {
        let since = if self.version == version {
            self.since
        } else {
            now
        };
        *self = Self {
            since,
            ..Self::begun(version, length, overdue, now)
        };
    }

    /// When it will have been watched for its whole length.
    fn ends_at(&self) -> Time {
        self.since.saturating_add(self.length)
    }

    /// How long it is still to be watched.
    fn left(&self, now: Time) -> Duration {
        self.ends_at().saturating_sub(now)
    }

    /// The version that a statement sent after `now` may take.
    fn ended(&self, now: Time) -> Option<&V> {
        (now >= self.ends_at()).then_some(&self.version)
    }

    fn is_forgotten(&self, now: Time) -> bool {
        let kept = self.length.saturating_add(REMEMBERED);
        now > self.looked.saturating_add(kept)
    }
}

/// The rows that this process watches, for all of its waiters.
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

    /// See [`Observation::saw`]. Answers how long it is still to be watched.
    pub fn saw(
        &self,
        name: &K,
        version: &V,
        length: Duration,
        overdue: bool,
        now: Time,
    ) -> Duration {
        let (mut all, version) = (self.all(), version.clone());
        if let Some(watch) = all.get_mut(name) {
            watch.saw(version, length, overdue, now);
            return watch.left(now);
        }
        // As many again before the next time, so that it costs next to nothing.
        if all.len() >= MANY && all.len() == all.capacity() {
            all.retain(|_, watch| !watch.is_forgotten(now));
        }
        let watch = Observation::begun(version, length, overdue, now);
        let left = watch.left(now);
        all.insert(name.clone(), watch);
        left
    }

    /// The row was seen without a lease that is to be watched.
    pub fn forget(&self, name: &K) {
        self.all().remove(name);
    }

    /// For how long it has been watched for longer than it had to be.
    pub fn over_for(&self, name: &K, now: Time) -> Option<Duration> {
        now.checked_sub(self.all().get(name)?.ends_at())
    }

    /// See [`Observation::ended`].
    pub fn ended(&self, name: &K, now: Time) -> Option<V> {
        self.all().get(name)?.ended(now).cloned()
    }

    fn overdue(&self, name: &K) -> Option<Observation<V>> {
        self.all().get(name).filter(|watch| watch.overdue).cloned()
    }
}

/// A wait that is over, but for a lease that looks as if its holder was dead: it goes on until that
/// has been watched for its whole length.
///
/// Otherwise the next run of a job that has crashed, which waits for less than the lease or not at
/// all, would find the lock held, and the run after that too, and so on for ever: none of them would
/// ever have watched for long enough.
#[derive(Debug)]
pub struct WaitExtension<V>(Option<V>);

impl<V> Default for WaitExtension<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V: Clone + Eq> WaitExtension<V> {
    /// When a wait that is over by `now` is to end. None: now, since nothing looks like that, or no
    /// longer; the holder has renewed it, or somebody else has got it.
    pub fn until<K: Clone + Eq + Hash>(
        &mut self,
        watches: &Observations<K, V>,
        name: &K,
        now: Time,
    ) -> Option<Time> {
        let watch = watches.overdue(name)?;
        let version = self.0.get_or_insert_with(|| watch.version.clone());
        let end = watch.ends_at().saturating_add(TAKING);
        (*version == watch.version && now < end).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    const BEGAN: Time = secs(1000);

    fn watch() -> Observation<u32> {
        Observation::begun(1, secs(30), false, BEGAN)
    }

    #[test]
    fn what_was_seen_unchanged_for_the_whole_length_may_be_taken() {
        let mut watch = watch();
        let end = BEGAN + secs(30);
        assert_eq!(watch.ended(end - Duration::from_nanos(1)), None);
        assert_eq!(watch.left(BEGAN + secs(10)), secs(20));
        watch.saw(1, secs(30), true, BEGAN + secs(29));
        assert_eq!(watch.ended(end), Some(&1));
        assert_eq!(watch.left(end), Duration::ZERO);
    }

    #[test]
    fn any_other_version_begins_the_watch_anew() {
        let mut watch = watch();
        watch.saw(2, secs(20), false, BEGAN + secs(29));
        assert_eq!(watch.ended(BEGAN + secs(48)), None);
        assert_eq!(watch.ended(BEGAN + secs(49)), Some(&2));
        // Also one that was seen before: a late reply to somebody else.
        watch.saw(1, secs(30), false, BEGAN + secs(60));
        assert_eq!(watch.ended(BEGAN + secs(89)), None);
    }

    #[test]
    fn one_watch_is_for_all_who_wait() {
        let watches = Observations::<&str, u32>::default();
        let saw = |version, at| watches.saw(&"job", &version, secs(30), false, at);
        assert_eq!(saw(1, BEGAN), secs(30));
        assert_eq!(saw(1, BEGAN + secs(12)), secs(18));
        assert_eq!(watches.ended(&"job", BEGAN + secs(30)), Some(1));
        assert_eq!(watches.ended(&"other", BEGAN + secs(30)), None);
        assert_eq!(saw(2, BEGAN + secs(31)), secs(30));
        watches.forget(&"job");
        assert_eq!(saw(2, BEGAN + secs(70)), secs(30));
    }

    #[test]
    fn a_wait_is_stretched_for_one_version_and_while_its_holder_looks_dead() {
        let watches = Observations::<&str, u32>::default();
        let saw = |version, overdue, at| {
            watches.saw(&"job", &version, secs(30), overdue, at);
        };
        let until = |stretch: &mut WaitExtension<u32>, at| stretch.until(&watches, &"job", at);
        let end = BEGAN + secs(30) + TAKING;
        assert_eq!(
            until(&mut WaitExtension::default(), BEGAN),
            None,
            "never seen"
        );
        saw(1, false, BEGAN);
        assert_eq!(until(&mut WaitExtension::default(), BEGAN + secs(1)), None);
        saw(1, true, BEGAN + secs(1));
        let mut stretch = WaitExtension::default();
        assert_eq!(until(&mut stretch, BEGAN + secs(1)), Some(end));
        assert_eq!(until(&mut stretch, end), None, "it was not to be had");
        saw(1, false, BEGAN + secs(2));
        assert_eq!(until(&mut stretch, BEGAN + secs(2)), None, "it looks alive");
        saw(2, true, BEGAN + secs(3));
        assert_eq!(until(&mut stretch, BEGAN + secs(3)), None, "renewed");
        assert!(until(&mut WaitExtension::default(), BEGAN + secs(3)).is_some());
    }

    #[test]
    fn what_nobody_looks_at_is_forgotten() {
        let watches = Observations::<u64, u32>::default();
        for name in 0..10_000 {
            let now = BEGAN + secs(name);
            watches.saw(&name, &1, secs(30), false, now);
        }
        let kept = watches.all().len();
        assert!(kept < 4_000, "{kept} are remembered");
        assert!(watches.ended(&9_999, BEGAN + secs(20_000)).is_some());
    }

    /// What a holder on one machine does, seen from another through replies that take their time.
    #[derive(Clone, Debug)]
    struct History {
        /// For each renewal: when it was sent, and how much later it was carried out, in ms.
        renewals: Vec<(u64, u64)>,
        /// When a contender's question is carried out, and how much later its answer arrives.
        looks: Vec<(u64, u64)>,
        /// How much later the take-over is carried out than sent.
        taking: u64,
        length: u64,
    }

    fn history() -> impl Strategy<Value = History> {
        let step = 1_u64..8_000;
        let renewals = prop::collection::vec((step.clone(), 0_u64..3_000), 1..8);
        let looks = prop::collection::vec((step, 0_u64..5_000), 1..40);
        (renewals, looks, 0_u64..5_000, 100_u64..30_000).prop_map(
            |(renewals, looks, taking, length)| {
                // From steps to points in time; each is sent after the one before was carried out.
                let mut at = 0;
                let renewals = renewals.into_iter().map(|(step, slow)| {
                    let sent = at + step;
                    at = sent + slow;
                    (sent, slow)
                });
                let renewals = renewals.collect();
                let mut at = 0;
                let looks = looks.into_iter().map(|(step, slow)| {
                    let done = at + step;
                    at = done + slow;
                    (done, slow)
                });
                History {
                    renewals,
                    looks: looks.collect(),
                    taking,
                    length,
                }
            },
        )
    }

    proptest! {
        /// Whoever takes a lease over does so after its holder has stopped trusting it, and not much
        /// later than it might.
        #[test]
        fn nobody_takes_what_is_trusted(history in history()) {
            let ms = Duration::from_millis;
            // The version at some point in time: how many renewals were carried out by then.
            let version = |at: u64| {
                history.renewals.iter().filter(|(sent, slow)| sent + slow <= at).count()
            };
            let length = ms(history.length);
            let mut watch: Option<Observation<usize>> = None;
            let mut first_seen = 0;
            for (done, slow) in &history.looks {
                let (seen, now) = (version(*done), done + slow);
                match &mut watch {
                    Some(watch) => {
                        if watch.version != seen {
                            first_seen = now;
                        }
                        watch.saw(seen, length, false, ms(now));
                    }
                    none => {
                        first_seen = now;
                        *none = Some(Observation::begun(seen, length, false, ms(now)));
                    }
                }
                let watch = watch.as_ref().unwrap();
                let may = watch.ended(ms(now)).is_some();
                prop_assert_eq!(may, now - first_seen >= history.length);
                prop_assert_eq!(may, watch.left(ms(now)).is_zero());
                let carried_out = now + history.taking;
                // Its predicate is the version.
                if may && version(carried_out) == seen && seen > 0 {
                    let (sent, _) = history.renewals[seen - 1];
                    prop_assert!(now >= sent + history.length, "{now} {sent}");
                }
            }
        }
    }
}
