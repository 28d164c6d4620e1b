//! An empty database of any engine for one test, with the same methods on all engines.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use database_locks::Locks;

use crate::cleanup::ScratchDir;
use crate::contract::fixture::StoreFixture;
use crate::galera::{self, Galera};
use crate::group::{self, Group};
use crate::mysql::{MariaDb, MySql, MySqlServer, Options};
use crate::nodes::{NODES, Nodes};
use crate::pgbouncer::PgBouncer;
use crate::postgres::Postgres;
use crate::sql::SqlSession;

/// An empty database.
#[derive(Debug)]
pub struct TestDb {
    /// Its name in promises: `memory`, `sqlite`, `postgres`, `mariadb`, `mysql`, `galera`,
    /// `mysql-group`.
    pub engine: &'static str,
    /// Its URL.
    pub url: String,
    home: Home,
    /// Whether the clients of [`TestDb::fixture`] use their direct connections.
    direct: bool,
}

#[derive(Debug)]
enum Home {
    Process,
    Folder(ScratchDir),
    Postgres(&'static Postgres),
    MySql(&'static MySqlServer),
    Galera(galera::Shared),
    Group(group::Shared),
}

/// An open transaction of another client, which locks rows, or on SQLite the whole file. It ends on
/// drop.
#[derive(Debug)]
pub enum OpenTransaction {
    /// A session on a server.
    Session(SqlSession),
    /// A connection with the write lock.
    File(rusqlite::Connection),
}

impl OpenTransaction {
    /// Ends the transaction without a change, and waits until the server has ended it. If the
    /// client merely ended, the server would keep the row locks for a moment longer.
    pub fn rollback(self) {
        match self {
            Self::Session(mut session) => drop(session.run("ROLLBACK").expect("rolls back")),
            Self::File(connection) => connection.execute_batch("ROLLBACK").expect("rolls back"),
        }
    }

    /// Commits the transaction.
    pub fn commit(self) {
        match self {
            Self::Session(mut session) => drop(session.run("COMMIT").expect("commits")),
            Self::File(connection) => connection.execute_batch("COMMIT").expect("commits"),
        }
    }
}

impl TestDb {
    fn new(engine: &'static str, url: String, home: Home) -> Self {
        Self {
            engine,
            url,
            home,
            direct: false,
        }
    }

    /// Locks of this process alone.
    pub fn memory() -> Option<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static MADE: AtomicU64 = AtomicU64::new(0);
        let url = format!("memory:test-{}", MADE.fetch_add(1, Ordering::Relaxed));
        Some(Self::new("memory", url, Home::Process))
    }

    /// A file that is not there yet.
    pub fn sqlite() -> Option<Self> {
        let folder = ScratchDir::new("sqlite");
        let url = format!("sqlite://{}", folder.join(FILE).display());
        Some(Self::new("sqlite", url, Home::Folder(folder)))
    }

    /// A database on the shared PostgreSQL.
    pub fn postgres() -> Option<Self> {
        let server = Postgres::shared()?;
        Some(Self::new(
            "postgres",
            server.fresh_database(),
            Home::Postgres(server),
        ))
    }

    /// A database on the shared PostgreSQL 18.
    pub fn postgres18() -> Option<Self> {
        let server = Postgres::shared_18()?;
        let url = server.fresh_database();
        Some(Self::new("postgres18", url, Home::Postgres(server)))
    }

    /// A database on the shared PostgreSQL 12.
    pub fn postgres12() -> Option<Self> {
        let server = Postgres::shared_12()?;
        let url = server.fresh_database();
        Some(Self::new("postgres12", url, Home::Postgres(server)))
    }

    /// A PostgreSQL database whose sessions begin with unusual settings.
    pub fn postgres_odd() -> Option<Self> {
        let db = Self::postgres()?;
        for setting in [
            "default_transaction_isolation = 'serializable'",
            "timezone = 'Asia/Kathmandu'",
            "synchronous_commit = 'off'",
            "datestyle = 'SQL, DMY'",
            "intervalstyle = 'sql_standard'",
            "extra_float_digits = 0",
            "bytea_output = 'escape'",
            "standard_conforming_strings = off",
            "plan_cache_mode = 'force_generic_plan'",
            "enable_indexscan = off",
            "statement_timeout = '20s'",
        ] {
            db.sql(&format!("ALTER DATABASE {} SET {setting}", db.database()));
        }
        Some(db)
    }

    /// A PostgreSQL database with that default isolation level.
    pub fn postgres_isolated(level: &str) -> Option<Self> {
        let db = Self::postgres()?;
        let set = format!("SET default_transaction_isolation = '{level}'");
        db.sql(&format!("ALTER DATABASE {} {set}", db.database()));
        Some(db)
    }

    /// A MariaDB database on a server whose sessions begin with unusual settings.
    pub fn mariadb_odd() -> Option<Self> {
        static SERVER: OnceLock<Option<MySqlServer>> = OnceLock::new();
        let start = || odd(MariaDb::options()).start();
        Self::on(SERVER.get_or_init(start).as_ref())
    }

    /// Like [`mariadb_odd`](Self::mariadb_odd) on MySQL, which requires a primary key of each table
    /// and offers TLS, its default.
    pub fn mysql_odd() -> Option<Self> {
        static SERVER: OnceLock<Option<MySqlServer>> = OnceLock::new();
        let start = || {
            odd(MySql::options())
                .set("sql-require-primary-key=ON")
                .set("tls-version=TLSv1.2,TLSv1.3")
                .start()
        };
        Self::on(SERVER.get_or_init(start).as_ref())
    }

    fn on(server: Option<&'static MySqlServer>) -> Option<Self> {
        let server = server?;
        Some(Self::new(
            server.flavor().engine(),
            server.fresh_database(),
            Home::MySql(server),
        ))
    }

    /// A database on the shared PostgreSQL, by way of the shared PgBouncer in transaction mode.
    pub fn pgbouncer() -> Option<Self> {
        let (pooler, server) = (PgBouncer::shared()?, Postgres::shared()?);
        Some(Self::new(
            "pgbouncer",
            pooler.url(&server.fresh_database()),
            Home::Postgres(server),
        ))
    }

    /// The URL of the server behind a pooler.
    ///
    /// # Panics
    ///
    /// On other engines than PostgreSQL.
    pub fn direct_url(&self) -> String {
        match &self.home {
            Home::Postgres(server) => server.url_of(&self.url),
            _ => panic!("{}: has nothing in between", self.engine),
        }
    }

    /// The name of the database in its URL.
    pub(crate) fn database(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or_default()
    }

    /// A database on the shared MariaDB.
    pub fn mariadb() -> Option<Self> {
        Self::on(MariaDb::shared())
    }

    /// A database on the shared MySQL.
    pub fn mysql() -> Option<Self> {
        Self::on(MySql::shared())
    }

    /// A database on the shared cluster, whose URL is that at the first node.
    pub fn galera() -> Option<Self> {
        let cluster = Galera::shared()?;
        Some(Self::new(
            "galera",
            cluster.fresh_database(),
            Home::Galera(cluster),
        ))
    }

    /// A database on the shared group of MySQL, whose URL is that at the first node.
    pub fn group() -> Option<Self> {
        let group = Group::shared()?;
        Some(Self::new(
            Group::ENGINE,
            group.fresh_database(),
            Home::Group(group),
        ))
    }

    fn nodes(&self) -> Option<&Nodes> {
        match &self.home {
            Home::Galera(cluster) => Some(cluster),
            Home::Group(group) => Some(group),
            _ => None,
        }
    }

    /// Whether it is MySQL or MariaDB, of one server or several.
    pub fn is_mysql_like(&self) -> bool {
        matches!(self.home, Home::MySql(_) | Home::Galera(_) | Home::Group(_))
    }

    /// The URL at one of the nodes, those of a cluster in turn.
    pub fn url_at(&self, client: usize) -> String {
        match self.nodes() {
            Some(nodes) => nodes.url_at(client % NODES, &self.url),
            None => self.url.clone(),
        }
    }

    /// Whether the engine has a server.
    pub fn has_server(&self) -> bool {
        !matches!(self.home, Home::Process | Home::Folder(_))
    }

    /// This database, with a fixture whose clients use their direct connections.
    #[must_use]
    pub fn with_direct_connection(mut self) -> Self {
        self.direct = true;
        self
    }

    /// For the store contract.
    pub fn fixture(&self) -> StoreFixture {
        let urls = match self.nodes() {
            Some(_) => (0..NODES).map(|node| self.url_at(node)).collect(),
            None => vec![self.url.clone()],
        };
        let (mut fixture, url) = (StoreFixture::spread(self.engine, urls), self.url.clone());
        if self.direct {
            fixture = fixture.with_direct_connection();
        }
        match &self.home {
            Home::Process => fixture,
            Home::Folder(folder) => {
                let file = folder.join(FILE);
                fixture.with_sql(move |sql| open(&file).execute_batch(sql).expect("runs"))
            }
            Home::Postgres(server) => {
                let server = *server;
                fixture.with_sql(move |sql| drop(server.query(&url, sql).expect("runs")))
            }
            Home::MySql(server) => {
                let server = *server;
                // Some servers of the tests have autocommit off.
                fixture.with_sql(move |sql| {
                    let committed = format!("{sql}; COMMIT");
                    drop(server.query(&url, &committed).expect("runs"));
                })
            }
            Home::Galera(_) | Home::Group(_) => {
                let session = Mutex::new(self.sql_session());
                fixture.with_sql(move |sql| {
                    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
                    session.run(sql).expect("runs");
                })
            }
        }
    }

    /// A client with its own connection, and the table made.
    pub async fn locks(&self) -> Locks {
        self.locks_at(&self.url).await
    }

    /// A client by another URL, such as that of a proxy.
    pub async fn locks_at(&self, url: &str) -> Locks {
        let locks = Locks::connect(url).await.expect("connects");
        locks.migrate().await.expect("makes the table");
        locks
    }

    /// Runs a statement as another client.
    ///
    /// # Panics
    ///
    /// If it fails, and on `memory`, which has no SQL.
    pub fn sql(&self, statement: &str) -> String {
        match &self.home {
            Home::Process => panic!("memory: knows no SQL"),
            Home::Folder(folder) => {
                let file = open(&folder.join(FILE));
                file.execute_batch(statement).expect("runs");
                String::new()
            }
            Home::Postgres(server) => server.query(&self.url, statement).expect("runs"),
            Home::MySql(server) => server.query(&self.url, statement).expect("runs"),
            Home::Galera(cluster) => cluster.query(0, &self.url, statement).expect("runs"),
            Home::Group(group) => group.query(0, &self.url, statement).expect("runs"),
        }
    }

    /// A session of another client, through the command-line client of the server.
    ///
    /// # Panics
    ///
    /// On engines without a server.
    pub fn sql_session(&self) -> SqlSession {
        match &self.home {
            Home::Process | Home::Folder(_) => panic!("{}: has no server", self.engine),
            Home::Postgres(server) => server.sql_session(&self.url),
            Home::MySql(server) => server.sql_session(&self.url),
            Home::Galera(cluster) => cluster.sql_session(0, &self.url),
            Home::Group(group) => group.sql_session(0, &self.url),
        }
    }

    /// Begins a transaction as another client, runs a statement in it, and leaves it open.
    ///
    /// # Panics
    ///
    /// As [`TestDb::sql`].
    pub fn begin_with(&self, statement: &str) -> OpenTransaction {
        if let Home::Folder(folder) = &self.home {
            let file = open(&folder.join(FILE));
            file.execute_batch("BEGIN IMMEDIATE")
                .expect("gets the write lock");
            return OpenTransaction::File(file);
        }
        let mut session = self.sql_session();
        session.run("BEGIN").expect("begins");
        session.run(statement).expect("runs");
        OpenTransaction::Session(session)
    }

    /// Locks the row of a lock as another client; on SQLite, the file.
    ///
    /// # Panics
    ///
    /// As [`TestDb::sql`].
    pub fn lock_row(&self, name: &str) -> OpenTransaction {
        let name = name.replace('\'', "''");
        self.begin_with(&format!(
            "SELECT id FROM database_locks_lock WHERE name = '{name}' FOR UPDATE"
        ))
    }
}

/// Sessions begin with unusual settings.
fn odd(options: Options) -> Options {
    let settings = [
        "sql-mode=ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES",
        "transaction-isolation=SERIALIZABLE",
        "character-set-server=latin1",
        "collation-server=latin1_swedish_ci",
        "innodb-lock-wait-timeout=50",
        "completion-type=CHAIN",
        "autocommit=OFF",
    ];
    let options = options.time_zone("+05:45");
    settings
        .iter()
        .fold(options, |options, set| options.set(set))
}

const FILE: &str = "locks.sqlite3";

fn open(file: &Path) -> rusqlite::Connection {
    let file = rusqlite::Connection::open(file).expect("opens");
    file.busy_timeout(Duration::from_secs(20))
        .expect("takes a timeout");
    file
}

/// A test that waits for ever fails, and does not hold up the others.
pub async fn to_its_end(test: impl Future<Output = ()>) {
    let done = tokio::time::timeout(Duration::from_secs(300), test).await;
    done.expect("it ends within five minutes");
}

/// Makes tests of `async fn clause(db: &TestDb)` on an engine: `db_tests!(postgres: one_clause,
/// another);`. An attribute before the engine is that of each test.
#[macro_export(local_inner_macros)]
macro_rules! db_tests {
    ($engine:ident: $($clause:ident),* $(,)?) => {
        db_tests!(#[cfg(all())] $engine: $($clause),*);
    };
    (# $attribute:tt $engine:ident: $($clause:ident),* $(,)?) => {
        mod $engine {
            $(
                # $attribute
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $clause() {
                    if let Some(db) = $crate::test_db::TestDb::$engine() {
                        $crate::test_db::to_its_end(super::$clause(&db)).await;
                    }
                }
            )*
        }
    };
}
