//! The direct connection: a second connection to the file, used on the threads of callers that
//! block.
//!
//! Two connections of one process exclude each other as those of two processes do. A request needs
//! nothing from the runtime: its first poll completes it. It waits for a lock of the file no longer
//! than the thread of the store does, and as long for another thread of this process. Only a disk
//! that hangs delays a request, and requests behind it fail with contention.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::runtime::fork::PerProcess;
use crate::store::api::{DirectConnection, Reply, StoreError};
use crate::store::sqlite::connection::database::{BUSY_TIMEOUT, Database};
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::statements::{acquire::acquire, release::release};
use protocol::{AcquireCommand, Outcome, ReleaseCommand, Released};

/// The direct connection of a store.
pub(crate) struct SqliteDirect {
    database: Arc<Database>,
    /// A forked child neither uses nor closes the connection of its parent.
    connection: PerProcess<Connection>,
}

/// The connection, used by one thread at a time.
struct Connection {
    in_use: Mutex<bool>,
    returned: Condvar,
    /// Locked by the thread that has set `in_use`, since waiting for a mutex has no time limit.
    worker: Mutex<Worker>,
}

/// The file is closed on another thread: closing writes to the disk, and the last handle may be
/// dropped on the thread that renews leases.
impl Drop for Connection {
    fn drop(&mut self) {
        let worker = self.worker.get_mut();
        let file = worker.unwrap_or_else(PoisonError::into_inner).file.take();
        if file.is_some() {
            // If no thread can be spawned, it is closed here.
            let _ = std::thread::Builder::new()
                .name("database-locks-sqlite".into())
                .spawn(move || drop(file));
        }
    }
}

/// A use of the connection, which ends when it is dropped.
struct InUse<'a>(&'a Connection);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let in_use = self.0.in_use.lock();
        *in_use.unwrap_or_else(PoisonError::into_inner) = false;
        self.0.returned.notify_one();
    }
}

impl SqliteDirect {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            connection: PerProcess::new(),
        }
    }

    /// Run `work` on this thread, once no other thread uses the connection.
    fn call<T>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Ok(connection) = self.connection.get_or_try_init(|| {
            Ok::<_, Infallible>(Connection {
                in_use: Mutex::new(false),
                returned: Condvar::new(),
                worker: Mutex::new(Worker::new(Arc::clone(&self.database))),
            })
        });
        let in_use = connection.in_use.lock();
        let in_use = in_use.unwrap_or_else(PoisonError::into_inner);
        let returned = &connection.returned;
        let waited = returned.wait_timeout_while(in_use, BUSY_TIMEOUT, |in_use| *in_use);
        let (mut in_use, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *in_use {
            let message = "another thread of this process is using the connection";
            return Err(StoreError::Contention(message.into()));
        }
        *in_use = true;
        drop(in_use);
        let _use = InUse(connection);
        let worker = connection.worker.lock();
        work(&mut worker.unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for SqliteDirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteDirect").finish_non_exhaustive()
    }
}

impl DirectConnection for SqliteDirect {
    fn blocks(&self) -> bool {
        true
    }

    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(async { self.call(|worker| worker.connection().map(drop)) })
    }

    fn acquire<'a>(&'a self, commands: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        Box::pin(async { self.call(|worker| acquire(worker, commands)) })
    }

    fn release<'a>(&'a self, commands: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        Box::pin(async { self.call(|worker| release(worker, commands)) })
    }

    /// A slow file stays usable, and one that failed is opened again in any case.
    fn give_up(&self) {}
}

#[cfg(test)]
mod tests;
