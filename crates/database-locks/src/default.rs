//! The locks of a program that did not say which: set once at its start, or found in its environment.

use std::convert::Infallible;
use std::sync::OnceLock;

use tokio::sync::Mutex;

use crate::error::Error;
use crate::fork::PerProcess;
use crate::locks::Locks;

/// Where a deployment names its database; `dblock` reads the same.
const URL_VARIABLE: &str = "DATABASE_LOCKS_URL";

static DEFAULT: Chosen = Chosen(OnceLock::new());

/// What was set, the first of it first; the last holds.
///
/// No mutex: a child would find it locked for ever if another thread had it during the fork, and a
/// value for each process would lose what the parent set.
struct Chosen(OnceLock<Box<(Locks, Self)>>);

impl Chosen {
    fn last(&self) -> Option<&Locks> {
        let (locks, next) = &**self.0.get()?;
        next.last().or(Some(locks))
    }

    fn add(&self, locks: Locks) {
        let mut slot = self;
        let mut chosen = Box::new((locks, Self(OnceLock::new())));
        while let Err(unused) = slot.0.set(chosen) {
            // Taken; and once it is, it stays so.
            if let Some(taken) = slot.0.get() {
                slot = &taken.1;
            }
            chosen = unused;
        }
    }
}

/// Held while connecting, so that first users who come together share one connection.
fn connecting() -> &'static Mutex<()> {
    static CONNECTING: PerProcess<Mutex<()>> = PerProcess::new();
    match CONNECTING.get_or_try_init(|| Ok::<_, Infallible>(Mutex::new(()))) {
        Ok(connecting) => connecting,
        Err(never) => match never {},
    }
}

impl Locks {
    /// Make these the locks that [`Locks::get_default`] answers with, and so those of every
    /// `#[locked]` function that names no others.
    ///
    /// Once, when the program starts: others may be set later, and hold for what is acquired from
    /// then on, but those before them stay connected. A forked child has those of its parent.
    pub fn set_default(locks: Self) {
        DEFAULT.add(locks);
    }

    /// The locks that were set by [`Locks::set_default`], or else those of the database that the
    /// environment variable `DATABASE_LOCKS_URL` names.
    ///
    /// The variable is read, and its database connected to, when they are first asked for; the
    /// connection is kept for the life of the process. A first attempt that failed is not
    /// remembered.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where neither is there; otherwise as [`Locks::connect`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the next who asks begins anew.
    pub async fn get_default() -> Result<Self, Error> {
        if let Some(known) = DEFAULT.last() {
            return Ok(known.clone());
        }
        let _alone = connecting().lock().await;
        if let Some(known) = DEFAULT.last() {
            return Ok(known.clone());
        }
        let connected = Self::connect(url()?).await?;
        // Only as the first: where others were set meanwhile, those are what the program wants.
        let _ = DEFAULT
            .0
            .set(Box::new((connected.clone(), Chosen(OnceLock::new()))));
        Ok(DEFAULT.last().cloned().unwrap_or(connected))
    }
}

fn url() -> Result<String, Error> {
    let given = std::env::var_os(URL_VARIABLE).filter(|url| !url.is_empty());
    let Some(given) = given else {
        return Err(Error::config(
            "database",
            "not given",
            "set with `Locks::set_default`, or its URL be in the environment as DATABASE_LOCKS_URL",
        ));
    };
    given.into_string().map_err(|_| {
        let allowed = "a URL: what is not UTF-8 is to be percent-encoded";
        Error::config(URL_VARIABLE, "not UTF-8", allowed)
    })
}
