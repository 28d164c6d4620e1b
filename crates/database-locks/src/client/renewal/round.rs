//! One round of renewals, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use super::split::Split;
use super::{Book, Round, Scheduler};
use crate::client::renewal::grant_state::Trouble;
use crate::client::renewal::lease_events::{Failing, News};
use crate::metrics::{self, Engine};
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{Answer, BootInstant, Grant, LostReason, Renewal, SHORTEST_PATIENCE, Ttl};

/// What is said of a renewal that found its row locked.
const ROW_LOCKED: &str = "its row is locked by another transaction";

/// How many times the patience of a round it may be split for while nothing of it gets through.
const SPLITTING: u32 = 3;

/// A part of a round that failed, and why.
pub(crate) struct Failed {
    pub(crate) part: Round,
    pub(crate) sent: BootInstant,
    pub(crate) error: StoreError,
}

impl Failed {
    fn is_contention(&self) -> bool {
        matches!(self.error, StoreError::Contention(_))
    }

    /// The database can be reached, and this is its answer.
    fn is_answer(&self) -> bool {
        self.error.is_answer()
    }
}

impl Scheduler {
    /// Send one round of renewals, in parts where it fails, and pass on what came of it.
    ///
    /// What is refused is split at once. What failed otherwise, by contention or without an answer, passes by
    /// itself as a rule: it is split when it is sent again. One row that hangs or is locked then takes no other
    /// lease with it.
    pub(crate) async fn round(self: Arc<Self>, round: Round, patience: Duration) {
        let (began, mut tally) = (clock::now(), Tally::default());
        let met_before = self.book().are_failing(&round);
        let (mut split, mut failed) = (Split::new(round, met_before), Vec::new());
        while let Some(mut part) = split.next() {
            // Lost or released since it was due.
            part.retain(|(grant, _)| self.book().entries.contains_key(&grant.id));
            if part.is_empty() {
                continue;
            }
            let sent = clock::now();
            // Once something got through, what takes long is not the server.
            let within = match met_before && split.has_renewed() {
                true => (patience / 4).max(SHORTEST_PATIENCE),
                false => patience,
            };
            let error = match self.store.renew(&part, within).await {
                Ok(answers) => {
                    split.renewed();
                    self.renewed(&part, sent, answers, &mut tally);
                    continue;
                }
                Err(error) => error,
            };
            let settled = if met_before || matches!(error, StoreError::Rejected { .. }) {
                let mut settled = split.refused(part);
                let took = clock::now() - began;
                let most = match error.is_answer() {
                    true => patience.saturating_mul(SPLITTING),
                    false => patience,
                };
                if !split.has_renewed() && took > most {
                    settled.extend(split.rest());
                }
                settled
            } else {
                part
            };
            if !settled.is_empty() {
                tally.unknown += settled.len();
                let part = settled;
                failed.push(self.failed(Failed { part, sent, error }));
            }
        }
        tally.count(self.store.engine());
        if !failed.is_empty() {
            self.conclude(&failed, split.has_renewed());
        }
    }

    /// A part got through.
    fn renewed(
        &self,
        part: &[(Grant, Ttl)],
        sent: BootInstant,
        answers: Vec<Renewal>,
        tally: &mut Tally,
    ) {
        let mut news = News::default();
        let mut book = self.book();
        news.over = book.outage.over(sent, clock::now());
        book.reconnects.needless();
        for ((grant, _), answer) in part.iter().zip(answers) {
            match answer {
                Renewal::Renewed => {
                    tally.renewed += 1;
                    book.answered(grant.id, sent, (Answer::Renewed, None), &mut news);
                }
                Renewal::Busy => {
                    tally.busy += 1;
                    if let Some(entry) = book.entries.get(&grant.id)
                        && !entry.lease.is_failing()
                    {
                        news.busy.push(Arc::clone(&entry.held));
                    }
                    let trouble = Trouble {
                        reason: LostReason::Expired,
                        said: ROW_LOCKED.into(),
                    };
                    book.answered(grant.id, sent, (Answer::Busy, Some(trouble)), &mut news);
                }
                Renewal::Lost(gone) => {
                    tally.lost += 1;
                    // The database has answered: that is why it is lost, whatever came before.
                    if let Some(entry) = book.entries.get(&grant.id) {
                        entry.held.answered(None);
                    }
                    book.lost(grant.id, gone, &mut news);
                }
            }
        }
        self.close_book(book, clock::now(), news);
    }

    /// A part failed, and is tried again later.
    fn failed(&self, failed: Failed) -> Failed {
        let (answer, said) = match &failed.error {
            StoreError::Contention(said) => (Answer::Busy, said),
            StoreError::Unavailable(said) if failed.is_answer() => (Answer::Refused, said),
            StoreError::Unavailable(said) => (Answer::Unknown, said),
            StoreError::Rejected { source, .. } => (Answer::Refused, source),
        };
        let trouble = Trouble {
            reason: answer.lost_reason(),
            said: said.to_string().into(),
        };
        let mut news = News::default();
        let mut book = self.book();
        for (grant, _) in &failed.part {
            let answer = (answer, Some(trouble.clone()));
            book.answered(grant.id, failed.sent, answer, &mut news);
        }
        self.close_book(book, clock::now(), news);
        failed
    }

    /// Tell of what failed, and see whether another connection may do better.
    fn conclude(&self, failed: &[Failed], others_renewed: bool) {
        let mut news = News::default();
        let mut book = self.book();
        let mut refused = false;
        for failed in failed {
            // A lease that is refused while others are renewed says nothing of the connection.
            if !book.refused_apart(failed, others_renewed, &mut news) {
                refused |= matches!(failed.error, StoreError::Rejected { .. });
                book.failing(failed, &mut news);
            }
        }
        let reconnect = !others_renewed && refused && book.reconnects.due(clock::now());
        drop(book);
        if reconnect {
            self.store.reconnect();
        }
        news.tell();
    }
}

impl Book {
    fn are_failing(&self, round: &[(Grant, Ttl)]) -> bool {
        let mut entries = round
            .iter()
            .filter_map(|(grant, _)| self.entries.get(&grant.id));
        entries.any(|entry| entry.lease.is_failing())
    }

    /// Whether it is one lease that was refused while others are renewed, which says nothing of the
    /// database. It is told once.
    fn refused_apart(&mut self, failed: &Failed, others_renewed: bool, news: &mut News) -> bool {
        let [(grant, _)] = failed.part.as_slice() else {
            // All of them are known to be.
            let mut ids = failed.part.iter().map(|(grant, _)| grant.id);
            return ids.all(|id| self.entries.get(&id).is_none_or(|entry| entry.apart));
        };
        let Some(entry) = self.entries.get_mut(&grant.id) else {
            return true;
        };
        let since = entry.failing_since;
        let others_renewed =
            others_renewed || since.is_some_and(|since| self.outage.got_through_after(since));
        if !entry.apart && !others_renewed {
            return false;
        }
        if !std::mem::replace(&mut entry.apart, true) {
            let error = failed.error.to_string();
            news.refused.push((Arc::clone(&entry.held), error.into()));
        }
        true
    }

    /// Renewals stopped getting through, perhaps: told once for each outage.
    pub(crate) fn failing(&mut self, failed: &Failed, news: &mut News) {
        let entries = failed.part.iter();
        let entries = entries.filter_map(|(grant, _)| self.entries.get(&grant.id));
        let leases: Vec<_> = entries.map(|entry| Arc::clone(&entry.held)).collect();
        // Where all were lost meanwhile it would come after the end of their story.
        if leases.is_empty() {
            return;
        }
        let contention = failed.is_contention();
        if self.outage.failed(failed.sent, clock::now(), contention) {
            news.failing = Some(Failing {
                leases,
                error: failed.error.to_string(),
            });
        }
    }
}

/// What came of the renewals of a round.
#[derive(Default)]
struct Tally {
    renewed: usize,
    busy: usize,
    lost: usize,
    unknown: usize,
}

impl Tally {
    fn count(&self, engine: Engine) {
        let results = [
            ("renewed", self.renewed),
            ("busy", self.busy),
            ("lost", self.lost),
            ("unknown", self.unknown),
        ];
        for (result, locks) in results.into_iter().filter(|(_, locks)| *locks > 0) {
            metrics::renewals(engine, result, locks);
        }
    }
}
