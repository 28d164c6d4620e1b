//! A connection to a server that was found fit, and what its errors mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Error, IoError, Params, Row, Statement};
use rustls::crypto::{CryptoProvider, ring};

use super::super::hosts::{Failure, Verdict, first_of};
use super::super::tls::{Complaint, complaint};
use super::super::url::Address;
use super::super::{NO_TOKEN, StoreError};
use super::cluster::{self, Cluster};
use super::connection::{Host, Server};

const INIT: &str = "make it with `dblock init` or `locks.migrate()`";
const UPGRADE: &str = "the table is of an older version: run `dblock init` or `locks.migrate()`";
const MEND: &str = "run `dblock init` or `locks.migrate()`, which alters the table";

/// What a statement that reads nothing has done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// How many rows were found.
    pub(super) rows: u64,
    /// What `LAST_INSERT_ID(…)` handed back; 0 where no row was found.
    pub(super) id: u64,
}

/// A connection, set up, to a server that was found fit.
pub(super) struct Session {
    conn: Conn,
    /// What has been prepared on it, by the text before the table and the like are put into it.
    prepared: HashMap<&'static str, Statement>,
    pub(super) server: Arc<Server>,
    /// Which of the hosts it is connected to, for messages.
    at: String,
    collation: &'static str,
    /// Whether it is one of several that can be written to.
    pub(super) cluster: Option<Cluster>,
    /// The longest parameter that fits into a statement.
    pub(super) longest: usize,
    /// Whether a statement that finds a row locked fails at once.
    pub(super) never_waits: bool,
    /// The table was looked at, and can hold locks.
    fit: bool,
    broken: bool,
}

impl Session {
    /// Connect to the first host that can be written to.
    pub(super) async fn open(server: &Arc<Server>) -> Result<Self, StoreError> {
        if server
            .hosts
            .iter()
            .any(|host| host.opts.db_name().is_none())
        {
            let hint = "end the URL with the database that holds the table: mysql://HOST/DATABASE";
            return Err(StoreError::rejected("no database was named", Some(hint)));
        }
        let addresses: Vec<Address> = server.hosts.iter().map(|h| h.address.clone()).collect();
        let first = server.latest.load(Ordering::Relaxed);
        let found = first_of(&addresses, first, server.connecting, |at, _| {
            Self::open_at(server, &server.hosts[at])
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
    async fn open_at(server: &Arc<Server>, host: &Host) -> Result<Self, Failure<String>> {
        let at = host.address.to_string();
        let mut session = Self {
            conn: log_in(host, &at).await?,
            prepared: HashMap::new(),
            server: Arc::clone(server),
            at,
            collation: "",
            cluster: None,
            longest: 0,
            never_waits: false,
            fit: false,
            broken: false,
        };
        session.hello().await?;
        Ok(session)
    }

    /// Not `@@name`: a variable that one of the servers does not know would be an error.
    const VARIABLES: &str = "
        SHOW VARIABLES WHERE Variable_name IN
            ('version', 'read_only', 'super_read_only', 'innodb_read_only', 'wsrep_on',
             'wsrep_provider',
             'group_replication_group_name', 'group_replication_single_primary_mode',
             'max_allowed_packet')";

    /// Everything that the statements count on, whatever the server's defaults are.
    ///
    /// `lock_wait_timeout` bounds the wait for an ALTER TABLE of somebody, a year by default.
    /// `sql_select_limit` would hide rows, which then count as gone, and without `unique_checks` a name
    /// might be made twice.
    /// READ COMMITTED keeps a statement from locking the gaps between rows.
    const SETTINGS: &str = "
        SET NAMES utf8mb4, autocommit = 1, lock_wait_timeout = 1, innodb_lock_wait_timeout = {wait},
            sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
            sql_safe_updates = 0, sql_select_limit = DEFAULT, unique_checks = 1";
    /// A node that is cut off from the others must say so, and not what it knew before.
    const CURRENT: &str = ", wsrep_dirty_reads = 0";
    const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";

    async fn hello(&mut self) -> Result<(), Failure<String>> {
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
        let grouped = !variable("group_replication_group_name").is_empty()
            && !on("group_replication_single_primary_mode");
        self.cluster = match on("wsrep_on") {
            true => Some(Cluster::Galera),
            false => grouped.then_some(Cluster::Group),
        };
        match self.cluster {
            Some(cluster) => self.is_ready(cluster).await?,
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
            let said = format!("the server at {} is read-only", self.at);
            if self.server.greeted.load(Ordering::Relaxed) {
                return Err(StoreError::Unavailable(said.into()).into());
            }
            return Err(Failure {
                verdict: Verdict::ReadOnly,
                said,
                hint: Some("locks have to be written: connect to the primary".into()),
            });
        }
        self.collation = if mariadb {
            "utf8mb4_nopad_bin"
        } else {
            "utf8mb4_0900_bin"
        };
        self.longest = variable("max_allowed_packet").parse().unwrap_or(1 << 20) / 2;
        // MySQL knows no 0, and waits for a second at least.
        self.never_waits = mariadb;
        if let Some(command) = self.server.init_command.clone() {
            self.begin_as_told(&command).await?;
            if self.cluster == Some(Cluster::Galera) {
                self.is_replicated().await?;
            }
        }
        let mut settings = Self::SETTINGS.replace("{wait}", if mariadb { "0" } else { "1" });
        if self.cluster == Some(Cluster::Galera) {
            settings.push_str(Self::CURRENT);
        }
        self.conn
            .query_drop(settings)
            .await
            .map_err(|e| self.failed(&e))?;
        let isolated = self.conn.query_drop(Self::ISOLATION).await;
        Ok(isolated.map_err(|e| self.failed(&e))?)
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
    const SHAPE: &str = "SHOW CREATE TABLE {table}";

    /// Look at the table before it is used for the first time on this connection. Not when connecting:
    /// whoever connects may be about to make it, or to alter it.
    async fn look(&mut self) -> Result<(), StoreError> {
        let shape = self.server.table.fill(Self::SHAPE);
        let found: Option<Row> = self
            .conn
            .query_first(shape)
            .await
            .map_err(|e| self.failed(&e))?;
        let text: Option<String> = found.and_then(|mut row| row.take_opt(1)?.ok());
        match unfit(&text.unwrap_or_default(), self.collation) {
            None => {
                self.fit = true;
                Ok(())
            }
            Some(why) => {
                let said = format!("the table {}: {why}", self.server.table.as_str());
                Err(StoreError::rejected(said, Some(MEND)))
            }
        }
    }

    /// Whether the connection is still there.
    pub(super) async fn answers(&mut self, within: Duration) -> bool {
        matches!(
            tokio::time::timeout(within, self.conn.ping()).await,
            Ok(Ok(()))
        )
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken || self.conn.is_disconnected()
    }

    /// Put the table, the collation and what ends a lease into a statement.
    pub(super) fn fill(&self, statement: &str) -> String {
        let text = self.server.table.fill(statement);
        let text = text.replace("{collation}", self.collation);
        cluster::fill(&text, self.cluster)
    }

    /// Which of the hosts it is connected to, for messages.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    pub(super) fn collation(&self) -> &'static str {
        self.collation
    }

    /// Carry out a statement that reads nothing.
    pub(super) async fn execute(
        &mut self,
        statement: &'static str,
        params: Params,
    ) -> Result<Done, StoreError> {
        if !self.fit {
            self.look().await?;
        }
        let statement = self.prepare(statement).await?;
        self.conn
            .exec_drop(statement, params)
            .await
            .map_err(|e| self.failed(&e))?;
        let id = self.conn.last_insert_id().unwrap_or_default();
        Ok(Done {
            rows: self.conn.affected_rows(),
            id,
        })
    }

    /// Carry out a statement that reads rows.
    pub(super) async fn query(
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
    pub(super) async fn rows(
        &mut self,
        statement: &'static str,
        params: Params,
    ) -> Result<Vec<Row>, StoreError> {
        let statement = self.prepare(statement).await?;
        self.conn
            .exec(statement, params)
            .await
            .map_err(|e| self.failed(&e))
    }

    /// Each statement is filled in, read for its parameters and prepared once for each connection: as
    /// text it would be filled in and read again each time, only to be found among those that the
    /// driver keeps. Being constants of the program they are few, and stay.
    async fn prepare(&mut self, statement: &'static str) -> Result<Statement, StoreError> {
        if let Some(prepared) = self.prepared.get(statement) {
            return Ok(prepared.clone());
        }
        let text = self.fill(statement);
        let prepared = self.conn.prep(text).await.map_err(|e| self.failed(&e))?;
        self.prepared.insert(statement, prepared.clone());
        Ok(prepared)
    }

    /// Carry out a statement that cannot be prepared.
    pub(super) async fn define(&mut self, statement: String) -> Result<(), StoreError> {
        self.conn
            .query_drop(statement)
            .await
            .map_err(|e| self.failed(&e))
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
            (meaning, _) => meaning,
        }
    }

    /// Nothing, where somebody else was in the way and so nothing was done.
    ///
    /// Contention after which the connection is of no use leaves it unknown.
    pub(super) fn unless_contended<T>(
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

/// Why a table, of which the server says how it was made, cannot hold locks: what would go unnoticed,
/// namely that two names may be one lock, or that two clients may both get it. What is lacking in it
/// is told by the statements themselves.
fn unfit(made: &str, collation: &str) -> Option<String> {
    // Without the quotes, which one can switch off.
    let made = made.replace('`', "");
    let options = made
        .lines()
        .rfind(|line| line.starts_with(')'))
        .unwrap_or_default();
    let option = |name: &str| {
        let mut options = options
            .split([' ', ')'])
            .filter_map(|option| option.split_once('='));
        options
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    };
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
async fn log_in(host: &Host, at: &str) -> Result<Conn, Failure<String>> {
    // The driver takes the process's default, and rustls panics where there is none and two were
    // built in: some other library's business. Whoever has chosen one keeps it.
    if host.opts.ssl_opts().is_some() && CryptoProvider::get_default().is_none() {
        // Somebody else may be doing the same.
        let _ = ring::default_provider().install_default();
    }
    let mut made = Conn::new(host.opts.clone()).await;
    // Nothing but the server's own word makes us go without.
    if let (Err(Error::Driver(DriverError::NoClientSslFlagFromServer)), Some(opts)) =
        (&made, &host.without_tls)
    {
        made = Conn::new(opts.clone()).await;
    }
    made.map_err(|error| {
        let none = matches!(error, Error::Driver(DriverError::NoClientSslFlagFromServer));
        let about_tls = none.then(Complaint::none_offered);
        match about_tls.or_else(|| complaint(&error)) {
            Some(Complaint { said, hint, .. }) => {
                StoreError::rejected(format!("{at}: {said}"), Some(hint)).into()
            }
            None => match (&error, &host.address) {
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

impl From<StoreError> for Failure<String> {
    fn from(error: StoreError) -> Self {
        let (verdict, source, hint) = match error {
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
            Verdict::ReadOnly | Verdict::Refused => {
                Self::rejected(failure.said, failure.hint.as_deref())
            }
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

/// What an error means, and whether the connection is of no use after it.
///
/// Put into words of ours: the driver's own errors may hold whole packets.
fn meaning(at: &str, error: &mysql_async::Error) -> (StoreError, bool) {
    use mysql_async::Error::{Driver, Io, Server};
    let unavailable = |said: String| (StoreError::Unavailable(said.into()), true);
    let error = match error {
        Server(error) => error,
        Io(IoError::Io(error)) => return unavailable(format!("{at}: {error}")),
        Driver(
            error @ (DriverError::UnknownAuthPlugin { .. }
            | DriverError::CleartextPluginDisabled
            | DriverError::MysqlOldPasswordDisabled),
        ) => return (StoreError::rejected(format!("{at}: {error}"), None), true),
        error => return unavailable(format!("{at}: {error}")),
    };
    let said = format!("{at}: {} (error {})", error.message, error.code);
    let refused = |hint| (StoreError::rejected(&*said, hint), false);
    match error.code {
        // Lock wait, deadlock, duplicate key, NOWAIT, changed since the snapshot, rolled back by
        // the group, statement to be prepared anew, KILL QUERY.
        1205 | 1213 | 1062 | 3572 | 1020 | 3101 | 1615 | 1317 => {
            (StoreError::Contention(said.into()), false)
        }
        // Too many connections, shutting down, gone, killed, cluster node not ready, cut off from the
        // others while it commits, not in step with them, no answer;
        // read-only: a failover, and the next connection may find the new primary.
        1040
        | 1203
        | 1226
        | 1047
        | 1053
        | 1152..=1161
        | 1180
        | 1243
        | 1290
        | 1792
        | 1836
        | 1927
        | 1969
        | 2006
        | 2013
        | 3024
        | 3100
        | 3168
        | 3796
        | 3797
        | 4031 => unavailable(said),
        _ if error.state.starts_with("40") => (StoreError::Contention(said.into()), false),
        _ if error.state.starts_with("08") => unavailable(said),
        1146 => refused(Some(INIT)),
        1054 | 1176 => refused(Some(UPGRADE)),
        1264 | 1690 => refused(Some(NO_TOKEN)),
        1044 => refused(Some(
            "check the database's name at the end of the URL, or grant this user rights in it",
        )),
        1142 | 1143 | 1227 => refused(Some(
            "this user needs SELECT, INSERT and UPDATE on the table; DELETE on the table to prune; \
             CREATE, ALTER and INDEX for `dblock init`",
        )),
        1045 | 1698 => refused(Some("check user name and password")),
        3159 => refused(Some("the server wants TLS: sslmode=require")),
        1665 => refused(Some(
            "set binlog_format to ROW or MIXED: this cannot be replicated as text",
        )),
        1049 => refused(Some(
            "check the database's name at the end of the URL, or create it",
        )),
        _ => refused(None),
    }
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
