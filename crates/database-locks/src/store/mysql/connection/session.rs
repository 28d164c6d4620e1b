//! A connection to a server that was found fit.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Error, Opts, Params, Row, Statement};
use rustls::crypto::{CryptoProvider, ring};

use super::wire::Wire;
use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::connect::hosts::{Failure, Verdict, first_of};
use crate::store::connect::tls::{Complaint, complaint};
use crate::store::connect::url::Address;
use crate::store::mysql::cluster::{self, Cluster};
use crate::store::mysql::connection::{Endpoint, Host, Server, caught};
use crate::store::mysql::error::{INIT, meaning};
use crate::store::mysql::statements::text;
use protocol::BootInstant;

const MEND: &str = "run `dblock init` or `locks.migrate()`, which alters the table";

/// A wait that ends after this long was for a table: `lock_wait_timeout` is a second.
pub(crate) const TABLE_WAIT: Duration = Duration::from_millis(900);

/// What a statement that reads nothing has done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// How many rows were found.
    pub(crate) rows: u64,
    /// What `LAST_INSERT_ID(…)` handed back; 0 where no row was found.
    pub(crate) id: u64,
}

/// A connection, set up, to a server that was found fit.
pub(crate) struct Session {
    conn: Wire,
    /// What has been prepared on it, by the text before the table and the like are put into it.
    prepared: HashMap<&'static str, Statement>,
    pub(crate) server: Arc<Server>,
    /// Which of the hosts it is connected to, for messages.
    at: String,
    collation: &'static str,
    /// Whether it is one of several that can be written to.
    pub(crate) cluster: Option<Cluster>,
    /// Whether it is a member of a group with a single primary.
    pub(crate) single_primary: bool,
    /// The longest parameter that fits into a statement, even if it is written as text.
    pub(crate) longest: usize,
    /// Whether a statement that finds a row locked fails at once.
    pub(crate) never_waits: bool,
    /// The table was looked at, and can hold locks.
    fit: bool,
    /// The server lets nothing more be prepared.
    unprepared: bool,
    broken: bool,
}

impl Session {
    /// Connect to the first host that can be written to.
    pub(crate) async fn open(server: &Arc<Server>) -> Result<Self, StoreError> {
        let endpoint = server.ask().await?;
        let hosts = &endpoint.hosts;
        if hosts.iter().any(|host| host.opts.db_name().is_none()) {
            let hint = "end the URL with the database that holds the table: mysql://HOST/DATABASE";
            return Err(StoreError::rejected("no database was named", Some(hint)));
        }
        let (addresses, latest) = (endpoint.addresses(), server.latest.load(Ordering::Relaxed));
        // The list may be another one by now.
        let first = if latest < addresses.len() { latest } else { 0 };
        let found = first_of(addresses, first, endpoint.connecting(), |at, _| {
            Self::open_at(server, &endpoint, at)
        });
        let (at, session) = found.await?;
        server.latest.store(at, Ordering::Relaxed);
        server.greeted.store(true, Ordering::Relaxed);
        server
            .clustered
            .store(session.cluster.is_some(), Ordering::Relaxed);
        Ok(session)
    }

    /// Connect, look at the server, and set the session up.
    async fn open_at(
        server: &Arc<Server>,
        endpoint: &Endpoint,
        at: usize,
    ) -> Result<Self, Failure<String>> {
        let host = &endpoint.hosts[at];
        let at = host.address.to_string();
        let mut session = Self {
            conn: Wire::new(log_in(server, host, &at).await?),
            prepared: HashMap::new(),
            server: Arc::clone(server),
            at,
            collation: "",
            cluster: None,
            single_primary: false,
            longest: 0,
            never_waits: false,
            fit: false,
            unprepared: false,
            broken: false,
        };
        session.hello(endpoint.init_command()).await?;
        Ok(session)
    }

    /// Not `@@name`: a variable that one of the servers does not know would be an error.
    pub(crate) const VARIABLES: &str = "
        SHOW VARIABLES WHERE Variable_name IN
            ('version', 'read_only', 'super_read_only', 'innodb_read_only', 'wsrep_on',
             'wsrep_provider',
             'group_replication_group_name', 'group_replication_single_primary_mode',
             'max_allowed_packet')";

    /// Everything that the statements count on, whatever the server's defaults are. It is set before
    /// anything is asked: `sql_select_limit`, for one, hides rows of every answer.
    ///
    /// `lock_wait_timeout` bounds the wait for an ALTER TABLE, a year by default. MySQL knows no
    /// `innodb_lock_wait_timeout` of 0, and waits for a second at least. Without `unique_checks` a name
    /// might be made twice. READ COMMITTED keeps a statement from locking the gaps between rows.
    pub(crate) const SETTINGS: &str = "
        SET NAMES utf8mb4, autocommit = 1, lock_wait_timeout = 1,
            innodb_lock_wait_timeout = IF(VERSION() LIKE '%MariaDB%', 0, 1),
            sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
            sql_safe_updates = 0, sql_select_limit = 18446744073709551615, unique_checks = 1";
    /// A node of Galera that is cut off from the others must say so, and not what it knew before.
    pub(crate) const CURRENT: &str = "SET SESSION wsrep_dirty_reads = 0";
    pub(crate) const ISOLATION: &str =
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";

    async fn set_up(&mut self) -> Result<(), Failure<String>> {
        for settings in [Self::SETTINGS, Self::ISOLATION] {
            let set = self.conn.query_drop(settings).await;
            set.map_err(|e| self.failed(&e))?;
        }
        Ok(())
    }

    async fn hello(&mut self, init_command: Option<&str>) -> Result<(), Failure<String>> {
        self.set_up().await?;
        let found: Vec<(String, String)> = self
            .conn
            .query(Self::VARIABLES)
            .await
            .map_err(|e| self.failed(&e))?;
        let variable = |name: &str| {
            let named = found
                .iter()
                .find(|(found, _)| found.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let on = |name: &str| !matches!(variable(name), "" | "0" | "OFF");
        let version = variable("version");
        let mariadb = version.contains("MariaDB");
        let least = if mariadb { [10, 6, 0] } else { [8, 0, 17] };
        if numbers(version) < least {
            let hint = "MySQL 8.0.17 or MariaDB 10.6 at least: older ones cannot skip locked rows, or \
                        have no collation that keeps all names apart";
            let said = format!("the server at {} is {version}", self.at);
            return Err(StoreError::rejected(said, Some(hint)).into());
        }
        let member = !variable("group_replication_group_name").is_empty();
        self.single_primary = member && on("group_replication_single_primary_mode");
        self.cluster = match on("wsrep_on") {
            true => Some(Cluster::Galera),
            false => (member && !self.single_primary).then_some(Cluster::Group),
        };
        match self.cluster {
            Some(cluster) => self.is_ready(cluster).await?,
            // With one primary, too, a member that has left the others takes writes for itself alone.
            None if self.single_primary => self.is_ready(Cluster::Group).await?,
            None if !matches!(variable("wsrep_provider"), "" | "none") => {
                self.is_replicated().await?
            }
            None => {}
        }
        // A privileged user may write in spite of `read_only`: on a replica that goes nowhere.
        if ["read_only", "super_read_only", "innodb_read_only"]
            .into_iter()
            .any(on)
        {
            return Err(self.read_only());
        }
        self.collation = if mariadb {
            "utf8mb4_nopad_bin"
        } else {
            "utf8mb4_0900_bin"
        };
        let packet: usize = variable("max_allowed_packet").parse().unwrap_or(1 << 20);
        self.longest = packet / (text::LONGER + 1);
        self.never_waits = mariadb;
        let galera = self.cluster == Some(Cluster::Galera);
        if let Some(command) = init_command {
            self.begin_as_told(command).await?;
            if galera {
                self.is_replicated().await?;
            }
            self.set_up().await?;
        }
        if galera {
            let current = self.conn.query_drop(Self::CURRENT).await;
            current.map_err(|e| self.failed(&e))?;
        }
        Ok(())
    }

    /// What a server that is read-only is turned down with.
    fn read_only(&self) -> Failure<String> {
        // After a greeting a failover is under way, and the URL is right.
        let greeted = self.server.greeted.load(Ordering::Relaxed);
        Failure {
            verdict: Verdict::ReadOnly,
            said: format!("the server at {} is read-only", self.at),
            hint: (!greeted).then(|| "locks have to be written: connect to the primary".into()),
        }
    }

    /// The server was found fit, and is read-only now.
    pub(crate) fn has_become_read_only(&mut self) -> StoreError {
        self.broken = true;
        StoreError::cannot_serve(format!("the server at {} is read-only now", self.at))
    }

    /// Run what the URL says is to be run on each connection. What it set that the statements count on
    /// is set anew after it.
    ///
    /// A transaction that it left open would keep every lock to ourselves, and a clock that it has
    /// stopped (`SET timestamp`) would never end a lease.
    async fn begin_as_told(&mut self, command: &str) -> Result<(), Failure<String>> {
        let told = self.conn.query_drop(command).await;
        told.map_err(|error| match &error {
            // The text is the user's own, and may hold what is nobody's business; a complaint about
            // its grammar repeats some of it.
            Error::Server(refused) => {
                let said = match refused.code {
                    1064 => "it is not understood".to_owned(),
                    _ => refused.message.clone(),
                };
                let code = refused.code;
                let said = format!("{}: init_command failed: {said} (error {code})", self.at);
                Failure::from(StoreError::rejected(said, Some("correct it in the URL")))
            }
            error => self.failed(error).into(),
        })?;
        for after in ["COMMIT AND NO CHAIN NO RELEASE", "SET timestamp = DEFAULT"] {
            match self.conn.query_drop(after).await {
                // A server that lets nobody set it.
                Err(Error::Server(refused)) if refused.code == 1290 => {}
                done => done.map_err(|error| self.failed(&error))?,
            }
        }
        Ok(())
    }

    /// As text, since it is there already: `information_schema` costs 2 ms on MariaDB, and 46 ms where
    /// two of its tables are joined.
    pub(crate) const SHAPE: &str = "SHOW CREATE TABLE {table}";

    /// Look at the table before it is used for the first time on this connection. Not when connecting:
    /// whoever connects may be about to make it, or to alter it.
    async fn look(&mut self) -> Result<(), StoreError> {
        let made = self.made().await?;
        match unfit(&made, self.collation) {
            None => {
                self.fit = true;
                self.server.found.store(true, Ordering::Relaxed);
                Ok(())
            }
            Some(why) => {
                let said = format!("the table {}: {why}", self.server.table.as_str());
                Err(StoreError::rejected(said, Some(MEND)))
            }
        }
    }

    /// How the table was made, as the server says it.
    pub(crate) async fn made(&mut self) -> Result<String, StoreError> {
        let shape = self.server.table.fill(Self::SHAPE);
        let found: Option<Row> = self
            .conn
            .query_first(shape)
            .await
            .map_err(|e| self.failed(&e))?;
        let text: Option<String> = found.and_then(|mut row| row.take_opt(1)?.ok());
        Ok(text.unwrap_or_default())
    }

    /// Whether the connection is still there.
    pub(crate) async fn answers(&mut self, within: Duration) -> bool {
        matches!(
            tokio::time::timeout(within, self.conn.ping()).await,
            Ok(Ok(()))
        )
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken || self.conn.is_disconnected()
    }

    /// Put the table, the collation and what ends a lease into a statement.
    pub(crate) fn fill(&self, statement: &str) -> String {
        let text = self.server.table.fill(statement);
        let text = text.replace("{collation}", self.collation);
        cluster::fill(&text, self.cluster)
    }

    /// Which of the hosts it is connected to, for messages.
    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    pub(crate) fn collation(&self) -> &'static str {
        self.collation
    }

    /// Carry out a statement that reads nothing.
    pub(crate) async fn execute(
        &mut self,
        statement: &'static str,
        params: Params,
    ) -> Result<Done, StoreError> {
        if !self.fit {
            self.look().await?;
        }
        let began = clock::now();
        let done = match self.prepare(statement).await? {
            Some(prepared) => self.conn.exec_drop(prepared, params).await,
            None => {
                let text = text::written_in(&self.fill(statement), &params)?;
                self.conn.query_drop(text).await
            }
        };
        // On MySQL an INSERT may have waited for a row.
        let waits = !self.never_waits && statement.contains("INSERT INTO");
        done.map_err(|e| match waits {
            true => self.failed(&e),
            false => self.failed_since(began, &e),
        })?;
        let rows = self.conn.affected_rows();
        let id = match self.conn.last_insert_id().unwrap_or_default() {
            0 if rows > 0 && statement.contains("LAST_INSERT_ID(") => self.inserted_id().await?,
            id => id,
        };
        Ok(Done { rows, id })
    }

    pub(crate) const INSERTED_ID: &str = "SELECT LAST_INSERT_ID()";

    /// What `LAST_INSERT_ID(…)` set, where the answer to its statement does not say so: a trigger that
    /// contains a statement makes that answer 0, on both servers.
    async fn inserted_id(&mut self) -> Result<u64, StoreError> {
        let id = self.conn.query_first(Self::INSERTED_ID).await;
        match id.map_err(|e| self.failed(&e))? {
            Some(id) if id > 0 => Ok(id),
            _ => {
                let said = format!("{}: the answer to a statement has no insert id", self.at);
                Err(StoreError::Unavailable(said.into()))
            }
        }
    }

    /// Carry out a statement that reads rows.
    pub(crate) async fn query(
        &mut self,
        statement: &'static str,
        params: Params,
    ) -> Result<Vec<Row>, StoreError> {
        if !self.fit {
            self.look().await?;
        }
        self.rows(statement, params).await
    }

    /// The same of a table that may not be fit, or of none.
    pub(crate) async fn rows(
        &mut self,
        statement: &'static str,
        params: Params,
    ) -> Result<Vec<Row>, StoreError> {
        let began = clock::now();
        let found = match self.prepare(statement).await? {
            Some(prepared) => self.conn.exec(prepared, params).await,
            None => {
                let text = text::written_in(&self.fill(statement), &params)?;
                self.conn.query(text).await
            }
        };
        found.map_err(|e| self.failed_since(began, &e))
    }

    /// Each statement is filled in, read for its parameters and prepared once for each connection: as
    /// text it would be filled in and read again each time, only to be found among those that the
    /// driver keeps. Being constants of the program they are few, and stay.
    ///
    /// None: the server has no prepared statements left, and the statement is sent as text. The limit is
    /// one for all its clients, and a refusal would cost a round trip each time: this connection asks for
    /// no more of them.
    async fn prepare(&mut self, statement: &'static str) -> Result<Option<Statement>, StoreError> {
        if let Some(prepared) = self.prepared.get(statement) {
            return Ok(Some(prepared.clone()));
        }
        if self.unprepared {
            return Ok(None);
        }
        let (text, began) = (self.fill(statement), clock::now());
        match self.conn.prep(text).await {
            Ok(prepared) => {
                self.prepared.insert(statement, prepared.clone());
                Ok(Some(prepared))
            }
            Err(Error::Server(refused)) if refused.code == 1461 => {
                tracing::debug!("{}: {}", self.at, refused.message);
                self.unprepared = true;
                Ok(None)
            }
            Err(error) => Err(self.failed_since(began, &error)),
        }
    }

    /// Carry out a statement that cannot be prepared.
    pub(crate) async fn define(&mut self, statement: String) -> Result<(), StoreError> {
        self.conn
            .query_drop(statement)
            .await
            .map_err(|e| self.failed(&e))
    }

    /// What a statement failed of that waits for no row: a wait that timed out was for the table.
    ///
    /// Both servers answer 1205 for either. A row that is locked fails a statement at once.
    fn failed_since(&mut self, began: BootInstant, error: &mysql_async::Error) -> StoreError {
        match error {
            Error::Server(refused)
                if refused.code == 1205 && clock::now() - began >= TABLE_WAIT =>
            {
                self.blocked()
            }
            error => self.failed(error),
        }
    }

    /// The table, or the whole server, is closed to writes: that passes, and is not the holder of a lock.
    pub(crate) fn blocked(&self) -> StoreError {
        StoreError::cannot_serve(format!(
            "{}: the table is blocked by another session (a backup, LOCK TABLES or ALTER TABLE)",
            self.at
        ))
    }

    fn failed(&mut self, error: &mysql_async::Error) -> StoreError {
        let (meaning, broken) = meaning(&self.at, error);
        self.broken |= broken;
        match (meaning, error) {
            // The commit was under way when the node lost the others: another may know.
            (StoreError::Unavailable(said), Error::Server(refused))
                if self.cluster.is_some() && matches!(refused.code, 1180 | 3100) =>
            {
                StoreError::Contention(said)
            }
            // On MariaDB, which is told not to wait, another client is just making rows. Ids that are used up
            // are error 167 there.
            (StoreError::Rejected { source, .. }, Error::Server(refused))
                if self.never_waits && refused.code == 1467 =>
            {
                StoreError::Contention(source)
            }
            // A table that was there may be away for a moment, while it is copied or restored.
            (StoreError::Rejected { source, .. }, Error::Server(refused))
                if self.server.found.load(Ordering::Relaxed)
                    && matches!(refused.code, 1146 | 1932) =>
            {
                self.fit = false;
                let said = format!("the table was there before ({INIT}): {source}");
                StoreError::cannot_serve(said)
            }
            (meaning, _) => meaning,
        }
    }

    /// Nothing, where somebody else was in the way and so nothing was done.
    ///
    /// Contention after which the connection is of no use leaves it unknown.
    pub(crate) fn unless_contended<T>(
        &self,
        done: Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(StoreError::Contention(_)) if !self.broken => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// An option of a table, of which the server says how it was made.
pub(crate) fn option<'a>(made: &'a str, name: &str) -> Option<&'a str> {
    let options = made.lines().rfind(|line| line.starts_with(')'))?;
    let mut options = options
        .split([' ', ')'])
        .filter_map(|option| option.split_once('='));
    options
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Why a table, of which the server says how it was made, cannot hold locks: what would go unnoticed,
/// namely that two names may be one lock, or that two clients may both get it. What is lacking in it
/// is told by the statements themselves.
fn unfit(made: &str, collation: &str) -> Option<String> {
    // Without the quotes, which one can switch off.
    let made = made.replace('`', "");
    let option = |name: &str| option(&made, name);
    let engine = option("ENGINE").unwrap_or("none (is it a view?)");
    if !engine.eq_ignore_ascii_case("InnoDB") {
        let why = "without transactions two could get the same lock";
        return Some(format!("its engine is {engine}, and {why}"));
    }
    let mut lines = made.lines().map(|line| line.trim().trim_end_matches(','));
    let name = lines.clone().find_map(|line| line.strip_prefix("name "))?;
    // Said of the column where it differs from that of the table.
    let mut words = name.split(' ').take_while(|word| *word != "COMMENT");
    let of_column = match words.clone().any(|word| word == "COLLATE") {
        true => words.skip_while(|word| *word != "COLLATE").nth(1),
        // Then it is the usual one of that character set.
        false => words
            .any(|word| word == "CHARACTER")
            .then_some("its character set"),
    };
    let found = of_column
        .or(option("COLLATE"))
        .unwrap_or("its character set");
    if found != collation {
        let why = "and not byte for byte: two names could be one lock";
        return Some(format!("it compares names by {found}, {why}"));
    }
    let unique = lines.any(|line| {
        let key = line
            .strip_prefix("UNIQUE KEY ")
            .or(line.strip_prefix("PRIMARY KEY "));
        key.is_some_and(|key| key.contains("(name)"))
    });
    let why = "it may hold the same name twice: two could get the same lock";
    (!unique).then(|| why.to_owned())
}

/// Connect, with TLS or without.
async fn log_in(server: &Server, host: &Host, at: &str) -> Result<Conn, Failure<String>> {
    // The driver takes the process's default, and rustls panics where there is none and two were
    // built in: some other library's business. Whoever has chosen one keeps it.
    if host.opts.ssl_opts().is_some() && CryptoProvider::get_default().is_none() {
        // Somebody else may be doing the same.
        let _ = ring::default_provider().install_default();
    }
    let mut made = dial(&host.opts, at).await?;
    // Nothing but the server's own word makes us go without.
    if let (Err(Error::Driver(DriverError::NoClientSslFlagFromServer)), Some(opts)) =
        (&made, &host.without_tls)
    {
        made = dial(opts, at).await?;
    }
    made.map_err(|error| {
        let none = matches!(error, Error::Driver(DriverError::NoClientSslFlagFromServer));
        let about_tls = none.then(Complaint::none_offered);
        match about_tls.or_else(|| complaint(&error)) {
            Some(Complaint { said, hint, .. }) => {
                StoreError::rejected(format!("{at}: {said}"), Some(hint)).into()
            }
            None => match (&error, &host.address) {
                // What it was logged in with may just have been replaced by something else.
                (Error::Server(refused), _)
                    if refused.code == 1045 && server.may_log_in_later() =>
                {
                    let said = format!("{at}: {} (error 1045)", refused.message);
                    StoreError::Unavailable(said.into()).into()
                }
                // All that MariaDB says where TLS is required.
                (Error::Server(refused), Address::Tcp(..))
                    if refused.code == 1045 && host.is_anonymous() =>
                {
                    let said = format!("{at}: {} (error 1045)", refused.message);
                    let hint = "check user name and password; a server that wants TLS says the same \
                                (sslmode=require), or a client certificate (sslcert and sslkey)";
                    StoreError::rejected(said, Some(hint)).into()
                }
                _ => meaning(at, &error).0.into(),
            },
        }
    })
}

/// Let the driver connect. If it panics, as it may where a server asks for a login that it was not built
/// with, the caller gets an error.
async fn dial(opts: &Opts, at: &str) -> Result<Result<Conn, Error>, StoreError> {
    caught(Conn::new(opts.clone())).await.map_err(|panic| {
        let said = format!("{at}: the MySQL driver panicked at login: {panic}");
        StoreError::rejected(said, None)
    })
}

impl From<StoreError> for Failure<String> {
    fn from(error: StoreError) -> Self {
        let answers = error.is_answer();
        let (verdict, source, hint) = match error {
            StoreError::Unavailable(source) if answers => (Verdict::ReadOnly, source, None),
            StoreError::Contention(source) | StoreError::Unavailable(source) => {
                (Verdict::Unavailable, source, None)
            }
            StoreError::Rejected { hint, source } => (Verdict::Refused, source, hint),
        };
        Self {
            verdict,
            said: source.to_string(),
            hint,
        }
    }
}

impl From<Failure<String>> for StoreError {
    fn from(failure: Failure<String>) -> Self {
        match failure.verdict {
            Verdict::Unavailable => Self::Unavailable(failure.said.into()),
            Verdict::ReadOnly => Self::cannot_serve(failure.with_hint()),
            Verdict::Refused => Self::rejected(failure.said, failure.hint.as_deref()),
        }
    }
}

/// `10.11.19-MariaDB-…` and `8.0.36-log`; MariaDB used to put `5.5.5-` before its own.
fn numbers(version: &str) -> [u32; 3] {
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or_default());
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_judged_by_how_it_was_made() {
        let ours = "CREATE TABLE `database_locks_lock` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `name` varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL,
  `locked_by` longtext DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `name` (`name`)
) ENGINE=InnoDB AUTO_INCREMENT=7 DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci";
        let judged = |from: &str, to: &str| {
            assert!(ours.contains(from), "{from}");
            unfit(&ours.replace(from, to), "utf8mb4_nopad_bin")
        };
        assert_eq!(judged("", ""), None);
        assert_eq!(judged("`", ""), None);
        assert_eq!(
            judged(" CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", "")
                .map(|why| why.contains("utf8mb4_general_ci")),
            Some(true)
        );
        for (from, to, word) in [
            ("InnoDB", "MyISAM", "MyISAM"),
            (" COLLATE utf8mb4_nopad_bin", "", "byte for byte"),
            ("utf8mb4_nopad_bin", "utf8mb4_bin", "utf8mb4_bin"),
            ("  UNIQUE KEY `name` (`name`)\n", "", "twice"),
            ("  UNIQUE KEY", "  KEY", "twice"),
            ("(`name`)", "(`name`,`id`)", "twice"),
            (ours, "CREATE VIEW x AS SELECT 1", "view"),
        ] {
            let why = judged(from, to).expect(from);
            assert!(why.contains(word), "{why}");
        }
        let by_table = ours.replace(" CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", "");
        let by_table = by_table.replace("utf8mb4_general_ci", "utf8mb4_nopad_bin");
        assert_eq!(unfit(&by_table, "utf8mb4_nopad_bin"), None);
    }

    #[test]
    fn versions_are_read_as_both_servers_write_them() {
        assert_eq!(numbers("8.0.36-0ubuntu0.22.04.1"), [8, 0, 36]);
        assert_eq!(numbers("10.11.19-MariaDB-0+deb12u1"), [10, 11, 19]);
        assert_eq!(numbers("5.5.5-10.6.1-MariaDB"), [10, 6, 1]);
        assert!(numbers("5.7.44-log") < [8, 0, 17]);
    }
}
