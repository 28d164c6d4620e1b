//! What a worker is told: its settings, and the lines of its standard input.
//!
//! The settings are one JSON object, its only argument: see [`Settings`]. A line `trap STATE` asks it to
//! say `trapped LOCK TOKEN` as soon as it is in that state, and to stay there until a line `go` comes;
//! the end of its input asks it to finish what it does and end. The Python programs do the same.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::Engine;

/// The longest that a worker stays in a trap where nobody says `go`.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Where a worker can be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakpoint {
    /// It is about to ask for a lock.
    Asking,
    /// It waits for a lock.
    Waiting,
    /// It holds a lock, and looks at it again and again.
    Holding,
    /// It holds a lock, and does nothing; what it does next is to write, without a look.
    Blind,
    /// It is within a fenced transaction, and has read what it will write back.
    Fenced,
}

impl Breakpoint {
    /// As in a line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Waiting => "waiting",
            Self::Holding => "holding",
            Self::Blind => "blind",
            Self::Fenced => "fenced",
        }
    }

    fn of(word: &str) -> Option<Self> {
        let all = [
            Self::Asking,
            Self::Waiting,
            Self::Holding,
            Self::Blind,
            Self::Fenced,
        ];
        all.into_iter()
            .find(|breakpoint| breakpoint.as_str() == word)
    }
}

/// Which client a worker is.
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
    /// django-database-locks 0.5.
    Legacy,
}

impl Client {
    /// As in settings and tables.
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
            Self::Legacy => "legacy",
        }
    }

    /// Whether what is wrong with it matters there. On SQLite the client's clock is the database's, and
    /// with nothing between client and file a reply is never late.
    pub fn can_be_wrong_on(self, engine: Engine) -> bool {
        let late_or_skewed = matches!(
            self,
            Self::ClientClock | Self::TrustFromReply | Self::HandsOutEnded
        );
        engine != Engine::Sqlite || !late_or_skewed
    }

    /// By its word.
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
            Self::Legacy,
        ];
        all.into_iter().find(|client| client.as_str() == word)
    }
}

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which client it is.
    pub client: Client,
    /// Its name, with how often it was started.
    pub who: String,
    /// Where the locks are.
    pub url: String,
    /// Where it writes.
    pub data: String,
    /// The locks it takes.
    pub locks: Vec<String>,
    /// The length of its leases.
    pub ttl: Duration,
    /// What its choices come from.
    pub seed: u64,
    /// The file it writes its history to.
    pub history: PathBuf,
}

impl Settings {
    /// As an argument.
    pub fn to_json(&self) -> Value {
        json!({
            "client": self.client.as_str(),
            "who": self.who,
            "url": self.url,
            "data": self.data,
            "locks": self.locks,
            "ttl_ms": self.ttl.as_millis() as u64,
            "seed": self.seed,
            "history": self.history,
        })
    }

    /// Read the argument.
    pub fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let text = |key: &str| Some(value[key].as_str()?.to_owned());
        let locks = value["locks"].as_array()?.iter();
        Some(Self {
            client: Client::of(&text("client")?)?,
            who: text("who")?,
            url: text("url")?,
            data: text("data")?,
            locks: locks
                .filter_map(|lock| Some(lock.as_str()?.to_owned()))
                .collect(),
            ttl: Duration::from_millis(value["ttl_ms"].as_u64()?),
            seed: value["seed"].as_u64()?,
            history: text("history")?.into(),
        })
    }
}

/// What a worker has been told so far.
#[derive(Debug, Default)]
pub struct Commands {
    stop: AtomicBool,
    wanted: Mutex<Option<Breakpoint>>,
    resumed: AtomicU64,
}

impl Commands {
    /// Listen to standard input on a thread.
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

    /// Whether it is to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Say that it is in a state, and stay there if it was asked to; whether it was.
    ///
    /// `looks` is called again and again meanwhile, and ends it where it says no.
    pub async fn pause_at(
        &self,
        breakpoint: Breakpoint,
        what: &str,
        mut looks: impl FnMut() -> bool,
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
            && looks()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, Option<Breakpoint>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Say a line.
#[allow(clippy::print_stdout, reason = "printing is how a worker answers")]
pub fn say(line: &str) {
    use std::io::Write;
    println!("{line}");
    // Nobody listens any more: its end is near.
    let _ = std::io::stdout().flush();
}
