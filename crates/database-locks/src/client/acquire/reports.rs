//! Log records about long waits: an outage at once, a held lock after ten seconds, both at growing
//! intervals. A silent wait would look like a hang.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::client::renewal::grant_state::ms;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{BootInstant, Holder, Holding, Human, LockName, Resting, Slot, Token};

/// The time until the first record about a held lock, and between the first two records about an
/// outage.
const FIRST_INTERVAL: Duration = Duration::from_secs(10);
/// The factor between two intervals …
const INTERVAL_FACTOR: u32 = 6;
/// … up to this interval.
const LONGEST_INTERVAL: Duration = Duration::from_secs(3_600);
/// How long contention may delay tries before a warning is logged. A deadlock, or the lock of a
/// backup, that ends within a second is normal.
const ORDINARY_CONTENTION: Duration = Duration::from_secs(1);

/// The schedule of repeated log records about one condition.
#[derive(Debug)]
pub(crate) struct ReportInterval {
    due: BootInstant,
    pause: Duration,
}

impl ReportInterval {
    /// A condition that began at `began`: the first record is due ten seconds later.
    pub(crate) fn new(began: BootInstant) -> Self {
        Self {
            due: began + FIRST_INTERVAL,
            pause: FIRST_INTERVAL,
        }
    }

    pub(crate) fn due(&self) -> BootInstant {
        self.due
    }

    pub(crate) fn reported(&mut self, now: BootInstant) {
        self.pause = (self.pause * INTERVAL_FACTOR).min(LONGEST_INTERVAL);
        self.due = now + self.pause;
    }
}

/// The current outage of one client, logged once for all its waits.
#[derive(Debug, Default)]
pub(crate) struct Outages(Mutex<Option<Outage>>);

#[derive(Debug)]
struct Outage {
    since: BootInstant,
    /// `None`: not logged yet.
    next: Option<ReportInterval>,
}

impl Outages {
    /// Record that a try sent at `sent` failed. Returns the age of the outage if it has to be
    /// logged now.
    fn failed(&self, sent: BootInstant, contention: bool, now: BootInstant) -> Option<Duration> {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outage = outage.get_or_insert(Outage {
            since: sent,
            next: None,
        });
        let age = now - outage.since;
        match &mut outage.next {
            None if contention && age < ORDINARY_CONTENTION => return None,
            None => outage.next = Some(ReportInterval::new(now)),
            Some(next) if next.due() <= now => next.reported(now),
            Some(_) => return None,
        }
        Some(age)
    }

    /// Record that a try sent at `sent` was answered. Returns the length of the outage that this
    /// ended, if the outage was logged.
    fn answered(&self, sent: BootInstant, now: BootInstant) -> Option<Duration> {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = outage.take_if(|outage| outage.since <= sent)?;
        ended.next.map(|_| now - ended.since)
    }

    /// Log the failure of a try, if an outage record is due.
    pub(crate) fn log_failed(&self, name: &LockName, sent: BootInstant, failure: &StoreError) {
        let contention = matches!(failure, StoreError::Contention(_));
        let Some(age) = self.failed(sent, contention, clock::now()) else {
            return;
        };
        tracing::warn!(
            event = "unavailable",
            lock.name = name.as_str(),
            outage_ms = ms(age),
            "waiting for lock `{name}`, trying again: {failure}"
        );
    }

    /// Log the end of an outage that was logged.
    pub(crate) fn log_answered(&self, sent: BootInstant) {
        if let Some(outage) = self.answered(sent, clock::now()) {
            tracing::info!(
                event = "available",
                outage_ms = ms(outage),
                "the database answers again, after {}",
                Human(outage)
            );
        }
    }
}

/// Log that a wait for a lock that is held or rests continues.
pub(crate) fn log_held(name: &LockName, waited: Duration, holder: &Holder) {
    let by = holder.holder.as_deref().unwrap_or("an unnamed holder");
    let rest = holder.free_in.filter(|_| holder.is_resting);
    let (held_for, state) = match rest {
        Some(left) => (None, Resting(by, left).to_string()),
        None => (holder.held_for, Holding(by, holder.held_for).to_string()),
    };
    tracing::info!(
        event = "waiting",
        lock.name = name.as_str(),
        lock.token = holder.token.map(Token::get),
        lock.holder = holder.holder.as_deref(),
        lock.held_ms = held_for.map(ms),
        lock.rests_ms = rest.map(ms),
        lock.waited_ms = ms(waited),
        "still waiting for {} after {}, {state}",
        match holder.permits {
            None => Slot::Lock,
            Some(_) => Slot::AnyPermit,
        }
        .named(name),
        Human(waited)
    );
}

/// Log that a wait continues although the lease has ended, since a transaction has the row locked.
pub(crate) fn log_row_locked(name: &LockName, waited: Duration, session: &str) {
    tracing::warn!(
        event = "row_locked",
        lock.name = name.as_str(),
        lock.waited_ms = ms(waited),
        "still waiting for lock `{name}` after {}: no client holds it, but a transaction keeps its row \
         locked: {session}",
        Human(waited)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> BootInstant {
        BootInstant::from_boot(Duration::from_millis(n))
    }

    fn secs(n: u64) -> BootInstant {
        ms(1000 * n)
    }

    #[test]
    fn an_outage_is_logged_at_once_and_then_ever_more_rarely() {
        let outages = Outages::default();
        let logged: Vec<u64> = (100..5_000)
            .filter(|&at| outages.failed(secs(at), false, secs(at)).is_some())
            .map(|at| at - 100)
            .collect();
        assert_eq!(logged, [0, 10, 70, 430, 2_590]);
        assert_eq!(
            outages.answered(secs(5_000), secs(5_001)),
            Some(Duration::from_secs(4_901))
        );
        assert_eq!(
            outages.answered(secs(5_002), secs(5_002)),
            None,
            "logged once"
        );
        assert!(
            outages.failed(secs(5_003), false, secs(5_003)).is_some(),
            "the next one"
        );
    }

    #[test]
    fn an_answer_to_an_earlier_request_does_not_end_an_outage() {
        let outages = Outages::default();
        assert!(outages.failed(secs(10), false, secs(15)).is_some());
        assert_eq!(outages.answered(secs(9), secs(16)), None);
        assert_eq!(
            outages.failed(secs(16), false, secs(17)),
            None,
            "it goes on"
        );
    }

    #[test]
    fn contention_is_logged_only_when_it_lasts() {
        let outages = Outages::default();
        assert_eq!(outages.failed(ms(100), true, ms(150)), None);
        assert_eq!(
            outages.answered(ms(200), ms(210)),
            None,
            "it was not logged"
        );
        assert_eq!(outages.failed(ms(300), true, ms(350)), None);
        assert!(outages.failed(ms(1_400), true, ms(1_410)).is_some());
        assert!(outages.answered(ms(1_500), ms(1_510)).is_some());
    }
}
