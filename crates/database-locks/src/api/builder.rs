//! How to connect: a URL and what a URL does not say.

use std::sync::Arc;

use crate::api::locks::Locks;
use crate::client::Place;
use crate::client::acquire::PATIENCE;
use crate::error::{BoxError, Error};
use crate::runtime;
use crate::store::Given;

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
    given: Given,
    table: Option<String>,
}

impl LocksBuilder {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            given: Given::url(url),
            table: None,
        }
    }

    /// The table of the locks, `NAME` or `SCHEMA.NAME`; `database_locks_lock` by default. A name that
    /// would have to be quoted is refused.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = Some(table.into());
        self
    }

    /// Ask this function for the password at each connect, where the URL has none: also when a
    /// connection breaks while locks are held, so that a password or token may change. Environment and
    /// files are not asked for a password then.
    ///
    /// The function is called on a thread of its own and may block. A call that takes longer than
    /// 10 s, panics or returns an error counts as a database that cannot be reached: the first
    /// connection, which waits 5 s at most, fails with [`Error::Unavailable`], which has the error's text, and waits and
    /// renewals try again; an [`std::io::Error`] of the kind `InvalidInput` says that this is of no
    /// use, and is [`Error::Rejected`]. At most one call of it runs at a time. Where it was let in before, a login
    /// that the server refuses is tried again too: the password may just have changed.
    ///
    /// The password is taken as it is, and not percent-encoded; a line break at its end is cut, and more
    /// than 16 KiB are refused. SQLite and `memory:` ask for none.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use database_locks::Locks;
    ///
    /// # fn main() -> Result<(), database_locks::Error> {
    /// let locks = Locks::builder("postgres://app@db.example/app?sslmode=verify-full")
    ///     .password(|| Ok(std::fs::read_to_string("/run/secrets/db-password")?))
    ///     .connect_lazy()?;
    /// # drop(locks);
    /// # Ok(()) }
    /// ```
    pub fn password(
        mut self,
        ask: impl Fn() -> Result<String, BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.given.ask_password = Some(Arc::new(move || {
            let password = ask()?;
            Ok(password.trim_end_matches(['\r', '\n']).to_owned())
        }));
        self
    }

    /// Ask this function for the whole URL at each connect: where more than the password changes, as
    /// with users that Vault makes. It is called as that of [`password`](Self::password) is, and has
    /// to name the same database.
    ///
    /// The URL that the builder was made with is checked, names the engine, and stands in messages
    /// until the first connect.
    pub fn url_with(
        mut self,
        ask: impl Fn() -> Result<String, BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.given.ask_url = Some(Arc::new(ask));
        self
    }

    /// Whether what the URL leaves out is looked up in environment variables and in the user's files
    /// (`~/.pgpass`, `~/.my.cnf` and so on); by default it is. Files that the URL names (`passfile`,
    /// `service`) are read all the same.
    pub fn environment(mut self, looked_up: bool) -> Self {
        self.given.environment = looked_up;
        self
    }

    /// Whether an SQLite file that is missing is made; by default it is. Otherwise a missing file is
    /// [`Error::Rejected`]: for programs that only look.
    pub fn create(mut self, made: bool) -> Self {
        self.given.create = made;
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
        let place = Place::new(self.given, self.table.as_deref())?;
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
