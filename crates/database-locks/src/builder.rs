//! How to connect: a URL and what a URL does not say.

use std::sync::Arc;

use crate::acquire::PATIENCE;
use crate::error::Error;
use crate::inner::Place;
use crate::locks::Locks;
use crate::runtime;

/// Settings of a connection; made by [`Locks::builder`].
///
/// # Example
///
/// ```
/// use database_locks::Locks;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// let locks = Locks::builder("memory:").table("app.database_locks_lock").connect().await?;
/// # drop(locks);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct LocksBuilder {
    url: String,
    table: Option<String>,
}

impl LocksBuilder {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            table: None,
        }
    }

    /// The table of the locks, `NAME` or `SCHEMA.NAME`; `database_locks_lock` by default. A name that
    /// would have to be quoted is refused.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = Some(table.into());
        self
    }

    /// Connect.
    ///
    /// # Errors
    ///
    /// As [`Locks::connect`], and [`Error::Config`] for a name of a table that would have to be quoted.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the connection is then closed.
    pub async fn connect(self) -> Result<Locks, Error> {
        let locks = self.connect_lazy()?;
        let inner = locks.inner()?;
        runtime::run(async move {
            let connected = inner.store.connect(PATIENCE).await;
            connected.map_err(|e| e.into_error("connect"))
        })
        .await?;
        Ok(locks)
    }

    /// Check the settings without connecting: the first call that needs the database connects, and each
    /// call that follows tries again. For a program that has to start before its database does:
    /// [`acquire`](crate::Lock::acquire) then goes on trying for as long as it may wait.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a URL or a name of a table that cannot be used, or for certificate files,
    /// which are read here. A server's refusal is returned by the first call instead.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use database_locks::{Error, Locks};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// let locks = Locks::builder("postgres://localhost:1/no-server-here").connect_lazy()?;
    /// let lock = locks.lock("report").wait(Duration::from_millis(100));
    /// assert!(matches!(lock.acquire().await, Err(Error::Unavailable { .. })));
    /// # Ok(()) }
    /// ```
    pub fn connect_lazy(self) -> Result<Locks, Error> {
        let place = Place::new(&self.url, self.table.as_deref())?;
        Ok(Locks::at(Arc::new(place)))
    }
}

/// Without the URL, which may hold a password.
impl std::fmt::Debug for LocksBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("LocksBuilder");
        debug.field("table", &self.table).finish_non_exhaustive()
    }
}
