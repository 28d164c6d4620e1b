//! The default locks of a program: set at its start, or read from its environment.

use std::sync::OnceLock;

use tokio::sync::Mutex;

use crate::api::builder::LocksBuilder;
use crate::api::locks::Locks;
use crate::error::Error;
use crate::runtime::fork::PerProcess;

/// The environment variable with the database URL, which `dblock` reads too.
const URL_VARIABLE: &str = "DATABASE_LOCKS_URL";
const FILE_VARIABLE: &str = "DATABASE_LOCKS_URL_FILE";
const TABLE_VARIABLE: &str = "DATABASE_LOCKS_TABLE";

static DEFAULT: Defaults = Defaults(OnceLock::new());

/// The locks that were set, as a linked list. The last ones are the default.
///
/// Without a mutex, since one that another thread has locked at a fork stays locked in the child.
/// Not per process, since a child has the default of its parent.
struct Defaults(OnceLock<Box<(Locks, Self)>>);

impl Defaults {
    fn last(&self) -> Option<&Locks> {
        let (locks, next) = &**self.0.get()?;
        next.last().or(Some(locks))
    }

    fn add(&self, locks: Locks) {
        let mut slot = self;
        let mut node = Box::new((locks, Self(OnceLock::new())));
        while let Err(unused) = slot.0.set(node) {
            // A filled slot never changes.
            if let Some(filled) = slot.0.get() {
                slot = &filled.1;
            }
            node = unused;
        }
    }
}

/// Locked while connecting, so that concurrent first users share one connection.
static CONNECTING: PerProcess<Mutex<()>> = PerProcess::new();

impl Locks {
    /// Set the locks that [`Locks::get_default`] returns, and that every `#[locked]` function
    /// without `via` uses.
    ///
    /// Call it once, when the program starts. A later call counts for later acquires; the earlier
    /// locks stay connected. A forked child has those of its parent.
    ///
    /// # Example
    ///
    /// ```
    /// use database_locks::Locks;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// Locks::set_default(Locks::connect("memory:").await?);
    /// assert_eq!(Locks::get_default().await?.engine(), "memory");
    /// # Ok(()) }
    /// ```
    pub fn set_default(locks: Self) {
        DEFAULT.add(locks);
    }

    /// The locks set by [`Locks::set_default`], or else those of the database that the environment
    /// names.
    ///
    /// | variable | meaning |
    /// | --- | --- |
    /// | `DATABASE_LOCKS_URL` | the URL |
    /// | `DATABASE_LOCKS_URL_FILE` | instead of it: a file with the URL, read at each connect |
    /// | `DATABASE_LOCKS_TABLE` | the table, if it is not `database_locks_lock` |
    ///
    /// The first call reads the variables and connects; the connection is kept for the life of the
    /// process. A failed first call is not remembered.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if neither URL variable is set, or both are; otherwise as
    /// [`Locks::connect`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the next call begins anew.
    pub async fn get_default() -> Result<Self, Error> {
        if let Some(known) = DEFAULT.last() {
            return Ok(known.clone());
        }
        let _alone = CONNECTING.get_or_default().lock().await;
        if let Some(known) = DEFAULT.last() {
            return Ok(known.clone());
        }
        let connected = builder()?.connect().await?;
        // If the program has set other locks meanwhile, those count.
        let _ = DEFAULT
            .0
            .set(Box::new((connected.clone(), Defaults(OnceLock::new()))));
        Ok(DEFAULT.last().cloned().unwrap_or(connected))
    }
}

/// A builder with the URL of the environment.
fn builder() -> Result<LocksBuilder, Error> {
    let given = |name| Ok::<_, Error>(variable(name)?.filter(|value| !value.is_empty()));
    let (url, file) = (given(URL_VARIABLE)?, given(FILE_VARIABLE)?);
    let builder = match (url, file) {
        (Some(url), None) => Locks::builder(url),
        (None, Some(path)) => Locks::builder_from_file(path)?,
        (None, None) => {
            return Err(Error::config(
                "database",
                "not given",
                "set with `Locks::set_default`, or its URL be in the environment as DATABASE_LOCKS_URL \
                 or in the file that DATABASE_LOCKS_URL_FILE names",
            ));
        }
        (Some(_), Some(_)) => {
            let got = "given although DATABASE_LOCKS_URL is set as well";
            return Err(Error::config(FILE_VARIABLE, got, "given alone"));
        }
    };
    Ok(match variable(TABLE_VARIABLE)? {
        Some(table) => builder.table(table),
        None => builder,
    })
}

fn variable(name: &'static str) -> Result<Option<String>, Error> {
    std::env::var_os(name)
        .map(std::ffi::OsString::into_string)
        .transpose()
        .map_err(|_| Error::config(name, "not UTF-8", "a text in UTF-8"))
}
