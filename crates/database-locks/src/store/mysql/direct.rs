//! The direct connection: its I/O is driven by the runtime of the caller.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::runtime;
use crate::runtime::fork::ForkSafeFuture;
use crate::store::api::{DirectConnection, Reply, StoreError, with_deadline};
use crate::store::connect::backoff::Backoff;
use crate::store::mysql::connection::config::Server;
use crate::store::mysql::connection::open::{connect, name_server};
use crate::store::mysql::connection::panic::or_panicked;
use crate::store::mysql::connection::queue::BoxFuture;
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::connection::worker::FlagGuard;
use protocol::{AcquireCommand, Grant, Outcome, ReleaseCommand, Released, Renewal, Ttl};

/// The connection while no request uses it.
#[derive(Default)]
struct IdleConnection {
    session: Option<Session>,
    backoff: Backoff,
    /// Why the latest attempt to connect failed.
    failure: Option<StoreError>,
}

/// The connection of one runtime.
struct Slot {
    home: Handle,
    /// Locked by the request that uses the connection, and while connecting.
    idle: Arc<tokio::sync::Mutex<IdleConnection>>,
    /// Whether a task is connecting.
    connecting: Arc<AtomicBool>,
}

/// Both find out whether the mutex is locked by trying to lock it. The caller holds the mutex of
/// the slot, so that neither mistakes the other for a request.
impl Slot {
    /// Whether a request uses the connection, or is about to.
    fn is_in_use(&self) -> bool {
        !self.connecting.load(Ordering::Acquire) && self.idle.try_lock().is_err()
    }

    /// Whether there is a connection.
    fn is_up(&self) -> bool {
        match self.idle.try_lock() {
            Ok(idle) => idle.session.is_some(),
            Err(_) => self.is_in_use(),
        }
    }
}

/// The direct connection of MySQL and MariaDB.
///
/// A request takes the connection out, runs its statements within the caller's future and puts it
/// back. If that future is dropped meanwhile, because the request was late or its runtime ended,
/// the connection is dropped with it.
pub(crate) struct MysqlDirect {
    server: Arc<Server>,
    slot: Mutex<Option<Arc<Slot>>>,
}

impl fmt::Debug for MysqlDirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlDirect")
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

    /// Whether there is a connection, as far as known.
    pub(crate) fn is_up(&self) -> bool {
        self.slot().as_ref().is_some_and(|slot| slot.is_up())
    }

    /// The slot of the current runtime. The connection of another runtime is dropped: if that
    /// runtime has ended or is not driven, it would never answer.
    fn current_slot(&self) -> Result<Arc<Slot>, StoreError> {
        let home = Handle::try_current()
            .map_err(|error| StoreError::Unavailable(error.into()).undone())?;
        let mut slot = self.slot();
        if let Some(here) = slot.as_ref().filter(|slot| slot.home.id() == home.id()) {
            return Ok(Arc::clone(here));
        }
        let here = Arc::new(Slot {
            home,
            idle: Arc::default(),
            connecting: Arc::default(),
        });
        let other = slot.replace(Arc::clone(&here));
        drop(slot);
        drop(other);
        Ok(here)
    }

    /// Take the connection, connecting if there is none. Its mutex stays locked until it is put
    /// back. Also answers whether it is a new connection.
    ///
    /// A task connects, so that connecting goes on if the caller gives up earlier. After a failure,
    /// requests fail with its error until the pause has passed.
    ///
    /// # Errors
    ///
    /// No request was sent.
    async fn take(&self) -> Result<(OwnedMutexGuard<IdleConnection>, Session, bool), StoreError> {
        let slot = self.current_slot()?;
        let mut is_new = false;
        loop {
            let mut idle = Arc::clone(&slot.idle).lock_owned().await;
            // The background connection has had no answer from the node of an avoided one.
            let session = idle.session.take();
            if let Some(session) = session.filter(|it| is_new || !it.is_avoided()) {
                return Ok((idle, session, is_new));
            }
            let stands = is_new || !idle.backoff.pause().is_zero();
            match idle.failure.as_ref() {
                Some(failure) if stands => return Err(not_connected(failure)),
                // The runtime has ended, and with it the task that was connecting.
                None if is_new => {
                    return Err(not_connected(&StoreError::cannot_serve("no connection")));
                }
                _ => {}
            }
            is_new = true;
            let (server, connecting) = (Arc::clone(&self.server), FlagGuard::set(&slot.connecting));
            slot.home.spawn(ForkSafeFuture::new(async move {
                let _connecting = connecting;
                match connect(&server, &mut idle.backoff).await {
                    Ok(session) => (idle.session, idle.failure) = (Some(session), None),
                    Err(failure) => idle.failure = Some(failure),
                }
            }));
        }
    }

    /// Run `work` on `request`. Running it twice has the effect of running it once.
    ///
    /// A call notices only by sending that the server has closed the connection. A ping before each
    /// call would cost a second round trip, and the connection could still be closed after it. So
    /// the work is repeated once, on a new connection. `is_conclusive`: whether the second answer
    /// shows the effect of the first.
    async fn call<W: Sync + ?Sized, T>(
        &self,
        request: &W,
        work: for<'s> fn(&'s mut Session, &'s W) -> BoxFuture<'s, Result<T, StoreError>>,
        is_conclusive: fn(&T) -> bool,
    ) -> Result<T, StoreError> {
        let mut unknown: Option<StoreError> = None;
        let done = loop {
            let (mut idle, mut session, is_new) = match self.take().await {
                Ok(taken) => taken,
                Err(refused) => break Err(unknown.unwrap_or(refused)),
            };
            let unanswered = session.begin_request();
            let done = or_panicked(work(&mut session, request)).await;
            unanswered.answered();
            // A connection that has not answered is not used again.
            let answered = done.as_ref().err().is_none_or(StoreError::is_answer);
            if answered && !session.is_broken() {
                idle.session = Some(session);
            }
            drop(idle);
            match (done, unknown) {
                (Err(failure), None) if !answered && !is_new => unknown = Some(failure),
                (Ok(answer), Some(_)) if is_conclusive(&answer) => break Ok(answer),
                (_, Some(failure)) => break Err(failure),
                (done, None) => break done,
            }
        };
        done.map_err(|failure| name_server(&self.server, failure))
    }

    /// Renew leases on this connection, on the runtime that drives it, which may not be running.
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
        // No thread drives the runtime of blocking callers while none of them is blocked.
        runtime::drive_until_done(&home, ended_too);
        let stop = task.abort_handle();
        let answer = async { task.await.unwrap_or_else(|_| Err(ended())) };
        with_deadline(within, answer, || stop.abort()).await
    }
}

/// The error if the direct connection cannot connect. It is not taken as an answer of the server,
/// which may allow one connection only; the background connection reports a wrong password.
fn not_connected(failure: &StoreError) -> StoreError {
    StoreError::Unavailable(failure.to_string().into()).undone()
}

impl DirectConnection for MysqlDirect {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(async {
            let (mut idle, session, _) = self.take().await?;
            idle.session = Some(session);
            Ok(())
        })
    }

    fn acquire<'a>(&'a self, commands: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        // The grant of the first request is recognised by its id. Its row may still be locked by
        // that request.
        let is_conclusive = |outcomes: &Vec<_>| !outcomes.contains(&Outcome::Busy);
        Box::pin(self.call(commands, |on, all| Box::pin(on.acquire(all)), is_conclusive))
    }

    fn release<'a>(&'a self, commands: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        // After a release the row looks like after a loss.
        let is_conclusive = |done: &Vec<_>| !done.contains(&Released::NotHeld);
        Box::pin(self.call(commands, |on, all| Box::pin(on.release(all)), is_conclusive))
    }

    /// A late request keeps its connection until it is dropped, which may never happen: its owner
    /// may not poll it again. Later requests use another connection. A connect under way goes on
    /// for the next request.
    fn give_up(&self) {
        let hangs = self.slot().take_if(|slot| slot.is_in_use());
        drop(hangs);
    }
}
