//! Notices on stderr while a command waits for a lock or holds one.
//!
//! The library reports waits and outages as `tracing` events, on any thread. A task of the main
//! thread prints them, since SIGTTOU is blocked there while CMD has the terminal.

mod collector;
mod event;
mod printer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use database_locks::LockName;
use tokio::sync::{mpsc, oneshot};

use self::collector::Collector;
use self::event::Message;
use self::printer::Printer;
use crate::cli::Verbosity;
use crate::output;

/// Sends the progress of the command to the printing task.
#[derive(Debug)]
pub(crate) struct Notices {
    /// `None` with `--quiet`.
    queue: Option<mpsc::UnboundedSender<Message>>,
    lock_over: Arc<AtomicBool>,
}

impl Notices {
    /// Installs the subscriber and starts the task. Call it once, in the runtime.
    pub(crate) fn start(verbosity: Verbosity) -> Self {
        let lock_over = Arc::new(AtomicBool::new(false));
        if verbosity == Verbosity::Quiet {
            output::set_quiet();
            return Self {
                queue: None,
                lock_over,
            };
        }
        let (queue, messages) = mpsc::unbounded_channel();
        // It fails only if there is a subscriber already.
        let _ = tracing::subscriber::set_global_default(Collector::new(queue.clone()));
        let verbose = verbosity == Verbosity::Verbose;
        let printer = Printer::new(verbose, Arc::clone(&lock_over));
        tokio::spawn(printer.run(messages));
        Self {
            queue: Some(queue),
            lock_over,
        }
    }

    /// The wait for a lock, or for a permit of a semaphore, begins.
    pub(crate) fn waiting(&self, name: &LockName, is_semaphore: bool) {
        self.lock_over.store(false, Ordering::Relaxed);
        self.send(Message::Waiting(name.clone(), is_semaphore));
    }

    /// The lock is held.
    pub(crate) fn acquired(&self) {
        self.send(Message::Acquired);
    }

    /// The lock is lost or about to be released: failed renewals are not reported any more.
    pub(crate) fn lock_is_over(&self) {
        self.lock_over.store(true, Ordering::Relaxed);
    }

    /// Waits until everything that was reported so far is printed.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        self.send(Message::Flush(done));
        // With `--quiet` the sender has been dropped, and this returns at once.
        let _ = flushed.await;
    }

    fn send(&self, message: Message) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(message);
        }
    }
}
