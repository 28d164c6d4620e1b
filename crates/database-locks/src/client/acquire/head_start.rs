//! The turns of processes: after a release that others wait for, this process tries later than they do.
//!
//! One rule: *a process whose release notified others, or where waiters poll probably has others, lets them
//! try first, whichever of its own callers asks next.* Without it a loop that acquires, works and releases keeps
//! the lock for itself: it asks again within microseconds, while a waiter elsewhere has to be woken, or to poll,
//! first. On PostgreSQL three equal loops shared a lock 1,411 : 396 : 3, and a lone waiter got nothing for 19 s.
//!
//! A release that notifies also tells whether clients wait. Each process that is notified counts how many others
//! have their turn before it. Where waiters poll, the release does not know of them. There a pause is made after
//! each release as long as another process was seen to hold the lock; if none was, the next pause comes only
//! after a while, and that while doubles each time. A read after such a pause shows whether another one had it.
//!
//! Pure arithmetic on points in time that it is given.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::client::acquire::poll_interval::poll_pause;
use protocol::BootInstant;

/// How long a process that was notified may take to acquire, in microseconds.
const NOTIFIED: RangeInclusive<u64> = 2_000..=6_000;
/// How much later a process tries for each other one whose turn comes before, if that does not take it. Each
/// notification wakes every process that listens: with 1 ms, all twenty processes of a crowd tried for each
/// hand-over on a busy machine. A commit should be over by then. A process that wants the lock no more costs the
/// others as long once.
const TURN: Duration = Duration::from_millis(10);
/// For how many of them at most.
const TURNS: usize = 50;
/// One time in so many it tries a little later although no turn is known to come before: a process that has
/// never had the lock is unknown to the others, and the server wakes those that listen in the same order each
/// time. Without it two of three loops handed the lock to and fro, and the third starved. Once it has had the lock the
/// others count it.
const YIELDS: u32 = 16;
const YIELD: Duration = Duration::from_millis(1);
/// Where no other process was seen, the first pause comes after so long in a row, or so many grants …
const FIRST_ROW: Duration = Duration::from_millis(100);
const FIRST_GRANTS: u32 = 16;
/// … and the later ones after twice as much time as before, up to this, however many grants that is. It bounds how
/// long a new waiter that polls is kept out, and what the pauses cost a process that is alone.
const LONGEST_ROW: Duration = Duration::from_millis(1_600);
/// A pause that is longer than this, made by the caller, gave others their chance already.
const ROW_ENDS: Duration = Duration::from_millis(20);
/// How long another process that was seen to hold the lock counts as a contender. One pause in which nobody
/// took the lock does not end that: on a busy machine polls are late, and a row of 16 grants and then of 32
/// went to the process that had just released (220 of 604 against 22, of six equal loops).
const CONTENDED: Duration = Duration::from_secs(2);
/// How long a name is remembered after its last release.
const REMEMBERED: Duration = Duration::from_secs(4);

/// What a release tells of waiters in other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiters {
    /// There are none.
    None,
    /// They were notified by it.
    Notified,
    /// If there are any, they poll.
    Poll,
}

/// What is known of one name.
#[derive(Debug, Default)]
pub(crate) struct HeadStart {
    /// When this process last released it, and others may have waited; zero: never.
    released: BootInstant,
    /// Until then this process does not try.
    others_first: BootInstant,
    /// The other backends that released it since then.
    since: Vec<i32>,
    /// How many other processes have their turn first: those that released it between our last two releases, less
    /// one for each release since.
    before: u32,
    /// Since when this process has held it again and again.
    row_since: BootInstant,
    /// How often since then.
    grants: u32,
    /// How long that may go on.
    row: Duration,
    /// When another process was last seen to hold it.
    elsewhere: Option<BootInstant>,
    /// The present pause was made although no other process was seen: it may not be seen now either, if its grant
    /// is over before the pause is.
    probes: bool,
}

impl HeadStart {
    /// This process released it, which it had held for so long.
    pub(crate) fn released(&mut self, waiters: Waiters, held_for: Duration, now: BootInstant) {
        if waiters == Waiters::None {
            return;
        }
        let began = now - held_for;
        let asked_again_after = began - self.released.max(self.others_first);
        self.released = now;
        if waiters == Waiters::Notified {
            self.before = self.since.len() as u32;
            self.since.clear();
            let awake = Duration::from_micros(fastrand::u64(NOTIFIED));
            self.others_first = now + awake.max(TURN * self.before);
            return;
        }
        if asked_again_after > ROW_ENDS {
            (self.row_since, self.grants, self.row) = (began, 0, FIRST_ROW);
        }
        self.grants += 1;
        let contended = self.elsewhere.is_some_and(|at| now < at + CONTENDED);
        let first = self.row == FIRST_ROW;
        let goes_on = now - self.row_since < self.row && (!first || self.grants < FIRST_GRANTS);
        // After one grant, however long, the next one goes to a waiter of this process without a pause.
        if (goes_on || self.grants == 1) && !contended {
            return;
        }
        // As long as a waiter pauses that sees the lock held for so long: one poll falls into it.
        self.others_first = now + poll_pause(held_for).mul_f64(1.0 + fastrand::f64() / 4.0);
        (self.row_since, self.grants) = (self.others_first, 0);
        self.probes = !contended;
        self.row = match contended {
            true => FIRST_ROW,
            false => (self.row * 2).min(LONGEST_ROW),
        };
    }

    /// Another process holds it: it had its chance, and will want another.
    pub(crate) fn held_elsewhere(&mut self, now: BootInstant) {
        self.elsewhere = Some(now);
    }

    /// The backend `by` released it, one of another process; none: perhaps this process itself did so,
    /// and the others still try first.
    pub(crate) fn notified(&mut self, by: Option<i32>, now: BootInstant) {
        let Some(by) = by else { return };
        self.before = self.before.saturating_sub(1);
        if self.since.len() < TURNS && !self.since.contains(&by) {
            self.since.push(by);
        }
        let yields = self.released > BootInstant::ZERO && fastrand::u32(..YIELDS) == 0;
        let pause = if yields { YIELD } else { Duration::ZERO };
        self.others_first = now + pause.max(TURN * self.before);
    }

    /// Whether to find out if another process had it in the pause that is over; once.
    pub(crate) fn probes(&mut self) -> bool {
        std::mem::take(&mut self.probes)
    }

    /// How long other processes have to be left to try first.
    pub(crate) fn left(&self, now: BootInstant) -> Duration {
        self.others_first - now
    }

    /// Whether that may still be of use.
    pub(crate) fn is_recent(&self, now: BootInstant) -> bool {
        let known = self.released.max(self.elsewhere.unwrap_or_default());
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
        // A notification that may be its own ends nothing, one of another process does.
        start.notified(None, BEGAN);
        assert_eq!(start.left(BEGAN), left);
        start.notified(Some(1), BEGAN + ms(1));
        assert!(start.left(BEGAN + ms(1)) <= YIELD);
    }

    /// Four processes that all hear of each release, and try when the arithmetic lets them; at the same moment
    /// the same one is always the first.
    #[test]
    fn several_processes_that_are_notified_take_turns() {
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
    fn each_release_of_others_brings_the_turn_nearer_whichever_process_it_was() {
        let mut start = HeadStart::default();
        start.notified(Some(1), BEGAN);
        start.notified(Some(2), BEGAN);
        start.released(Waiters::Notified, ms(1), BEGAN);
        assert_eq!(start.left(BEGAN), TURN * 2);
        start.notified(Some(2), BEGAN);
        assert_eq!(start.left(BEGAN), TURN);
        // The other one does not want it any more.
        start.notified(Some(2), BEGAN);
        assert!(start.left(BEGAN) <= YIELD);
    }

    /// A loop that holds the lock for so long, until `end`; how often it paused.
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
        // Nobody took it in the last pause: they may have been late.
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
    fn a_process_that_takes_it_now_and_then_never_pauses() {
        let (mut start, mut now) = (HeadStart::default(), BEGAN);
        for _ in 0..200 {
            now += ms(100);
            start.released(Waiters::Poll, ms(10), now);
            assert!(start.left(now).is_zero());
        }
    }
}
