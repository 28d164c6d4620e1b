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
pub const TRAPPED_AT_MOST: Duration = Duration::from_secs(20);

/// Where a worker can be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
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

impl Trap {
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
        all.into_iter().find(|trap| trap.as_str() == word)
    }
}

/// Which client a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Ours, from Rust.
    Rust,
    /// Ours, from Python.
    Python,
    /// A simple one on the same table that does all that it should.
    Naive,
    /// Its renewal takes a lock that has run out, or is free, as an acquire does.
    RenewalAcquires,
    /// It counts its trust from the reply.
    TrustFromReply,
    /// It judges by its own clock whether a lease has ended.
    ClientClock,
    /// It hands out what it was granted, however late it hears of it.
    HandsOutEnded,
    /// It writes without a fence.
    Unfenced,
    /// `django-database-locks` 0.5.
    Replaced,
}

impl Client {
    /// As in settings and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Naive => "naive",
            Self::RenewalAcquires => "renewal-acquires",
            Self::TrustFromReply => "trust-from-reply",
            Self::ClientClock => "client-clock",
            Self::HandsOutEnded => "hands-out-ended",
            Self::Unfenced => "unfenced",
            Self::Replaced => "replaced",
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
            Self::Naive,
            Self::RenewalAcquires,
            Self::TrustFromReply,
            Self::ClientClock,
            Self::HandsOutEnded,
            Self::Unfenced,
            Self::Replaced,
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
pub struct Orders {
    stop: AtomicBool,
    trap: Mutex<Option<Trap>>,
    gone: AtomicU64,
}

impl Orders {
    /// Listen to standard input on a thread.
    pub fn listen() -> Arc<Self> {
        let orders = Arc::new(Self::default());
        let heard = Arc::clone(&orders);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { break };
                match line.split_once(' ') {
                    Some(("trap", state)) => *heard.trap() = Trap::of(state),
                    _ => drop(heard.gone.fetch_add(1, Ordering::SeqCst)),
                }
            }
            heard.stop.store(true, Ordering::SeqCst);
        });
        orders
    }

    /// Whether it is to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Say that it is in a state, and stay there if it was asked to; whether it was.
    ///
    /// `looks` is called again and again meanwhile, and ends it where it says no.
    pub async fn caught(&self, trap: Trap, what: &str, mut looks: impl FnMut() -> bool) -> bool {
        if self.trap().take_if(|wanted| *wanted == trap).is_none() {
            return false;
        }
        let before = self.gone.load(Ordering::SeqCst);
        say(&format!("trapped {what}"));
        if trap == Trap::Waiting {
            return true;
        }
        let begun = testkit::time::now();
        while self.gone.load(Ordering::SeqCst) == before
            && begun.elapsed() < TRAPPED_AT_MOST
            && !self.stopped()
            && looks()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    fn trap(&self) -> std::sync::MutexGuard<'_, Option<Trap>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
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
