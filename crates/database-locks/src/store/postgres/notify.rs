//! Notifications: LISTEN and NOTIFY, which wake a waiter when a lock is released.
//!
//! A waiter listens, and writes into the row until when clients wait. The client that frees the row sees
//! that in the row it has just changed, and notifies: `NOTIFY` on the one channel of the table, with the
//! name as its payload. Without waiters there is no NOTIFY, since the server carries out one commit that
//! notifies at a time.
//!
//! A release by force notifies as well, and a take-over: for the holder that loses the lock. So a process
//! also listens while it holds a lease that is renewed rarely. The scheduler is told, and its renewal
//! decides; see [`Store::on_notified`](crate::store::Store::on_notified).
//!
//! A notification may be lost, so each waiter polls slowly all the same.
//!
//! A pooler that hands out its connections by transaction takes a LISTEN as any other statement: it
//! stays behind on some connection of the pooler's, and notifications go to the client that has that one
//! next. So LISTEN is sent only on a connection that is known to lead to one backend; else waiters poll.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio_postgres::Notification;
use tokio_postgres::types::Type;

use super::Sql;
use super::connection::{Connection, Param};
use super::rows::micros;
use crate::runtime;
use crate::runtime::clock;
use crate::store::postgres::connection::connector::Link;
use crate::store::postgres::error::Refusal;
use crate::store::{
    api::{Notice, Tell},
    connect::table::Table,
};
use protocol::{BootInstant, GrantId, LockName, Ttl};

/// For how long a waiter says that it waits, at least; or for twice the pause until its next poll. As long after
/// the last waiter has gone, releases notify in vain.
const AHEAD: Duration = Duration::from_secs(10);
/// The longest pause that it reckons with.
const LONGEST: Duration = Duration::from_secs(3_600);
/// How long the statement that says so may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take until the process listens.
const ARRANGING: Duration = Duration::from_secs(12);

/// Leases that are longer than this are renewed more rarely than each 5 s, by default: for such a one
/// the process listens. The holder of a shorter one learns of a release by force from its next renewal.
const RARELY: Duration = Duration::from_secs(15);
/// A lease that ends sooner is not worth the round trips of a LISTEN.
const SETTLED: Duration = Duration::from_millis(500);
/// For how long a lease without end counts as held unless it is renewed or released.
const DAY: Duration = Duration::from_secs(86_400);

/// Which table of this database it is, for the channel's name.
const ABOUT: &str = "SELECT to_regclass('{table}')::oid::bigint";

/// Say that clients wait for a lock that is held: `$1` name, `$2` for how long from now, in microseconds. One
/// row: it is said. No row: the lock is free, or its row is locked by another transaction.
///
/// The time is never shortened, since others may wait for longer, and no statement clears it: that would be a
/// write more for each grant. It need not survive a crash: waiters say it anew on a new connection.
pub(crate) const WAIT: &str = "
UPDATE {table}
   SET waiting_until = GREATEST(waiting_until, statement_timestamp() + $2 * interval '1 microsecond')
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND expires_at > statement_timestamp()
                FOR NO KEY UPDATE SKIP LOCKED)
RETURNING set_config('synchronous_commit', 'off', true)";

/// Keys, each until a time of its own.
struct Until<K> {
    of: HashMap<K, BootInstant>,
    /// How many were left when those that are past were last removed.
    left: usize,
}

impl<K> Default for Until<K> {
    fn default() -> Self {
        let (of, left) = (HashMap::new(), 0);
        Self { of, left }
    }
}

impl<K: Eq + Hash> Until<K> {
    fn set(&mut self, key: K, until: BootInstant, now: BootInstant) {
        if self.of.len() > 2 * self.left + 64 {
            self.of.retain(|_, until| now < *until);
            self.left = self.of.len();
        }
        self.of.insert(key, until);
    }

    fn is_past(&self, now: BootInstant) -> bool {
        self.of.values().all(|until| *until <= now)
    }
}

/// What one store hears.
#[derive(Clone)]
pub(crate) struct Listener(Arc<Shared>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

/// What the drivers of connections and the waiters share.
pub(crate) struct Shared {
    /// Asks what a connection is to this table.
    about: String,
    state: Mutex<State>,
    tell: OnceLock<Tell>,
    /// Whether a lease that is renewed rarely has been held: if not, there is none to forget.
    rare: AtomicBool,
    /// The backends of the connections of this process, where no pooler chooses them.
    own: Mutex<Vec<i32>>,
}

/// The backend of a connection of this process, as long as that lasts. What it notifies was told by its caller.
pub(crate) struct OwnBackend {
    listener: Weak<Shared>,
    pid: i32,
}

impl OwnBackend {
    pub(crate) fn new(listener: &Arc<Shared>, pid: i32) -> Self {
        listener.own().push(pid);
        let listener = Arc::downgrade(listener);
        Self { listener, pid }
    }
}

impl Drop for OwnBackend {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.upgrade() {
            let mut own = listener.own();
            if let Some(at) = own.iter().position(|pid| *pid == self.pid) {
                own.swap_remove(at);
            }
        }
    }
}

#[derive(Default)]
struct State {
    /// The names that clients of this process wait for, and until when the rows say so.
    announced: Until<LockName>,
    /// The leases that are renewed rarely, those that were handed over among them until they end.
    leases: Until<GrantId>,
    /// A task is about to listen for them.
    soon: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, Vec<i32>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A notification has come.
    pub(crate) fn notified(&self, by: &Notification) {
        let pid = by.process_id();
        if self.own().contains(&pid) {
            return;
        }
        if let Ok(name) = LockName::new(by.payload()) {
            self.tell(Notice::Released(&name, Some(pid)));
        }
    }

    fn tell(&self, notice: Notice<'_>) {
        if let Some(tell) = self.tell.get() {
            tell(notice);
        }
    }

    /// Whether the process listens on this connection. If it can and does not yet, that is seen to, once.
    fn listens(self: &Arc<Self>, on: Arc<Connection>) -> bool {
        let listens = on.listens.load(Ordering::Relaxed);
        if on.backend.is_some() && !on.asked_to_listen.swap(true, Ordering::Relaxed) {
            tokio::spawn(arrange(Arc::downgrade(self), on));
        }
        listens
    }

    /// A connection has ended, and with it what was on the way.
    pub(crate) fn ended(&self) {
        // A server that crashed, or that another one has replaced, may have forgotten it.
        self.state().announced = Until::default();
        self.tell(Notice::Missed);
    }
}

impl Listener {
    pub(crate) fn new(table: &Table) -> Self {
        Self(Arc::new(Shared {
            about: table.fill(ABOUT),
            state: Mutex::default(),
            tell: OnceLock::new(),
            rare: AtomicBool::new(false),
            own: Mutex::default(),
        }))
    }

    /// For the connections of a link: whom to tell what is heard.
    pub(crate) fn shared(&self) -> Weak<Shared> {
        Arc::downgrade(&self.0)
    }

    /// Whom to tell of notifications; the first call counts.
    pub(crate) fn on_notified(&self, tell: Tell) {
        let _ = self.0.tell.set(tell);
    }

    /// See [`Store::announce`](crate::store::Store::announce).
    pub(crate) async fn announce(
        &self,
        link: &Link,
        name: &LockName,
        pause: Duration,
        anew: bool,
    ) -> bool {
        if !link.current().is_some_and(|on| self.0.listens(on)) {
            return false;
        }
        // A wait whose end comes before the next poll has no pause of its own.
        let pause = pause.min(LONGEST);
        let now = clock::now();
        let known = self.0.state().announced.of.get(name).copied();
        if !anew && known.is_some_and(|until| until > now + pause) {
            return true;
        }
        let ahead = AHEAD.max(pause * 2);
        let said = link.on(PATIENCE, |on| async move {
            let params: [Param<'_>; 2] =
                [(&name.as_str(), Type::TEXT), (&micros(ahead), Type::INT8)];
            on.rows(Sql::Wait as usize, true, &params).await
        });
        match said.await {
            Ok(rows) if !rows.is_empty() => {
                let announced = &mut self.0.state().announced;
                announced.set(name.clone(), now + ahead, now);
                true
            }
            Ok(_) => false,
            Err(failure) => {
                let name = name.as_str();
                tracing::debug!(lock.name = name, "cannot say that we wait: {failure}");
                false
            }
        }
    }

    /// This store itself has just taken it from its holder, who may be of this process.
    pub(crate) fn released(&self, name: &LockName) {
        self.0.tell(Notice::Released(name, None));
    }

    /// These were granted or renewed: listen for those that are renewed rarely.
    pub(crate) fn holds(&self, link: &Link, leases: impl Iterator<Item = (GrantId, Ttl)>) {
        let now = clock::now();
        let mut rare = leases
            .filter_map(|(id, ttl)| match ttl {
                Ttl::Finite(length) if length <= RARELY => None,
                Ttl::Finite(length) => Some((id, now + length)),
                Ttl::Infinite => Some((id, now + DAY)),
            })
            .peekable();
        if rare.peek().is_none() {
            return;
        }
        self.0.rare.store(true, Ordering::Relaxed);
        let mut state = self.0.state();
        for (id, until) in rare {
            state.leases.set(id, until, now);
        }
        let could_listen = |on: &Arc<Connection>| {
            on.backend.is_some() && !on.asked_to_listen.load(Ordering::Relaxed)
        };
        if let Some(on) = link.current().filter(could_listen)
            && !std::mem::replace(&mut state.soon, true)
        {
            // Not on the runtime of a caller: it listens on the background connection.
            let _ = runtime::spawn(listen_soon(self.shared(), Arc::downgrade(&on)));
        }
    }

    /// These are held no more.
    pub(crate) fn holds_no_more<'a>(&self, grants: impl Iterator<Item = &'a GrantId>) {
        if self.0.rare.load(Ordering::Relaxed) {
            let leases = &mut self.0.state().leases.of;
            for id in grants {
                leases.remove(id);
            }
        }
    }
}

/// Listen once one of the leases has been held for a while, unless all have ended before.
async fn listen_soon(shared: Weak<Shared>, on: Weak<Connection>) {
    let mut before: Vec<GrantId> = Vec::new();
    loop {
        if let Some(listener) = shared.upgrade() {
            let mut state = listener.state();
            let ended = state.leases.is_past(clock::now());
            let settled = before.iter().any(|id| state.leases.of.contains_key(id));
            if ended || settled {
                state.soon = false;
                drop(state);
                // If the connection has gone, the next renewal, on another one, sees to it.
                if let Some(on) = on.upgrade().filter(|on| !ended && !on.is_closed()) {
                    listener.listens(on);
                }
                return;
            }
            before = state.leases.of.keys().copied().collect();
        } else {
            return;
        }
        tokio::time::sleep(SETTLED).await;
    }
}

/// Listen. If that fails, waiters poll as long as the connection lasts.
async fn arrange(shared: Weak<Shared>, on: Arc<Connection>) {
    let Some(listener) = shared.upgrade() else {
        return;
    };
    match tokio::time::timeout(ARRANGING, listen(&on, &listener.about)).await {
        Ok(Ok(())) => {
            on.listens.store(true, Ordering::Relaxed);
            // What was notified until now was not heard.
            listener.tell(Notice::Missed);
        }
        Ok(Err(refusal)) => {
            tracing::debug!("waiters are not notified but poll: {}", refusal.said);
        }
        Err(_) => {}
    }
}

async fn listen(on: &Connection, about: &str) -> Result<(), Refusal> {
    let rows = on.ask(about, &[]).await?;
    let table: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get(0))?;
    let table = table.ok_or_else(|| Refusal::unavailable("there is no such table"))?;
    on.script(&format!("LISTEN database_locks_{table}")).await
}
