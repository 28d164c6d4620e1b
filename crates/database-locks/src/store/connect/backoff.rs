//! The pauses between attempts to connect.

use std::time::Duration;

use crate::runtime::clock;
use protocol::BootInstant;

/// A restarted server is back within a second or two. A thousand clients that connect every 10 ms
/// would slow its start.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(2);

/// Doubles the pause with each failure, with jitter so that clients do not connect in step.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    not_before: Option<BootInstant>,
}

impl Backoff {
    /// The rest of the pause.
    pub(crate) fn pause(&self) -> Duration {
        self.not_before
            .map_or(Duration::ZERO, |at| at - clock::now())
    }

    pub(crate) fn failed(&mut self) {
        let step = SHORTEST
            .saturating_mul(1 << self.failures.min(12))
            .min(LONGEST);
        self.failures += 1;
        self.not_before = Some(clock::now() + step.mul_f64(0.5 + fastrand::f64() / 2.0));
    }

    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }
}
