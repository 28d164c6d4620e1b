//! The settings of a worker, and the commands on its standard input.
//!
//! The settings are its only argument, a JSON object: see [`Settings`]. The command `pause STATE`
//! sets a breakpoint: when the worker reaches that state, it answers `paused LOCK TOKEN` and stays
//! there until the command `resume`. At the end of its input it finishes its round and ends. The
//! Python programs do the same.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::target::Target;

/// How long a worker stays at a breakpoint without `resume`.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// The COMMIT of a write to the guarded table, by which the network tells it from other statements.
pub const GUARDED_COMMIT: &str = "COMMIT /* guarded */";

/// The states in which a worker can pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakpoint {
    /// About to request a lock.
    Asking,
    /// Between a look at a lock that is free and the statement that takes it: some controls.
    Looked,
    /// Waiting for a lock.
    Waiting,
    /// Holding a lock, which it checks again and again.
    Holding,
    /// Holding a lock; it writes next, without another check.
    Blind,
    /// Within a fenced transaction, between its read and its write.
    Fenced,
    /// Within a transaction that has shown the ticket, before its write to the guarded table.
    Shown,
    /// Within a transaction that has written to the guarded table, before its COMMIT.
    Written,
}

impl Breakpoint {
    /// Its name in commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Looked => "looked",
            Self::Waiting => "waiting",
            Self::Holding => "holding",
            Self::Blind => "blind",
            Self::Fenced => "fenced",
            Self::Shown => "shown",
            Self::Written => "written",
        }
    }

    fn of(word: &str) -> Option<Self> {
        let all = [
            Self::Asking,
            Self::Looked,
            Self::Waiting,
            Self::Holding,
            Self::Blind,
            Self::Fenced,
            Self::Shown,
            Self::Written,
        ];
        all.into_iter()
            .find(|breakpoint| breakpoint.as_str() == word)
    }
}

/// The clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// database-locks, from Rust.
    Rust,
    /// database-locks, from Python.
    Python,
    /// A simple client on the same table, without a mistake.
    Correct,
    /// Its renewal takes a lock that has expired or is free.
    RenewalAcquires,
    /// It counts its trust from the reply rather than the request.
    TrustFromReply,
    /// It judges by its own clock whether a lease has ended.
    ClientClock,
    /// It hands out a grant whose reply came after the end of trust.
    HandsOutEnded,
    /// It writes without a fence.
    Unfenced,
    /// Of a semaphore it counts the holders, and then enters.
    CountsThenEnters,
    /// Of a lock that readers share, readers and writers look whether it is free, and then enter.
    LooksThenEnters,
    /// database-locks, from Rust, and a table of which the database was not told that a lock
    /// guards it.
    Unguarded,
    /// Legacy (django-database-locks 0.5).
    Legacy,
}

impl Client {
    /// Whether it is the library, rather than a client of its own on the same tables.
    pub fn is_library(self) -> bool {
        matches!(self, Self::Rust | Self::Python | Self::Unguarded)
    }

    /// Its name in settings and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Correct => "correct",
            Self::RenewalAcquires => "renewal-acquires",
            Self::TrustFromReply => "trust-from-reply",
            Self::ClientClock => "client-clock",
            Self::HandsOutEnded => "hands-out-ended",
            Self::Unfenced => "unfenced",
            Self::CountsThenEnters => "counts-then-enters",
            Self::LooksThenEnters => "looks-then-enters",
            Self::Unguarded => "unguarded",
            Self::Legacy => "legacy",
        }
    }

    /// Whether its mistake can show on an engine. On SQLite the client's clock is that of the
    /// database, a reply is never late, and there are no guards. One server suffices to expose a
    /// client of its own; the triggers of a cluster differ from those of a server.
    pub fn can_be_wrong_on(self, engine: Engine) -> bool {
        let needs_server = matches!(
            self,
            Self::ClientClock | Self::TrustFromReply | Self::HandsOutEnded | Self::Unguarded
        );
        match engine {
            Engine::Sqlite => !needs_server,
            Engine::Galera => self == Self::Unguarded,
            _ => true,
        }
    }

    /// The client of a name.
    pub fn of(word: &str) -> Option<Self> {
        let all = [
            Self::Rust,
            Self::Python,
            Self::Correct,
            Self::RenewalAcquires,
            Self::TrustFromReply,
            Self::ClientClock,
            Self::HandsOutEnded,
            Self::Unfenced,
            Self::CountsThenEnters,
            Self::LooksThenEnters,
            Self::Unguarded,
            Self::Legacy,
        ];
        all.into_iter().find(|client| client.as_str() == word)
    }
}

/// The settings of a worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its client.
    pub client: Client,
    /// Its name, with the count of its starts.
    pub process: String,
    /// The database of the locks.
    pub url: String,
    /// The database of its writes.
    pub data: String,
    /// What it contends for.
    pub targets: Vec<Target>,
    /// The length of its leases.
    pub ttl: Duration,
    /// The seed of its choices.
    pub seed: u64,
    /// The file of its history.
    pub history: PathBuf,
}

impl Settings {
    /// The argument.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "client": self.client.as_str(),
            "process": self.process,
            "url": self.url,
            "data": self.data,
            "ttl_ms": self.ttl.as_millis() as u64,
            "seed": self.seed,
            "history": self.history,
        });
        if let Some(value) = value.as_object_mut() {
            value.extend(Target::to_json(&self.targets));
        }
        value
    }

    /// Reads the argument.
    pub fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let text = |key: &str| Some(value[key].as_str()?.to_owned());
        Some(Self {
            client: Client::of(&text("client")?)?,
            process: text("process")?,
            url: text("url")?,
            data: text("data")?,
            targets: Target::parse(&value)?,
            ttl: Duration::from_millis(value["ttl_ms"].as_u64()?),
            seed: value["seed"].as_u64()?,
            history: text("history")?.into(),
        })
    }
}

/// The commands that a worker has received.
#[derive(Debug, Default)]
pub struct Commands {
    stop: AtomicBool,
    wanted: Mutex<Option<Breakpoint>>,
    resumed: AtomicU64,
}

impl Commands {
    /// Reads standard input on a thread.
    pub fn listen() -> Arc<Self> {
        let commands = Arc::new(Self::default());
        let heard = Arc::clone(&commands);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { break };
                match line.split_once(' ') {
                    Some(("pause", state)) => *heard.wanted() = Breakpoint::of(state),
                    _ => drop(heard.resumed.fetch_add(1, Ordering::SeqCst)),
                }
            }
            heard.stop.store(true, Ordering::SeqCst);
        });
        commands
    }

    /// Whether it must finish.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Pauses if there is a breakpoint at this state; whether there was one.
    ///
    /// `goes_on` is called again and again meanwhile; if it returns false, the pause ends.
    pub async fn pause_at(
        &self,
        breakpoint: Breakpoint,
        what: &str,
        mut goes_on: impl FnMut() -> bool,
    ) -> bool {
        if self
            .wanted()
            .take_if(|wanted| *wanted == breakpoint)
            .is_none()
        {
            return false;
        }
        let before = self.resumed.load(Ordering::SeqCst);
        say(&format!("paused {what}"));
        if breakpoint == Breakpoint::Waiting {
            return true;
        }
        let begun = testkit::time::now();
        while self.resumed.load(Ordering::SeqCst) == before
            && begun.elapsed() < LONGEST_PAUSE
            && !self.stopped()
            && goes_on()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Whether there is a breakpoint in a write to the guarded table.
    pub fn wants_guarded_write(&self) -> bool {
        matches!(
            *self.wanted(),
            Some(Breakpoint::Shown | Breakpoint::Written)
        )
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, Option<Breakpoint>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prints a line.
#[allow(clippy::print_stdout, reason = "the answers go to standard output")]
pub fn say(line: &str) {
    use std::io::Write;
    println!("{line}");
    // It fails if the run has ended, which ends this process too.
    let _ = std::io::stdout().flush();
}
