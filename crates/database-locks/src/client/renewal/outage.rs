//! When renewals stop getting through, and when they do again.

use std::time::Duration;

use protocol::BootInstant;

/// How long contention may keep renewals from getting through before that is worth a warning: what
/// passes by itself within a second or so is everyday business.
const ORDINARY_CONTENTION: Duration = Duration::from_secs(1);

/// Whether renewals get through, so that it is told once when they no longer do, and not with each
/// try, of which there are many.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    /// When the first that failed was sent.
    since: Option<BootInstant>,
    told: bool,
    /// When the latest that got through was sent.
    good: BootInstant,
}

impl Outage {
    /// A round that was sent at `sent` failed; whether that is to be told now.
    pub(crate) fn failed(&mut self, sent: BootInstant, now: BootInstant, contention: bool) -> bool {
        // It hung while a later one got through.
        if sent < self.good || self.told {
            return false;
        }
        let since = *self.since.get_or_insert(sent);
        self.told = !contention || now - since >= ORDINARY_CONTENTION;
        self.told
    }

    /// Whether one that was sent later than that got through.
    pub(crate) fn got_through_after(&self, then: BootInstant) -> bool {
        self.good > then
    }

    /// One got through; if that ends an outage that was told, how long it was.
    pub(crate) fn over(&mut self, sent: BootInstant, now: BootInstant) -> Option<Duration> {
        self.good = self.good.max(sent);
        let since = self.since.take_if(|since| *since <= sent)?;
        std::mem::take(&mut self.told).then(|| now - since)
    }
}

/// How long until the connection is made anew a second time; each further time it is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// When to make the connection anew because renewals are refused on it.
///
/// The first time at once: the new one may have other rights, or lead to another server. Then ever more
/// rarely, since others use the connection too.
#[derive(Debug, Default)]
pub(crate) struct Reconnects {
    not_before: BootInstant,
    pause: Duration,
}

impl Reconnects {
    /// All was refused; whether to connect anew.
    pub(crate) fn due(&mut self, now: BootInstant) -> bool {
        let due = now >= self.not_before;
        if due {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.not_before = now + self.pause;
        }
        due
    }

    /// Something got through.
    pub(crate) fn needless(&mut self) {
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
    fn an_outage_is_told_once_and_its_end_too() {
        let mut outage = Outage::default();
        assert!(outage.failed(at(10), at(11), false));
        assert!(!outage.failed(at(12), at(13), false), "told already");
        assert_eq!(outage.over(at(9), at(14)), None, "sent before it began");
        assert_eq!(outage.over(at(14), at(15)), Some(Duration::from_secs(5)));
        assert!(!outage.failed(at(13), at(18), false), "had hung since then");
        assert_eq!(outage.over(at(19), at(19)), None);
        assert!(outage.failed(at(20), at(20), false), "the next one");
    }

    #[test]
    fn contention_is_told_only_when_it_lasts() {
        let mut outage = Outage::default();
        assert!(!outage.failed(ms(100), ms(150), true));
        assert_eq!(outage.over(ms(200), ms(210)), None, "nobody was told");
        assert!(!outage.failed(ms(300), ms(350), true));
        assert!(outage.failed(ms(1400), ms(1410), true));
        assert!(outage.over(ms(1500), ms(1510)).is_some());
    }

    #[test]
    fn a_refused_renewal_connects_anew_at_once_and_then_ever_more_rarely() {
        let (mut reconnects, mut told) = (Reconnects::default(), Vec::new());
        for secs in 100..200 {
            if reconnects.due(at(secs)) {
                told.push(secs - 100);
            }
        }
        assert_eq!(told, [0, 1, 3, 7, 15, 31, 61, 91]);
        reconnects.needless();
        assert!(reconnects.due(at(200)));
    }
}
