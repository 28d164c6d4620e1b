//! The thread that owns the background connection.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use super::database::Database;
use super::worker::Worker;
use crate::store::api::{StoreError, with_deadline};

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

pub(crate) struct Thread {
    database: Arc<Database>,
    /// The queue of the thread; `None` before it has started.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    load: Arc<Load>,
}

/// The load of the thread.
#[derive(Debug, Default)]
struct Load {
    waiting: AtomicUsize,
    /// Whether an answer was late and the thread has finished no job since.
    stuck: AtomicBool,
}

/// The number of requests that may wait for a thread that hangs. More would only fill the memory,
/// since their callers give up long before.
const MAX_BEHIND_A_HANG: usize = 64;

impl Thread {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            jobs: Mutex::new(None),
            load: Arc::default(),
        }
    }

    /// Send a job to the thread, which runs jobs in order.
    fn send(&self, mut job: Job) -> Result<(), StoreError> {
        let mut thread = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*thread {
            match sender.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(back)) => job = back,
            }
        }
        let (sender, jobs) = mpsc::channel::<Job>();
        let mut worker = Worker::new(Arc::clone(&self.database));
        std::thread::Builder::new()
            .name("database-locks-sqlite".into())
            .spawn(move || jobs.into_iter().for_each(|job| job(&mut worker)))
            .map_err(|error| StoreError::Unavailable(error.into()))?;
        let _ = sender.send(job);
        *thread = Some(sender);
        Ok(())
    }

    /// Run this on the thread in its turn, unless the caller has given up by then.
    ///
    /// A thread that hangs because of the disk stays the only one, since another one would hang as
    /// well.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl FnOnce(&mut Worker) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let load = Arc::clone(&self.load);
        if load.stuck.load(Ordering::Acquire)
            && load.waiting.load(Ordering::Acquire) >= MAX_BEHIND_A_HANG
        {
            let message = format!("{} does not answer", self.database.path.display());
            return Err(StoreError::Unavailable(message.into()));
        }
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting::new(Arc::clone(&load));
        self.send(Box::new(move |worker| {
            drop(waiting);
            if !answer.is_closed() {
                drop(answer.send(work(worker)));
            }
            load.stuck.store(false, Ordering::Release);
        }))?;
        let reply = async {
            answered.await.unwrap_or_else(|_| {
                Err(StoreError::Unavailable(
                    "the thread of the connection has ended".into(),
                ))
            })
        };
        let give_up = || self.load.stuck.store(true, Ordering::Release);
        with_deadline(within, reply, give_up).await
    }
}

/// Counts a request as waiting until it is dropped.
struct Waiting(Arc<Load>);

impl Waiting {
    fn new(load: Arc<Load>) -> Self {
        load.waiting.fetch_add(1, Ordering::AcqRel);
        Self(load)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::store::sqlite::Sqlite;
    use crate::store::{api::Store, connect::table::Table};

    pub(crate) fn threads() -> usize {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        // Linux keeps 15 characters of a thread's name.
        names
            .filter(|name| name.trim() == "database-locks-")
            .count()
    }

    /// Simulates a disk that hangs by a job that blocks.
    #[tokio::test]
    async fn a_disk_that_hangs_has_one_thread_hang_and_no_caller() {
        let _alone = crate::store::sqlite::tests::ALONE.lock().await;
        while threads() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::new(folder.path().join("locks.sqlite3"), true, &Table::default());
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(20));
        sqlite.connect(long).await.unwrap();
        let (thaw, frozen) = mpsc::channel::<()>();
        let hang = move |_: &mut Worker| {
            let _ = frozen.recv();
            Ok(())
        };
        // Long enough for the job to begin.
        let late = sqlite.call(Duration::from_secs(3), hang).await;
        assert!(matches!(late, Err(StoreError::Unavailable(_))));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..MAX_BEHIND_A_HANG + 40 {
            let done = Arc::clone(&done);
            let late = sqlite.call(Duration::from_millis(2), move |_| {
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            let late = tokio::time::timeout(long, late)
                .await
                .expect("its deadline");
            assert!(matches!(late, Err(StoreError::Unavailable(_))));
        }
        assert_eq!(threads(), 1);
        // What was given up is not kept for ever, either.
        assert_eq!(Arc::strong_count(&done), 1 + MAX_BEHIND_A_HANG);
        drop(thaw);
        let until = crate::runtime::clock::now() + long;
        while sqlite.read(&[], long).await.is_err() {
            assert!(crate::runtime::clock::now() < until, "it does not go on");
            tokio::time::sleep(short).await;
        }
        assert_eq!(done.load(Ordering::SeqCst), 0, "cancelled jobs do not run");
        assert_eq!(threads(), 1);
    }
}
