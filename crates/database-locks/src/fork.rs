//! Telling a forked child from its parent.
//!
//! A child has a copy of all memory, but of all threads only the one that forked: the scheduler, the
//! connection and whoever holds a mutex at that moment do not exist in it. So nothing that the parent
//! made is used there, not even dropped.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};

static GENERATION: AtomicU64 = AtomicU64::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// How many forks lie between this process and the one that first asked.
///
/// A counter rather than the pid: a pid is used again, and a grandchild may have that of its
/// grandparent.
pub fn generation() -> u64 {
    static REGISTERED: Once = Once::new();
    let mut failed = false;
    REGISTERED.call_once(|| {
        // SAFETY: the handler is async-signal-safe, as it must be in a child of a process with
        // several threads: it does nothing but count up an atomic.
        #[allow(unsafe_code, reason = "there is no other way to be told of a fork")]
        let registered = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        failed = registered != 0;
    });
    // Not in there: a subscriber that calls us would wait for itself.
    if failed {
        tracing::warn!("forks cannot be noticed: do not fork while holding a lock");
    }
    GENERATION.load(Ordering::Relaxed)
}

/// Something that belongs to the process that made it. In a child it is leaked rather than dropped.
#[derive(Debug)]
pub(crate) struct Here<T> {
    value: Option<T>,
    generation: u64,
}

impl<T> Here<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Some(value),
            generation: generation(),
        }
    }

    /// Whether this is the process that made it.
    pub(crate) fn is_here(&self) -> bool {
        self.generation == generation()
    }
}

impl<T> Deref for Here<T> {
    type Target = T;

    #[allow(clippy::expect_used, reason = "only `drop` takes it")]
    fn deref(&self) -> &T {
        self.value.as_ref().expect("not dropped yet")
    }
}

impl<T> Drop for Here<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}

/// One value for each process, made when it is first asked for there.
///
/// A child finds what its parent made and passes it by. No lock is taken that another thread may have
/// held while the process was forked.
#[derive(Debug)]
pub struct PerProcess<T>(OnceLock<Box<Node<T>>>);

#[derive(Debug)]
struct Node<T> {
    value: Here<T>,
    /// That of a child, and of a child's child.
    next: PerProcess<T>,
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PerProcess<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value of this process. Where two threads make it at once, one of them does so in vain.
    pub fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let (mut slot, mut make) = (self, Some(make));
        loop {
            match (slot.0.get(), make.take()) {
                (Some(node), _) if node.value.is_here() => return Ok(&node.value),
                (Some(node), unused) => (slot, make) = (&node.next, unused),
                (None, Some(make)) => {
                    let node = Node {
                        value: Here::new(make()?),
                        next: Self::new(),
                    };
                    // Filled then, by us or by another thread of this process.
                    let _ = slot.0.set(Box::new(node));
                }
                (None, None) => unreachable!("a slot that was filled is empty"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_made_once_in_a_process() {
        let slot = PerProcess::new();
        assert_eq!(
            slot.get_or_try_init(|| Err::<u8, _>("failed")),
            Err("failed")
        );
        assert_eq!(slot.get_or_try_init(|| Ok::<_, ()>(1)), Ok(&1));
        assert_eq!(slot.get_or_try_init(|| Ok::<_, ()>(2)), Ok(&1));
    }

    #[test]
    fn a_child_passes_by_what_its_parent_made() {
        let slot = PerProcess::new();
        slot.get_or_try_init(|| Ok::<_, ()>(1)).unwrap();
        let parents = Node {
            value: Here {
                value: Some(0),
                generation: generation() + 1,
            },
            next: slot,
        };
        let slot = PerProcess(OnceLock::from(Box::new(parents)));
        assert_eq!(slot.get_or_try_init(|| Ok::<_, ()>(2)), Ok(&1));
    }
}
