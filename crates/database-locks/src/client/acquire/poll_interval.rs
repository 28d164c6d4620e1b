//! The pause before the next poll. Pure arithmetic on instants passed in.
//!
//! Without notifications a released lock stays free until the next poll, which is half a pause on
//! average. To acquire a lock within 25 ms of its release, a waiter has to poll about 25 times a
//! second. It does so for a minute. After that a longer delay does not matter, and polls become
//! rarer.

use std::time::Duration;

use crate::store::api::StoreError;
use protocol::{BootInstant, Holder, Outcome, Token};

/// The pause between the first polls of a grant. A lock that is held briefly is soon free, and with
/// a longer pause a waiter would seldom acquire a lock whose holder changes often.
const FIRST_POLL: Duration = Duration::from_millis(10);
/// The pause between polls of a lock that is held longer, for the first minute. The average delay
/// of a hand-over is half of it. A `poll` of ten times as much or more lengthens it, since a caller
/// that sets seconds wants to reduce load on the database.
const STEADY_POLL: Duration = Duration::from_millis(50);
/// The longest pause by default.
pub(crate) const LONGEST_POLL: Duration = Duration::from_millis(250);
/// How long the pause stays steady. After it the pause grows in proportion to the wait.
const STEADY_FOR: Duration = Duration::from_secs(60);
/// The longest pause with notifications, which bounds the cost of a lost one …
const NOTIFIED_POLL: Duration = Duration::from_secs(5);
/// … unless `poll` is longer, up to this.
const LONGEST_NOTIFIED: Duration = Duration::from_secs(30);
/// The longest pause between tries while the row is locked or being inserted, at first and later.
/// A short transaction unlocks the row soon, a fence may keep it locked for long.
const BUSY_AT_FIRST: Duration = Duration::from_millis(20);
const BUSY_LATER: Duration = Duration::from_millis(200);
/// The longest pause while the database cannot be reached, at first and later.
const SHORTEST_OUTAGE: Duration = Duration::from_millis(50);
const LONGEST_OUTAGE: Duration = Duration::from_secs(1);

/// The pause between polls of a lock that another process has held for `held_for`.
pub(crate) fn poll_pause(held_for: Duration) -> Duration {
    (held_for / 4).clamp(FIRST_POLL, STEADY_POLL)
}

/// How long to wait after a try that granted nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitHint {
    /// If the release will be notified; `None` if it will not.
    pub(crate) notified: Option<Duration>,
    /// If the release will not be notified.
    pub(crate) polling: Duration,
}

impl WaitHint {
    /// The pause if the release is certain to be noticed: by a notification, or in this process.
    pub(super) fn if_noticed(&self) -> Duration {
        self.notified.unwrap_or(self.polling)
    }

    fn polling(polling: Duration) -> Self {
        let notified = None;
        Self { notified, polling }
    }
}

/// Computes the pause before the next poll.
#[derive(Debug)]
pub(crate) struct PollInterval {
    longest: Duration,
    /// The grant that was seen last, and since when.
    seen: Option<(Option<Token>, BootInstant)>,
    /// Since when the row has been locked.
    busy: Option<BootInstant>,
    outage: Duration,
}

/// Adds jitter: waiters of many processes must not poll in step with each other or with a holder.
fn jittered(pause: Duration, least: f64) -> Duration {
    pause.mul_f64(least + fastrand::f64() * (1.0 - least))
}

impl PollInterval {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            longest,
            seen: None,
            busy: None,
            outage: Duration::ZERO,
        }
    }

    /// The wait after the outcome of a try or a poll at `now`.
    pub(crate) fn after(
        &mut self,
        outcome: &Result<Outcome, StoreError>,
        now: BootInstant,
    ) -> WaitHint {
        match outcome {
            Ok(Outcome::Held(holder)) => self.held(holder, now),
            Err(StoreError::Unavailable(_)) => WaitHint::polling(self.unavailable()),
            // Usually another client is acquiring the lock, and will notify on release. At first it
            // may be a request of this process, whose caller wakes the queue.
            Ok(Outcome::Busy) => {
                let again = self.busy.is_some();
                let pause = || Duration::from_millis(fastrand::u64(20..=200));
                WaitHint {
                    notified: again.then(pause),
                    polling: self.busy(now),
                }
            }
            _ => WaitHint::polling(self.busy(now)),
        }
    }

    /// The pause grows while the same grant is seen, up to the end of its lease.
    ///
    /// Neither the release by a legacy holder nor the end of a lease is notified.
    fn held(&mut self, holder: &Holder, now: BootInstant) -> WaitHint {
        (self.busy, self.outage) = (None, Duration::ZERO);
        let since = match self.seen {
            Some((token, since)) if token == holder.token => since,
            _ => now,
        };
        self.seen = Some((holder.token, since));
        let end = holder
            .free_in
            .map(|left| left + Duration::from_millis(fastrand::u64(1..=8)));
        let until_end = |pause: Duration| end.map_or(pause, |end| end.min(pause));
        let notified = self.longest.clamp(NOTIFIED_POLL, LONGEST_NOTIFIED);
        WaitHint {
            notified: (!holder.is_legacy).then(|| until_end(jittered(notified, 0.5))),
            polling: until_end(jittered(self.pause(now - since), 0.6)),
        }
    }

    /// The longest pause after the same grant has been seen for `unchanged`.
    fn pause(&self, unchanged: Duration) -> Duration {
        let steady = STEADY_POLL.max(self.longest / 10);
        let pause = match unchanged.checked_sub(STEADY_FOR) {
            None => (unchanged / 4).clamp(FIRST_POLL, steady),
            Some(_) => steady.mul_f64(unchanged.as_secs_f64() / STEADY_FOR.as_secs_f64()),
        };
        pause.min(self.longest)
    }

    fn busy(&mut self, now: BootInstant) -> Duration {
        self.outage = Duration::ZERO;
        let since = *self.busy.get_or_insert(now);
        let pause = ((now - since) / 2).clamp(BUSY_AT_FIRST, BUSY_LATER);
        jittered(pause, 0.1).min(self.longest)
    }

    fn unavailable(&mut self) -> Duration {
        self.busy = None;
        self.outage = (self.outage * 2).clamp(SHORTEST_OUTAGE, LONGEST_OUTAGE);
        jittered(self.outage, 0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    const BEGAN: BootInstant = BootInstant::from_boot(Duration::from_secs(1000));

    fn held(token: i64, free_in: Option<Duration>) -> Result<Outcome, StoreError> {
        Ok(Outcome::Held(Holder {
            token: Some(Token::from_db(token)),
            free_in,
            ..Holder::default()
        }))
    }

    /// Simulates a wait for a lock that is released after `held_for`; returns how long it stayed
    /// free, and the number of polls.
    fn wait(longest: Duration, held_for: Duration) -> (Duration, usize) {
        let (mut interval, mut now, mut polls) = (PollInterval::new(longest), BEGAN, 1);
        loop {
            now += interval.after(&held(1, None), now).polling;
            polls += 1;
            if now >= BEGAN + held_for {
                return (now - BEGAN - held_for, polls);
            }
        }
    }

    #[test]
    fn a_lock_held_for_up_to_a_minute_lies_idle_for_less_than_25_ms_in_the_middle() {
        fastrand::seed(7);
        for longest in [LONGEST_POLL, ms(500)] {
            for held_for in [20, 50, 100, 250, 1_000, 10_000, 59_000] {
                // Varied, so that polls do not fall into step with it.
                let one = || {
                    wait(
                        longest,
                        ms(held_for) + ms(held_for).mul_f64(fastrand::f64() / 5.0),
                    )
                };
                let mut idle: Vec<Duration> = (0..501).map(|_| one().0).collect();
                idle.sort();
                assert!(idle[250] < ms(23), "{held_for}: {:?}", idle[250]);
                assert!(
                    idle[500] <= ms(held_for / 3 + 10).min(ms(60)),
                    "{held_for}: {:?}",
                    idle[500]
                );
            }
        }
    }

    #[test]
    fn a_long_wait_costs_ever_fewer_polls() {
        let polls_of_a_second = |longest, at| {
            let mut interval = PollInterval::new(longest);
            interval.after(&held(1, None), BEGAN);
            let (mut now, mut polls) = (BEGAN + Duration::from_secs(at), 0);
            while now < BEGAN + Duration::from_secs(at + 10) {
                now += interval.after(&held(1, None), now).polling;
                polls += 1;
            }
            polls as f64 / 10.0
        };
        for (longest, at, most) in [
            (LONGEST_POLL, 1, 27.0),
            (LONGEST_POLL, 120, 14.0),
            (LONGEST_POLL, 300, 6.0),
            (LONGEST_POLL, 3_600, 6.0),
            (ms(5_000), 10, 3.0),
            (ms(5_000), 3_600, 0.5),
        ] {
            let polls = polls_of_a_second(longest, at);
            assert!(polls <= most, "{longest:?} at {at}: {polls}");
            assert!(polls >= most / 3.0, "{longest:?} at {at}: {polls}");
        }
    }

    #[test]
    fn no_pause_is_longer_than_what_was_asked_for_nor_goes_beyond_the_end_of_the_lease() {
        for longest in [ms(1), ms(15), LONGEST_POLL, ms(60_000)] {
            let mut interval = PollInterval::new(longest);
            for waited in [0, 1, 10, 100, 1_000, 100_000, 10_000_000] {
                let now = BEGAN + ms(waited);
                let pause = interval.after(&held(1, None), now).polling;
                assert!(pause <= longest, "{longest:?} after {waited}: {pause:?}");
                assert!(interval.after(&held(1, Some(ms(2))), now).polling <= ms(10));
                assert!(interval.after(&Ok(Outcome::Busy), now).polling <= longest);
            }
        }
    }

    #[test]
    fn a_lock_that_changes_hands_is_polled_often_again() {
        let mut interval = PollInterval::new(LONGEST_POLL);
        interval.after(&held(1, None), BEGAN);
        let later = BEGAN + Duration::from_secs(600);
        assert!(interval.after(&held(1, None), later).polling > STEADY_POLL);
        let changed = interval.after(&held(2, None), later).polling;
        assert!(changed <= FIRST_POLL, "{changed:?}");
    }

    #[test]
    fn a_row_that_stays_locked_is_tried_ever_less_often() {
        let mut interval = PollInterval::new(LONGEST_POLL);
        let mut after = |waited| {
            interval
                .after(&Ok(Outcome::Busy), BEGAN + ms(waited))
                .polling
        };
        assert!(after(0) <= BUSY_AT_FIRST);
        assert!(after(30) <= BUSY_AT_FIRST);
        for _ in 0..100 {
            let pause = after(1_000);
            assert!((BUSY_LATER / 10..=BUSY_LATER).contains(&pause), "{pause:?}");
        }
        // In between another client held the lock.
        interval.after(&held(1, None), BEGAN);
        let pause = interval
            .after(&Ok(Outcome::Busy), BEGAN + ms(2_000))
            .polling;
        assert!(pause <= BUSY_AT_FIRST, "{pause:?}");
    }
    #[test]
    fn a_locked_row_is_announced_at_the_second_try_that_finds_it() {
        let mut interval = PollInterval::new(LONGEST_POLL);
        for _ in 0..2 {
            let mut announced = || interval.after(&Ok(Outcome::Busy), BEGAN).notified.is_some();
            assert_eq!([announced(), announced(), announced()], [false, true, true]);
            interval.after(&held(1, None), BEGAN);
        }
    }
}
