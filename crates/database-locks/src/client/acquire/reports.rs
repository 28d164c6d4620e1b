//! Log records about waits that last: an outage at once, a held lock after ten seconds, and both ever more
//! rarely from then on. A silent wait looks like a program that hangs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::client::renewal::grant_state::ms;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{BootInstant, Holder, Holding, Human, LockName, Token};

/// The time until the first record about a lock that is held, and from the first to the second about an
/// outage.
const FIRST: Duration = Duration::from_secs(10);
/// Each pause between two records is this much longer than the one before …
const LONGER: u32 = 6;
/// … up to this.
const LONGEST: Duration = Duration::from_secs(3_600);
/// How long contention may keep a try from being decided before that is worth a warning: a deadlock or a
/// backup's lock that passes within a second is everyday business.
const ORDINARY_CONTENTION: Duration = Duration::from_secs(1);

/// When the next record is due about something that goes on.
#[derive(Debug)]
pub(crate) struct Rarer {
    due: BootInstant,
    pause: Duration,
}

impl Rarer {
    /// Of what began at `began`: the first record is due after ten seconds.
    pub(crate) fn new(began: BootInstant) -> Self {
        Self {
            due: began + FIRST,
            pause: FIRST,
        }
    }

    pub(crate) fn due(&self) -> BootInstant {
        self.due
    }

    pub(crate) fn told(&mut self, now: BootInstant) {
        self.pause = (self.pause * LONGER).min(LONGEST);
        self.due = now + self.pause;
    }
}

/// Whether the database decides the tries of one process, so that an outage is told once for all of them.
#[derive(Debug, Default)]
pub(crate) struct Outages(Mutex<Option<Outage>>);

#[derive(Debug)]
struct Outage {
    since: BootInstant,
    /// None: it was not told yet.
    next: Option<Rarer>,
}

impl Outages {
    /// A try that was sent at `sent` was not decided; the outage's age, where that is to be told now.
    fn failed(&self, sent: BootInstant, contention: bool, now: BootInstant) -> Option<Duration> {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outage = outage.get_or_insert(Outage {
            since: sent,
            next: None,
        });
        let age = now - outage.since;
        match &mut outage.next {
            None if contention && age < ORDINARY_CONTENTION => return None,
            None => outage.next = Some(Rarer::new(now)),
            Some(next) if next.due() <= now => next.told(now),
            Some(_) => return None,
        }
        Some(age)
    }

    /// A try that was sent at `sent` was decided; how long the outage was that ended so, if it was told.
    fn answered(&self, sent: BootInstant, now: BootInstant) -> Option<Duration> {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = outage.take_if(|outage| outage.since <= sent)?;
        ended.next.map(|_| now - ended.since)
    }

    /// Log what a failed try of a wait says of the database.
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

    /// Log the end of an outage that was told.
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

/// Log that a wait for a lock which another holder has goes on.
pub(crate) fn log_held(name: &LockName, waited: Duration, by: &Holder) {
    tracing::info!(
        event = "waiting",
        lock.name = name.as_str(),
        lock.token = by.token.map(Token::get),
        lock.holder = by.holder.as_deref(),
        lock.held_ms = by.held_for.map(ms),
        lock.waited_ms = ms(waited),
        "still waiting for lock `{name}` after {}, {}",
        Human(waited),
        Holding(
            by.holder.as_deref().unwrap_or("an unnamed holder"),
            by.held_for
        )
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
    fn an_outage_is_told_at_once_and_then_ever_more_rarely() {
        let outages = Outages::default();
        let told: Vec<u64> = (100..5_000)
            .filter(|&at| outages.failed(secs(at), false, secs(at)).is_some())
            .map(|at| at - 100)
            .collect();
        assert_eq!(told, [0, 10, 70, 430, 2_590]);
        assert_eq!(
            outages.answered(secs(5_000), secs(5_001)),
            Some(Duration::from_secs(4_901))
        );
        assert_eq!(
            outages.answered(secs(5_002), secs(5_002)),
            None,
            "told once"
        );
        assert!(
            outages.failed(secs(5_003), false, secs(5_003)).is_some(),
            "the next one"
        );
    }

    #[test]
    fn an_answer_to_what_was_sent_before_ends_no_outage() {
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
    fn contention_is_told_only_when_it_lasts() {
        let outages = Outages::default();
        assert_eq!(outages.failed(ms(100), true, ms(150)), None);
        assert_eq!(outages.answered(ms(200), ms(210)), None, "it was not told");
        assert_eq!(outages.failed(ms(300), true, ms(350)), None);
        assert!(outages.failed(ms(1_400), true, ms(1_410)).is_some());
        assert!(outages.answered(ms(1_500), ms(1_510)).is_some());
    }
}
