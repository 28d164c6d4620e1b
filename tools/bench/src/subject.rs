//! The locks of this library as cases.

use database_locks::{Lock, LockGuard, Locks, blocking};
use tokio::runtime::Runtime;

use crate::drive::BlockingCycle;
use crate::serve::Cycle;

/// Connects and makes the table.
pub(crate) async fn connect(url: &str) -> Locks {
    let locks = Locks::connect(url).await.expect("connects");
    locks.migrate().await.expect("makes the table");
    locks
}

/// [`connect`] from blocking code.
pub(crate) fn connected(runtime: &Runtime, url: &str) -> Locks {
    runtime.block_on(connect(url))
}

/// A lock in async code.
pub(crate) struct Async {
    lock: Lock,
    guard: Option<LockGuard>,
}

impl Async {
    pub(crate) async fn new(url: &str, name: &str, auto_renew: bool) -> Self {
        let lock = connect(url).await.lock(name).auto_renew(auto_renew);
        Self { lock, guard: None }
    }
}

impl Cycle for Async {
    async fn acquire(&mut self) {
        self.guard = Some(self.lock.acquire().await.expect("acquires"));
    }

    async fn release(&mut self) {
        let guard = self.guard.take().expect("it is held");
        guard.release().await.expect("releases");
    }
}

/// A lock in blocking code.
pub(crate) struct Blocking {
    lock: blocking::Lock,
    guard: Option<blocking::LockGuard>,
}

impl Blocking {
    pub(crate) fn new(url: &str, name: &str, auto_renew: bool) -> Self {
        let locks = blocking::Locks::connect(url).expect("connects");
        locks.migrate().expect("makes the table");
        let lock = locks.lock(name).auto_renew(auto_renew);
        Self { lock, guard: None }
    }
}

impl BlockingCycle for Blocking {
    fn acquire(&mut self) {
        self.guard = Some(self.lock.acquire().expect("acquires"));
    }

    fn release(&mut self) {
        let guard = self.guard.take().expect("it is held");
        guard.release().expect("releases");
    }
}
