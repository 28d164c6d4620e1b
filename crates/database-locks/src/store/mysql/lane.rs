//! The direct path of callers: a connection whose I/O the caller's own runtime drives.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
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

    /// Whether the answer to the second one says what became of the first.
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

    /// What has the row locked may be the first.
    fn tells(answer: &Vec<Outcome>) -> bool {
        !answer.contains(&Outcome::Busy)
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

/// A connection, and the word that there is one.
struct Connected {
    session: Session,
    _up: Flag,
}

/// Where the connection is while no call uses it.
#[derive(Default)]
struct Place {
    connected: Option<Connected>,
    backoff: Backoff,
    /// Why the latest attempt to connect failed.
    failure: Option<StoreError>,
}

/// The connection of one runtime.
struct Slot {
    home: Handle,
    /// Locked by the call that uses the connection, and while one is made.
    place: Arc<tokio::sync::Mutex<Place>>,
    /// Whether one is being made.
    dialled: Arc<AtomicBool>,
    /// Whether there is one.
    up: Arc<AtomicBool>,
}

/// The lane of MySQL and MariaDB.
///
/// A call takes the connection out, runs its statements within the caller's own future and puts it back.
/// One that is dropped meanwhile, since it was late or its runtime ended, drops the connection with it.
pub(super) struct DirectPath {
    server: Arc<Server>,
    slot: Mutex<Option<Arc<Slot>>>,
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
        let slot = Mutex::default();
        Self { server, slot }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Slot>>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a connection, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        let slot = self.slot();
        slot.as_ref()
            .is_some_and(|slot| slot.up.load(Ordering::Acquire))
    }

    /// That of the runtime which calls. The connection of another one, which has ended or rests, would
    /// never answer: it is dropped as it is.
    fn slot_here(&self) -> Result<Arc<Slot>, StoreError> {
        let home = Handle::try_current()
            .map_err(|error| StoreError::Unavailable(error.into()).undone())?;
        let mut slot = self.slot();
        if let Some(here) = slot.as_ref().filter(|slot| slot.home.id() == home.id()) {
            return Ok(Arc::clone(here));
        }
        let here = Arc::new(Slot {
            home,
            place: Arc::default(),
            dialled: Arc::default(),
            up: Arc::default(),
        });
        let other = slot.replace(Arc::clone(&here));
        drop(slot);
        drop(other);
        Ok(here)
    }

    /// Take the connection out of its place, which stays locked until it is put back. Where there is
    /// none, one is made; the answer says whether that was so.
    ///
    /// A task makes it, so that callers who wait for less time than that takes come to have one. After a
    /// failure none is made for a while: what was said the last time still stands.
    ///
    /// # Errors
    ///
    /// Nothing was sent.
    async fn take(&self) -> Result<(OwnedMutexGuard<Place>, Connected, bool), StoreError> {
        let slot = self.slot_here()?;
        let mut made = false;
        loop {
            let mut place = Arc::clone(&slot.place).lock_owned().await;
            if let Some(connected) = place.connected.take() {
                return Ok((place, connected, made));
            }
            let stands = made || !place.backoff.pause().is_zero();
            if let Some(failure) = place.failure.as_ref().filter(|_| stands) {
                return Err(not_here(failure));
            }
            made = true;
            let (server, up) = (Arc::clone(&self.server), Arc::clone(&slot.up));
            let dialled = Flag::set(&slot.dialled);
            let dial = Gated::new(dial(server, place, up, dialled));
            slot.home.spawn(dial);
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
            let (mut place, mut connected, made) = match self.take().await {
                Ok(taken) => taken,
                Err(refused) => break Err(unknown.unwrap_or(refused)),
            };
            let done = caught(command.run(&mut connected.session)).await;
            let broken = done.is_err() || connected.session.is_broken();
            if !broken {
                place.connected = Some(connected);
            }
            drop(place);
            match (done.unwrap_or_else(|panic| Err(panicked(panic))), unknown) {
                (Err(failure), None) if broken && !made && !failure.is_answer() => {
                    unknown = Some(failure);
                }
                (Ok(answer), Some(_)) if C::tells(&answer) => break Ok(answer),
                (_, Some(failure)) => break Err(failure),
                (done, None) => break done,
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
        let slot = self.slot().clone();
        let home = slot.map(|slot| slot.home.clone()).ok_or_else(ended)?;
        let lane = Arc::clone(self);
        let task = home.spawn(Gated::new(async move { lane.call(&*grants).await }));
        let stop = task.abort_handle();
        let answer = async { task.await.unwrap_or_else(|_| Err(ended())) };
        keep_to(within, answer, || stop.abort()).await
    }
}

/// There is no connection of the lane, which says nothing of the server: it may have no room for two, and
/// a wrong password is found out by that of the background.
fn not_here(failure: &StoreError) -> StoreError {
    StoreError::Unavailable(failure.to_string().into()).undone()
}

/// Connect, and put the connection into its place.
async fn dial(
    server: Arc<Server>,
    mut place: OwnedMutexGuard<Place>,
    up: Arc<AtomicBool>,
    _dialled: Flag,
) {
    match connect(&server, &mut place.backoff).await {
        Ok(session) => {
            place.failure = None;
            place.connected = Some(Connected {
                session,
                _up: Flag::set(&up),
            });
        }
        Err(failure) => place.failure = Some(failure),
    }
}

impl Lane for DirectPath {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(async {
            let (mut place, connected, _) = self.take().await?;
            place.connected = Some(connected);
            Ok(())
        })
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask]) -> Reply<'a, Vec<Outcome>> {
        Box::pin(self.call(asks))
    }

    fn release<'a>(&'a self, returns: &'a [Return]) -> Reply<'a, Vec<Released>> {
        Box::pin(self.call(returns))
    }

    /// A call that was late has taken its connection with it. One that waited for another has not: that
    /// one may be the call of a future that its owner does not poll any more. It keeps its connection, and
    /// calls that come now make another. One that waited while a connection is made shall have it the
    /// next time.
    fn give_up(&self) {
        let mut slot = self.slot();
        let hangs = slot.take_if(|slot| {
            !slot.dialled.load(Ordering::Acquire) && slot.place.try_lock().is_err()
        });
        drop(slot);
        drop(hangs);
    }
}
