//! Who of this process is next, where several wait for one lock.
//!
//! Only the first in line asks the database; the others wait for their turn without a statement of
//! their own. A release within the process wakes the first at once, and where other processes wait too
//! they are not woken for each of them: they could only try in vain. But no more than so many of this
//! process come one after another: then the others are woken, and have a head start.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::{self, Time};
use crate::name::LockName;

/// How often the lock goes from one to another of this process while others wait, at most: once for each
/// waiter here, and once more …
const IN_A_ROW: u32 = 16;
/// … and for how long.
const ROW: Duration = Duration::from_millis(100);
/// Where waiters poll and none of another process was seen, it may go on for so long, twice as long each
/// time.
const LONGEST_ROW: Duration = Duration::from_millis(1_600);
/// So many names are remembered in any case.
const FEW: usize = 256;
/// For how long another process that was seen to hold the lock counts as one that waits.
const SEEN: Duration = Duration::from_secs(2);
/// After that the next of this process tries this much later than those who were woken, in microseconds …
const HEAD_START: RangeInclusive<u64> = 2_000..=6_000;
/// … or than those who look by themselves, about each 10 ms at a lock that changes hands.
const GAP: RangeInclusive<u64> = 8_000..=12_000;
/// Whoever was to have it within this process should have it by then. Has he gone away instead, the
/// others are woken.
const OWED: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Lines {
    of: HashMap<LockName, Line>,
    /// How many names were left when the old ones were last forgotten.
    left: usize,
    /// Which release woke nobody of the others, until somebody here has the lock.
    owed: HashMap<LockName, u64>,
}

/// Whether other processes wait for a lock too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Others {
    #[default]
    Nobody,
    /// Nobody knows, and they would hardly ever come in between.
    Perhaps,
    Some,
}

impl Lines {
    /// Forget the names for which nothing waits any more, now and then: two tasks that take turns leave
    /// the line empty each time, and are still in the same row.
    fn forget_old(&mut self) {
        if self.of.len() > 2 * self.left.max(FEW) {
            let now = clock::now();
            self.of.retain(|_, line| {
                let old = now > line.left.saturating_add(SEEN);
                !line.waiting.is_empty() || !old
            });
            self.left = self.of.len();
        }
    }
}

/// Those who wait for one lock, the first in front.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Arc<Notify>>,
    /// How often in a row it has gone from one to another of this process, and since when.
    row: u32,
    since: Time,
    /// For how long a row may go on where nothing is known of others, beyond `ROW`.
    longer: Duration,
    /// When the last waiter left it.
    left: Time,
    /// When another process was last seen to hold it.
    seen_elsewhere: Option<Time>,
    /// As the latest release was told.
    others: Others,
    /// Somebody of this process has it, and will say so when he releases it.
    held_here: bool,
}

impl Line {
    /// How often in a row the lock may go from one to another of this process while others wait.
    fn longest_row(&self) -> u32 {
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        waiting.saturating_add(1).min(IN_A_ROW)
    }

    /// Whether the next of this process may have it, and nobody else be woken.
    fn may_go_on(&self, now: Time) -> bool {
        let in_time = |row: Duration| self.row == 0 || now < self.since.saturating_add(row);
        let seen = || self.seen_elsewhere.is_some_and(|at| now < at + SEEN);
        match self.others {
            Others::Nobody => true,
            Others::Perhaps if !seen() => in_time(ROW + self.longer),
            Others::Perhaps | Others::Some => self.row < self.longest_row() && in_time(ROW),
        }
    }

    fn ring(&self) {
        if let Some(first) = self.waiting.front() {
            first.notify_one();
        }
    }
}

/// What is to be done once the lock was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// Wake the others after so long, unless somebody here has it by then.
    Owed(Duration, u64),
    /// Wake the first in line after so long: the others were woken at once.
    Behind(Duration),
}

/// The lines of all names.
#[derive(Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<Lines>>);

fn locked(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// Whether somebody waits for this name.
    pub(crate) fn is_waited_for(&self, name: &LockName) -> bool {
        let lines = locked(&self.0);
        lines
            .of
            .get(name)
            .is_some_and(|line| !line.waiting.is_empty())
    }

    /// Stand in line, at its end.
    pub(crate) fn join(&self, name: &LockName) -> Turn {
        let bell = Arc::new(Notify::new());
        let mut lines = locked(&self.0);
        lines.forget_old();
        let line = lines.of.entry(name.clone()).or_default();
        line.waiting.push_back(Arc::clone(&bell));
        Turn {
            lines: Arc::clone(&self.0),
            name: name.clone(),
            bell,
        }
    }

    /// It may be to be had: the first in line had better try now.
    pub(crate) fn ring(&self, name: &LockName) {
        if let Some(line) = locked(&self.0).of.get(name) {
            line.ring();
        }
    }

    /// Before it is released: whether the next of this process shall have it, and nobody else be woken.
    pub(crate) fn has_next(&self, name: &LockName) -> bool {
        let lines = locked(&self.0);
        let Some(line) = lines.of.get(name) else {
            return false;
        };
        !line.waiting.is_empty() && line.may_go_on(clock::now())
    }

    /// It was released; whether `quietly`.
    pub(crate) fn released(&self, name: &LockName, quietly: bool, others: Others) -> Next {
        let mut lines = locked(&self.0);
        let Lines { of, owed, .. } = &mut *lines;
        // Who was to have it may have gone away meanwhile.
        let mut soon = Duration::ZERO;
        if let Some(line) = of.get_mut(name) {
            (line.others, line.held_here) = (others, false);
            if !quietly && others != Others::Nobody && !line.waiting.is_empty() {
                line.row = 0;
                line.longer = (line.longer * 2 + ROW).min(LONGEST_ROW);
                let behind = if others == Others::Some {
                    HEAD_START
                } else {
                    GAP
                };
                return Next::Behind(Duration::from_micros(fastrand::u64(behind)));
            }
            if !line.waiting.is_empty() {
                if line.row == 0 {
                    line.since = clock::now();
                }
                line.row = line.row.saturating_add(1);
                line.ring();
                soon = OWED;
            }
        }
        if !quietly || others != Others::Some {
            return Next::Nothing;
        }
        let release = fastrand::u64(..);
        owed.insert(name.clone(), release);
        Next::Owed(soon, release)
    }

    /// Somebody of this process has it.
    pub(crate) fn taken(&self, name: &LockName) {
        let mut lines = locked(&self.0);
        lines.owed.remove(name);
        if let Some(line) = lines.of.get_mut(name) {
            line.held_here = true;
        }
    }

    /// Another process has it, and will wake those who wait when it gives it away.
    pub(crate) fn taken_elsewhere(&self, name: &LockName) {
        let mut lines = locked(&self.0);
        lines.owed.remove(name);
        if let Some(line) = lines.of.get_mut(name) {
            (line.held_here, line.row) = (false, 0);
            (line.longer, line.seen_elsewhere) = (Duration::ZERO, Some(clock::now()));
        }
    }

    /// Whoever of this process had it has it no more, and says nothing to the database.
    pub(crate) fn left(&self, name: &LockName) {
        if let Some(line) = locked(&self.0).of.get_mut(name) {
            line.held_here = false;
            line.ring();
        }
    }

    /// Whether that release woke nobody of the others, and nobody here has had the lock since: they shall
    /// be woken now.
    pub(crate) fn pays(&self, name: &LockName, release: u64) -> bool {
        let owed = &mut locked(&self.0).owed;
        let still = owed.get(name) == Some(&release);
        if still {
            owed.remove(name);
        }
        still
    }
}

/// A place in a line; dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Turn {
    lines: Arc<Mutex<Lines>>,
    name: LockName,
    bell: Arc<Notify>,
}

impl Turn {
    /// Wait until it is our turn; whether it came at once.
    pub(crate) async fn comes(&self) -> bool {
        let mut at_once = true;
        while !self.is_first() {
            at_once = false;
            self.bell.notified().await;
        }
        at_once
    }

    /// Wait until a release rings.
    pub(crate) async fn rings(&self) {
        self.bell.notified().await;
    }

    /// The same, for so long.
    pub(crate) async fn rings_within(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.rings()).await;
    }

    /// Whether it would be in vain to ask for it now: somebody of this process has it.
    pub(crate) fn is_held_here(&self) -> bool {
        let lines = locked(&self.lines);
        lines.of.get(&self.name).is_some_and(|line| line.held_here)
    }

    fn is_first(&self) -> bool {
        let lines = locked(&self.lines);
        lines
            .of
            .get(&self.name)
            .and_then(|line| line.waiting.front())
            .is_some_and(|first| Arc::ptr_eq(first, &self.bell))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = locked(&self.lines);
        let Some(line) = lines.of.get_mut(&self.name) else {
            return;
        };
        line.waiting.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
        match line.waiting.front() {
            Some(next) => next.notify_one(),
            None => (line.left, line.held_here) = (clock::now(), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> (Turns, LockName) {
        (Turns::default(), LockName::new("job").unwrap())
    }

    #[tokio::test]
    async fn the_line_moves_up_in_order_and_is_forgotten_when_empty() {
        let (turns, name) = job();
        let [first, second, third] = [(); 3].map(|()| turns.join(&name));
        assert!(first.comes().await);
        assert!(!second.is_first());
        drop(second);
        drop(first);
        third.comes().await;
        drop(third);
        assert!(!turns.is_waited_for(&name));
    }

    #[tokio::test]
    async fn it_goes_from_hand_to_hand_sixteen_times_before_others_are_woken() {
        let (turns, name) = job();
        let turn = turns.join(&name);
        let _others: Vec<_> = (1..IN_A_ROW).map(|_| turns.join(&name)).collect();
        for release in 0..IN_A_ROW {
            assert!(turns.has_next(&name), "release {release}");
            let Next::Owed(_, number) = turns.released(&name, true, Others::Some) else {
                panic!("release {release} owes others to be woken");
            };
            turn.rings().await;
            turns.taken(&name);
            assert!(!turns.pays(&name, number));
        }
        assert!(!turns.has_next(&name));
        let next = turns.released(&name, false, Others::Some);
        assert!(matches!(next, Next::Behind(_)), "{next:?}");
        assert!(turns.has_next(&name), "it begins anew");
    }

    #[test]
    fn a_process_that_is_alone_hands_it_on_without_end() {
        let (turns, name) = job();
        let _turn = turns.join(&name);
        for _ in 0..10 * IN_A_ROW {
            assert!(turns.has_next(&name));
            assert_eq!(turns.released(&name, true, Others::Nobody), Next::Nothing);
        }
        // One comes, and has waited for long enough.
        turns.released(&name, true, Others::Some);
        assert!(!turns.has_next(&name));
        turns.taken_elsewhere(&name);
        assert!(turns.has_next(&name));
    }

    #[test]
    fn where_nobody_knows_of_others_they_have_their_chance_after_a_while() {
        let (turns, name) = job();
        let _turn = turns.join(&name);
        for _ in 0..2 * IN_A_ROW {
            assert_eq!(turns.released(&name, true, Others::Perhaps), Next::Nothing);
        }
        assert!(turns.has_next(&name));
        locked(&turns.0).of.get_mut(&name).unwrap().since -= ROW;
        assert!(!turns.has_next(&name));
        let next = turns.released(&name, false, Others::Perhaps);
        assert!(matches!(next, Next::Behind(_)), "{next:?}");
        assert!(turns.has_next(&name), "it begins anew");
    }

    #[test]
    fn where_nobody_waits_here_the_others_are_woken_by_the_release() {
        let (turns, name) = job();
        assert!(!turns.has_next(&name));
        assert_eq!(turns.released(&name, false, Others::Some), Next::Nothing);
        // Somebody did, when it was sent.
        let Next::Owed(Duration::ZERO, release) = turns.released(&name, true, Others::Some) else {
            panic!("others are owed to be woken");
        };
        assert!(turns.pays(&name, release));
        assert!(!turns.pays(&name, release), "once");
    }

    #[test]
    fn who_is_next_need_not_ask_for_what_this_process_has() {
        let (turns, name) = job();
        let (first, second) = (turns.join(&name), turns.join(&name));
        turns.taken(&name);
        drop(first);
        assert!(second.is_held_here());
        turns.left(&name);
        assert!(!second.is_held_here());
        turns.taken(&name);
        turns.released(&name, true, Others::Nobody);
        assert!(!second.is_held_here());
    }
}
