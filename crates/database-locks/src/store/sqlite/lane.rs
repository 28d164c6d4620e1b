//! The lane: a second connection to the file, used on the threads of callers that block.
//!
//! Two connections of one process exclude each other as those of two processes do. A call takes nothing
//! from the runtime: its first poll ends it. It waits for a lock of the file no longer than the thread of
//! the store does, and as long for another thread of this process. Only a disk that hangs keeps a call, and
//! those behind it are told that the lane is busy.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::statements;
use super::worker::{BUSY_TIMEOUT, Database, File, Worker};
use crate::fork::PerProcess;
use crate::store::{Ask, Lane, Outcome, Released, Reply, Return, StoreError};

/// The lane of one store.
pub(super) struct BlockingLane {
    database: Arc<Database>,
    /// A forked child neither uses nor closes the connection of its parent.
    connection: PerProcess<Connection>,
}

/// The connection, which threads use in turn.
#[derive(Default)]
struct Connection {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    in_use: bool,
    file: Option<File>,
    /// The threads that wait, in the order in which they came.
    queue: VecDeque<u64>,
    next_ticket: u64,
}

impl Connection {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take it in turn; none if the turn does not come in time.
    fn take(&self, database: &Arc<Database>) -> Option<InUse<'_>> {
        let mut state = self.state();
        if state.in_use || !state.queue.is_empty() {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.queue.push_back(ticket);
            let waits = |state: &mut State| state.in_use || state.queue.front() != Some(&ticket);
            let waited = self.returned.wait_timeout_while(state, BUSY_TIMEOUT, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let late = waits(&mut state);
            state.queue.retain(|waiting| *waiting != ticket);
            if late {
                return None;
            }
        }
        state.in_use = true;
        let worker = Worker {
            database: Arc::clone(database),
            file: state.file.take(),
        };
        Some(InUse {
            connection: self,
            worker,
        })
    }
}

/// The file is closed on a thread of its own: closing it writes to the disk, and the last handle may be
/// dropped on the thread that renews the leases.
impl Drop for Connection {
    fn drop(&mut self) {
        let file = self.state().file.take();
        if file.is_some() {
            // Without a thread it is closed here.
            let _ = std::thread::Builder::new()
                .name("database-locks-sqlite".into())
                .spawn(move || drop(file));
        }
    }
}

/// The connection while a thread uses it.
struct InUse<'a> {
    connection: &'a Connection,
    worker: Worker,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut state = self.connection.state();
        state.file = self.worker.file.take();
        state.in_use = false;
        // A notification is a system call even if no thread waits.
        if !state.queue.is_empty() {
            self.connection.returned.notify_all();
        }
    }
}

impl BlockingLane {
    pub(super) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            connection: PerProcess::new(),
        }
    }

    /// Carry out `work` on this thread.
    fn call<T>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let make = || Ok::<_, Infallible>(Connection::default());
        let Ok(connection) = self.connection.get_or_try_init(make);
        match connection.take(&self.database) {
            Some(mut in_use) => work(&mut in_use.worker),
            None => {
                let said = "another thread of this process is using the connection";
                Err(StoreError::Contention(said.into()))
            }
        }
    }
}

impl fmt::Debug for BlockingLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingLane").finish_non_exhaustive()
    }
}

impl Lane for BlockingLane {
    fn blocks(&self) -> bool {
        true
    }

    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(async { self.call(|worker| worker.connection().map(drop)) })
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask]) -> Reply<'a, Vec<Outcome>> {
        Box::pin(async { self.call(|worker| statements::acquire(worker, asks)) })
    }

    fn release<'a>(&'a self, returns: &'a [Return]) -> Reply<'a, Vec<Released>> {
        Box::pin(async { self.call(|worker| statements::release(worker, returns)) })
    }

    /// A file does not go bad by being slow; one that failed is opened anew as it is.
    fn give_up(&self) {}
}
