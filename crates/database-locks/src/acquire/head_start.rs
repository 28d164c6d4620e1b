//! The head start of other processes: after a release that they await, this process asks later than they do.
//!
//! Without it a loop that acquires, works and releases keeps the lock for itself: it asks again within
//! microseconds, while a waiter elsewhere has to be woken, or to poll, first. On PostgreSQL three equal loops
//! shared a lock 1,411 : 396 : 3, and a lone waiter got nothing for 19 s.
//!
//! Where a release is announced, it also says whether other processes wait. Where waiters poll, the release
//! does not know. There a pause is made after each release as long as another process was seen to hold the
//! lock in between; if none was, the next pause comes only after a while, and that while doubles each time.
//!
//! Pure arithmetic on points in time that it is given.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::poll_pause;
use crate::clock::Time;
use crate::name::LockName;

/// How long a process that was notified may take to acquire, in microseconds: it is awake after one
/// millisecond, and spreads its tries over four.
const NOTIFIED: RangeInclusive<u64> = 2_000..=6_000;
/// Where no other process was seen, the first pause comes after so long in a row, or so many grants …
const FIRST_ROW: Duration = Duration::from_millis(100);
const FIRST_GRANTS: u128 = 16;
/// … and the later ones after twice as much each time, up to this. It bounds how long a new waiter that
/// polls is kept out, and what the pauses cost a process that is alone.
const LONGEST_ROW: Duration = Duration::from_millis(1_600);
/// A pause that is longer than this, made by the caller, gave others their chance already.
const ROW_ENDS: Duration = Duration::from_millis(20);
/// How long another process that was seen to hold the lock counts as a contender. One pause in which no other
/// process took the lock does not end that: on a busy machine polls are late, and a row of 16 grants and then
/// of 32 went to the process that had just released (220 of 604 against 22, of six equal loops).
const CONTENDED: Duration = Duration::from_secs(2);
/// How long a name is remembered after its last release.
const REMEMBERED: Duration = Duration::from_secs(4);
/// So many names are kept in any case.
const FEW: usize = 1_024;

/// What is known about a name that this process released a moment ago.
#[derive(Debug)]
struct Recent {
    released: Time,
    /// Until then this process does not ask.
    others_first: Time,
    /// Since when this process has held it again and again.
    row_since: Time,
    /// How often since then.
    grants: u32,
    /// How long that may go on.
    row: Duration,
    /// When another process was last seen to hold it.
    elsewhere: Option<Time>,
}

/// The names that this process released a moment ago.
#[derive(Debug, Default)]
pub(crate) struct HeadStarts(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    of: HashMap<LockName, Recent>,
    /// How many were left when the old ones were last forgotten: they are looked for again when there are
    /// twice as many, so that a release costs the same however many there are.
    left: usize,
}

/// How other processes learn of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiters {
    /// They were notified by it.
    Notified,
    /// If there are any, they poll.
    Poll,
}

impl HeadStarts {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process released `name`, which it had held for so long.
    pub(crate) fn released(
        &self,
        name: &LockName,
        waiters: Waiters,
        held_for: Duration,
        now: Time,
    ) {
        let mut names = self.names();
        if names.of.len() > 2 * names.left.max(FEW) {
            names
                .of
                .retain(|_, recent| recent.released + REMEMBERED > now);
            names.left = names.of.len();
        }
        let began = now.saturating_sub(held_for);
        let recent = names.of.entry(name.clone()).or_insert(Recent {
            released: now,
            others_first: Time::ZERO,
            row_since: began,
            grants: 0,
            row: FIRST_ROW,
            elsewhere: None,
        });
        let asked_again_after = began.saturating_sub(recent.released.max(recent.others_first));
        recent.released = now;
        if waiters == Waiters::Notified {
            recent.others_first = now + Duration::from_micros(fastrand::u64(NOTIFIED));
            return;
        }
        if asked_again_after > ROW_ENDS {
            (recent.row_since, recent.grants) = (began, 0);
            recent.row = recent.row.min(FIRST_ROW);
        }
        recent.grants += 1;
        let contended = recent.elsewhere.is_some_and(|at| now < at + CONTENDED);
        let most = FIRST_GRANTS * recent.row.as_millis() / FIRST_ROW.as_millis();
        let goes_on =
            now.saturating_sub(recent.row_since) < recent.row && u128::from(recent.grants) < most;
        if goes_on && !contended {
            return;
        }
        // As long as a waiter pauses that sees the lock held for so long: one poll falls into it.
        recent.others_first = now + poll_pause(held_for).mul_f64(1.0 + fastrand::f64() / 4.0);
        (recent.row_since, recent.grants) = (recent.others_first, 0);
        recent.row = match contended {
            true => FIRST_ROW,
            false => (recent.row * 2).min(LONGEST_ROW),
        };
    }

    /// Another process holds it: it had its chance, and will want another.
    pub(crate) fn held_elsewhere(&self, name: &LockName, now: Time) {
        if let Some(recent) = self.names().of.get_mut(name) {
            recent.elsewhere = Some(now);
        }
    }

    /// How long other processes have to be left to try first.
    pub(crate) fn left(&self, name: &LockName, now: Time) -> Duration {
        let names = self.names();
        let recent = names.of.get(name);
        recent.map_or(Duration::ZERO, |recent| {
            recent.others_first.saturating_sub(now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn job() -> (HeadStarts, LockName) {
        (HeadStarts::default(), LockName::new("job").unwrap())
    }

    #[test]
    fn a_release_that_notified_leaves_the_next_try_to_others() {
        let (starts, name) = job();
        let now = Duration::from_secs(100);
        assert!(starts.left(&name, now).is_zero());
        starts.released(&name, Waiters::Notified, ms(5), now);
        let left = starts.left(&name, now);
        assert!(left >= ms(2) && left <= ms(6), "{left:?}");
        assert!(starts.left(&name, now + ms(6)).is_zero());
        let other = LockName::new("another").unwrap();
        assert!(starts.left(&other, now).is_zero());
    }

    /// A loop that holds the lock for so long, until `end`; how often it paused.
    fn looped(
        starts: &HeadStarts,
        name: &LockName,
        hold: Duration,
        mut now: Time,
        end: Time,
    ) -> u32 {
        let mut pauses = 0;
        while now < end {
            now += hold;
            starts.released(name, Waiters::Poll, hold, now);
            let left = starts.left(name, now);
            pauses += u32::from(!left.is_zero());
            now += left + Duration::from_micros(200);
        }
        pauses
    }

    #[test]
    fn a_loop_that_is_alone_pauses_ever_less_often() {
        let (starts, name) = job();
        let began = Duration::from_secs(100);
        let first = looped(&starts, &name, ms(1), began, began + Duration::from_secs(4));
        assert!((5..=20).contains(&first), "{first}");
        let later = looped(
            &starts,
            &name,
            ms(1),
            began + Duration::from_secs(5),
            began + Duration::from_secs(21),
        );
        assert!((8..=80).contains(&later), "{later}");
    }

    #[test]
    fn a_loop_that_sees_others_pauses_after_each_release_until_it_sees_none() {
        let (starts, name) = job();
        let mut now = Duration::from_secs(100);
        starts.released(&name, Waiters::Poll, ms(5), now);
        assert!(starts.left(&name, now).is_zero());
        for _ in 0..5 {
            starts.held_elsewhere(&name, now);
            now += ms(30);
            starts.released(&name, Waiters::Poll, ms(5), now);
            assert!(starts.left(&name, now) >= ms(10));
        }
        // No other process took it in the last pause: it may have been late.
        now += ms(12);
        starts.released(&name, Waiters::Poll, ms(5), now);
        assert!(starts.left(&name, now) >= ms(10));
        now += ms(2_000);
        starts.released(&name, Waiters::Poll, ms(5), now);
        assert!(starts.left(&name, now).is_zero());
    }

    #[test]
    fn the_longer_it_was_held_the_longer_is_the_pause() {
        let (starts, name) = job();
        let now = Duration::from_secs(100);
        starts.released(&name, Waiters::Poll, Duration::from_secs(2), now);
        let left = starts.left(&name, now);
        assert!(left >= ms(50) && left <= ms(63), "{left:?}");
    }

    #[test]
    fn who_takes_it_now_and_then_never_pauses() {
        let (starts, name) = job();
        let mut now = Duration::from_secs(100);
        for _ in 0..200 {
            now += ms(100);
            starts.released(&name, Waiters::Poll, ms(10), now);
            assert!(starts.left(&name, now).is_zero());
        }
    }

    #[test]
    fn old_names_are_forgotten() {
        let (starts, _) = job();
        let mut now = Duration::from_secs(100);
        for i in 0..50_000 {
            // Some 4,000 of them are young at any time.
            now += ms(1);
            let name = LockName::new(format!("job {i}")).unwrap();
            starts.released(&name, Waiters::Poll, ms(1), now);
        }
        let kept = starts.names().of.len();
        assert!(kept <= 3 * 4_000, "{kept}");
    }
}
