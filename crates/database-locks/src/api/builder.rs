//! Connection settings: a URL, and settings that a URL cannot express.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::locks::Locks;
use crate::client::endpoint::Endpoint;
use crate::error::{BoxError, Error};
use crate::runtime;
use crate::store::connect::options::ConnectOptions;
use protocol::REQUEST_TIMEOUT;

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
    given: ConnectOptions,
    table: Option<String>,
}

impl LocksBuilder {
    /// The table, `NAME` or `SCHEMA.NAME`; by default `database_locks_lock`. A name that needs
    /// quotes is refused when connecting.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = Some(table.into());
        self
    }

    /// Ask this function for the password at each connect, if the URL has none.
    ///
    /// It is also asked when a connection breaks while locks are held, so a password or token may
    /// change. The environment and files are then not searched for a password.
    ///
    /// - The function runs on a thread of its own, one call at a time, and may block.
    /// - A call that takes longer than 10 s, panics or returns an error counts as an unreachable
    ///   database: waits and renewals try again, and the first connection, which waits for at most
    ///   5 s, fails with [`Error::Unavailable`] and the function's text. An [`std::io::Error`] of
    ///   the kind `InvalidInput` means that trying again does not help, and is [`Error::Rejected`].
    /// - If the server refuses a login that it accepted before, the login is tried again: the
    ///   password may just have changed.
    /// - The password is not percent-encoded. A line break at its end is cut. More than 16 KiB are
    ///   refused.
    /// - SQLite and `memory:` need no password and do not call the function.
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

    /// Ask this function for the whole URL at each connect, if more than the password changes, as
    /// with users that Vault creates.
    ///
    /// It is called like the function of [`password`](Self::password), and must name the same
    /// database. The builder's own URL is checked, names the engine, and appears in messages until
    /// the first connect.
    pub fn url_with(
        mut self,
        ask: impl Fn() -> Result<String, BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.given.ask_url = Some(Arc::new(ask));
        self
    }

    /// Whether to look up what the URL leaves out in the environment and in the user's files
    /// (`~/.pgpass`, `~/.my.cnf` and so on). On by default. Files that the URL names (`passfile`,
    /// `service`) are read in any case.
    pub fn environment(mut self, looked_up: bool) -> Self {
        self.given.environment = looked_up;
        self
    }

    /// Whether to make a missing SQLite file. On by default. If off, for programs that only read, a
    /// missing file is [`Error::Rejected`].
    pub fn create(mut self, made: bool) -> Self {
        self.given.create = made;
        self
    }

    /// Connect.
    ///
    /// # Errors
    ///
    /// As [`Locks::connect`], and [`Error::Config`] for a table name that needs quotes.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the connection is then closed.
    pub async fn connect(self) -> Result<Locks, Error> {
        let locks = self.connect_lazy()?;
        let client = locks.client()?;
        runtime::run(async move {
            let connected = client.store.connect(REQUEST_TIMEOUT).await;
            connected.map_err(|e| e.into_error("connect"))
        })
        .await?;
        Ok(locks)
    }

    /// Check the settings; the first call that needs the database connects, and later calls try
    /// again.
    ///
    /// For a program that must start before its database does: [`acquire`](crate::Lock::acquire)
    /// then tries until its wait is over.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an invalid URL or table name, or for certificate files, which are read
    /// here. A refusal by the server is returned by the first call.
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
        let endpoint = Endpoint::new(self.given, self.table.as_deref())?;
        Ok(Locks::new(Arc::new(endpoint)))
    }
}

/// Leaves out the URL, which may contain a password.
impl Locks {
    /// Connect to a database, with the table `database_locks_lock`.
    ///
    /// | URL | engine |
    /// | --- | --- |
    /// | `postgres://user:password@host:port/database` | PostgreSQL 12 and later |
    /// | `mysql://…` or `mariadb://…` | MySQL 8.0.17, MariaDB 10.6 and later |
    /// | `sqlite:///absolute/path`, `sqlite:relative/path` | a file for the locks alone; a missing one is made |
    /// | `memory:`, `memory:name` | in this process |
    ///
    /// Percent-encode `@`, `:` and `/` in a user name or password. Unix sockets:
    /// `postgres:///database?host=/folder`, `mysql://user@localhost/database?socket=/file`.
    ///
    /// What the URL leaves out is looked up at each connect as the clients of that server do it: in
    /// the environment (`PGPASSWORD`, `PGHOST`, … and `MYSQL_PWD`), in `~/.pgpass`, a service of
    /// `~/.pg_service.conf`, or `~/.my.cnf`. [`LocksBuilder`] also takes functions.
    ///
    /// Several hosts, `postgres://one,two:5433/database`, are tried in order, each for a time of
    /// its own; one that refuses writes is skipped.
    ///
    /// | option (the guide, `docs/rust.md`, has all) | values | default |
    /// | --- | --- | --- |
    /// | `sslmode` or `ssl-mode` | `disable`, `prefer` (TLS if the server offers it, certificate unchecked), `require`, `verify-ca`, `verify-full` | `prefer` |
    /// | `sslrootcert` | a file of CA certificates, or `system` | |
    /// | `sslcert`, `sslkey` | files with a client certificate and its key | |
    /// | `connect_timeout` | seconds for each host, 1 to 60 | 4 s in total (MySQL: 3 s) |
    ///
    /// An unknown option is refused.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an invalid URL, before any I/O; the message never repeats the URL.
    /// [`Error::Unavailable`] if no server answers within 5 s. [`Error::Rejected`] if the server
    /// refuses the login or is unsuitable (too old, read-only). A missing table is found at the
    /// first use: see [`Locks::migrate`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the connection is then closed.
    pub fn connect<U: AsRef<str>>(
        url: U,
    ) -> impl Future<Output = Result<Self, Error>> + Send + 'static + use<U> {
        Self::builder(url).connect()
    }

    /// Connect with settings that a URL cannot express: another table, a password from a function,
    /// or a connection that is made by the first call.
    pub fn builder(url: impl AsRef<str>) -> LocksBuilder {
        LocksBuilder {
            given: ConnectOptions::url(url.as_ref()),
            table: None,
        }
    }

    /// Connect to the database whose URL is in a file, such as a mounted secret or a systemd
    /// credential.
    ///
    /// White space around the URL is cut. The file is read now, to check it, and again at each
    /// connect; a pipe (`<(command)` in a shell) is read only once.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a file that cannot be read or is larger than 64 KiB.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use database_locks::Locks;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// let locks = Locks::builder_from_file("/run/secrets/database-locks-url")?.connect().await?;
    /// # drop(locks);
    /// # Ok(()) }
    /// ```
    pub fn builder_from_file(path: impl Into<PathBuf>) -> Result<LocksBuilder, Error> {
        let path = path.into();
        let url = read_url(&path).map_err(|error| {
            let got = format!(
                "has a file that cannot be read: {}: {error}",
                path.display()
            );
            Error::config("url", got, "give one that this user can read")
        })?;
        // A pipe can be read only once.
        if !std::fs::metadata(&path).is_ok_and(|found| found.is_file()) {
            return Ok(Self::builder(url));
        }
        Ok(Self::builder(url).url_with(move || {
            read_url(&path).map_err(|error| format!("{}: {error}", path.display()).into())
        }))
    }
}

/// Read a URL from a file, with a limit on its size.
fn read_url(path: &Path) -> io::Result<String> {
    const MAX_BYTES: u64 = 1 << 16;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::other(
            "it is larger than 64 KiB, so it is no URL",
        ));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not text in UTF-8"))
}

impl std::fmt::Debug for LocksBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("LocksBuilder");
        debug.field("table", &self.table).finish_non_exhaustive()
    }
}
