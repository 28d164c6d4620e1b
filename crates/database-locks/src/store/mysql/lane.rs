//! The direct path of callers: a connection whose I/O the caller's own runtime drives.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::OwnedMutexGuard;

use super::super::backoff::Backoff;
use super::super::{
    Ask, Grant, Lane, Outcome, Released, Renewal, Reply, Return, StoreError, keep_to,
};
use super::connection::{Flag, Server, caught, connect, panicked, place};
use super::session::Session;
use crate::fork::Gated;
use crate::timing::Ttl;

/// What a caller may ask for twice: carried out again after it was carried out, it changes nothing.
pub(super) trait Command: Sync {
    type Answer: Send;

    fn run(
        &self,
        session: &mut Session,
    ) -> impl Future<Output = Result<Self::Answer, StoreError>> + Send;

    /// Whether the answer to the second says what became of the first.
    fn tells(_: &Self::Answer) -> bool {
        true
    }
}

/// A grant that is there already is recognised by its id.
impl Command for [Ask] {
    type Answer = Vec<Outcome>;

    async fn run(&self, session: &mut Session) -> Result<Vec<Outcome>, StoreError> {
        match self {
            [ask] => Ok(vec![session.acquire(ask).await?]),
            asks => session.acquire_many(asks).await,
        }
    }
}

/// A lock that was released is as little ours as one that was lost.
impl Command for [Return] {
    type Answer = Vec<Released>;

    async fn run(&self, session: &mut Session) -> Result<Vec<Released>, StoreError> {
        match self {
            [what] => Ok(vec![session.release(what).await?]),
            returns => session.release_many(returns).await,
        }
    }

    fn tells(answer: &Vec<Released>) -> bool {
        !answer.contains(&Released::NotOurs)
    }
}

impl Command for [(Grant, Ttl)] {
    type Answer = Vec<Renewal>;

    async fn run(&self, session: &mut Session) -> Result<Vec<Renewal>, StoreError> {
        session.renew(self).await
    }
}

/// A connection, and the runtime that drives it.
struct Connected {
    session: Session,
    home: Id,
    /// Whether it has answered before.
    used: bool,
    _up: Flag,
}

/// Where the connection is while no call uses it.
#[derive(Default)]
struct Place {
    connected: Option<Connected>,
    backoff: Backoff,
    /// Why the latest attempt to connect failed.
    failure: Option<StoreError>,
    /// A runtime that cannot drive it, such as one without timers.
    unfit: Option<Id>,
}

/// A place, which is locked by the call that uses the connection, and while one is made.
#[derive(Clone, Default)]
struct Slot {
    place: Arc<tokio::sync::Mutex<Place>>,
    /// Whether one is being made.
    dialled: Arc<AtomicBool>,
}

/// The lane of MySQL and MariaDB.
///
/// A call takes the connection out, runs its statements within the caller's own future and puts it back.
/// One that is dropped meanwhile, since it was late or its runtime ended, drops the connection with it.
pub(super) struct DirectPath {
    server: Arc<Server>,
    slot: Mutex<Slot>,
    /// Whether there is a connection.
    up: Arc<AtomicBool>,
    /// The runtime that made it.
    home: Mutex<Option<Handle>>,
}

impl fmt::Debug for DirectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectPath")
            .field("at", &self.server.at())
            .finish_non_exhaustive()
    }
}

impl DirectPath {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            slot: Mutex::default(),
            up: Arc::default(),
            home: Mutex::default(),
        }
    }

    /// Whether there is a connection, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    fn slot(&self) -> Slot {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clone()
    }

    /// Take the connection out of its place, which stays locked until it is put back. Where there is
    /// none, one is made.
    ///
    /// A task makes it, so that callers who wait for less time than that takes come to have one. After a
    /// failure none is made for a while: what was said the last time still stands.
    ///
    /// # Errors
    ///
    /// Nothing was sent.
    async fn take(&self) -> Result<(OwnedMutexGuard<Place>, Connected), StoreError> {
        let home = Handle::try_current()
            .map_err(|error| StoreError::Unavailable(error.into()).undone())?;
        let slot = self.slot();
        let mut attempted = false;
        loop {
            let mut place = Arc::clone(&slot.place).lock_owned().await;
            match place.connected.take() {
                Some(connected) if connected.home == home.id() => return Ok((place, connected)),
                // Its runtime has ended, so nothing would come of it any more.
                other => drop(other),
            }
            let stands = attempted
                || place.unfit == Some(home.id())
                || !place.backoff.pause().is_zero();
            if let Some(failure) = place.failure.as_ref().filter(|_| stands) {
                return Err(not_here(failure.again()));
            }
            attempted = true;
            *self.home.lock().unwrap_or_else(PoisonError::into_inner) = Some(home.clone());
            let (server, up) = (Arc::clone(&self.server), Arc::clone(&self.up));
            let dialled = Flag::set(&slot.dialled);
            home.spawn(Gated::new(dial(server, place, up, dialled)));
        }
    }

    /// Carry out a command.
    ///
    /// A connection that the server has closed meanwhile is noticed by the command that is sent on it. To
    /// ask first whether it is still there would cost each call a second round trip, and tells nothing
    /// of the moment after. Commands may be repeated, so this one is, on a new connection.
    async fn call<C: Command + ?Sized>(&self, command: &C) -> Result<C::Answer, StoreError> {
        let mut unknown: Option<StoreError> = None;
        let done = loop {
            let (mut place, mut connected) = match self.take().await {
                Ok(taken) => taken,
                Err(refused) => break Err(unknown.unwrap_or(refused)),
            };
            let done = caught(command.run(&mut connected.session)).await;
            let was_used = std::mem::replace(&mut connected.used, true);
            let broken = done.is_err() || connected.session.is_broken();
            if !broken {
                place.connected = Some(connected);
            }
            drop(place);
            match (done.unwrap_or_else(|panic| Err(panicked(panic))), unknown) {
                (Err(failure), None) if broken && was_used && !failure.is_answer() => {
                    unknown = Some(failure);
                }
                (Ok(answer), Some(failure)) if !C::tells(&answer) => break Err(failure),
                (done, _) => break done,
            }
        };
        done.map_err(|failure| place(&self.server, failure))
    }

    /// Renew leases on it, on the runtime that drives it, which may be at rest.
    pub(super) async fn renew(
        self: &Arc<Self>,
        grants: Vec<(Grant, Ttl)>,
        within: Duration,
    ) -> Result<Vec<Renewal>, StoreError> {
        let ended = || StoreError::Unavailable("the runtime of the connection has ended".into());
        let home = {
            let home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
            home.clone().ok_or_else(ended)?
        };
        let lane = Arc::clone(self);
        let task = home.spawn(Gated::new(async move { lane.call(&*grants).await }));
        let stop = task.abort_handle();
        let answer = async { task.await.unwrap_or_else(|_| Err(ended())) };
        keep_to(within, answer, || stop.abort()).await
    }
}

/// There is no connection of the lane. Whether that is final, such as a wrong password, that of the
/// background finds out: this runtime may be what is wrong.
fn not_here(failure: StoreError) -> StoreError {
    match failure {
        StoreError::Rejected { source, .. } => StoreError::Unavailable(source).undone(),
        failure => failure.undone(),
    }
}

/// Connect, and put the connection into its place.
async fn dial(
    server: Arc<Server>,
    mut place: OwnedMutexGuard<Place>,
    up: Arc<AtomicBool>,
    _dialled: Flag,
) {
    let home = Handle::current().id();
    let made = match caught(needs()).await {
        Ok(()) => connect(&server, &mut place.backoff).await,
        Err(lacks) => {
            place.unfit = Some(home);
            Err(StoreError::Unavailable(lacks.into()))
        }
    };
    match made {
        Ok(session) => {
            place.failure = None;
            place.connected = Some(Connected {
                session,
                home,
                used: false,
                _up: Flag::set(&up),
            });
        }
        Err(failure) => place.failure = Some(failure),
    }
}

/// What a runtime has to have. One that lacks it panics.
async fn needs() {
    drop(tokio::time::sleep(Duration::ZERO));
    let _ = tokio::net::UnixDatagram::unbound();
}

impl Lane for DirectPath {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(Gated::new(async {
            let (mut place, connected) = self.take().await?;
            place.connected = Some(connected);
            Ok(())
        }))
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask]) -> Reply<'a, Vec<Outcome>> {
        Box::pin(Gated::new(self.call(asks)))
    }

    fn release<'a>(&'a self, returns: &'a [Return]) -> Reply<'a, Vec<Released>> {
        Box::pin(Gated::new(self.call(returns)))
    }

    /// A call that was late has taken its connection with it. One that waited for another has not: that
    /// one may be the call of a future that its owner does not poll any more. It keeps its connection, and
    /// calls that come now make another.
    fn give_up(&self) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let is_dialled = slot.dialled.load(Ordering::Acquire);
        if !is_dialled && slot.place.try_lock().is_err() {
            *slot = Slot::default();
        }
    }
}
