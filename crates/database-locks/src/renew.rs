//! The scheduler: one task renews every lease that was taken through one [`Locks`](crate::Locks).
//!
//! It sleeps until something is due and calls the store; what is to be done it asks [`Lease`]. A
//! renewal runs in a task of its own, so that one that hangs delays neither a loss nor the renewal of
//! another lease. What is due, or soon will be, goes out as one statement.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::clock::{self, LONGEST_NAP, Time};
use crate::error::LostReason;
use crate::lease::{Answer, Lease, Next};
use crate::store::{Grant, Renewal, Store, StoreError};
use crate::timing::{Timing, Ttl};
use crate::token::GrantId;

/// The most leases that one statement renews. More would make a statement of some hundred
/// milliseconds, behind which every acquire on the connection waits.
const LARGEST_ROUND: usize = 5_000;

/// How a grant stands, as its guard sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Held as far as is known; the ttl that the database has confirmed.
    Held(Option<Ttl>),
    Lost(LostReason),
    Released,
}

/// One grant, shared by its guard, which asks, and the scheduler, which answers.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) grant: Grant,
    /// Boot-time clock in nanoseconds. An atomic, and not a lock that the scheduler might hold:
    /// "do I still have it?" must be answered at once, whatever else goes on.
    trusted_until: AtomicU64,
    status: watch::Sender<Status>,
}

fn nanos(t: Time) -> u64 {
    u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)
}

impl Held {
    pub(crate) fn new(grant: Grant, lease: &Lease) -> Arc<Self> {
        Arc::new(Self {
            grant,
            trusted_until: AtomicU64::new(nanos(lease.trusted_until())),
            status: watch::Sender::new(Status::Held(lease.confirmed())),
        })
    }

    /// How long it may still be trusted; zero: lost, whether or not the scheduler has noticed.
    pub(crate) fn trusted_for(&self) -> Duration {
        match *self.status.borrow() {
            Status::Held(_) => match self.trusted_until.load(Ordering::Acquire) {
                u64::MAX => Duration::MAX,
                until => Duration::from_nanos(until).saturating_sub(clock::now()),
            },
            Status::Lost(_) | Status::Released => Duration::ZERO,
        }
    }

    pub(crate) fn status(&self) -> Status {
        *self.status.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Mark it lost and wake whoever holds it. The first reason counts.
    pub(crate) fn lose(&self, reason: LostReason) {
        let newly = self.status.send_if_modified(|status| match status {
            Status::Held(_) => {
                *status = Status::Lost(reason);
                true
            }
            Status::Lost(_) | Status::Released => false,
        });
        if newly {
            let Grant {
                name,
                token,
                holder,
                ..
            } = &self.grant;
            tracing::warn!(
                lock.name = %name, lock.token = %token, lock.holder = %holder, "lock lost: {reason}"
            );
        }
    }

    pub(crate) fn released(&self) {
        self.status.send_if_modified(|status| {
            let held = matches!(status, Status::Held(_));
            if held {
                *status = Status::Released;
            }
            held
        });
    }

    fn confirm(&self, lease: &Lease) {
        self.trusted_until
            .store(nanos(lease.trusted_until()), Ordering::Release);
        let confirmed = Status::Held(lease.confirmed());
        self.status.send_if_modified(|status| {
            let news = matches!(status, Status::Held(_)) && *status != confirmed;
            if news {
                *status = confirmed;
            }
            news
        });
    }
}

#[derive(Debug)]
struct Entry {
    lease: Lease,
    held: Arc<Held>,
    /// When it stands in the agenda.
    at: Time,
}

#[derive(Debug, Default)]
struct Book {
    entries: HashMap<GrantId, Entry>,
    agenda: BTreeSet<(Time, GrantId)>,
}

impl Book {
    fn add(&mut self, lease: Lease, held: Arc<Held>, now: Time) {
        let id = held.grant.id;
        self.entries.insert(
            id,
            Entry {
                lease,
                held,
                at: now,
            },
        );
        self.agenda.insert((now, id));
        self.plan(id, now);
    }

    fn remove(&mut self, id: GrantId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.agenda.remove(&(entry.at, id));
        Some(entry)
    }

    /// Put it where its lease says that it belongs.
    fn plan(&mut self, id: GrantId, now: Time) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let at = match entry.lease.next(now) {
            Next::Wait(until) => until,
            Next::Renew | Next::Lost(_) => now,
        };
        self.agenda.remove(&(entry.at, id));
        entry.at = at;
        self.agenda.insert((at, id));
    }

    /// What is due: losses are told, renewals returned.
    fn due(&mut self, now: Time) -> Vec<(Grant, Ttl)> {
        let mut round = Vec::new();
        while let Some(&(at, id)) = self.agenda.first() {
            if at > now {
                break;
            }
            let Some(entry) = self.entries.get_mut(&id) else {
                self.agenda.pop_first();
                continue;
            };
            match entry.lease.next(now) {
                Next::Lost(reason) => {
                    entry.held.lose(reason);
                    self.remove(id);
                    continue;
                }
                Next::Renew => round.push((entry.held.grant.clone(), entry.lease.renewing())),
                Next::Wait(_) => {}
            }
            self.plan(id, now);
        }
        if !round.is_empty() {
            let early: Vec<GrantId> = self
                .entries
                .iter()
                .filter(|(_, entry)| entry.lease.may_come_along(now))
                .map(|(id, _)| *id)
                .collect();
            for id in early {
                if let Some(entry) = self.entries.get_mut(&id) {
                    round.push((entry.held.grant.clone(), entry.lease.renewing()));
                }
                self.plan(id, now);
            }
        }
        round
    }

    fn answered(&mut self, id: GrantId, sent: Time, answer: Answer) {
        let now = clock::now();
        // Released meanwhile: nothing to be confirmed any more.
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.lease.answered(sent, answer, now);
        if let Next::Lost(_) = entry.lease.next(now) {
            // Told in its turn, which is now.
        } else {
            entry.held.confirm(&entry.lease);
        }
        self.plan(id, now);
    }

    fn lost(&mut self, id: GrantId, reason: LostReason) {
        if let Some(entry) = self.remove(id) {
            entry.held.lose(reason);
        }
    }

    fn patience(&self, round: &[(Grant, Ttl)]) -> Duration {
        let of = |grant: &Grant| {
            self.entries
                .get(&grant.id)
                .map(|entry| entry.lease.patience())
        };
        round
            .iter()
            .filter_map(|(grant, _)| of(grant))
            .min()
            .unwrap_or_default()
    }
}

/// The leases of one [`Locks`](crate::Locks), and the task that renews them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    store: Arc<dyn Store>,
    book: Mutex<Book>,
    changed: Notify,
    closed: AtomicBool,
}

impl Scheduler {
    /// Start the task on that runtime.
    pub(crate) fn start(store: Arc<dyn Store>, runtime: &Handle) -> Arc<Self> {
        let scheduler = Arc::new(Self {
            store,
            book: Mutex::default(),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
        });
        runtime.spawn(Arc::clone(&scheduler).work());
        scheduler
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep this lease alive from now on.
    pub(crate) fn add(&self, lease: Lease, held: Arc<Held>) {
        self.book().add(lease, held, clock::now());
        self.changed.notify_one();
    }

    /// Renew it no more. What was sent before and arrives late finds its grant id gone.
    pub(crate) fn remove(&self, id: GrantId) {
        self.book().remove(id);
    }

    /// The settings of a lease that is still kept alive.
    pub(crate) fn timing(&self, id: GrantId) -> Option<Timing> {
        self.book()
            .entries
            .get(&id)
            .map(|entry| *entry.lease.timing())
    }

    /// Renew it to another ttl, at once and from now on.
    pub(crate) fn extend(&self, id: GrantId, timing: Timing) {
        let (mut book, now) = (self.book(), clock::now());
        if let Some(entry) = book.entries.get_mut(&id) {
            entry.lease.extend(timing, now);
            entry.held.confirm(&entry.lease);
            book.plan(id, now);
            drop(book);
            self.changed.notify_one();
        }
    }

    /// The database said that it is not ours any more.
    pub(crate) fn lost(&self, id: GrantId, reason: LostReason) {
        self.book().lost(id, reason);
    }

    /// Let the task end. Nobody holds anything any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    async fn work(self: Arc<Self>) {
        let mut rounds = JoinSet::new();
        while !self.closed.load(Ordering::Acquire) {
            let nap = {
                let (mut book, now) = (self.book(), clock::now());
                let mut due = book.due(now);
                while !due.is_empty() {
                    let rest = due.split_off(due.len().min(LARGEST_ROUND));
                    let round = std::mem::replace(&mut due, rest);
                    let patience = book.patience(&round);
                    rounds.spawn(Arc::clone(&self).round(round, patience));
                }
                book.agenda
                    .first()
                    .map(|(at, _)| at.saturating_sub(now).min(LONGEST_NAP))
            };
            tokio::select! {
                () = self.changed.notified() => {}
                Some(_) = rounds.join_next() => {}
                () = tokio::time::sleep(nap.unwrap_or_default()), if nap.is_some() => {}
            }
        }
    }

    /// Send one round of renewals and pass on what came of it.
    async fn round(self: Arc<Self>, round: Vec<(Grant, Ttl)>, patience: Duration) {
        let sent = clock::now();
        let answers = self.store.renew(&round, patience).await;
        let mut book = self.book();
        match answers {
            Ok(answers) => {
                for ((grant, _), answer) in round.iter().zip(answers) {
                    match answer {
                        Renewal::Renewed => book.answered(grant.id, sent, Answer::Renewed),
                        Renewal::Busy => book.answered(grant.id, sent, Answer::Busy),
                        Renewal::Lost(reason) => book.lost(grant.id, reason),
                    }
                }
            }
            Err(error) => {
                match error {
                    StoreError::Contention(_) => tracing::debug!("renewal met contention: {error}"),
                    _ => tracing::warn!("renewal failed, trying again: {error}"),
                }
                for (grant, _) in &round {
                    book.answered(grant.id, sent, Answer::Unknown);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::LockName;
    use crate::timing::Renewing;
    use crate::token::Token;

    fn book_of(n: u64) -> (Book, Time) {
        let (mut book, start) = (Book::default(), Duration::from_secs(1000));
        let ttl = Duration::from_secs(30);
        let timing = Timing::new(ttl.into(), Renewing::ByDefault, None).unwrap();
        for i in 0..n {
            let grant = Grant {
                name: LockName::new(format!("job {i}")).unwrap(),
                token: Token::from_db(1),
                id: GrantId::random().unwrap(),
                holder: "me".into(),
            };
            let sent = start + Duration::from_millis(i);
            let lease = Lease::granted(timing, sent, ttl);
            let held = Held::new(grant, &lease);
            book.add(lease, held, sent);
        }
        (book, start)
    }

    #[test]
    fn locks_taken_one_after_another_are_renewed_together() {
        let (mut book, start) = book_of(3_000);
        assert!(book.due(start + Duration::from_secs(9)).is_empty());
        assert_eq!(book.due(start + Duration::from_secs(10)).len(), 3_000);
    }

    #[test]
    fn a_lost_lease_leaves_the_book_and_tells_its_holder() {
        let (mut book, start) = book_of(1);
        let held = Arc::clone(&book.entries.values().next().unwrap().held);
        assert!(book.due(start + Duration::from_secs(40)).is_empty());
        assert_eq!(held.status(), Status::Lost(LostReason::Expired));
        assert!(book.entries.is_empty() && book.agenda.is_empty());
    }
}
