//! A process that takes locks, holds them for a while, writes under them, and writes down all of it.
//!
//! Its argument is the JSON of `torture::process::Settings`.

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks};
use mysql_async::TxOpts;
use mysql_async::prelude::Queryable;
use torture::clock;
use torture::history::{Recorder, What};
use torture::naive::{Held, Naive};
use torture::process::{Client, Orders, Settings, Trap, say};
use torture::store::{Answer, Sql, in_time, text};

use std::cell::{Cell, RefCell};
use std::sync::Arc;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let settings = Settings::parse(&argument).expect("the settings are JSON");
    let recorder = Recorder::new(&settings.history, &settings.who).expect("a history");
    let locks = match settings.client {
        Client::Rust => Some(Locks::builder(&settings.url).connect_lazy().expect("a URL")),
        _ => None,
    };
    let naive = Naive {
        client: settings.client,
        url: settings.url.clone(),
        who: settings.who.clone(),
        ttl: settings.ttl,
    };
    let worker = Worker {
        recorder: RefCell::new(recorder),
        orders: Orders::listen(),
        random: RefCell::new(fastrand::Rng::with_seed(settings.seed)),
        data: RefCell::new(None),
        asks: Cell::new(0),
        writes: Cell::new(0),
        skew: Cell::new(0),
        locks,
        naive,
        settings,
    };
    say("ready");
    while !worker.orders.stopped() {
        worker.round().await;
    }
    if let Some(locks) = &worker.locks {
        // Dropped guards are still being released.
        let _ = tokio::time::timeout(Duration::from_secs(10), locks.drain()).await;
    }
}

struct Worker {
    settings: Settings,
    locks: Option<Locks>,
    naive: Naive,
    orders: Arc<Orders>,
    recorder: RefCell<Recorder>,
    random: RefCell<fastrand::Rng>,
    data: RefCell<Option<Sql>>,
    asks: Cell<u64>,
    writes: Cell<u64>,
    skew: Cell<i64>,
}

/// What it holds.
enum Guard {
    Ours(LockGuard),
    Naive(Held),
}

impl Guard {
    fn token(&self) -> i64 {
        match self {
            Self::Ours(guard) => guard.token().get(),
            Self::Naive(held) => held.token,
        }
    }
}

/// What a look at a held lock found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It is trusted.
    Trusted,
    /// It is not trusted now; whether it is lost is not decided, or not told yet.
    Unsure,
    /// It is lost.
    Lost,
}

/// How a write ended that was not committed.
enum Failure {
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
    fn record(&self, what: What) {
        self.recorder.borrow_mut().write(&what);
    }

    fn number(&self, from: u64, to: u64) -> u64 {
        self.random.borrow_mut().u64(from..to)
    }

    fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.number(from, to))
    }

    fn chance(&self, percent: u64) -> bool {
        self.number(0, 100) < percent
    }

    /// Write down where the clock that this process is shown has jumped.
    fn look_at_the_clock(&self) {
        let skew = clock::skew();
        // Both clocks are read one after the other, and whole seconds may differ by that.
        if skew.abs_diff(self.skew.replace(skew)) > 1 {
            self.record(What::Clock { skew });
        }
    }

    async fn round(&self) {
        let ask = self.asks.get() + 1;
        self.asks.set(ask);
        self.look_at_the_clock();
        let at = self.number(0, self.settings.locks.len() as u64);
        let lock = self.settings.locks[at as usize].clone();
        let wait = match self.number(0, 100) {
            0..15 => Some(Duration::ZERO),
            15..60 => Some(self.between(300, 6000)),
            _ => None,
        };
        // What the naive clients ask by is there before they ask, as ours is.
        let connection = match self.locks {
            Some(_) => None,
            None => Sql::connect(&self.settings.url).await.ok(),
        };
        self.orders
            .caught(Trap::Asking, &format!("{lock} 0"), || true)
            .await;
        let wait_us = wait.map(|wait| wait.as_micros() as u64);
        self.record(What::Asked {
            ask,
            lock: lock.clone(),
            wait: wait_us,
        });
        self.orders
            .caught(Trap::Waiting, &format!("{lock} 0"), || true)
            .await;
        let guard = match self.acquire(connection, &lock, wait).await {
            Ok(guard) => guard,
            Err(why) => {
                self.record(What::GaveUp { ask, why });
                // Not at once: a crowd of try-once would keep the machine busy.
                tokio::time::sleep(self.between(20, 120)).await;
                return;
            }
        };
        let token = guard.token();
        self.record(What::Granted { ask, token });
        self.hold(ask, &lock, &guard).await;
        self.record(What::Releasing { ask });
        let ok = match guard {
            // Both ways out: told, and dropped. Of the second nobody hears when it is carried out.
            Guard::Ours(guard) if self.chance(80) => guard.release().await.is_ok(),
            Guard::Ours(guard) => {
                drop(guard);
                false
            }
            Guard::Naive(held) => held.release().await,
        };
        self.record(What::Released { ask, ok });
        tokio::time::sleep(self.between(5, 60)).await;
    }

    async fn acquire(
        &self,
        connection: Option<Sql>,
        lock: &str,
        wait: Option<Duration>,
    ) -> Result<Guard, String> {
        let Some(locks) = &self.locks else {
            let held = self.naive.acquire(connection, lock, wait).await;
            return held.map(Guard::Naive).ok_or_else(|| "busy".into());
        };
        let mut lock = locks.lock(lock).ttl(self.settings.ttl);
        let guard = match wait {
            Some(Duration::ZERO) => lock.try_acquire().await,
            _ => {
                if let Some(wait) = wait {
                    lock = lock.wait(wait);
                }
                lock.acquire().await.map(Some)
            }
        };
        match guard {
            Ok(Some(guard)) => Ok(Guard::Ours(guard)),
            Ok(None) => Err("busy".into()),
            Err(error) => Err(error.chain()),
        }
    }

    /// Look whether it is held, and write down what came of it.
    fn look(&self, ask: u64, guard: &Guard) -> Look {
        self.look_at_the_clock();
        let before = clock::now();
        // Of a loss: why, and when trust ended.
        let (trusted_for, loss) = match guard {
            Guard::Ours(guard) => (
                guard.is_held().then(|| guard.trusted_for()),
                guard.loss().map(|loss| {
                    let ago = u64::try_from(loss.elapsed().as_micros()).unwrap_or(u64::MAX);
                    (loss.reason().as_str(), clock::now().saturating_sub(ago))
                }),
            ),
            Guard::Naive(held) => match held.trusted_for() {
                Some(left) => (Some(left), None),
                None => (None, Some(("expired", held.trusted_until()))),
            },
        };
        if let Some(left) = trusted_for.filter(|left| !left.is_zero()) {
            let lasting = left.as_micros() as u64;
            self.record(What::Trusted {
                ask,
                before,
                lasting,
            });
            return Look::Trusted;
        }
        let Some((reason, ended)) = loss else {
            return Look::Unsure;
        };
        let (reason, ended) = (reason.to_owned(), Some(ended));
        self.record(What::Lost { ask, reason, ended });
        Look::Lost
    }

    async fn hold(&self, ask: u64, lock: &str, guard: &Guard) {
        // Some bodies begin on trust alone: a short step, and only then a look.
        if self.chance(30) {
            tokio::time::sleep(self.between(5, 30)).await;
        }
        let mut last = self.look(ask, guard);
        let what = format!("{lock} {}", guard.token());
        if last == Look::Trusted {
            let looks = || {
                last = self.look(ask, guard);
                last != Look::Lost
            };
            if self.orders.caught(Trap::Holding, &what, looks).await && last != Look::Lost {
                last = self.look(ask, guard);
            }
        }
        let mut blind = false;
        if last == Look::Trusted {
            blind = self.orders.caught(Trap::Blind, &what, || true).await;
        }
        if blind {
            self.write(ask, lock, guard).await;
        }
        let steps = match blind || self.chance(8) {
            // Beyond its first lease, so that it lives by its renewals.
            true => self.settings.ttl.as_millis() as u64 * 2 / 100,
            false => self.number(1, 5),
        };
        for _ in 0..steps {
            // Told once: a loss is no more than that.
            if last == Look::Lost {
                return;
            }
            if self.chance(60) {
                self.write(ask, lock, guard).await;
            }
            tokio::time::sleep(self.between(20, 150)).await;
            last = self.look(ask, guard);
        }
    }

    async fn write(&self, ask: u64, lock: &str, guard: &Guard) {
        self.writes.set(self.writes.get() + 1);
        let id = format!("{} {}", self.settings.who, self.writes.get());
        self.record(What::Write {
            ask,
            id: id.clone(),
        });
        let data = self.data.borrow_mut().take();
        let mut data = match data {
            Some(data) => Ok(data),
            None => Sql::connect(&self.settings.data).await,
        };
        let write = Write {
            worker: self,
            lock,
            id: id.clone(),
            token: guard.token(),
        };
        let done = match &mut data {
            Ok(data) => match guard {
                Guard::Ours(guard) => write.fenced(data, guard).await,
                Guard::Naive(held) => write.naive(data, held).await,
            },
            Err(why) => Err(Failure::Failed(why.clone())),
        };
        match done {
            Ok(()) => {
                self.record(What::Committed { id });
                *self.data.borrow_mut() = data.ok();
            }
            // The connection goes, and its transaction with it.
            Err(Failure::Refused(why)) => self.record(What::Refused { id, why }),
            Err(Failure::Failed(why)) => self.record(What::Failed { id, why }),
        }
    }
}

/// One increment of a counter: read, modified and written back.
struct Write<'a> {
    worker: &'a Worker,
    lock: &'a str,
    id: String,
    token: i64,
}

impl Write<'_> {
    fn read(&self) -> String {
        format!(
            "SELECT value FROM torture_counter WHERE name = '{}'",
            self.lock
        )
    }

    /// The counter's row keeps the order of commits: it is locked from the first of them to the end.
    fn changes(&self, value: &Answer) -> Result<[String; 2], String> {
        let (lock, token, id) = (self.lock, self.token, &self.id);
        let value: Option<i64> = value.rows.first().and_then(|row| row.first()?.parse().ok());
        let next = value.ok_or("no counter")? + 1;
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

    /// It has read; what it writes is as old as this from now on.
    async fn think(&self) {
        let what = format!("{} {}", self.lock, self.token);
        let caught = self
            .worker
            .orders
            .caught(Trap::Fenced, &what, || true)
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
        // Some say how long they may take; the others trust that it is short.
        let lasting = self.worker.chance(30).then(|| Duration::from_secs(3));
        match data {
            Sql::Postgres(client) => {
                in_time(async { client.batch_execute("BEGIN").await.map_err(text) }).await?;
                let open = match lasting {
                    Some(lasting) => bounded(guard.fence_with_duration(client, lasting)).await?,
                    None => bounded(guard.fence(client)).await?,
                };
                let value = data.run(&self.read()).await?;
                self.think().await;
                for change in self.changes(&value)? {
                    data.run(&change).await?;
                }
                self.committing();
                data.run("COMMIT").await?;
                drop(open);
            }
            Sql::MySql(connection) => {
                let begin = connection.start_transaction(TxOpts::default());
                let mut tx = in_time(async { begin.await.map_err(text) }).await?;
                let open = match lasting {
                    Some(lasting) => bounded(guard.fence_with_duration(&mut tx, lasting)).await?,
                    None => bounded(guard.fence(&mut tx)).await?,
                };
                let read = in_time(async { tx.query(self.read()).await.map_err(text) });
                let rows: Vec<(i64,)> = read.await?;
                let value = Answer {
                    rows: rows
                        .iter()
                        .map(|(value,)| vec![value.to_string()])
                        .collect(),
                    ..Answer::default()
                };
                self.think().await;
                for change in self.changes(&value)? {
                    in_time(async { tx.query_drop(change).await.map_err(text) }).await?;
                }
                self.committing();
                in_time(async { tx.commit().await.map_err(text) }).await?;
                drop(open);
            }
            Sql::Sqlite(file) => {
                let behavior = rusqlite::TransactionBehavior::Deferred;
                let mut tx = file.transaction_with_behavior(behavior).map_err(text)?;
                let open = match lasting {
                    Some(lasting) => bounded(guard.fence_with_duration(&mut tx, lasting)).await?,
                    None => bounded(guard.fence(&mut tx)).await?,
                };
                let value: i64 = tx
                    .query_row(&self.read(), [], |row| row.get(0))
                    .map_err(text)?;
                // Of one file: others write there under other locks.
                let value = Answer {
                    rows: vec![vec![value.to_string()]],
                    ..Answer::default()
                };
                self.think().await;
                for change in self.changes(&value)? {
                    tx.execute(&change, []).map_err(text)?;
                }
                self.committing();
                tx.commit().map_err(text)?;
                drop(open);
            }
        }
        Ok(())
    }

    async fn naive(&self, data: &mut Sql, held: &Held) -> Result<(), Failure> {
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
                self.think().await;
                value
            }
            None => {
                let value = data.run(&self.read()).await?;
                self.think().await;
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

/// Its own time limits are longer than one would wait for a write.
async fn bounded<T>(fence: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(Duration::from_secs(6), fence).await {
        Ok(Ok(open)) => Ok(open),
        Ok(Err(error)) => Err(refusal(error)),
        Err(_) => Err(Failure::Failed("no fence in time".into())),
    }
}
