//! The end of the process, which releases what its threads still hold.
//!
//! `exit`, which a return from `main` calls too, runs the destructors of the thread-local values of the calling thread
//! and then what was registered with `atexit`, while other threads go on.

use std::sync::{Arc, Once};

use protocol::{ReleaseCommand, Ttl};

use crate::client::pending::{Release, wait};
use crate::client::release::give_back;
use crate::client::{self, Inner};
use crate::runtime;
use crate::runtime::fork::Here;

/// From now on the end of this process releases what its threads still hold, and waits for that.
///
/// A forked child inherits this, and has nothing to be released until it holds something itself.
pub(crate) fn watch() {
    static REGISTERED: Once = Once::new();
    let mut failed = false;
    REGISTERED.call_once(|| {
        #[allow(
            unsafe_code,
            reason = "there is no other way to be told of the end of a process"
        )]
        // SAFETY: the function has the type that is asked for and stays loaded for as long as it is
        // registered: where a library is unloaded, that calls it first. It does not unwind.
        let registered = unsafe { libc::atexit(at_exit) };
        failed = registered != 0;
    });
    // Not in there: a subscriber that calls us would wait for itself.
    if failed {
        tracing::warn!("the end of the process cannot be noticed: release all locks before it");
    }
}

extern "C" fn at_exit() {
    // As above: the thread that ends the process may be the one that carries the releases out.
    if runtime::drives() {
        return;
    }
    if !client::all().is_empty() {
        // In the background: thread-local values of this thread are gone, such as a log subscriber's.
        let release = Here::new(Release::begin());
        let _ = runtime::spawn(async move {
            client::all().iter().for_each(release_all);
            drop(release);
        });
    }
    wait();
}

/// Release what threads hold that end with the process.
fn release_all(inner: &Arc<Inner>) {
    for held in inner.scheduler.take_all() {
        held.released();
        // It may have been resumed, and then nothing here says for how long it was taken.
        let ttl = Ttl::Infinite;
        let (what, held_for) = (ReleaseCommand::of(&held.grant, ttl), held.held_for());
        tokio::spawn(give_back(Arc::clone(inner), what, ttl, Some(held_for)));
    }
}
