//! Releases at process exit: every lock that the process still holds is released.

use std::sync::{Arc, Once};

use protocol::{ReleaseCommand, Ttl};

use crate::client::pending_releases::{ReleaseNumber, wait};
use crate::client::release::ReleaseRequest;
use crate::client::{self, Client};
use crate::runtime;
use crate::runtime::fork::ForkSafe;

/// Register the `atexit` handler that releases all held locks and waits for the releases.
///
/// A forked child inherits the handler, which does nothing until the child holds a lock itself.
pub(crate) fn watch() {
    static REGISTERED: Once = Once::new();
    let mut failed = false;
    REGISTERED.call_once(|| {
        #[allow(unsafe_code, reason = "only `atexit` reports the end of a process")]
        // SAFETY: the function has the type that `atexit` asks for. It stays loaded for as long as
        // it is registered: unloading a shared library runs its handlers first. It does not unwind.
        let registered = unsafe { libc::atexit(at_exit) };
        failed = registered != 0;
    });
    // Logged outside `call_once`: a log subscriber that uses this library would deadlock inside it.
    if failed {
        tracing::warn!("locks cannot be released at process exit: release them before it");
    }
}

extern "C" fn at_exit() {
    // The background thread carries the releases out. If that thread ends the process, waiting
    // would deadlock.
    if runtime::drives_background() {
        return;
    }
    if !client::all().is_empty() {
        // On the background thread: the thread-local values of this thread, such as a log
        // subscriber's, are already destroyed.
        let release = ForkSafe::new(ReleaseNumber::begin());
        let _ = runtime::spawn(async move {
            client::all().iter().for_each(release_all);
            drop(release);
        });
    }
    wait();
}

/// Release every lock that this client still holds.
fn release_all(client: &Arc<Client>) {
    for state in client.scheduler.remove_all() {
        state.mark_released();
        // A resumed guard does not know the ttl in its row, so the release must assume the longest.
        let ttl = Ttl::Infinite;
        let (client, command) = (Arc::clone(client), ReleaseCommand::of(&state.grant, ttl));
        let (until, held_for) = (state.unavailable_until(), Some(state.held_for()));
        // The background completes it.
        drop(ReleaseRequest::new(client, command, until, ttl, held_for));
    }
}
