//! Durations as messages show them, and the clock for waits and messages.

use database_locks::Ttl;
use tokio::time::Instant;

/// A duration or ttl as in `30s`, `2m 5s`, `10m`; an infinite ttl is `without end`.
///
/// The library writes `10m 0s`; a trailing zero is cut here.
pub(crate) fn human(length: impl Into<Ttl>) -> String {
    let text = length.into().to_string();
    match text.rsplit_once(" 0") {
        Some((round, "s" | "m" | "h")) => round.to_owned(),
        _ => text,
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "it measures waits for messages, no lease"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_round_duration_is_shown_without_a_trailing_zero() {
        assert_eq!(human(Duration::from_secs(600)), "10m");
        assert_eq!(human(Duration::from_secs(605)), "10m 5s");
        assert_eq!(human(Duration::from_secs(30 * 86_400)), "30d");
        assert_eq!(human(Duration::from_secs(10)), "10s");
        assert_eq!(human(Ttl::Infinite), "without end");
    }
}
