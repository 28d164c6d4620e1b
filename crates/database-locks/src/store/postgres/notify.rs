//! Notifications: LISTEN and NOTIFY, which wake a waiter when a lock is released.
//!
//! A waiter listens, and writes into the row until when it waits. The client that frees the row
//! sees that in the row it has just changed, and notifies: `NOTIFY` on the one channel of the
//! table, with the name as its payload. Without waiters there is no NOTIFY, since the server runs
//! notifying commits one at a time.
//!
//! A release by force and a take-over notify as well, for the holder that loses the lock. So a
//! process also listens while it holds a lease that is renewed rarely. Its scheduler then renews,
//! and the answer decides; see [`Store::on_notified`](crate::store::Store::on_notified).
//!
//! A notification may be lost, so each waiter also polls, slowly.
//!
//! A pooler in transaction mode runs LISTEN like any other statement, on one of its connections,
//! and notifications go to the client that uses that connection next. So LISTEN is sent only on a
//! connection that is known to lead to one backend. Otherwise waiters poll.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::connection::events::Events;
use super::connection::manager::ConnectionManager;
use super::connection::session::Session;
use super::expiring_map::ExpiringMap;
use super::statements::wait::{wait, wait_for_permit};
use crate::runtime;
use crate::runtime::clock;
use crate::store::api::{Notice, NoticeHandler};
use crate::store::connect::table::Table;
use crate::store::postgres::error::ServerError;
use protocol::{AcquireCommand, Grant, GrantId, LockName, Outcome, Renewal, Ttl};

/// The least time for which a waiter announces itself; or twice the pause until its next poll. For
/// this time after the last waiter has gone, releases notify in vain.
const ANNOUNCED_FOR: Duration = Duration::from_secs(10);
/// The longest pause that is announced.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// The deadline of an announcement.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);
/// The deadline of a LISTEN.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(12);

/// A lease that is longer than this is by default renewed less often than every 5 s, so the process
/// listens. The holder of a shorter one learns of a release by force from its next renewal.
const LONG_LEASE: Duration = Duration::from_secs(15);
/// How long a long lease has been held before the process listens for it. One that ends sooner does
/// not justify the round trips of a LISTEN.
const LISTEN_AFTER: Duration = Duration::from_millis(500);
/// For how long an infinite lease counts as held unless it is renewed or released.
const DAY: Duration = Duration::from_secs(86_400);

/// The number of the table, for the name of the channel.
const TABLE_NUMBER: &str = "SELECT to_regclass('{table}')::oid::bigint AS number";

/// The notifications of one store.
#[derive(Clone)]
pub(crate) struct Listener(Arc<Shared>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

struct Shared {
    /// The background connection, which listens.
    background: ConnectionManager,
    events: Arc<Events>,
    /// [`TABLE_NUMBER`], with the name of the table.
    table_number: String,
    long: Mutex<LongLeases>,
    /// Whether a long lease has ever been held. If not, there is none to remove.
    had_long_lease: AtomicBool,
}

/// The long leases, including those that were handed over, until they end.
#[derive(Default)]
struct LongLeases {
    leases: ExpiringMap<GrantId>,
    /// Whether a task is about to listen for them.
    listen_scheduled: bool,
}

impl Shared {
    fn long(&self) -> MutexGuard<'_, LongLeases> {
        self.long.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process listens on this connection. If it can but does not yet, a task sends
    /// LISTEN, once.
    fn listens(self: &Arc<Self>, session: Arc<Session>) -> bool {
        let listens = session.listens.load(Ordering::Relaxed);
        if session.backend.is_some() && !session.asked_to_listen.swap(true, Ordering::Relaxed) {
            tokio::spawn(start_listening(Arc::downgrade(self), session));
        }
        listens
    }
}

impl Listener {
    pub(crate) fn new(background: &ConnectionManager, table: &Table) -> Self {
        Self(Arc::new(Shared {
            background: background.clone(),
            events: background.events(),
            table_number: table.fill(TABLE_NUMBER),
            long: Mutex::default(),
            had_long_lease: AtomicBool::new(false),
        }))
    }

    /// Set the receiver of notifications. The first call counts.
    pub(crate) fn on_notified(&self, handler: NoticeHandler) {
        self.0.events.on_notified(handler);
    }

    /// See [`Store::announce`](crate::store::Store::announce).
    pub(crate) async fn announce(
        &self,
        name: &LockName,
        limit: Option<u32>,
        pause: Duration,
        anew: bool,
    ) -> bool {
        let Shared {
            background, events, ..
        } = &*self.0;
        let listens = |session| self.0.listens(session);
        if !background.current().is_some_and(listens) {
            return false;
        }
        // The pause of a wait that ends before the next poll is unlimited.
        let pause = pause.min(LONGEST_PAUSE);
        let now = clock::now();
        let of_lock = limit.is_none();
        let known = events.announced().of.get(name).copied();
        if of_lock && !anew && known.is_some_and(|until| until > now + pause) {
            return true;
        }
        let ahead = ANNOUNCED_FOR.max(pause * 2);
        let announced = background.run(ANNOUNCE_TIMEOUT, async |session| match limit {
            None => wait(&session, name, ahead).await,
            Some(limit) => wait_for_permit(&session, name, limit, ahead).await,
        });
        let announced = announced.await.unwrap_or_else(|error| {
            let name = name.as_str();
            tracing::debug!(
                lock.name = name,
                "cannot announce that clients wait: {error}"
            );
            false
        });
        if announced && of_lock {
            events.announced().set(name.clone(), now + ahead, now);
        }
        announced
    }

    /// This store has just taken the lock from its holder, which may be in this process.
    pub(crate) fn released(&self, name: &LockName) {
        self.0.events.notify(Notice::Released(name, None));
    }

    /// Record these grants.
    pub(crate) fn granted(&self, commands: &[AcquireCommand], outcomes: &[Outcome]) {
        let granted = commands.iter().zip(outcomes);
        let granted = granted.filter_map(|(command, outcome)| match outcome {
            Outcome::Granted { length, .. } => Some((command.grant, Ttl::Finite(*length))),
            Outcome::Held(_) | Outcome::TooRecent(_) | Outcome::Busy => None,
        });
        self.holds(granted);
    }

    /// Record renewals and losses.
    pub(crate) fn renewed(&self, grants: &[(Grant, Ttl)], renewals: &[Renewal]) {
        let lost = |(_, renewal): &(_, &Renewal)| matches!(renewal, Renewal::Lost(_));
        let (gone, held): (Vec<_>, Vec<_>) = grants.iter().zip(renewals).partition(lost);
        self.holds(held.iter().map(|((grant, ttl), _)| (grant.id, *ttl)));
        self.forget(gone.iter().map(|((grant, _), _)| &grant.id));
    }

    /// Record leases that were granted or renewed, and listen if there are long ones.
    pub(crate) fn holds(&self, leases: impl Iterator<Item = (GrantId, Ttl)>) {
        let now = clock::now();
        let mut long = leases
            .filter_map(|(id, ttl)| match ttl {
                Ttl::Finite(length) if length <= LONG_LEASE => None,
                Ttl::Finite(length) => Some((id, now + length)),
                Ttl::Infinite => Some((id, now + DAY)),
            })
            .peekable();
        if long.peek().is_none() {
            return;
        }
        self.0.had_long_lease.store(true, Ordering::Relaxed);
        let mut state = self.0.long();
        for (id, until) in long {
            state.leases.set(id, until, now);
        }
        let could_listen = |session: &Arc<Session>| {
            session.backend.is_some() && !session.asked_to_listen.load(Ordering::Relaxed)
        };
        if let Some(session) = self.0.background.current().filter(could_listen)
            && !std::mem::replace(&mut state.listen_scheduled, true)
        {
            // Not on the runtime of a caller, since the background connection listens.
            let _ = runtime::spawn(listen_soon(
                Arc::downgrade(&self.0),
                Arc::downgrade(&session),
            ));
        }
    }

    /// Record that these grants are no longer held.
    pub(crate) fn forget<'a>(&self, grants: impl Iterator<Item = &'a GrantId>) {
        if self.0.had_long_lease.load(Ordering::Relaxed) {
            let leases = &mut self.0.long().leases.of;
            for id in grants {
                leases.remove(id);
            }
        }
    }
}

/// Listen once one of the leases has been held for a while, unless all have ended before.
async fn listen_soon(shared: Weak<Shared>, session: Weak<Session>) {
    let mut before: Vec<GrantId> = Vec::new();
    loop {
        if let Some(listener) = shared.upgrade() {
            let mut state = listener.long();
            let ended = state.leases.is_past(clock::now());
            let settled = before.iter().any(|id| state.leases.of.contains_key(id));
            if ended || settled {
                state.listen_scheduled = false;
                drop(state);
                // If the connection has ended, the next renewal, on another one, listens.
                if let Some(session) = session
                    .upgrade()
                    .filter(|session| !ended && !session.is_closed())
                {
                    listener.listens(session);
                }
                return;
            }
            before = state.leases.of.keys().copied().collect();
        } else {
            return;
        }
        tokio::time::sleep(LISTEN_AFTER).await;
    }
}

/// Listen. If that fails, waiters poll as long as the connection lasts.
async fn start_listening(shared: Weak<Shared>, session: Arc<Session>) {
    let Some(listener) = shared.upgrade() else {
        return;
    };
    match tokio::time::timeout(LISTEN_TIMEOUT, listen(&session, &listener.table_number)).await {
        Ok(Ok(())) => {
            session.listens.store(true, Ordering::Relaxed);
            // Earlier notifications were missed.
            listener.events.notify(Notice::Missed);
        }
        Ok(Err(error)) => {
            tracing::debug!("waiters are not notified but poll: {}", error.message);
        }
        Err(_) => {}
    }
}

async fn listen(session: &Session, table_number: &str) -> Result<(), ServerError> {
    let rows = session.query(table_number, &[]).await?;
    let number: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get("number"))?;
    let number = number.ok_or_else(|| ServerError::unavailable("there is no such table"))?;
    session
        .script(&format!("LISTEN database_locks_{number}"))
        .await
}
