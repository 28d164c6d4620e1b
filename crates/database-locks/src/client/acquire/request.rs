//! What a caller asks for.

use std::sync::Arc;
use std::time::Duration;

use protocol::{LockName, Timing};

/// What is wanted, all rules checked.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) name: LockName,
    pub(crate) holder: Arc<str>,
    pub(crate) metadata: Arc<str>,
    pub(crate) timing: Timing,
    /// None: as long as it takes; zero: try once.
    pub(crate) wait: Option<Duration>,
    /// Whether the same holder in another process loses it to us.
    pub(crate) preempt: bool,
    /// The longest pause between two polls of a lock that another client holds.
    pub(crate) poll: Duration,
}

impl Want {
    /// Whether it is tried once.
    pub(crate) fn once(&self) -> bool {
        self.wait.is_some_and(|wait| wait.is_zero())
    }
}

/// What errors say was tried.
pub(crate) fn op(name: &LockName) -> String {
    format!("acquire lock `{name}`")
}
