//! How long to wait before the next look: arithmetic on points in time that it is given.
//!
//! Where no bell rings, a lock that is released lies idle until somebody looks: half a pause in the
//! middle. A waiter that is to have it within 25 ms of its release has to look about 25 times a second.
//! It does so for a minute; a lock that nobody has released by then is of a kind for which a moment more
//! does not matter, and it is looked at ever less often.

use std::time::Duration;

use crate::clock::Time;
use crate::store::{Occupant, Outcome, Pauses, StoreError};
use crate::token::Token;

/// The pause between the first looks at a grant. A lock that was taken for a moment is soon free; and who
/// looks more seldom at one that changes hands all the time would hardly ever come in between.
const FIRST_POLL: Duration = Duration::from_millis(10);
/// The pause between two looks at a lock that somebody has for longer, for the first minute: half of it
/// is what a hand-over takes. A `poll` that is ten times as long or more makes it longer: who asks for
/// seconds wants to spare the database.
const STEADY_POLL: Duration = Duration::from_millis(50);
/// The longest one by default.
pub(crate) const LONGEST_POLL: Duration = Duration::from_millis(250);
/// For so long the pauses are steady; from then on they grow as the wait does.
const STEADY_FOR: Duration = Duration::from_secs(60);
/// The longest one where releases are announced, for a lost announcement must cost no more than that.
const ANNOUNCED_POLL: Duration = Duration::from_secs(5);
/// A row that is locked or just being made is free in a moment, or for as long as a fence is open: the
/// longest pause between two tries, at first and later.
const BUSY_AT_FIRST: Duration = Duration::from_millis(20);
const BUSY_LATER: Duration = Duration::from_millis(200);
/// The same while the database cannot be reached.
const SHORTEST_OUTAGE: Duration = Duration::from_millis(50);
const LONGEST_OUTAGE: Duration = Duration::from_secs(1);

/// The pause between two polls of a lock that another process has had for so long.
pub(super) fn poll_pause(held_for: Duration) -> Duration {
    (held_for / 4).clamp(FIRST_POLL, STEADY_POLL)
}

/// How long to wait before the next look.
#[derive(Debug)]
pub(super) struct Pace {
    longest: Duration,
    /// Which grant was seen last, and since when.
    seen: Option<(Option<Token>, Time)>,
    /// Since when its row has been locked.
    busy: Option<Time>,
    outage: Duration,
}

/// The same with jitter: waiters of many processes must not look in step, nor in step with a holder.
fn jittered(pause: Duration, least: f64) -> Duration {
    pause.mul_f64(least + fastrand::f64() * (1.0 - least))
}

impl Pace {
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            longest,
            seen: None,
            busy: None,
            outage: Duration::ZERO,
        }
    }

    /// After a look that came to this by `now`.
    pub(super) fn after(&mut self, outcome: &Result<Outcome, StoreError>, now: Time) -> Pauses {
        let pauses = |announced, unannounced| Pauses {
            held: false,
            announced,
            unannounced,
        };
        match outcome {
            Ok(Outcome::Held(occupant)) => self.held(occupant, now),
            Err(StoreError::Unavailable(_)) => {
                let pause = self.unavailable();
                pauses(pause, pause)
            }
            // Mostly it is somebody who is just taking it, and who will ring.
            Ok(Outcome::Busy) => {
                let announced = Duration::from_millis(fastrand::u64(20..=200));
                pauses(announced, self.busy(now))
            }
            _ => {
                let pause = self.busy(now);
                pauses(pause, pause)
            }
        }
    }

    /// The longer the same grant has been seen, the rarer the looks; never later than its lease ends.
    ///
    /// Where its end is announced that is only in case it was not heard. A holder of 0.5 rings no bell,
    /// and neither does the end of a lease.
    fn held(&mut self, occupant: &Occupant, now: Time) -> Pauses {
        (self.busy, self.outage) = (None, Duration::ZERO);
        let since = match self.seen {
            Some((token, since)) if token == occupant.token => since,
            _ => now,
        };
        self.seen = Some((occupant.token, since));
        let end = occupant
            .free_in
            .map(|left| left + Duration::from_millis(fastrand::u64(1..=8)));
        let until_end = |pause: Duration| end.map_or(pause, |end| end.min(pause));
        let unannounced = until_end(jittered(self.pause(now.saturating_sub(since)), 0.6));
        Pauses {
            held: true,
            announced: match occupant.intact {
                true => until_end(jittered(self.longest.max(ANNOUNCED_POLL), 0.5)),
                false => unannounced,
            },
            unannounced,
        }
    }

    /// The longest pause after the same grant has been seen for so long.
    fn pause(&self, unchanged: Duration) -> Duration {
        let steady = STEADY_POLL.max(self.longest / 10);
        let pause = match unchanged.checked_sub(STEADY_FOR) {
            None => (unchanged / 4).clamp(FIRST_POLL, steady),
            Some(_) => steady.mul_f64(unchanged.as_secs_f64() / STEADY_FOR.as_secs_f64()),
        };
        pause.min(self.longest)
    }

    fn busy(&mut self, now: Time) -> Duration {
        self.outage = Duration::ZERO;
        let since = *self.busy.get_or_insert(now);
        let pause = (now.saturating_sub(since) / 2).clamp(BUSY_AT_FIRST, BUSY_LATER);
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

    const BEGAN: Time = Duration::from_secs(1000);

    fn held(token: i64, free_in: Option<Duration>) -> Result<Outcome, StoreError> {
        Ok(Outcome::Held(Occupant {
            token: Some(Token::from_db(token)),
            free_in,
            ..Occupant::default()
        }))
    }

    /// What comes of waiting for a lock that is released after so long: how long it lay idle, and how
    /// many looks that took.
    fn wait(longest: Duration, held_for: Duration) -> (Duration, usize) {
        let (mut pace, mut now, mut looks) = (Pace::new(longest), BEGAN, 1);
        loop {
            now += pace.after(&held(1, None), now).unannounced;
            looks += 1;
            if now >= BEGAN + held_for {
                return (now - BEGAN - held_for, looks);
            }
        }
    }

    #[test]
    fn a_lock_held_for_up_to_a_minute_lies_idle_for_less_than_25_ms_in_the_middle() {
        fastrand::seed(7);
        for longest in [LONGEST_POLL, ms(500)] {
            for held_for in [20, 50, 100, 250, 1_000, 10_000, 59_000] {
                // Not each time the same, which a poll could come to be in step with.
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
    fn a_long_wait_costs_ever_fewer_looks() {
        let looks_of_a_second = |longest, at| {
            let mut pace = Pace::new(longest);
            pace.after(&held(1, None), BEGAN);
            let (mut now, mut looks) = (BEGAN + Duration::from_secs(at), 0);
            while now < BEGAN + Duration::from_secs(at + 10) {
                now += pace.after(&held(1, None), now).unannounced;
                looks += 1;
            }
            looks as f64 / 10.0
        };
        for (longest, at, most) in [
            (LONGEST_POLL, 1, 27.0),
            (LONGEST_POLL, 120, 14.0),
            (LONGEST_POLL, 300, 6.0),
            (LONGEST_POLL, 3_600, 6.0),
            (ms(5_000), 10, 3.0),
            (ms(5_000), 3_600, 0.5),
        ] {
            let looks = looks_of_a_second(longest, at);
            assert!(looks <= most, "{longest:?} at {at}: {looks}");
            assert!(looks >= most / 3.0, "{longest:?} at {at}: {looks}");
        }
    }

    #[test]
    fn no_pause_is_longer_than_what_was_asked_for_nor_goes_beyond_the_end_of_the_lease() {
        for longest in [ms(1), ms(15), LONGEST_POLL, ms(60_000)] {
            let mut pace = Pace::new(longest);
            for waited in [0, 1, 10, 100, 1_000, 100_000, 10_000_000] {
                let now = BEGAN + ms(waited);
                let pause = pace.after(&held(1, None), now).unannounced;
                assert!(pause <= longest, "{longest:?} after {waited}: {pause:?}");
                assert!(pace.after(&held(1, Some(ms(2))), now).unannounced <= ms(10));
                assert!(pace.after(&Ok(Outcome::Busy), now).unannounced <= longest);
            }
        }
    }

    #[test]
    fn a_lock_that_changes_hands_is_looked_at_often_again() {
        let mut pace = Pace::new(LONGEST_POLL);
        pace.after(&held(1, None), BEGAN);
        let later = BEGAN + Duration::from_secs(600);
        assert!(pace.after(&held(1, None), later).unannounced > STEADY_POLL);
        let changed = pace.after(&held(2, None), later).unannounced;
        assert!(changed <= FIRST_POLL, "{changed:?}");
    }

    #[test]
    fn a_row_that_stays_locked_is_tried_ever_less_often() {
        let mut pace = Pace::new(LONGEST_POLL);
        let mut after = |waited| {
            pace.after(&Ok(Outcome::Busy), BEGAN + ms(waited))
                .unannounced
        };
        assert!(after(0) <= BUSY_AT_FIRST);
        assert!(after(30) <= BUSY_AT_FIRST);
        for _ in 0..100 {
            let pause = after(1_000);
            assert!((BUSY_LATER / 10..=BUSY_LATER).contains(&pause), "{pause:?}");
        }
        // Between times somebody had it.
        pace.after(&held(1, None), BEGAN);
        let pause = pace
            .after(&Ok(Outcome::Busy), BEGAN + ms(2_000))
            .unannounced;
        assert!(pause <= BUSY_AT_FIRST, "{pause:?}");
    }
}
