//! Fairness between processes: after a release with other waiters, this process tries later than
//! they do.
//!
//! The rule: *a process lets other processes try first if its release notified them or, where
//! waiters poll, if others are likely. This applies to every caller of the process.* Without it a
//! loop that acquires, works and releases keeps the lock to itself: it asks again within
//! microseconds, while a waiter in another process has to be woken or to poll first.
//!
//! A release that notifies also reports whether clients wait. Each notified process counts how many
//! others try before it. Where waiters poll, a release does not know about them. If another process
//! was seen to hold the lock, there is a pause after each release. If none was, the next pause
//! follows only after some time, which doubles with each pause. A read after such a pause shows
//! whether another process had the lock.
//!
//! Pure arithmetic on instants passed in.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::client::acquire::poll_interval::poll_pause;
use protocol::BootInstant;

/// How long a notified process may take to acquire, in microseconds.
const NOTIFIED: RangeInclusive<u64> = 2_000..=6_000;
/// The delay for each process that tries first. Each notification wakes every listening process,
/// and a commit has to fit into the delay, or all of them try at each release. A process that no
/// longer wants the lock delays the others by this once.
const DELAY_PER_PROCESS: Duration = Duration::from_millis(10);
/// The largest number of processes that are counted.
const MAX_PROCESSES: usize = 50;
/// A process tries slightly later in one of this many cases, although no other process is known to
/// try first. The others do not count a process that has never held the lock, and the server wakes
/// listeners in the same order each time: without this, such a process may starve.
const YIELD_ONE_IN: u32 = 16;
const YIELD: Duration = Duration::from_millis(1);
/// If no other process was seen, the first pause comes after this long of consecutive grants, or
/// after [`FIRST_GRANTS`].
const FIRST_RUN: Duration = Duration::from_millis(100);
const FIRST_GRANTS: u32 = 16;
/// Each later pause comes after twice the time, up to this, regardless of grants. It bounds the
/// wait of a new polling waiter and the cost of the pauses for a process that is alone.
const LONGEST_RUN: Duration = Duration::from_millis(1_600);
/// A longer pause by the caller ends the run of grants: other processes were able to acquire.
const RUN_ENDS: Duration = Duration::from_millis(20);
/// How long another process counts as a contender after it was seen to hold the lock. A pause
/// without another holder does not end that: on a busy machine polls are late, and the process that
/// released the lock would get long runs of grants again.
const CONTENDED: Duration = Duration::from_secs(2);
/// How long a lock name is remembered after its last release.
const REMEMBERED: Duration = Duration::from_secs(4);

/// What a release reveals about waiters in other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiters {
    /// No process waits.
    None,
    /// The release notified them.
    Notified,
    /// Unknown: waiters poll.
    Poll,
}

/// The history of one lock.
#[derive(Debug, Default)]
pub(crate) struct HeadStart {
    /// When this process last released the lock to possible waiters; zero: never.
    released: BootInstant,
    /// This process does not try before then.
    others_first_until: BootInstant,
    /// The backends of other processes that released the lock since then.
    released_since: Vec<i32>,
    /// The number of processes that try first: those that released the lock between the last two
    /// releases of this process, less one for each release since.
    ahead: u32,
    /// Start of the run of consecutive grants of this process.
    run_since: BootInstant,
    /// Number of grants in the run.
    grants: u32,
    /// Maximum length of the run.
    run_limit: Duration,
    /// When another process was last seen to hold the lock.
    held_elsewhere_at: Option<BootInstant>,
    /// No other process was seen before the present pause. A grant of one may begin and end within
    /// the pause, so a read has to check for it.
    probe_due: bool,
}

impl HeadStart {
    /// This process released the lock after holding it for `held_for`.
    pub(crate) fn released(&mut self, waiters: Waiters, held_for: Duration, now: BootInstant) {
        if waiters == Waiters::None {
            return;
        }
        let began = now - held_for;
        let asked_again_after = began - self.released.max(self.others_first_until);
        self.released = now;
        if waiters == Waiters::Notified {
            self.ahead = self.released_since.len() as u32;
            self.released_since.clear();
            let awake = Duration::from_micros(fastrand::u64(NOTIFIED));
            self.others_first_until = now + awake.max(DELAY_PER_PROCESS * self.ahead);
            return;
        }
        if asked_again_after > RUN_ENDS {
            (self.run_since, self.grants, self.run_limit) = (began, 0, FIRST_RUN);
        }
        self.grants += 1;
        let contended = self
            .held_elsewhere_at
            .is_some_and(|at| now < at + CONTENDED);
        let first = self.run_limit == FIRST_RUN;
        let goes_on =
            now - self.run_since < self.run_limit && (!first || self.grants < FIRST_GRANTS);
        // After a single grant, however long, a waiter of this process follows without a pause.
        if (goes_on || self.grants == 1) && !contended {
            return;
        }
        // As long as the poll pause of a waiter that sees the lock held for so long, so that one
        // poll falls into it.
        self.others_first_until = now + poll_pause(held_for).mul_f64(1.0 + fastrand::f64() / 4.0);
        (self.run_since, self.grants) = (self.others_first_until, 0);
        self.probe_due = !contended;
        self.run_limit = match contended {
            true => FIRST_RUN,
            false => (self.run_limit * 2).min(LONGEST_RUN),
        };
    }

    /// Another process holds the lock, and is likely to acquire it again.
    pub(crate) fn held_elsewhere(&mut self, now: BootInstant) {
        self.held_elsewhere_at = Some(now);
    }

    /// The backend `by` of another process released the lock. `None`: the release may be one of
    /// this process, and changes nothing.
    pub(crate) fn notified(&mut self, by: Option<i32>, now: BootInstant) {
        let Some(by) = by else { return };
        self.ahead = self.ahead.saturating_sub(1);
        if self.released_since.len() < MAX_PROCESSES && !self.released_since.contains(&by) {
            self.released_since.push(by);
        }
        let yields = self.released > BootInstant::ZERO && fastrand::u32(..YIELD_ONE_IN) == 0;
        let pause = if yields { YIELD } else { Duration::ZERO };
        self.others_first_until = now + pause.max(DELAY_PER_PROCESS * self.ahead);
    }

    /// Whether to check if another process had the lock in the last pause. True once a pause.
    pub(crate) fn take_probe(&mut self) -> bool {
        std::mem::take(&mut self.probe_due)
    }

    /// How long this process still waits for others to try.
    pub(crate) fn left(&self, now: BootInstant) -> Duration {
        self.others_first_until - now
    }

    /// Whether the history is recent enough to keep.
    pub(crate) fn is_recent(&self, now: BootInstant) -> bool {
        let known = self
            .released
            .max(self.held_elsewhere_at.unwrap_or_default());
        now < known + REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: BootInstant = BootInstant::from_boot(Duration::from_secs(100));

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_release_that_notified_leaves_the_next_try_to_others() {
        let mut start = HeadStart::default();
        start.released(Waiters::None, ms(5), BEGAN);
        assert!(start.left(BEGAN).is_zero());
        start.released(Waiters::Notified, ms(5), BEGAN);
        let left = start.left(BEGAN);
        assert!(left >= ms(2) && left <= ms(6), "{left:?}");
        assert!(start.left(BEGAN + ms(6)).is_zero());
        // A notification that may be the process's own changes nothing; that of another process
        // does.
        start.notified(None, BEGAN);
        assert_eq!(start.left(BEGAN), left);
        start.notified(Some(1), BEGAN + ms(1));
        assert!(start.left(BEGAN + ms(1)) <= YIELD);
    }

    /// Four processes that receive each notification and try when the arithmetic allows it. Of
    /// simultaneous tries the same process always wins.
    #[test]
    fn several_processes_that_are_notified_share_the_lock_evenly() {
        fastrand::seed(7);
        let mut processes: [HeadStart; 4] = Default::default();
        let (mut now, mut holder, mut shares) = (BEGAN, 0, [0; 4]);
        for _ in 0..400 {
            now += ms(10);
            for (at, process) in processes.iter_mut().enumerate() {
                match at == holder {
                    true => process.released(Waiters::Notified, ms(10), now),
                    false => process.notified(Some(holder as i32), now),
                }
            }
            let first = (0..4).min_by_key(|at| processes[*at].left(now));
            holder = first.unwrap();
            shares[holder] += 1;
        }
        let fair = shares.iter().all(|share| (75..=125).contains(share));
        assert!(fair, "{shares:?}");
    }

    #[test]
    fn each_release_of_another_process_shortens_the_delay() {
        let mut start = HeadStart::default();
        start.notified(Some(1), BEGAN);
        start.notified(Some(2), BEGAN);
        start.released(Waiters::Notified, ms(1), BEGAN);
        assert_eq!(start.left(BEGAN), DELAY_PER_PROCESS * 2);
        start.notified(Some(2), BEGAN);
        assert_eq!(start.left(BEGAN), DELAY_PER_PROCESS);
        // The other process no longer wants the lock.
        start.notified(Some(2), BEGAN);
        assert!(start.left(BEGAN) <= YIELD);
    }

    /// A loop that holds the lock for `hold` each time, until `end`; returns the number of pauses.
    fn looped(
        start: &mut HeadStart,
        hold: Duration,
        mut now: BootInstant,
        end: BootInstant,
    ) -> u32 {
        let mut pauses = 0;
        while now < end {
            now += hold;
            start.released(Waiters::Poll, hold, now);
            let left = start.left(now);
            pauses += u32::from(!left.is_zero());
            now += left + Duration::from_micros(200);
        }
        pauses
    }

    #[test]
    fn a_loop_that_is_alone_pauses_ever_less_often() {
        let mut start = HeadStart::default();
        let mut pauses = |from, to| {
            let [from, to] = [from, to].map(|s| BEGAN + Duration::from_secs(s));
            looped(&mut start, ms(1), from, to)
        };
        let first = pauses(0, 4);
        assert!((5..=20).contains(&first), "{first}");
        let later = pauses(5, 21);
        assert!((8..=80).contains(&later), "{later}");
    }

    #[test]
    fn a_loop_that_sees_others_pauses_after_each_release_until_it_sees_none() {
        let (mut start, mut now) = (HeadStart::default(), BEGAN);
        start.released(Waiters::Poll, ms(5), now);
        assert!(start.left(now).is_zero());
        for _ in 0..5 {
            start.held_elsewhere(now);
            now += ms(30);
            start.released(Waiters::Poll, ms(5), now);
            assert!(start.left(now) >= ms(10));
        }
        // No process acquired the lock in the last pause; their polls may have been late.
        now += ms(12);
        start.released(Waiters::Poll, ms(5), now);
        assert!(start.left(now) >= ms(10));
        now += ms(2_000);
        start.released(Waiters::Poll, ms(5), now);
        assert!(start.left(now).is_zero());
    }

    #[test]
    fn the_longer_it_was_held_the_longer_is_the_pause() {
        let mut start = HeadStart::default();
        start.released(Waiters::Poll, Duration::from_secs(2), BEGAN);
        assert!(
            start.left(BEGAN).is_zero(),
            "a waiter of the process comes first"
        );
        start.released(Waiters::Poll, Duration::from_secs(2), BEGAN);
        let left = start.left(BEGAN);
        assert!(left >= ms(50) && left <= ms(63), "{left:?}");
    }

    #[test]
    fn a_process_that_acquires_the_lock_now_and_then_never_pauses() {
        let (mut start, mut now) = (HeadStart::default(), BEGAN);
        for _ in 0..200 {
            now += ms(100);
            start.released(Waiters::Poll, ms(10), now);
            assert!(start.left(now).is_zero());
        }
    }
}
