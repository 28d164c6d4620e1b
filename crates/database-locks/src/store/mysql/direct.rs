//! The direct path of callers: a connection whose I/O the caller's own runtime drives.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::runtime;
use crate::runtime::fork::ForkSafeFuture;
use crate::store::api::{DirectConnection, Reply, StoreError, keep_to};
use crate::store::connect::backoff::Backoff;
use crate::store::mysql::connection::caught::{caught, panicked};
use crate::store::mysql::connection::config::Server;
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::connection::{Flag, Promise, connect, place};
use protocol::{AcquireCommand, Grant, Outcome, ReleaseCommand, Released, Renewal, Ttl};

/// The connection while no call uses it.
#[derive(Default)]
struct Place {
    session: Option<Session>,
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
}

/// Both test whether the place is locked by locking it. The slot of the direct connection has to be
/// locked meanwhile, so that neither takes the other for a call.
impl Slot {
    /// Whether a call uses the connection, or is about to.
    fn is_in_use(&self) -> bool {
        !self.dialled.load(Ordering::Acquire) && self.place.try_lock().is_err()
    }

    /// Whether there is one.
    fn is_up(&self) -> bool {
        match self.place.try_lock() {
            Ok(place) => place.session.is_some(),
            Err(_) => self.is_in_use(),
        }
    }
}

/// The direct connection of MySQL and MariaDB.
///
/// A call takes the connection out, runs its statements within the caller's future and puts it
/// back. If that future is dropped meanwhile, since the call was late or its runtime ended, the
/// connection is dropped with it.
pub(crate) struct MysqlDirect {
    server: Arc<Server>,
    slot: Mutex<Option<Arc<Slot>>>,
}

impl fmt::Debug for MysqlDirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectPath")
            .field("at", &self.server.connector.hosts())
            .finish_non_exhaustive()
    }
}

impl MysqlDirect {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        let slot = Mutex::default();
        Self { server, slot }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Slot>>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.slot().as_ref().is_some_and(|slot| slot.is_up())
    }

    /// The slot of the current runtime. The connection of another runtime, which has ended or is
    /// not driven, would never answer: it is dropped as it is.
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
        });
        let other = slot.replace(Arc::clone(&here));
        drop(slot);
        drop(other);
        Ok(here)
    }

    /// Take the connection out of its place, which stays locked until it is put back. Where there
    /// is none, one is made; the answer says whether that was so.
    ///
    /// A task makes it, so that it is completed even if the caller gives up earlier. After a
    /// failure none is made for a while, and calls fail with the latest failure.
    ///
    /// # Errors
    ///
    /// Nothing was sent.
    async fn take(&self) -> Result<(OwnedMutexGuard<Place>, Session, bool), StoreError> {
        let slot = self.slot_here()?;
        let mut made = false;
        loop {
            let mut place = Arc::clone(&slot.place).lock_owned().await;
            if let Some(session) = place.session.take() {
                return Ok((place, session, made));
            }
            let stands = made || !place.backoff.pause().is_zero();
            match place.failure.as_ref() {
                Some(failure) if stands => return Err(not_here(failure)),
                // The runtime has ended, and with it the task that was making the connection.
                None if made => return Err(not_here(&StoreError::cannot_serve("no connection"))),
                _ => {}
            }
            made = true;
            let (server, dialled) = (Arc::clone(&self.server), Flag::set(&slot.dialled));
            slot.home.spawn(ForkSafeFuture::new(async move {
                let _dialled = dialled;
                match connect(&server, &mut place.backoff).await {
                    Ok(session) => (place.session, place.failure) = (Some(session), None),
                    Err(failure) => place.failure = Some(failure),
                }
            }));
        }
    }

    /// Carry out `work` with `what`, which changes nothing if it was carried out before.
    ///
    /// A call notices only by sending that the server has closed the connection. A ping before each
    /// call would cost a second round trip, and the connection could still be closed after it. So
    /// the work is repeated once, on a new connection. `tells`: whether the second answer shows
    /// what became of the first.
    async fn call<W: Sync + ?Sized, T>(
        &self,
        what: &W,
        work: for<'s> fn(&'s mut Session, &'s W) -> Promise<'s, Result<T, StoreError>>,
        tells: fn(&T) -> bool,
    ) -> Result<T, StoreError> {
        let mut unknown: Option<StoreError> = None;
        let done = loop {
            let (mut place, mut session, made) = match self.take().await {
                Ok(taken) => taken,
                Err(refused) => break Err(unknown.unwrap_or(refused)),
            };
            let done = caught(work(&mut session, what)).await;
            let done = done.map_err(panicked).flatten();
            // A connection that did not answer is not used again.
            let answered = done.as_ref().err().is_none_or(StoreError::is_answer);
            if answered && !session.is_broken() {
                place.session = Some(session);
            }
            drop(place);
            match (done, unknown) {
                (Err(failure), None) if !answered && !made => unknown = Some(failure),
                (Ok(answer), Some(_)) if tells(&answer) => break Ok(answer),
                (_, Some(failure)) => break Err(failure),
                (done, None) => break done,
            }
        };
        done.map_err(|failure| place(&self.server, failure))
    }

    /// Renew leases on it, on the runtime that drives it, which may not be running.
    pub(crate) async fn renew(
        self: &Arc<Self>,
        grants: Vec<(Grant, Ttl)>,
        within: Duration,
    ) -> Result<Vec<Renewal>, StoreError> {
        let ended = || StoreError::Unavailable("the runtime of the connection has ended".into());
        let slot = self.slot().clone();
        let home = slot.map(|slot| slot.home.clone()).ok_or_else(ended)?;
        let direct = Arc::clone(self);
        let (driven, ended_too) = oneshot::channel::<()>();
        let task = home.spawn(ForkSafeFuture::new(async move {
            let _driven = driven;
            let done = direct.call(&*grants, |on, all| Box::pin(on.renew(all)), |_| true);
            done.await
        }));
        // No thread drives the runtime of blocking callers while none of them blocks.
        runtime::drive_until_done(&home, ended_too);
        let stop = task.abort_handle();
        let answer = async { task.await.unwrap_or_else(|_| Err(ended())) };
        keep_to(within, answer, || stop.abort()).await
    }
}

/// The direct connection has no connection, which says nothing about the server: it may allow only
/// one, and the background connection reports a wrong password.
fn not_here(failure: &StoreError) -> StoreError {
    StoreError::Unavailable(failure.to_string().into()).undone()
}

impl DirectConnection for MysqlDirect {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(async {
            let (mut place, session, _) = self.take().await?;
            place.session = Some(session);
            Ok(())
        })
    }

    fn acquire<'a>(&'a self, asks: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        // A grant that is there already is recognised by its id. The row may be locked by the first
        // request.
        let tells = |outcomes: &Vec<_>| !outcomes.contains(&Outcome::Busy);
        Box::pin(self.call(asks, |on, all| Box::pin(on.acquire(all)), tells))
    }

    fn release<'a>(&'a self, returns: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        // After a release the row looks as after a loss.
        let tells = |done: &Vec<_>| !done.contains(&Released::NotHeld);
        Box::pin(self.call(returns, |on, all| Box::pin(on.release(all)), tells))
    }

    /// A late call keeps its connection until it is dropped, which may be never: its owner may not
    /// poll it any more. Later calls make another connection. One that is being made stays for the
    /// next call.
    fn give_up(&self) {
        let hangs = self.slot().take_if(|slot| slot.is_in_use());
        drop(hangs);
    }
}
