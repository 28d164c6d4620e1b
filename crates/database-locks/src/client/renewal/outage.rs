//! Outages of renewals: when to log one, and when to reconnect.

use std::time::Duration;

use protocol::BootInstant;

/// How long contention may delay renewals before a warning is logged. Contention that passes within
/// about a second is normal.
const ORDINARY_CONTENTION: Duration = Duration::from_secs(1);

/// The current outage of renewals, logged once instead of for each failed renewal.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    /// When the first failed renewal was sent.
    since: Option<BootInstant>,
    logged: bool,
    /// When the latest successful renewal was sent.
    last_success: BootInstant,
}

impl Outage {
    /// A round sent at `sent` failed; returns whether to log that now.
    pub(crate) fn failed(&mut self, sent: BootInstant, now: BootInstant, contention: bool) -> bool {
        // A later round has succeeded meanwhile.
        if sent < self.last_success || self.logged {
            return false;
        }
        let since = *self.since.get_or_insert(sent);
        self.logged = !contention || now - since >= ORDINARY_CONTENTION;
        self.logged
    }

    /// Whether a renewal sent after `then` succeeded.
    pub(crate) fn succeeded_after(&self, then: BootInstant) -> bool {
        self.last_success > then
    }

    /// A renewal succeeded. If that ends an outage that was logged, returns its length.
    pub(crate) fn succeeded(&mut self, sent: BootInstant, now: BootInstant) -> Option<Duration> {
        self.last_success = self.last_success.max(sent);
        let since = self.since.take_if(|since| *since <= sent)?;
        std::mem::take(&mut self.logged).then(|| now - since)
    }
}

/// The pause until the second reconnect, doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// When to reconnect because all renewals are refused.
///
/// The first time at once: the new connection may have other permissions, or lead to another
/// server. Then at growing intervals, because other callers use the connection too.
#[derive(Debug, Default)]
pub(crate) struct Reconnects {
    not_before: BootInstant,
    pause: Duration,
}

impl Reconnects {
    /// All renewals were refused; returns whether to reconnect.
    pub(crate) fn due(&mut self, now: BootInstant) -> bool {
        let due = now >= self.not_before;
        if due {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.not_before = now + self.pause;
        }
        due
    }

    /// A renewal succeeded.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> BootInstant {
        BootInstant::from_boot(Duration::from_millis(n))
    }

    fn at(secs: u64) -> BootInstant {
        ms(1000 * secs)
    }

    #[test]
    fn an_outage_is_logged_once_and_its_end_too() {
        let mut outage = Outage::default();
        assert!(outage.failed(at(10), at(11), false));
        assert!(!outage.failed(at(12), at(13), false), "logged already");
        assert_eq!(
            outage.succeeded(at(9), at(14)),
            None,
            "sent before it began"
        );
        assert_eq!(
            outage.succeeded(at(14), at(15)),
            Some(Duration::from_secs(5))
        );
        assert!(!outage.failed(at(13), at(18), false), "had hung since then");
        assert_eq!(outage.succeeded(at(19), at(19)), None);
        assert!(outage.failed(at(20), at(20), false), "the next one");
    }

    #[test]
    fn contention_is_logged_only_when_it_lasts() {
        let mut outage = Outage::default();
        assert!(!outage.failed(ms(100), ms(150), true));
        assert_eq!(
            outage.succeeded(ms(200), ms(210)),
            None,
            "it was not logged"
        );
        assert!(!outage.failed(ms(300), ms(350), true));
        assert!(outage.failed(ms(1400), ms(1410), true));
        assert!(outage.succeeded(ms(1500), ms(1510)).is_some());
    }

    #[test]
    fn a_refused_renewal_reconnects_at_once_and_then_ever_more_rarely() {
        let (mut reconnects, mut told) = (Reconnects::default(), Vec::new());
        for secs in 100..200 {
            if reconnects.due(at(secs)) {
                told.push(secs - 100);
            }
        }
        assert_eq!(told, [0, 1, 3, 7, 15, 31, 61, 91]);
        reconnects.reset();
        assert!(reconnects.due(at(200)));
    }
}
