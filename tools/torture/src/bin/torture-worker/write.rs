//! Writes under a lock: increments of a counter in the database, in fenced transactions.

use std::time::Duration;

use database_locks::{Error, LockGuard};
use mysql_async::TxOpts;
use mysql_async::prelude::Queryable;
use torture::control::ControlGuard;
use torture::history::What;
use torture::sql::{Answer, Sql, error_text, with_timeout};
use torture::target::{Kind, Mode};
use torture::worker::Breakpoint;

use crate::state::{Guard, Held, Worker};

/// Why a write was not committed.
pub(crate) enum Failure {
    Refused(String),
    Failed(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

fn refusal(error: Error) -> Failure {
    match error {
        Error::Lost { .. } => Failure::Refused(error.to_string()),
        error => Failure::Failed(error.chain()),
    }
}

impl Worker {
    /// Increments the counter of a lock in a fenced transaction, and records how that ended. A reader
    /// only records that it was there. A permit without a slot has no counter.
    pub(crate) async fn write(&self, held: &Held<'_>) {
        let Held {
            request,
            mode,
            guard,
            ..
        } = *held;
        if held.target.kind == Kind::Guarded {
            return self.write_guarded_as_holder(held).await;
        }
        let Some(lock) = held.resource() else { return };
        self.writes.set(self.writes.get() + 1);
        let id = format!("{} {}", self.settings.process, self.writes.get());
        self.record(What::Write {
            request,
            id: id.clone(),
        });
        let data = self.data.borrow_mut().take();
        let mut data = match data {
            Some(data) => Ok(data),
            None => Sql::connect(&self.settings.data).await,
        };
        let write = Write {
            worker: self,
            lock: &lock,
            id: id.clone(),
            token: guard.token(),
            increment: i64::from(mode != Mode::Shared),
        };
        let done = match &mut data {
            Ok(data) => match guard {
                Guard::Library(guard) => write.fenced(data, guard).await,
                Guard::Control(held) => write.control(data, held).await,
            },
            Err(why) => Err(Failure::Failed(why.clone())),
        };
        match done {
            Ok(()) => {
                self.record(What::Committed { id });
                *self.data.borrow_mut() = data.ok();
            }
            // Dropping the connection rolls its transaction back.
            Err(Failure::Refused(why)) => self.record(What::Refused { id, why }),
            Err(Failure::Failed(why)) => self.record(What::Failed { id, why }),
        }
    }
}

/// One increment of a counter: a read, a change and a write.
struct Write<'a> {
    worker: &'a Worker,
    lock: &'a str,
    id: String,
    token: i64,
    /// By how much the counter grows.
    increment: i64,
}

impl Write<'_> {
    fn read(&self) -> String {
        format!(
            "SELECT value FROM torture_counter WHERE name = '{}'",
            self.lock
        )
    }

    /// The statements of an increment. The counter's row is locked until the commit, so that the
    /// numbers of the writes are in the order of the commits.
    fn changes(&self, value: &Answer) -> Result<[String; 2], String> {
        let (lock, token, id) = (self.lock, self.token, &self.id);
        let value: Option<i64> = value.rows.first().and_then(|row| row.first()?.parse().ok());
        let next = value.ok_or("no counter")? + self.increment;
        Ok([
            format!(
                "UPDATE torture_counter SET value = {next}, writes = writes + 1 WHERE name = '{lock}'"
            ),
            format!(
                "INSERT INTO torture_write SELECT name, writes, {token}, '{id}' \
                 FROM torture_counter WHERE name = '{lock}'"
            ),
        ])
    }

    /// The time between the read and the write.
    async fn pause(&self) {
        let what = format!("{} {}", self.lock, self.token);
        let caught = self
            .worker
            .commands
            .pause_at(Breakpoint::Fenced, &what, || true)
            .await;
        if !caught {
            tokio::time::sleep(self.worker.between(0, 15)).await;
        }
    }

    fn committing(&self) {
        let id = self.id.clone();
        self.worker.record(What::Committing { id });
    }

    async fn fenced(&self, data: &mut Sql, guard: &LockGuard) -> Result<(), Failure> {
        // Some fences state a duration; the others rely on a short transaction.
        let duration = self.worker.chance(30).then(|| Duration::from_secs(3));
        let bound = |answer: i64| Answer {
            rows: vec![vec![answer.to_string()]],
            ..Answer::default()
        };
        match data {
            Sql::Postgres(client) => {
                with_timeout(async { client.batch_execute("BEGIN").await.map_err(error_text) })
                    .await?;
                let open = match duration {
                    Some(duration) => bounded(guard.fence_with_duration(client, duration)).await?,
                    None => bounded(guard.fence(client)).await?,
                };
                let value = data.run(&self.read()).await?;
                self.pause().await;
                for change in self.changes(&value)? {
                    data.run(&change).await?;
                }
                self.committing();
                data.run("COMMIT").await?;
                drop(open);
            }
            Sql::MySql(connection) => {
                let begin = connection.start_transaction(TxOpts::default());
                let mut tx = with_timeout(async { begin.await.map_err(error_text) }).await?;
                let open = match duration {
                    Some(duration) => bounded(guard.fence_with_duration(&mut tx, duration)).await?,
                    None => bounded(guard.fence(&mut tx)).await?,
                };
                let read = async { tx.query_first(self.read()).await.map_err(error_text) };
                let value: Option<i64> = with_timeout(read).await?;
                self.pause().await;
                for change in self.changes(&bound(value.ok_or("no counter".to_owned())?))? {
                    with_timeout(async { tx.query_drop(change).await.map_err(error_text) }).await?;
                }
                self.committing();
                with_timeout(async { tx.commit().await.map_err(error_text) }).await?;
                drop(open);
            }
            Sql::Sqlite(file) => {
                let behavior = rusqlite::TransactionBehavior::Deferred;
                let mut tx = file
                    .transaction_with_behavior(behavior)
                    .map_err(error_text)?;
                let open = match duration {
                    Some(duration) => bounded(guard.fence_with_duration(&mut tx, duration)).await?,
                    None => bounded(guard.fence(&mut tx)).await?,
                };
                let value = tx.query_row(&self.read(), [], |row| row.get(0));
                let value = bound(value.map_err(error_text)?);
                self.pause().await;
                for change in self.changes(&value)? {
                    tx.execute(&change, []).map_err(error_text)?;
                }
                self.committing();
                tx.commit().map_err(error_text)?;
                drop(open);
            }
        }
        Ok(())
    }

    async fn control(&self, data: &mut Sql, held: &ControlGuard) -> Result<(), Failure> {
        let begin = match data {
            Sql::Sqlite(_) => "BEGIN IMMEDIATE",
            _ => "BEGIN",
        };
        let value = match held.fence() {
            Some(fence) => {
                data.run(begin).await?;
                if data.run(&fence).await?.rows.len() != 1 {
                    return Err(Failure::Refused("not its row".into()));
                }
                let value = data.run(&self.read()).await?;
                self.pause().await;
                value
            }
            None => {
                let value = data.run(&self.read()).await?;
                self.pause().await;
                data.run(begin).await?;
                value
            }
        };
        for change in self.changes(&value)? {
            data.run(&change).await?;
        }
        self.committing();
        data.run("COMMIT").await?;
        Ok(())
    }
}

/// Bounds a fence, whose own time limits are longer than a worker waits for a write.
async fn bounded<T>(fence: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(Duration::from_secs(6), fence).await {
        Ok(Ok(open)) => Ok(open),
        Ok(Err(error)) => Err(refusal(error)),
        Err(_) => Err(Failure::Failed("no fence in time".into())),
    }
}
