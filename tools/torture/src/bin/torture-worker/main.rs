//! A worker process: takes locks, holds them for a while, writes in fenced transactions, and
//! records all of it.
//!
//! Its argument is the JSON of `torture::worker::Settings`.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use torture::clock;
use torture::control::ControlClient;
use torture::history::{Recorder, What};
use torture::sql::Sql;
use torture::target::{Kind, Mode, Target};
use torture::worker::{Breakpoint, Commands, Settings, say};

mod guarded;
mod state;
mod write;

use guarded::Show;
use state::{Guard, Held, Worker};

#[tokio::main(worker_threads = 2)]
async fn main() {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let settings = Settings::parse(&argument).expect("the settings are JSON");
    let recorder = Recorder::new(&settings.history, &settings.process).expect("a history");
    let locks = match settings.client {
        client if client.is_library() => {
            Some(Locks::builder(&settings.url).connect_lazy().expect("a URL"))
        }
        _ => None,
    };
    let commands = Commands::listen();
    let control = ControlClient {
        client: settings.client,
        url: settings.url.clone(),
        process: settings.process.clone(),
        ttl: settings.ttl,
        commands: Arc::clone(&commands),
    };
    let worker = Worker {
        recorder: RefCell::new(recorder),
        commands,
        random: RefCell::new(fastrand::Rng::with_seed(settings.seed)),
        data: RefCell::new(None),
        requests: Cell::new(0),
        writes: Cell::new(0),
        outdated: RefCell::new(None),
        skew: Cell::new(0),
        locks,
        control,
        settings,
    };
    say("ready");
    while !worker.commands.stopped() {
        worker.round().await;
    }
    if let Some(locks) = &worker.locks {
        // Dropped guards are still being released.
        let _ = tokio::time::timeout(Duration::from_secs(10), locks.drain()).await;
    }
}

/// The result of a check of a held lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It is trusted.
    Trusted,
    /// It is not trusted now, and the loss is undecided or not reported yet.
    Unsure,
    /// It is lost.
    Lost,
}

impl Worker {
    async fn round(&self) {
        let request = self.requests.get() + 1;
        self.requests.set(request);
        self.record_clock_jump();
        if self.chance(10) {
            self.write_guarded(&Show::Nothing).await;
        }
        let (target, mode) = self.choose();
        let lock = target.name.clone();
        let wait = match self.number(0, 100) {
            0..15 => Some(Duration::ZERO),
            15..60 => Some(self.between(300, 6000)),
            _ => None,
        };
        // Control clients prepare their statements before the first request, as the library does.
        let connection = match self.locks {
            Some(_) => None,
            None => Sql::connect(&self.settings.url).await.ok(),
        };
        self.commands
            .pause_at(Breakpoint::Asking, &format!("{lock} 0"), || true)
            .await;
        let wait_us = wait.map(|wait| wait.as_micros() as u64);
        self.record(What::Asked {
            request,
            lock: lock.clone(),
            mode,
            wait: wait_us,
        });
        self.commands
            .pause_at(Breakpoint::Waiting, &format!("{lock} 0"), || true)
            .await;
        let guard = match self.acquire(connection, target, mode, wait).await {
            Ok(guard) => guard,
            Err(why) => {
                self.record(What::GaveUp { request, why });
                // Many immediate retries would keep the machine busy.
                tokio::time::sleep(self.between(20, 120)).await;
                return;
            }
        };
        let (token, slot) = (guard.token(), guard.slot());
        self.record(What::Granted {
            request,
            token,
            slot,
        });
        let held = Held {
            request,
            target,
            mode,
            guard: &guard,
        };
        self.hold(&held).await;
        let ticket = self.ticket(&held);
        self.record(What::Releasing { request });
        let (guard, request) = match guard {
            Guard::Library(guard)
                if target.kind == Kind::Shared && mode != Mode::Shared && self.chance(40) =>
            {
                self.downgrade(guard, request, target).await
            }
            guard => (guard, request),
        };
        let ok = match guard {
            // Guards are released or dropped. When a drop has released is not known.
            Guard::Library(guard) if self.chance(80) => guard.release().await.is_ok(),
            Guard::Library(guard) => {
                drop(guard);
                false
            }
            Guard::Control(held) => held.release().await,
        };
        self.record(What::Released { request, ok });
        if let Some(ticket) = ticket {
            self.keep_outdated(ticket, ok).await;
        }
        tokio::time::sleep(self.between(5, 60)).await;
    }

    /// A writer becomes a reader, which is another grant, and holds the lock on. The request of the
    /// guard's grant, whose release has begun.
    async fn downgrade(&self, mut guard: LockGuard, writer: u64, target: &Target) -> (Guard, u64) {
        let request = self.requests.get() + 1;
        self.requests.set(request);
        self.record(What::Asked {
            request,
            lock: target.name.clone(),
            mode: Mode::Shared,
            wait: None,
        });
        if let Err(error) = guard.downgrade().await {
            let why = error.chain();
            self.record(What::GaveUp { request, why });
            return (Guard::Library(guard), writer);
        }
        let (token, slot) = (guard.token().get(), guard.slot());
        self.record(What::Granted {
            request,
            token,
            slot,
        });
        // Whether the exclusive grant was released then is not known.
        self.record(What::Released {
            request: writer,
            ok: false,
        });
        let guard = Guard::Library(guard);
        let held = Held {
            request,
            target,
            mode: Mode::Shared,
            guard: &guard,
        };
        self.hold(&held).await;
        self.record(What::Releasing { request });
        (guard, request)
    }

    async fn acquire(
        &self,
        connection: Option<Sql>,
        target: &Target,
        mode: Mode,
        wait: Option<Duration>,
    ) -> Result<Guard, String> {
        let Some(locks) = &self.locks else {
            let held = self.control.acquire(connection, target, mode, wait).await;
            return held.map(Guard::Control).ok_or_else(|| "busy".into());
        };
        let lock = match mode {
            Mode::Exclusive => locks.lock(&target.name),
            Mode::Permit(permits) => locks.semaphore(&target.name, permits),
            Mode::Shared => locks.lock(&target.name).shared(),
        };
        let mut lock = lock.ttl(self.settings.ttl);
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
            Ok(Some(guard)) => Ok(Guard::Library(guard)),
            Ok(None) => Err("busy".into()),
            Err(error) => Err(error.chain()),
        }
    }

    /// Checks whether the lock is held, and records the result.
    fn look(&self, request: u64, guard: &Guard) -> Look {
        self.record_clock_jump();
        let before = clock::now();
        // Of a loss: its reason, and when trust ended.
        let (trusted_for, loss) = match guard {
            Guard::Library(guard) => (
                guard.is_held().then(|| guard.trusted_for()),
                guard.loss().map(|loss| {
                    let ago = u64::try_from(loss.elapsed().as_micros()).unwrap_or(u64::MAX);
                    (loss.reason().as_str(), clock::now().saturating_sub(ago))
                }),
            ),
            Guard::Control(held) => match held.trusted_for() {
                Some(left) => (Some(left), None),
                None => (None, Some(("expired", held.trusted_until()))),
            },
        };
        if let Some(left) = trusted_for.filter(|left| !left.is_zero()) {
            let lasting = left.as_micros() as u64;
            self.record(What::Trusted {
                request,
                before,
                lasting,
            });
            return Look::Trusted;
        }
        let Some((reason, ended)) = loss else {
            return Look::Unsure;
        };
        let (reason, ended) = (reason.to_owned(), Some(ended));
        self.record(What::Lost {
            request,
            reason,
            ended,
        });
        Look::Lost
    }

    async fn hold(&self, held: &Held<'_>) {
        let Held { request, guard, .. } = *held;
        let lock = &held.target.name;
        // Some bodies begin without a check, as callers do.
        if self.chance(30) {
            tokio::time::sleep(self.between(5, 30)).await;
        }
        let mut last = self.look(request, guard);
        let what = format!("{lock} {}", guard.token());
        if last == Look::Trusted {
            let looks = || {
                last = self.look(request, guard);
                last != Look::Lost
            };
            if self
                .commands
                .pause_at(Breakpoint::Holding, &what, looks)
                .await
                && last != Look::Lost
            {
                last = self.look(request, guard);
            }
        }
        let mut blind = false;
        if last == Look::Trusted {
            blind = self
                .commands
                .pause_at(Breakpoint::Blind, &what, || true)
                .await;
        }
        if blind {
            self.write(held).await;
        }
        let steps = match blind || self.chance(8) {
            // Longer than the first lease, so that it depends on renewals.
            true => self.settings.ttl.as_millis() as u64 * 2 / 100,
            false => self.number(1, 5),
        };
        for _ in 0..steps {
            // A loss is recorded once.
            if last == Look::Lost {
                // The guard must refuse what comes too late.
                if held.target.kind == Kind::Guarded {
                    self.write(held).await;
                }
                return;
            }
            if self.chance(60) || self.commands.wants_guarded_write() {
                self.write(held).await;
            }
            tokio::time::sleep(self.between(20, 150)).await;
            last = self.look(request, guard);
        }
    }
}
