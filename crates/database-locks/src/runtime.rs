//! The one background thread of the process: all I/O and all renewals happen there.
//!
//! A runtime of our own rather than the caller's, since a caller that blocks its workers, drops its
//! runtime while holding a lock, or has none at all must not lose its locks for it.

use std::future::Future;

use tokio::runtime::Handle;

use crate::error::Error;
use crate::fork::{self, PerProcess};

/// The handle of the background runtime, which is started by the first call in each process.
pub(crate) fn handle() -> Result<&'static Handle, Error> {
    static HANDLE: PerProcess<Handle> = PerProcess::new();
    HANDLE.get_or_try_init(start)
}

fn start() -> Result<Handle, Error> {
    let failed = |source: std::io::Error| Error::Unavailable {
        op: "start the thread that renews leases".into(),
        source: Box::new(source),
    };
    // Before there is a thread for a fork to wait for.
    fork::generation();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(fork::rest)
        .on_thread_unpark(fork::begin)
        .build()
        .map_err(failed)?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("database-locks".into())
        .spawn(move || {
            fork::begin();
            runtime.block_on(std::future::pending::<()>())
        })
        .map_err(failed)?;
    Ok(handle)
}

/// Carry out `work` on the background thread. Dropping this future does not stop it.
pub(crate) async fn run<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    handle()?.spawn(work).await.unwrap_or_else(|stopped| {
        Err(Error::Unavailable {
            op: "finish what was begun".into(),
            source: Box::new(stopped),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "it stands for work that takes a while"
    )]
    fn a_child_never_sees_the_background_thread_in_the_middle_of_something() {
        static HALVES: AtomicU8 = AtomicU8::new(0);
        let (begun, has_begun) = mpsc::channel();
        let work = handle().unwrap().spawn(async move {
            HALVES.fetch_add(1, Ordering::SeqCst);
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            HALVES.fetch_add(1, Ordering::SeqCst);
        });
        has_begun.recv().unwrap();
        assert_eq!(fork::as_forked(|| HALVES.load(Ordering::SeqCst)), 2);
        pollster::block_on(work).unwrap();
    }
}
