//! The scheduler: one task renews every lease that was taken through one [`Locks`](crate::Locks).
//!
//! It sleeps until something is due and calls the store; what is to be done it asks [`Lease`]. A
//! renewal runs in a task of its own, so that one that hangs delays neither a loss nor the renewal of
//! another lease. What is due, or soon will be, goes out as one statement; a lease that was refused
//! alone goes out apart from the others until it is renewed again.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::client::renewal::grant_state::{Confirmed, Held, Trouble};
use crate::client::renewal::lease_events::News;
use crate::client::renewal::outage::{Outage, Reconnects};
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::store::measured::Observed;
use protocol::{
    Answer, BootInstant, Gone, Grant, GrantId, Lease, LockName, LostReason, Next, Timing, Ttl,
};

pub(crate) mod grant_state;
pub(crate) mod lease_events;
pub(crate) mod listeners;
pub(crate) mod outage;
mod round;
mod split;

/// The most leases that one statement renews. More would make a statement of some hundred
/// milliseconds, behind which every acquire on the connection waits.
const LARGEST_ROUND: usize = 5_000;

/// The longest that the task sleeps while it keeps a lease: that far a sleep may go on for nothing once the
/// leases it was meant for are gone.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How long before a renewal is due its connection is made, where there is none: longer than that takes
/// where it succeeds at all.
const CONNECT_AHEAD: Duration = Duration::from_secs(4);

/// What one statement renews.
type Round = Vec<(Grant, Ttl)>;

#[derive(Debug)]
struct Entry {
    lease: Lease,
    held: Arc<Held>,
    /// When it stands in the agenda.
    at: BootInstant,
    /// Refused while others were renewed: it would have the round of others refused.
    apart: bool,
    /// When the first of its latest renewals that failed was answered.
    failing_since: Option<BootInstant>,
}

impl Entry {
    fn renewing(&mut self) -> (Grant, Ttl) {
        self.held.renewing();
        (self.held.grant.clone(), self.lease.renewing())
    }
}

#[derive(Debug, Default)]
struct Book {
    entries: HashMap<GrantId, Entry>,
    agenda: BTreeSet<(BootInstant, GrantId)>,
    /// Until when the task sleeps, whatever becomes of the leases; none: until it is woken.
    sleeps_until: Option<BootInstant>,
    outage: Outage,
    reconnects: Reconnects,
}

/// When something is to be done about a lease.
fn due_at(lease: &Lease, now: BootInstant) -> BootInstant {
    match lease.next(now) {
        Next::Wait(until) => until,
        Next::Renew | Next::Lost(_) => now,
    }
}

/// What is due to be renewed.
#[derive(Debug, Default)]
struct Due {
    together: Round,
    apart: Round,
}

impl Book {
    fn add(&mut self, lease: Lease, held: Arc<Held>, now: BootInstant) {
        let (id, at) = (held.grant.id, due_at(&lease, now));
        self.entries.insert(
            id,
            Entry {
                lease,
                held,
                at,
                apart: false,
                failing_since: None,
            },
        );
        self.agenda.insert((at, id));
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
    fn plan(&mut self, id: GrantId, now: BootInstant) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.agenda.remove(&(entry.at, id));
        entry.at = due_at(&entry.lease, now);
        self.agenda.insert((entry.at, id));
    }

    /// Let the task sleep until something is due; none: until it is woken.
    fn sleep(&mut self, now: BootInstant) -> Option<BootInstant> {
        let first = self.agenda.first().map(|(at, _)| *at);
        self.sleeps_until = first.map(|at| {
            let ahead = Some(at - CONNECT_AHEAD).filter(|ahead| *ahead > now);
            ahead.unwrap_or(at).min(now + LONGEST_SLEEP)
        });
        self.sleeps_until
    }

    /// Whether the connection that renewals go out on had better be there.
    fn renews_soon(&self, now: BootInstant) -> bool {
        let soon = now + CONNECT_AHEAD;
        self.agenda.first().is_some_and(|(at, _)| *at <= soon)
    }

    /// Whether the task would come too late for what is due first. A sleep that should be over by now counts
    /// for nothing: the machine was suspended meanwhile.
    fn oversleeps(&self, now: BootInstant) -> bool {
        let in_time = |at| {
            self.sleeps_until
                .is_some_and(|until| (now..=at).contains(&until))
        };
        self.agenda.first().is_some_and(|(at, _)| !in_time(*at))
    }

    /// What is due to be renewed.
    fn due(&mut self, now: BootInstant, news: &mut News) -> Due {
        let mut due = Due::default();
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
                    self.lost(id, reason.into(), news);
                    continue;
                }
                Next::Renew => match entry.apart {
                    true => due.apart.push(entry.renewing()),
                    false => due.together.push(entry.renewing()),
                },
                Next::Wait(_) => {}
            }
            self.plan(id, now);
        }
        if !due.together.is_empty() {
            let early: Vec<GrantId> = self
                .entries
                .iter()
                .filter(|(_, entry)| !entry.apart && entry.lease.may_come_along(now))
                .map(|(id, _)| *id)
                .collect();
            for id in early {
                if let Some(entry) = self.entries.get_mut(&id) {
                    due.together.push(entry.renewing());
                }
                self.plan(id, now);
            }
        }
        due
    }

    /// What came of a renewal that did not lose the lease; why, where it did not renew it.
    fn answered(
        &mut self,
        id: GrantId,
        sent: BootInstant,
        (answer, trouble): (Answer, Option<Trouble>),
        news: &mut News,
    ) {
        let now = clock::now();
        // Released meanwhile: nothing to be confirmed any more.
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if answer == Answer::Renewed {
            entry.failing_since = None;
            if std::mem::take(&mut entry.apart) {
                news.renewed_again.push(Arc::clone(&entry.held));
            }
        } else {
            entry.failing_since.get_or_insert(now);
        }
        entry.held.answered(trouble);
        entry.lease.answered(sent, answer, now);
        if let Next::Lost(_) = entry.lease.next(now) {
            // Told in its turn, which is now.
            self.plan(id, now);
        } else {
            self.confirm(id, now, news);
        }
    }

    /// Let its holder trust it for as long as its lease says.
    fn confirm(&mut self, id: GrantId, now: BootInstant, news: &mut News) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        match entry.held.confirm(&entry.lease) {
            Confirmed::TooLate => return self.lost(id, LostReason::Expired.into(), news),
            Confirmed::News => news.confirmed.push(Arc::clone(&entry.held)),
            Confirmed::AsBefore => {}
        }
        self.plan(id, now);
    }

    fn lost(&mut self, id: GrantId, gone: Gone, news: &mut News) {
        if let Some(entry) = self.remove(id)
            && let Some(loss) = entry.held.mark_lost(gone)
        {
            news.lost.push((entry.held, loss));
        }
    }

    /// Of a round that goes out behind so many others.
    fn patience(&self, round: &[(Grant, Ttl)], behind: u32) -> Duration {
        let of = |grant: &Grant| {
            self.entries
                .get(&grant.id)
                .map(|entry| entry.lease.patience(behind))
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
    /// Start the task.
    pub(crate) fn start(store: Observed) -> Result<Arc<Self>, Error> {
        let scheduler = Arc::new(Self {
            store,
            book: Mutex::default(),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
        });
        runtime::spawn(Arc::clone(&scheduler).work())?;
        Ok(scheduler)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep this lease alive from now on.
    pub(crate) fn add(&self, lease: Lease, held: Arc<Held>) {
        let (mut book, now) = (self.book(), clock::now());
        book.add(lease, held, now);
        self.close_book(book, now, News::default());
    }

    /// Close the book, wake the task where it would oversleep what was planned, and tell.
    fn close_book(&self, book: MutexGuard<'_, Book>, now: BootInstant, news: News) {
        let wake = book.oversleeps(now);
        drop(book);
        if wake {
            self.changed.notify_one();
        }
        news.tell();
    }

    /// Renew it no more. What was sent before and arrives late finds its grant id gone.
    pub(crate) fn remove(&self, id: GrantId) {
        let removed = self.book().remove(id);
        // With the book closed: it may be the last of its grant, and drop what is not ours.
        drop(removed);
    }

    /// Stop renewing everything; what was held.
    pub(crate) fn take_all(&self) -> Vec<Arc<Held>> {
        let mut book = self.book();
        let ids: Vec<GrantId> = book.entries.keys().copied().collect();
        ids.into_iter()
            .filter_map(|id| book.remove(id).map(|entry| entry.held))
            .collect()
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
    pub(crate) fn with(
        &self,
        id: GrantId,
        what: impl FnOnce(&mut Lease, BootInstant) -> bool,
    ) -> bool {
        let mut news = News::default();
        let (mut book, now) = (self.book(), clock::now());
        let Some(entry) = book.entries.get_mut(&id) else {
            return false;
        };
        let done = what(&mut entry.lease, now);
        book.confirm(id, now, &mut news);
        self.close_book(book, now, news);
        done
    }

    /// Renew the leases of that lock at once: they may have been released by force.
    pub(crate) fn check_soon(&self, name: &LockName) {
        let (mut book, now) = (self.book(), clock::now());
        let named = book.entries.iter_mut();
        let named = named.filter(|(_, entry)| entry.held.grant.name == *name);
        let ids: Vec<GrantId> = named
            .map(|(id, entry)| {
                entry.lease.check(now);
                *id
            })
            .collect();
        for id in ids {
            book.plan(id, now);
        }
        self.close_book(book, now, News::default());
    }

    /// The database said that it is not ours any more.
    pub(crate) fn lost(&self, id: GrantId, gone: Gone) {
        let mut news = News::default();
        self.book().lost(id, gone, &mut news);
        news.tell();
    }

    /// Let the task end. Nobody holds anything any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    async fn work(self: Arc<Self>) {
        let mut rounds = JoinSet::new();
        while !self.closed.load(Ordering::Acquire) {
            let mut news = News::default();
            let (until, soon) = {
                let (mut book, now) = (self.book(), clock::now());
                let Due { together, apart } = book.due(now, &mut news);
                let mut behind = 0;
                for mut due in [together, apart] {
                    while !due.is_empty() {
                        let rest = due.split_off(due.len().min(LARGEST_ROUND));
                        let round = std::mem::replace(&mut due, rest);
                        let patience = book.patience(&round, behind);
                        rounds.spawn(Arc::clone(&self).round(round, patience));
                        behind += 1;
                    }
                }
                (book.sleep(now), book.renews_soon(now))
            };
            news.tell();
            if soon {
                self.store.prepare_to_renew();
            }
            tokio::select! {
                () = self.changed.notified() => {}
                Some(_) = rounds.join_next() => {}
                () = clock::sleep_until(until.unwrap_or_default()), if until.is_some() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::grant_id::random_grant_id;
    use crate::client::renewal::grant_state::Status;
    use crate::store::api::StoreError;
    use protocol::Renewing;
    use protocol::Token;

    fn book_of(n: u64) -> (Book, BootInstant) {
        let (mut book, start) = (Book::default(), clock::now());
        for i in 0..n {
            let sent = start + Duration::from_millis(i);
            let (held, lease) = held_for(Duration::from_secs(30), sent);
            book.add(lease, held, sent);
        }
        (book, start)
    }

    /// Takes a lease of that ttl; whether the task has to be woken for it.
    fn wakes(book: &mut Book, ttl: Duration, now: BootInstant) -> (bool, GrantId) {
        let (held, lease) = held_for(ttl, now);
        let id = held.grant.id;
        book.add(lease, held, now);
        (book.oversleeps(now), id)
    }

    #[test]
    fn cycles_of_acquire_and_release_wake_the_task_once_in_six_seconds() {
        let (mut book, start) = (Book::default(), clock::now());
        let (mut woken, mut until) = (0, None);
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            if until.is_some_and(|until| until <= now) {
                assert!(book.due(now, &mut News::default()).together.is_empty());
                until = book.sleep(now);
            }
            let (wake, id) = wakes(&mut book, Duration::from_secs(30), now);
            if wake {
                woken += 1;
                until = book.sleep(now);
            }
            book.remove(id);
            assert!(!book.oversleeps(now), "woken by a release");
        }
        assert_eq!(woken, 10);
        // After the last release it sleeps on until it is woken.
        let end = start + Duration::from_secs(70);
        book.due(end, &mut News::default());
        assert_eq!(book.sleep(end), None);
    }

    #[test]
    fn what_is_due_before_the_task_would_look_wakes_it() {
        let (mut book, start) = (Book::default(), clock::now());
        let secs = Duration::from_secs;
        assert!(wakes(&mut book, secs(30), start).0, "it sleeps for good");
        assert_eq!(book.sleep(start), Some(start + secs(10) - CONNECT_AHEAD));
        assert!(!wakes(&mut book, secs(30), start + secs(5)).0);
        assert!(!wakes(&mut book, secs(300), start + secs(5)).0);
        assert!(!wakes(&mut book, secs(6), start + secs(5)).0, "due later");
        let (wake, id) = wakes(&mut book, secs(6), start + secs(1));
        assert!(wake, "due earlier");
        book.remove(id);
        // An extension, or a check.
        let now = start + secs(2);
        let id = *book.entries.keys().next().unwrap();
        book.entries.get_mut(&id).unwrap().lease.check(now);
        book.plan(id, now);
        assert!(book.oversleeps(now));
        book.remove(id);
        assert!(!book.oversleeps(now));
        // The machine was suspended, and the task sleeps on for a moment.
        assert!(wakes(&mut book, secs(30), start + secs(60)).0);
    }

    #[test]
    fn a_lease_that_is_due_late_has_the_task_look_now_and_then() {
        let (mut book, start) = (Book::default(), clock::now());
        wakes(&mut book, Duration::from_secs(3_600), start);
        assert_eq!(book.sleep(start), Some(start + LONGEST_SLEEP));
    }

    #[test]
    fn locks_taken_one_after_another_are_renewed_together() {
        let (mut book, start) = book_of(3_000);
        let mut due = |secs| book.due(start + Duration::from_secs(secs), &mut News::default());
        assert!(due(9).together.is_empty());
        assert_eq!(due(10).together.len(), 3_000);
    }

    #[test]
    fn a_lease_that_was_refused_alone_goes_out_apart_until_it_is_renewed() {
        let (mut book, start) = book_of(100);
        let at = |secs| start + Duration::from_secs(secs);
        let id = *book.entries.keys().next().unwrap();
        book.entries.get_mut(&id).unwrap().apart = true;
        let mut news = News::default();
        let due = book.due(at(11), &mut news);
        assert_eq!((due.together.len(), due.apart.len()), (99, 1));
        assert_eq!(due.apart[0].0.id, id);
        book.answered(id, at(11), (Answer::Renewed, None), &mut news);
        assert!(!book.entries[&id].apart);
        assert_eq!(news.renewed_again.len(), 1);
    }

    #[test]
    fn a_loss_names_the_latest_failure_whoever_finds_it() {
        for asked in [false, true] {
            let (mut book, _) = book_of(0);
            let (held, lease) = nearly_over(clock::now() + Duration::from_millis(1));
            let id = held.grant.id;
            book.add(lease, Arc::clone(&held), clock::now());
            book.entries.get_mut(&id).unwrap().renewing();
            let trouble = Trouble {
                reason: LostReason::Refused,
                said: "permission denied".into(),
            };
            held.answered(Some(trouble));
            let loss = match asked {
                true => held.lose(LostReason::Expired),
                false => held.mark_lost(LostReason::Refused.into()).unwrap(),
            };
            assert_eq!(loss.reason(), LostReason::Refused);
            assert_eq!(loss.last_answer(), Some("permission denied"));
        }
    }

    /// Held until `until`, and the lease of a renewal that confirms it for long.
    fn nearly_over(until: BootInstant) -> (Arc<Held>, Lease) {
        let (held, lease) = held_for(Duration::from_secs(30), clock::now());
        held.trust_until(until);
        (held, lease)
    }

    /// A grant that was asked for at `sent`.
    fn held_for(ttl: Duration, sent: BootInstant) -> (Arc<Held>, Lease) {
        let timing = Timing::new(ttl.into(), Renewing::ByDefault, None).unwrap();
        let grant = Grant {
            name: LockName::new("job").unwrap(),
            token: Token::from_db(1),
            id: random_grant_id().unwrap(),
            holder: "me".into(),
        };
        let lease = Lease::granted(timing, sent, ttl);
        (Held::new("memory", grant, &lease), lease)
    }

    #[test]
    fn a_confirmation_that_comes_late_takes_back_no_answer() {
        let (held, lease) = nearly_over(clock::now());
        assert!(held.trusted_for().is_zero());
        assert!(matches!(held.confirm(&lease), Confirmed::TooLate));
        assert!(held.trusted_for().is_zero(), "held again");

        // Nobody has asked: nobody is deceived.
        let (held, lease) = nearly_over(clock::now());
        assert!(!matches!(held.confirm(&lease), Confirmed::TooLate));
        assert!(!held.trusted_for().is_zero());
    }

    /// A process that was frozen: whoever asks first, it is the end of trust that counts.
    #[test]
    fn a_loss_counts_from_the_end_of_trust() {
        let ago = Duration::from_secs(5);
        for asked in [false, true] {
            let (held, _) = nearly_over(clock::now() - ago);
            if asked {
                assert!(held.trusted_for().is_zero());
            }
            let loss = held.lose(LostReason::Expired);
            assert!(loss.elapsed() >= ago, "{loss}");
            assert!(loss.elapsed() < ago * 10, "{loss}");
            // The first reason counts.
            assert_eq!(held.lose(LostReason::Forced), loss);
        }
    }

    #[test]
    fn who_is_confirmed_too_late_is_lost() {
        let (mut book, _) = book_of(0);
        let (held, lease) = nearly_over(clock::now());
        let (id, now) = (held.grant.id, clock::now());
        book.add(lease, Arc::clone(&held), now);
        assert!(held.trusted_for().is_zero());
        book.entries.get_mut(&id).unwrap().lease.renewing();
        let mut news = News::default();
        book.answered(id, now, (Answer::Renewed, None), &mut news);
        assert!(
            matches!(held.status(), Status::Lost(loss) if loss.reason() == LostReason::Expired)
        );
        assert_eq!(news.lost.len(), 1);
        assert!(book.entries.is_empty());
        news.tell();
    }

    #[test]
    fn a_failure_is_not_told_of_a_lease_that_is_lost() {
        let fails = |book: &mut Book, held: &Held| {
            let mut news = News::default();
            let failed = round::Failed {
                part: vec![(held.grant.clone(), Ttl::Infinite)],
                sent: clock::now(),
                error: StoreError::rejected("permission denied", None),
            };
            book.failing(&failed, &mut news);
            news
        };
        let (mut book, _) = book_of(1);
        let held = Arc::clone(&book.entries.values().next().unwrap().held);
        let told = fails(&mut book, &held).failing.expect("told");
        assert_eq!(told.held().count(), 1);
        let mut news = News::default();
        book.lost(held.grant.id, LostReason::Refused.into(), &mut news);
        news.tell();
        // Lost after it failed, and failed after it was lost.
        assert_eq!(told.held().count(), 0);
        assert!(fails(&mut book, &held).failing.is_none());
    }

    #[test]
    fn once_false_stays_false_while_many_ask() {
        for round in 0..400 {
            let (held, lease) = nearly_over(clock::now() + Duration::from_micros(100));
            let start = std::sync::Barrier::new(3);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        start.wait();
                        let mut over = false;
                        for _ in 0..2_000 {
                            let now_over = held.trusted_for().is_zero();
                            assert!(now_over || !over, "held again, in round {round}");
                            over = now_over;
                        }
                    });
                }
                start.wait();
                let at = clock::now() + Duration::from_micros(round % 100);
                while clock::now() < at {}
                held.confirm(&lease);
            });
        }
    }

    #[test]
    fn a_lost_lease_leaves_the_book_and_tells_its_holder() {
        let (mut book, start) = book_of(1);
        let held = Arc::clone(&book.entries.values().next().unwrap().held);
        let mut news = News::default();
        assert!(
            book.due(start + Duration::from_secs(40), &mut news)
                .together
                .is_empty()
        );
        assert!(
            matches!(held.status(), Status::Lost(loss) if loss.reason() == LostReason::Expired)
        );
        news.tell();
        assert!(book.entries.is_empty() && book.agenda.is_empty());
    }
}
