//! The direct connection of a client: which calls use it, and on which runtime.
//!
//! The first try of an acquire, and a release, go out on a separate connection, the *direct
//! connection*, whose I/O the caller's runtime drives. Neither another thread nor the caller has to
//! be woken. A call that is not decided at once, such as a wait, continues in the background.
//!
//! One runtime at a time owns the direct connection: the first one that calls repeatedly, or the
//! runtime that blocking threads share. Ownership ends with the runtime, and the next caller's
//! runtime takes over. Calls from other runtimes go through the background. So do concurrent calls:
//! the direct connection serves one call at a time, while the background batches requests.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::{Notify, oneshot};

use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::{ForkSafe, ForkSafeFuture, PerProcess};
use crate::store::{api::DirectConnection, measured::Measured};
use protocol::BootInstant;

mod in_flight;

/// Timeout of a call on the direct connection. After it the background continues. It is longer than
/// the lock wait timeout of MySQL's metadata locks, whose minimum is one second.
pub(crate) const DIRECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Calls in a row after which an async runtime becomes the owner. For fewer calls a connection does
/// not pay off.
const CALLS_TO_OWN: u32 = 3;
/// An owner without a call for this long can be replaced by another runtime.
const OWNER_IDLE: Duration = Duration::from_secs(10);
/// How long the direct connection is disabled after a late call or a failed connect. It doubles
/// with each failure in a row, up to [`LONGEST_BACKOFF`], since a runtime blocked by its tasks
/// usually stays blocked.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Timeout of the first call of blocking threads, which includes connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(2_500);
/// How often the background checks for a late call, while there are calls.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Checks without a call after which they pause until the next call.
const IDLE_CHECKS: u32 = 40;

/// The direct connection of one [`Locks`](crate::Locks), and its owner.
#[derive(Debug)]
pub(crate) struct DirectClient {
    store: Measured,
    direct: Arc<dyn DirectConnection>,
    state: Mutex<State>,
    /// Notified when a call begins, to continue the checks for late calls.
    call_begun: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    owner: Option<Owner>,
    /// When the owner called last.
    used: BootInstant,
    /// The runtime that called last while there was no owner, and its calls in a row.
    candidate: Option<(Id, u32)>,
    /// Runtimes that cannot drive a connection.
    unsupported: Vec<Id>,
    disabled_until: BootInstant,
    /// The latest backoff.
    backoff: Duration,
    call: Option<Call>,
    /// The number of the latest call.
    latest: u64,
    /// The checks for late calls are paused until `call_begun` is notified.
    checks_paused: bool,
}

#[derive(Debug)]
struct Owner {
    runtime: Id,
    /// Whether calls may use the direct connection: it is connected, or connects at the first call.
    ready: bool,
    /// The next call connects, so its timeout is [`CONNECT_TIMEOUT`] instead of [`DIRECT_TIMEOUT`].
    first: bool,
    /// Closed when the runtime has ended. `None`: the runtime of blocking threads, which never
    /// ends. Dropping it ends the task that watches the owner.
    ended: Option<oneshot::Sender<Infallible>>,
}

impl Owner {
    fn is_unheld(&self) -> bool {
        self.ended.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// The call under way.
#[derive(Debug)]
struct Call {
    number: u64,
    /// When the call is late. The background checks it, because a caller may block its own runtime.
    late_at: BootInstant,
    /// When the caller stops waiting.
    until: BootInstant,
    waker: Option<Waker>,
}

impl State {
    fn disable(&mut self) {
        self.backoff = (self.backoff * 2).clamp(FIRST_BACKOFF, LONGEST_BACKOFF);
        self.disabled_until = clock::now() + self.backoff;
        (self.owner, self.candidate, self.call) = (None, None, None);
    }

    fn call(&mut self, number: u64) -> Option<&mut Call> {
        self.call.as_mut().filter(|call| call.number == number)
    }

    fn take(&mut self, number: u64) -> Option<Call> {
        self.call.take_if(|call| call.number == number)
    }
}

impl DirectClient {
    /// `None` if the engine has no direct connection.
    pub(crate) fn for_store(store: &Measured) -> Result<Option<Arc<Self>>, Error> {
        store
            .direct()
            .map(|direct| Self::new(store, direct))
            .transpose()
    }

    fn new(store: &Measured, direct: Arc<dyn DirectConnection>) -> Result<Arc<Self>, Error> {
        let client = Arc::new(Self {
            store: store.clone(),
            direct,
            state: Mutex::default(),
            call_begun: Arc::default(),
        });
        runtime::spawn(check_for_late_calls(
            Arc::downgrade(&client),
            Arc::clone(&client.call_begun),
        ))?;
        Ok(client)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begin a call on the direct connection, if the caller's runtime owns it and no other call is
    /// under way. Otherwise `None`.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Permit> {
        let (runtime, blocking) = runtime::caller_runtime()?;
        if self.direct.blocks() && !blocking {
            return None;
        }
        let (id, now) = (runtime.id(), clock::now());
        let mut state = self.state();
        if now < state.disabled_until || state.unsupported.contains(&id) {
            return None;
        }
        let owner_is_recent = now < state.used + OWNER_IDLE;
        match &state.owner {
            Some(owner) if owner.is_unheld() => {}
            Some(owner) if owner.runtime == id => {
                let (ready, first) = (owner.ready, owner.first);
                state.used = now;
                // A blocking call completes within its first poll, and the engine serializes them.
                if !ready || (state.call.is_some() && !self.direct.blocks()) {
                    return None;
                }
                let timeout = if first {
                    CONNECT_TIMEOUT
                } else {
                    DIRECT_TIMEOUT
                };
                return Some(self.begin(state, runtime, timeout));
            }
            Some(_) if owner_is_recent => return None,
            // The direct connection is in use until the call ends or is found to be late.
            _ if state.call.is_some() && !self.direct.blocks() => return None,
            _ => {}
        }
        let calls = match state.candidate {
            Some((candidate, calls)) if candidate == id => calls + 1,
            _ => 1,
        };
        state.candidate = Some((id, calls));
        if calls < CALLS_TO_OWN && !blocking {
            return None;
        }
        if !blocking {
            // With the mutex free: a panic runs the application's panic hook.
            drop(state);
            let supported = !excluded().contains(&id) && is_supported();
            state = self.state();
            if !supported {
                state.unsupported.push(id);
                return None;
            }
            // Another runtime called meanwhile.
            if state.candidate != Some((id, calls)) {
                return None;
            }
        }
        (state.used, state.candidate, state.call) = (now, None, None);
        // The old connection belongs to the previous owner.
        self.direct.give_up();
        let (ended, dropped_owner) = match blocking {
            true => (None, None),
            false => Some(oneshot::channel()).unzip(),
        };
        state.owner = Some(Owner {
            runtime: id,
            ready: blocking,
            first: blocking,
            ended,
        });
        match dropped_owner {
            None => Some(self.begin(state, runtime, CONNECT_TIMEOUT)),
            Some(dropped_owner) => {
                self.connect_owner(&runtime, dropped_owner);
                None
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        owner: Handle,
        timeout: Duration,
    ) -> Permit {
        state.latest += 1;
        let number = state.latest;
        state.call = Some(Call {
            number,
            late_at: clock::now() + timeout,
            until: BootInstant::MAX,
            waker: None,
        });
        if std::mem::take(&mut state.checks_paused) {
            self.call_begun.notify_one();
        }
        Permit {
            client: ForkSafe::new(Arc::clone(self)),
            owner,
            number,
        }
    }

    /// Connect on the new owner, and watch the owner until it ends. Until the connection is there,
    /// its calls go through the background.
    fn connect_owner(
        self: &Arc<Self>,
        runtime: &Handle,
        dropped_owner: oneshot::Receiver<Infallible>,
    ) {
        let id = runtime.id();
        let (direct, client) = (Arc::clone(&self.direct), Arc::downgrade(self));
        let connect_and_watch = async move {
            let connected = direct.connect().await;
            drop(direct);
            if let Some(client) = client.upgrade() {
                let mut state = client.state();
                match (&connected, &mut state.owner) {
                    (Ok(()), Some(owner)) if owner.runtime == id => owner.ready = true,
                    (Err(_), Some(owner)) if owner.runtime == id => state.disable(),
                    _ => {}
                }
            }
            let _ = dropped_owner.await;
        };
        runtime.spawn(ForkSafeFuture::new(connect_and_watch));
    }

    /// Check whether the call under way is late or its caller has stopped waiting. Returns the
    /// waker to wake, and the time until the next check.
    fn check(&self) -> (Option<Waker>, Duration) {
        let now = clock::now();
        let mut state = self.state();
        let Some(call) = &mut state.call else {
            return (None, CHECK_INTERVAL);
        };
        if call.late_at <= now {
            let waker = call.waker.take();
            state.disable();
            drop(state);
            self.direct.give_up();
            return (waker, CHECK_INTERVAL);
        }
        let next = match call.until <= now {
            true => call.late_at,
            false => call.late_at.min(call.until),
        };
        let waker = (call.until <= now).then(|| call.waker.take()).flatten();
        (waker, (next - now).min(CHECK_INTERVAL))
    }
}

fn excluded() -> MutexGuard<'static, Vec<Id>> {
    static EXCLUDED: PerProcess<Mutex<Vec<Id>>> = PerProcess::new();
    EXCLUDED.lock()
}

/// Never let this runtime own a direct connection: it is known to lack the drivers.
/// [`is_supported`] would find out by a panic, whose message is printed.
pub fn exclude(runtime: &Handle) {
    excluded().push(runtime.id());
}

/// Whether the runtime of this thread drives timers and I/O. For one that does not, tokio panics.
/// So a program that is built with `panic = "abort"` does not try.
fn is_supported() -> bool {
    let drives = || {
        drop(tokio::time::sleep(Duration::ZERO));
        drop(tokio::net::UnixDatagram::unbound());
    };
    cfg!(panic = "unwind") && catch_unwind(drives).is_ok()
}

/// The right to make one call on the direct connection. Dropping it frees the direct connection.
#[derive(Debug)]
pub(crate) struct Permit {
    /// Not used in a forked child, where the mutex may be locked for ever.
    client: ForkSafe<Arc<DirectClient>>,
    owner: Handle,
    number: u64,
}

impl Drop for DirectClient {
    fn drop(&mut self) {
        // Ends the checks for late calls.
        self.call_begun.notify_one();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.client.is_in_owner_process() {
            let ended = self.client.state().take(self.number);
            // With the mutex free: dropping a waker runs foreign code.
            drop(ended);
        }
    }
}

/// Check for late calls until the client of the direct connection is dropped.
async fn check_for_late_calls(client: Weak<DirectClient>, call_begun: Arc<Notify>) {
    let (mut idle, mut last) = (0, 0);
    loop {
        let Some(known) = client.upgrade() else {
            return;
        };
        let (waker, pause) = known.check();
        let paused = {
            let mut state = known.state();
            idle = match state.call.is_some() || state.latest != last {
                true => 0,
                false => idle + 1,
            };
            last = state.latest;
            state.checks_paused = idle > IDLE_CHECKS;
            state.checks_paused
        };
        drop(known);
        if let Some(waker) = waker {
            // A panic of foreign code must not end the checks.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        tokio::select! {
            () = call_begun.notified() => {}
            () = tokio::time::sleep(pause), if !paused => {}
        }
    }
}

#[cfg(test)]
mod tests;
