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
use crate::error::{Human, LostReason};
use crate::lease::{Answer, Lease, Next};
use crate::metrics::{self, Engine};
use crate::store::{Grant, Observed, Renewal, StoreError};
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
    engine: Engine,
    since: Time,
    /// Boot-time clock in nanoseconds. An atomic, and not a lock that the scheduler might hold:
    /// "do I still have it?" must be answered at once, whatever else goes on.
    trusted_until: AtomicU64,
    /// Whether the end of trust does not lose it, because of a fence. Set while it is trusted, and
    /// cleared after trust was renewed: so read it before asking for trust.
    outlives_trust: AtomicBool,
    status: watch::Sender<Status>,
}

/// Milliseconds, for a field of a log line.
pub(crate) fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

fn nanos(t: Time) -> u64 {
    u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)
}

impl Held {
    pub(crate) fn new(engine: Engine, grant: Grant, lease: &Lease) -> Arc<Self> {
        metrics::held(engine);
        Arc::new(Self {
            grant,
            engine,
            since: clock::now(),
            trusted_until: AtomicU64::new(nanos(lease.trusted_until())),
            outlives_trust: AtomicBool::new(false),
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

    /// Whether, trusted or not, it is not lost as long as nobody says so: a fence is open that no
    /// renewal gets past, or what came of that is not known yet.
    pub(crate) fn outlives_trust(&self) -> bool {
        self.outlives_trust.load(Ordering::Acquire)
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
            metrics::lost(self.engine, reason);
            metrics::ended(self.engine, self.held_for());
            let Grant {
                name,
                token,
                holder,
                ..
            } = &self.grant;
            tracing::warn!(
                lock.name = name.as_str(),
                lock.token = token.get(),
                lock.holder = &**holder,
                lock.held_ms = ms(self.held_for()),
                reason = reason.word(),
                "lock lost: {reason}"
            );
        }
    }

    /// Since it was granted to us.
    pub(crate) fn held_for(&self) -> Duration {
        clock::now().saturating_sub(self.since)
    }

    pub(crate) fn released(&self) {
        let newly = self.status.send_if_modified(|status| {
            let held = matches!(status, Status::Held(_));
            if held {
                *status = Status::Released;
            }
            held
        });
        if newly {
            metrics::ended(self.engine, self.held_for());
        }
    }

    fn confirm(&self, lease: &Lease) {
        self.trusted_until
            .store(nanos(lease.trusted_until()), Ordering::Release);
        self.outlives_trust
            .store(lease.outlives_trust(), Ordering::Release);
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

/// How long contention may keep renewals from getting through before that is worth a warning: what
/// passes by itself within a second or so is everyday business.
const ORDINARY_CONTENTION: Duration = Duration::from_secs(1);

/// Whether renewals get through, so that it is told once when they no longer do, and not with each
/// try, of which there are many.
#[derive(Debug, Default)]
struct Outage {
    /// When the first that failed was sent.
    since: Option<Time>,
    told: bool,
    /// When the latest that got through was sent.
    good: Time,
}

impl Outage {
    /// A round that was sent at `sent` failed; whether that is to be told now.
    fn failed(&mut self, sent: Time, now: Time, contention: bool) -> bool {
        // It hung while a later one got through.
        if sent < self.good || self.told {
            return false;
        }
        let since = *self.since.get_or_insert(sent);
        self.told = !contention || now.saturating_sub(since) >= ORDINARY_CONTENTION;
        self.told
    }

    /// One got through; if that ends an outage that was told, how long it was.
    fn over(&mut self, sent: Time, now: Time) -> Option<Duration> {
        self.good = self.good.max(sent);
        let since = self.since.take_if(|since| *since <= sent)?;
        std::mem::take(&mut self.told).then(|| now.saturating_sub(since))
    }
}

#[derive(Debug, Default)]
struct Book {
    entries: HashMap<GrantId, Entry>,
    agenda: BTreeSet<(Time, GrantId)>,
    outage: Outage,
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
        if self.entries.is_empty() {
            // Nothing is renewed any more, so nothing will say when it is over.
            self.outage = Outage::default();
        }
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
        if answer == Answer::Busy && !entry.lease.is_failing() {
            let Grant {
                name,
                token,
                holder,
                ..
            } = &entry.held.grant;
            tracing::debug!(
                lock.name = name.as_str(),
                lock.token = token.get(),
                lock.holder = &**holder,
                "not renewed, trying again: somebody has its row locked"
            );
        }
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
    store: Observed,
    book: Mutex<Book>,
    changed: Notify,
    closed: AtomicBool,
}

impl Scheduler {
    /// Start the task on that runtime.
    pub(crate) fn start(store: Observed, runtime: &Handle) -> Arc<Self> {
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
        self.with(id, |lease, now| {
            lease.extend(timing, now);
            true
        });
    }

    /// Do something to a lease that is still kept alive; whether there is such a one.
    pub(crate) fn with(&self, id: GrantId, what: impl FnOnce(&mut Lease, Time) -> bool) -> bool {
        let (mut book, now) = (self.book(), clock::now());
        let Some(entry) = book.entries.get_mut(&id) else {
            return false;
        };
        let done = what(&mut entry.lease, now);
        entry.held.confirm(&entry.lease);
        book.plan(id, now);
        drop(book);
        self.changed.notify_one();
        done
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
        let engine = self.store.engine();
        let count = |result, n| metrics::renewals(engine, result, n);
        let (mut book, now) = (self.book(), clock::now());
        match answers {
            Ok(answers) => {
                if let Some(outage) = book.outage.over(sent, now) {
                    tracing::info!(
                        outage_ms = ms(outage),
                        "renewals get through again, after {}",
                        Human(outage)
                    );
                }
                for ((grant, _), answer) in round.iter().zip(answers) {
                    match answer {
                        Renewal::Renewed => {
                            count("renewed", 1);
                            book.answered(grant.id, sent, Answer::Renewed);
                        }
                        Renewal::Busy => {
                            count("busy", 1);
                            book.answered(grant.id, sent, Answer::Busy);
                        }
                        Renewal::Lost(reason) => {
                            count("lost", 1);
                            book.lost(grant.id, reason);
                        }
                    }
                }
            }
            Err(error) => {
                count("unknown", round.len());
                let contention = matches!(error, StoreError::Contention(_));
                if book.outage.failed(sent, now, contention) {
                    let (first, _) = &round[0];
                    tracing::warn!(
                        lock.name = first.name.as_str(),
                        lock.token = first.token.get(),
                        lock.holder = &*first.holder,
                        locks = round.len(),
                        "renewals fail, trying again until the leases end: {error}"
                    );
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
            let held = Held::new("memory", grant, &lease);
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
    fn an_outage_is_told_once_and_its_end_too() {
        let (mut outage, at) = (Outage::default(), Duration::from_secs);
        assert!(outage.failed(at(10), at(11), false));
        assert!(!outage.failed(at(12), at(13), false), "told already");
        assert_eq!(outage.over(at(9), at(14)), None, "sent before it began");
        assert_eq!(outage.over(at(14), at(15)), Some(at(5)));
        assert!(!outage.failed(at(13), at(18), false), "had hung since then");
        assert_eq!(outage.over(at(19), at(19)), None);
        assert!(outage.failed(at(20), at(20), false), "the next one");
    }

    #[test]
    fn contention_is_told_only_when_it_lasts() {
        let (mut outage, ms) = (Outage::default(), Duration::from_millis);
        assert!(!outage.failed(ms(100), ms(150), true));
        assert_eq!(outage.over(ms(200), ms(210)), None, "nobody was told");
        assert!(!outage.failed(ms(300), ms(350), true));
        assert!(outage.failed(ms(1400), ms(1410), true));
        assert!(outage.over(ms(1500), ms(1510)).is_some());
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
