//! Being woken when a lock is released.
//!
//! A waiter listens, and writes into the row until when somebody waits. Whoever then frees the row sees
//! that in the row it has just changed, and rings: `NOTIFY` on the one channel of the table, with the
//! name as its payload. Where nobody waits nobody rings, since the server carries out one commit that
//! rings at a time.
//!
//! A release by force rings as well, and a take-over: for the holder that loses the lock. So a process
//! also listens while it holds a lease that is renewed rarely, and says so to the scheduler, whose
//! renewal decides; see [`Store::on_forced`](crate::store::Store::on_forced).
//!
//! A bell may be lost, so there is a slow look behind it. What that finds changed although nobody rang
//! ends the trust in bells for a while, and the waiters look as often as if there were none.

mod listen;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_postgres::types::Type;
use tokio_postgres::{Notification, Row};

use self::listen::Ear;
pub(super) use self::listen::{ABOUT, Deaf, backend_of_handshake};
use super::Sql;
use super::connection::{Connection, Param};
use super::link::Link;
use super::refusal::Refusal;
use super::rows::{micros, seen};
use crate::clock::{self, Time};
use crate::error::Error;
use crate::name::LockName;
use crate::runtime;
use crate::store::{Ask, Occupant, Outcome, Pauses, Woken};
use crate::timing::Ttl;
use crate::token::{GrantId, Token};

/// For how long a waiter says that it waits. What it leaves behind makes releases ring in vain for as
/// long; what is refreshed at half of it costs a statement each 30 s.
const AHEAD: Duration = Duration::from_secs(60);
/// How long the statement that says so may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take until the ears are pricked; a second connection may have to be made.
const ARRANGING: Duration = Duration::from_secs(12);
/// How long bells are not trusted after one that should have rung did not, and how long a second
/// connection that is of no use is left alone.
const DOUBT: Duration = Duration::from_secs(60);
/// A process that was woken and came too late tries after a pause of up to that the next time, and of ever
/// shorter ones the more often it came too late: the server wakes those who listen in the same order each time,
/// and all of a crowd at once.
const SPREAD: Duration = Duration::from_millis(4);
/// A process that has just had the lock pauses for up to that. Without it two of three loops handed the lock to
/// and fro, since neither came too late, and the third starved.
const AFTER_RELEASE: Duration = Duration::from_millis(1);
/// For how long either is remembered.
const CROWDED: Duration = Duration::from_secs(30);
/// A bell and the answer to a look may overtake each other.
const GRACE: Duration = Duration::from_millis(500);
/// A second connection that is there for listening alone is closed when nobody has waited for so long.
const IDLE: Duration = Duration::from_secs(60);

/// Leases that are longer than this are renewed more rarely than each 5 s, by default: for such a one
/// the process listens. The holder of a shorter one learns of a release by force from its next renewal.
const RARELY: Duration = Duration::from_secs(15);
/// A lease that ends sooner is not worth the round trips of a LISTEN.
const SETTLED: Duration = Duration::from_millis(500);
/// For how long a lease without end counts as held unless it is renewed or released.
const DAY: Duration = Duration::from_secs(86_400);

/// Say that somebody waits for a lock that is held: `$1` name, `$2` for how long from now, in
/// microseconds. One row: whether it stands there now, or its row is locked by somebody; and what a read
/// says of it. No row: nobody holds it, so there is nothing to wait for.
///
/// It is never shortened, since others may wait for longer, and nobody clears it: that would be a write
/// more for each grant. It need not survive a crash, which ends the connection that listens as well.
pub(super) const WAIT: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, statement_timestamp() + $2 * interval '1 microsecond' AS until,
           set_config('synchronous_commit', 'off', true)
      FROM {table}
     WHERE name = $1 AND expires_at > statement_timestamp()
       FOR NO KEY UPDATE SKIP LOCKED
), awaited AS (
    UPDATE {table} l SET waiting_until = GREATEST(l.waiting_until, p.until)
      FROM picked p
     WHERE l.id = p.id
 RETURNING ",
    seen!(),
    "
)
SELECT true, a.* FROM awaited a
 UNION ALL
SELECT false, ",
    seen!(),
    "
  FROM {table} l
 WHERE name = $1 AND expires_at > statement_timestamp() AND NOT EXISTS (SELECT FROM awaited)"
);

/// Who waits at this store, and what is heard.
#[derive(Clone)]
pub(super) struct Bells(Arc<Shared>);

impl fmt::Debug for Bells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bells")
            .field("ear", &self.0.ear)
            .finish_non_exhaustive()
    }
}

/// What the drivers of connections and the waiters share.
pub(super) struct Shared {
    /// The second connection, for listening where the first cannot.
    ear: Option<Link>,
    /// Asks what a connection is to this table.
    about: String,
    posts: Mutex<Posts>,
    hearing: watch::Sender<Hearing>,
    forced: OnceLock<Tell>,
    /// Whether a lease that is renewed rarely has been held: if not, there is none to forget.
    rare: AtomicBool,
    /// The backends of our connections.
    own: Mutex<Vec<i32>>,
}

/// A backend of a connection of ours, as long as that lasts: whose notifications are our own.
pub(super) struct OwnBackend {
    bells: Weak<Shared>,
    pid: i32,
}

impl OwnBackend {
    pub(super) fn new(bells: &Arc<Shared>, pid: i32) -> Self {
        bells.own().push(pid);
        let bells = Arc::downgrade(bells);
        Self { bells, pid }
    }
}

impl Drop for OwnBackend {
    fn drop(&mut self) {
        if let Some(bells) = self.bells.upgrade() {
            let mut own = bells.own();
            if let Some(at) = own.iter().position(|pid| *pid == self.pid) {
                own.swap_remove(at);
            }
        }
    }
}

/// Whom to tell of a lock that may have been taken from its holder.
type Tell = Arc<dyn Fn(&LockName) + Send + Sync>;

/// A lease for which the process listens.
#[derive(Clone, Copy)]
struct Lease {
    since: Time,
    /// Unless it is renewed.
    until: Time,
}

#[derive(Default)]
struct Posts {
    /// The leases that are renewed rarely, those that were handed over among them until they end.
    leases: HashMap<GrantId, Lease>,
    /// How many were left of them when the ended ones were last removed.
    leases_left: usize,
    /// A task is about to listen for them.
    soon: bool,
    of: HashMap<LockName, Post>,
    /// Bells are not trusted, since then.
    doubted: Option<Time>,
    /// When somebody waited last.
    waited: Time,
    /// Of which a self-test waits for a ring.
    proofs: HashMap<String, oneshot::Sender<()>>,
}

/// What is known of one name that is, or was not long ago, waited for.
#[derive(Default)]
struct Post {
    /// Rings that a waiter shall wake for.
    rings: watch::Sender<u64>,
    /// How many of them there were before the latest look was sent.
    looked: u64,
    /// All rings: those for our own releases, which the line of waiters hears of by itself, too.
    heard: u64,
    waiters: u32,
    announced: Option<Announced>,
    seen: Option<Sight>,
    /// When a waiter of this process that was woken last came too late, and how often since it had the lock.
    late: Option<(Time, u32)>,
    /// When this process last notified others by its release.
    released: Option<Time>,
}

/// In the row it says that somebody waits.
#[derive(Clone, Copy)]
struct Announced {
    /// Since when the same ears have been listening.
    round: u64,
    until: Time,
}

/// What a look saw.
struct Sight {
    token: Option<i64>,
    holder: Option<String>,
    /// Until then it can only be freed by somebody who rings.
    until: Time,
    heard: u64,
}

impl Sight {
    fn of(by: &Occupant, sent: Time, heard: u64) -> Self {
        Self {
            token: by.token.map(Token::get),
            holder: by.holder.clone(),
            until: match by.intact {
                true => sent.saturating_add(by.free_in.unwrap_or(Time::MAX)),
                // 0.5 rings no bell.
                false => Time::ZERO,
            },
            heard,
        }
    }
}

/// Before a look was sent.
pub(super) struct Look {
    at: usize,
    sent: Time,
    rings: u64,
    heard: u64,
}

#[derive(Clone, Default)]
enum Hearing {
    #[default]
    Unknown,
    /// It is being found out whether this connection hears.
    Arranging { main: Weak<Connection> },
    /// As long as this is the connection, or until then.
    Deaf {
        main: Weak<Connection>,
        until: Option<Time>,
    },
    Listening {
        main: Weak<Connection>,
        ear: Weak<Connection>,
        round: u64,
    },
}

/// What came of saying that we wait.
enum Said {
    Stands(Time),
    /// Its row is locked by somebody, or the database does not answer.
    Not,
    /// Nobody has it.
    Free,
}

impl Shared {
    fn posts(&self) -> MutexGuard<'_, Posts> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, Vec<i32>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A notification has come.
    pub(super) fn rung(&self, by: &Notification) {
        let own = self.own().contains(&by.process_id());
        let mut posts = self.posts();
        if let Some(proof) = posts.proofs.remove(by.channel()) {
            let _ = proof.send(());
            return;
        }
        if !own && posts.doubted.is_some_and(|at| clock::now() >= at + DOUBT) {
            posts.doubted = None;
            tracing::debug!("a bell is heard: waiters trust in being woken again");
        }
        let Ok(name) = LockName::new(by.payload()) else {
            return;
        };
        if let Some(post) = posts.of.get_mut(&name) {
            post.heard += 1;
            match own {
                true => post.released = Some(clock::now()),
                false => post.rings.send_modify(|rings| *rings += 1),
            }
        }
        drop(posts);
        // What was done through this very connection was told by its caller.
        if !own {
            self.tell_forced(&name);
        }
    }

    fn tell_forced(&self, name: &LockName) {
        if let Some(tell) = self.forced.get() {
            tell(name);
        }
    }

    /// Since when the same ears have been listening for this connection; none while there are none. Then
    /// it is seen to.
    fn round(self: &Arc<Self>, main: Arc<Connection>) -> Option<u64> {
        let is = |known: &Weak<Connection>| known.as_ptr() == Arc::as_ptr(&main);
        let (mut round, mut arrange) = (None, false);
        self.hearing.send_if_modified(|hearing| {
            match hearing {
                Hearing::Listening {
                    main,
                    ear,
                    round: known,
                    ..
                } if is(main) && ear.upgrade().is_some_and(|ear| !ear.is_closed()) => {
                    round = Some(*known);
                }
                Hearing::Arranging { main } if is(main) => {}
                Hearing::Deaf { main, until }
                    if is(main) && until.is_none_or(|until| clock::now() < until) => {}
                _ => {
                    arrange = true;
                    *hearing = Hearing::Arranging {
                        main: Arc::downgrade(&main),
                    };
                }
            }
            false
        });
        if arrange {
            tokio::spawn(arrange_for(Arc::downgrade(self), main));
        }
        round
    }

    /// A connection has ended: whoever listened there had better look.
    pub(super) fn ended(&self) {
        self.hearing.send_modify(|_| ());
    }
}

impl Bells {
    pub(super) fn new(
        about: String,
        ear: impl FnOnce(Weak<Shared>) -> Result<Option<Link>, Error>,
    ) -> Result<Self, Error> {
        let mut refused = None;
        let shared = Arc::new_cyclic(|shared| Shared {
            ear: ear(Weak::clone(shared)).unwrap_or_else(|error| {
                refused = Some(error);
                None
            }),
            about,
            posts: Mutex::default(),
            hearing: watch::Sender::default(),
            forced: OnceLock::new(),
            rare: AtomicBool::new(false),
            own: Mutex::default(),
        });
        refused.map_or(Ok(Self(shared)), Err)
    }

    /// For the connections of a link: whom to tell what is heard.
    pub(super) fn listener(&self) -> Weak<Shared> {
        Arc::downgrade(&self.0)
    }

    /// Before these are asked for.
    pub(super) fn looking(&self, asks: &[Ask]) -> Vec<Look> {
        let posts = self.0.posts();
        if posts.of.is_empty() {
            return Vec::new();
        }
        let sent = clock::now();
        let look = |(at, ask): (usize, &Ask)| {
            let post = posts.of.get(&ask.name)?;
            let (rings, heard) = (*post.rings.borrow(), post.heard);
            Some(Look {
                at,
                sent,
                rings,
                heard,
            })
        };
        asks.iter().enumerate().filter_map(look).collect()
    }

    /// What came of them.
    pub(super) fn looked(&self, asks: &[Ask], looks: Vec<Look>, outcomes: &[Outcome]) {
        if looks.is_empty() {
            return;
        }
        let round = self.round_now();
        let mut posts = self.0.posts();
        for look in looks {
            let (name, outcome) = (&asks[look.at].name, &outcomes[look.at]);
            let Some(post) = posts.of.get_mut(name) else {
                continue;
            };
            let now = match outcome {
                Outcome::Busy => continue,
                Outcome::Granted { .. } => None,
                Outcome::Held(by) => Some(Sight::of(by, look.sent, look.heard)),
            };
            if look.rings > post.looked && now.is_some() {
                let losses = post.late.map_or(0, |(_, losses)| losses);
                post.late = Some((clock::now(), losses.saturating_add(1)));
            }
            if now.is_none() {
                post.late = None;
            }
            post.looked = post.looked.max(look.rings);
            let announced = post
                .announced
                .is_some_and(|a| Some(a.round) == round && look.sent < a.until);
            let unheard = announced
                && post.seen.as_ref().is_some_and(|before| {
                    let changed = now
                        .as_ref()
                        .is_none_or(|now| now.token != before.token && now.holder != before.holder);
                    changed && clock::now() < before.until && post.heard == before.heard
                });
            post.seen = now;
            if unheard {
                let rings = *post.rings.borrow();
                let doubt = doubt(self.listener(), name.clone(), rings);
                let _ = runtime::spawn(doubt);
            }
        }
    }

    /// Whether this process hears of releases, and so others of its own.
    pub(super) fn is_listening(&self) -> bool {
        self.round_now().is_some()
    }

    fn round_now(&self) -> Option<u64> {
        match &*self.0.hearing.borrow() {
            Hearing::Listening { round, .. } => Some(*round),
            _ => None,
        }
    }

    /// Wait until a release of the lock is heard, or may have been missed, or the pause is over.
    pub(super) async fn wait(&self, link: &Link, name: &LockName, pauses: Pauses) -> Woken {
        let began = clock::now();
        let mut hearing = self.0.hearing.subscribe();
        let mut waiter = Waiter::join(&self.0, name);
        if !pauses.held {
            // What rang for the look that told so would ring for each one to come: until it is over that
            // somebody has the row locked there would be one after the other.
            waiter.looked = *waiter.rings.borrow();
        }
        let mut listened = false;
        loop {
            hearing.borrow_and_update();
            let (rest, refresh, woken) = match self.round(link) {
                // The connection is gone, and with it what may have rung meanwhile.
                None if listened => return Woken::Rung,
                None => (pauses.unannounced, Duration::MAX, Woken::Unheard),
                Some(round) => {
                    listened = true;
                    let said = match pauses.held {
                        true => self.say(link, name, round).await,
                        false => self.said(name, round).map_or(Said::Not, Said::Stands),
                    };
                    match said {
                        Said::Free => return Woken::Rung,
                        Said::Not => (pauses.unannounced, Duration::MAX, Woken::Unheard),
                        Said::Stands(until) => {
                            let refresh = until.saturating_sub(clock::now() + AHEAD / 2);
                            match self.0.posts().doubted {
                                Some(_) => (pauses.unannounced, refresh, Woken::Unheard),
                                None => (pauses.announced, refresh, Woken::Rung),
                            }
                        }
                    }
                }
            };
            let left = rest.saturating_sub(clock::now() - began);
            tokio::select! {
                biased;
                () = waiter.rings() => {
                    if let Some(pause) = self.spread(name) {
                        tokio::time::sleep(pause).await;
                    }
                    return Woken::Rung;
                }
                Ok(()) = hearing.changed() => {}
                () = tokio::time::sleep(left.min(refresh)) => {
                    if clock::now() - began >= rest {
                        return woken;
                    }
                }
            }
        }
    }

    /// How long to wait after a bell before a try.
    fn spread(&self, name: &LockName) -> Option<Duration> {
        let posts = self.0.posts();
        let (post, now) = (posts.of.get(name)?, clock::now());
        let recent = |at: Time| now < at.saturating_add(CROWDED);
        let most = match (post.late, post.released) {
            (Some((at, losses)), _) if recent(at) => SPREAD / losses.max(1),
            (_, Some(at)) if recent(at) => AFTER_RELEASE,
            _ => return None,
        };
        Some(most.mul_f64(fastrand::f64()))
    }

    fn round(&self, link: &Link) -> Option<u64> {
        self.0.round(link.current()?)
    }

    /// Whom to tell of what may have been forced; the first call counts.
    pub(super) fn on_forced(&self, tell: Tell) {
        let _ = self.0.forced.set(tell);
    }

    /// This store itself has just taken it from its holder, who may be of this process.
    pub(super) fn forced(&self, name: &LockName) {
        self.0.tell_forced(name);
    }

    /// These were granted or renewed: listen for those that are renewed rarely.
    pub(super) fn holds(&self, link: &Link, leases: impl Iterator<Item = (GrantId, Ttl)>) {
        let now = clock::now();
        let mut rare = leases
            .filter_map(|(id, ttl)| match ttl {
                Ttl::Finite(length) if length <= RARELY => None,
                Ttl::Finite(length) => Some((id, now.saturating_add(length))),
                Ttl::Infinite => Some((id, now + DAY)),
            })
            .peekable();
        if rare.peek().is_none() {
            return;
        }
        self.0.rare.store(true, Ordering::Relaxed);
        let mut posts = self.0.posts();
        if posts.leases.len() > 2 * posts.leases_left + 64 {
            posts.leases.retain(|_, lease| now < lease.until);
            posts.leases_left = posts.leases.len();
        }
        for (id, until) in rare {
            let since = now;
            posts
                .leases
                .entry(id)
                .or_insert(Lease { since, until })
                .until = until;
        }
        let listening = match (&*self.0.hearing.borrow(), link.current()) {
            (Hearing::Listening { main, .. }, Some(now)) => main.as_ptr() == Arc::as_ptr(&now),
            _ => false,
        };
        if listening || std::mem::replace(&mut posts.soon, true) {
            return;
        }
        drop(posts);
        let main = link.current().as_ref().map(Arc::downgrade);
        // Not on the runtime of a caller: it listens on the background connection.
        let listen = listen_soon(self.listener(), main.unwrap_or_default());
        let _ = runtime::spawn(listen);
    }

    /// These are held no more.
    pub(super) fn holds_no_more<'a>(&self, grants: impl Iterator<Item = &'a GrantId>) {
        if self.0.rare.load(Ordering::Relaxed) {
            let mut posts = self.0.posts();
            for id in grants {
                posts.leases.remove(id);
            }
        }
    }

    /// Until when the row says that we wait, where it says so for long enough.
    fn said(&self, name: &LockName, round: u64) -> Option<Time> {
        let known = self.0.posts().of.get(name)?.announced?;
        let enough = known.round == round && known.until > clock::now() + AHEAD / 2;
        enough.then_some(known.until)
    }

    /// Write into the row that we wait, where it does not say so for long enough.
    async fn say(&self, link: &Link, name: &LockName, round: u64) -> Said {
        let asked = clock::now();
        if let Some(until) = self.said(name, round) {
            return Said::Stands(until);
        }
        let heard = self.0.posts().of.get(name).map_or(0, |post| post.heard);
        let said = link.on(PATIENCE, |on| async move {
            let params: [Param<'_>; 2] =
                [(&name.as_str(), Type::TEXT), (&micros(AHEAD), Type::INT8)];
            let rows = on.rows(Sql::Wait as usize, true, &params).await?;
            let said = |row: &Row| Ok::<_, Refusal>((row.try_get(0)?, seen(row, 1)?.occupant()));
            rows.first().map(said).transpose()
        });
        match said.await {
            Ok(Some((true, by))) => {
                let until = asked + AHEAD;
                if let Some(post) = self.0.posts().of.get_mut(name) {
                    post.announced = Some(Announced { round, until });
                    post.seen = Some(Sight::of(&by, asked, heard));
                }
                Said::Stands(until)
            }
            Ok(Some((false, _))) => Said::Not,
            Ok(None) => Said::Free,
            Err(failure) => {
                tracing::debug!(
                    lock.name = name.as_str(),
                    "cannot say that we wait: {failure}"
                );
                Said::Not
            }
        }
    }

    /// Whether there is a second connection for listening.
    pub(super) fn has_second(&self) -> bool {
        self.0.ear.is_some()
    }

    /// Whether waiters are woken through this connection, and how; or why not.
    pub(super) async fn examine(&self, main: &Arc<Connection>) -> Result<Way, Deaf> {
        let ear = listen::find(&self.0, main).await?;
        Ok(match Arc::ptr_eq(&ear.on, main) {
            true => Way::Same,
            false => Way::Second,
        })
    }
}

/// Which connection hears the bells.
pub(super) enum Way {
    /// The one for everything.
    Same,
    /// One of its own, by `listen_url`.
    Second,
}

/// A place from which a name is waited for.
struct Waiter<'a> {
    bells: &'a Shared,
    name: &'a LockName,
    rings: watch::Receiver<u64>,
    /// How many of the rings were there before the latest look was sent.
    looked: u64,
}

impl<'a> Waiter<'a> {
    fn join(bells: &'a Shared, name: &'a LockName) -> Self {
        let mut posts = bells.posts();
        let now = clock::now();
        posts.waited = now;
        if !posts.of.contains_key(name) {
            // Those for whom no bell rings any more.
            posts.of.retain(|_, post| {
                post.waiters > 0
                    || post
                        .announced
                        .is_some_and(|announced| now < announced.until)
            });
        }
        let post = posts.of.entry(name.clone()).or_default();
        post.waiters += 1;
        Self {
            rings: post.rings.subscribe(),
            looked: post.looked,
            bells,
            name,
        }
    }

    async fn rings(&mut self) {
        let looked = self.looked;
        // The sender is there as long as we wait.
        let _ = self.rings.wait_for(|rings| *rings > looked).await;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut posts = self.bells.posts();
        posts.waited = clock::now();
        if let Some(post) = posts.of.get_mut(self.name) {
            post.waiters -= 1;
        }
    }
}

/// A look found what no bell announced. Unless it comes late, bells are not trusted.
///
/// What we ring ourselves meanwhile, since we had it and have released it, tells nothing.
async fn doubt(bells: Weak<Shared>, name: LockName, heard: u64) {
    tokio::time::sleep(GRACE).await;
    let Some(bells) = bells.upgrade() else { return };
    let mut posts = bells.posts();
    let rings = |post: &Post| *post.rings.borrow();
    if posts.of.get(&name).map(rings) != Some(heard) {
        return;
    }
    posts.doubted = Some(clock::now());
    drop(posts);
    tracing::debug!(
        lock.name = name.as_str(),
        "it was freed and nobody rang: waiters look for themselves"
    );
    bells.hearing.send_modify(|_| ());
}

/// Listen once one of the leases has been held for a while, unless all have ended before.
async fn listen_soon(bells: Weak<Shared>, main: Weak<Connection>) {
    loop {
        tokio::time::sleep(SETTLED).await;
        let Some(bells) = bells.upgrade() else { return };
        let (mut posts, now) = (bells.posts(), clock::now());
        posts.leases.retain(|_, lease| now < lease.until);
        let settled = |lease: &Lease| lease.since + SETTLED <= now;
        if !posts.leases.is_empty() && !posts.leases.values().any(settled) {
            continue;
        }
        posts.soon = false;
        let wanted = !posts.leases.is_empty();
        drop(posts);
        // Where the connection has gone the next renewal, on another one, sees to it.
        if wanted && let Some(main) = main.upgrade().filter(|main| !main.is_closed()) {
            bells.round(main);
        }
        return;
    }
}

/// Find out how to hear, and listen.
async fn arrange_for(bells: Weak<Shared>, main: Arc<Connection>) {
    let Some(shared) = bells.upgrade() else {
        return;
    };
    let found = tokio::time::timeout(ARRANGING, listen::arrange(&shared, &main)).await;
    let known = Arc::downgrade(&main);
    drop(main);
    let hearing = match found {
        Ok(Ok(Ear { on, own })) => {
            shared.posts().doubted = None;
            if own.is_none() {
                tokio::spawn(close_when_idle(bells, Arc::downgrade(&on)));
            }
            Hearing::Listening {
                main: known,
                ear: Arc::downgrade(&on),
                round: fastrand::u64(..),
            }
        }
        Ok(Err(Deaf { said, for_good })) => {
            match shared.ear {
                Some(_) => tracing::warn!("waiters are not woken but look for themselves: {said}"),
                None => tracing::debug!("waiters are not woken but look for themselves: {said}"),
            }
            Hearing::Deaf {
                main: known,
                until: (!for_good).then(|| clock::now() + DOUBT),
            }
        }
        Err(_) => Hearing::Deaf {
            main: known,
            until: Some(clock::now() + DOUBT),
        },
    };
    shared.hearing.send_replace(hearing);
}

/// Closes the second connection once this process neither waits nor holds a lease that is renewed rarely.
async fn close_when_idle(bells: Weak<Shared>, ear: Weak<Connection>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let (Some(bells), Some(ear)) = (bells.upgrade(), ear.upgrade()) else {
            return;
        };
        let (posts, now) = (bells.posts(), clock::now());
        let idle = posts.of.values().all(|post| post.waiters == 0)
            && now >= posts.waited + IDLE
            && posts.leases.values().all(|lease| lease.until <= now);
        drop(posts);
        if idle && let Some(link) = &bells.ear {
            link.retire(&ear);
            return;
        }
    }
}
