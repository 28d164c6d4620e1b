//! Who of this process is next, where several wait for one lock.
//!
//! Only the first in line asks the database; the others wait for their turn without a statement of
//! their own. A release within the process wakes the first at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::name::LockName;

type Lines = HashMap<LockName, VecDeque<Arc<Notify>>>;

/// The lines of all names.
#[derive(Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<Lines>>);

fn locked(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// Whether somebody waits for this name.
    pub(crate) fn is_waited_for(&self, name: &LockName) -> bool {
        locked(&self.0).contains_key(name)
    }

    /// Stand in line, at its end.
    pub(crate) fn join(&self, name: &LockName) -> Turn {
        let bell = Arc::new(Notify::new());
        locked(&self.0)
            .entry(name.clone())
            .or_default()
            .push_back(Arc::clone(&bell));
        Turn {
            lines: Arc::clone(&self.0),
            name: name.clone(),
            bell,
        }
    }

    /// It was released here: the first in line had better try now.
    pub(crate) fn ring(&self, name: &LockName) {
        if let Some(first) = locked(&self.0).get(name).and_then(VecDeque::front) {
            first.notify_one();
        }
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
    /// Wait until it is our turn.
    pub(crate) async fn comes(&self) {
        while !self.is_first() {
            self.bell.notified().await;
        }
    }

    /// Wait until a release rings.
    pub(crate) async fn rings(&self) {
        self.bell.notified().await;
    }

    fn is_first(&self) -> bool {
        let lines = locked(&self.lines);
        lines
            .get(&self.name)
            .and_then(VecDeque::front)
            .is_some_and(|b| Arc::ptr_eq(b, &self.bell))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = locked(&self.lines);
        let Some(line) = lines.get_mut(&self.name) else {
            return;
        };
        line.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
        match line.front() {
            Some(next) => next.notify_one(),
            None => drop(lines.remove(&self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_line_moves_up_in_order_and_is_forgotten_when_empty() {
        let (turns, name) = (Turns::default(), LockName::new("job").unwrap());
        let (first, second, third) = (turns.join(&name), turns.join(&name), turns.join(&name));
        first.comes().await;
        assert!(!second.is_first());
        drop(second);
        drop(first);
        third.comes().await;
        drop(third);
        assert!(!turns.is_waited_for(&name));
    }
}
