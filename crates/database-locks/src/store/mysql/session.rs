//! A connection to a server that was found fit, and what its errors mean.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, IoError, Params, Row};

use super::super::StoreError;
use super::connection::Server;

const INIT: &str = "make it with `dblock init` or `locks.migrate()`";
const UPGRADE: &str = "the table is of an older version: run `dblock init` or `locks.migrate()`";

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
    pub(super) server: Arc<Server>,
    collation: &'static str,
    /// The longest parameter that fits into a statement.
    pub(super) longest: usize,
    /// Whether a statement that finds a row locked fails at once.
    pub(super) never_waits: bool,
    broken: bool,
}

impl Session {
    /// Connect, look at the server, and set the session up.
    pub(super) async fn open(server: &Arc<Server>) -> Result<Self, StoreError> {
        if server.opts.db_name().is_none() {
            let hint = "end the URL with the database that holds the table: mysql://HOST/DATABASE";
            return Err(StoreError::rejected("no database was named", Some(hint)));
        }
        let conn = Conn::new(server.opts.clone())
            .await
            .map_err(|e| meaning(&server.at, &e).0)?;
        let server = Arc::clone(server);
        let mut session = Self {
            conn,
            server,
            collation: "",
            longest: 0,
            never_waits: false,
            broken: false,
        };
        session.hello().await?;
        session.server.greeted.store(true, Ordering::Relaxed);
        Ok(session)
    }

    /// Not `@@name`: a variable that one of the servers does not know would be an error.
    const VARIABLES: &str = "
        SHOW VARIABLES WHERE Variable_name IN
            ('version', 'read_only', 'super_read_only', 'innodb_read_only', 'wsrep_on',
             'group_replication_group_name', 'group_replication_single_primary_mode',
             'max_allowed_packet')";

    /// Everything that the statements count on, whatever the server's defaults are.
    ///
    /// `lock_wait_timeout` bounds the wait for an ALTER TABLE of somebody, a year by default.
    /// READ COMMITTED keeps a statement from locking the gaps between rows.
    const SETTINGS: &str = "
        SET NAMES utf8mb4, autocommit = 1, lock_wait_timeout = 1, innodb_lock_wait_timeout = {wait},
            sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
            sql_safe_updates = 0";
    const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";

    async fn hello(&mut self) -> Result<(), StoreError> {
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
            return Err(StoreError::rejected(
                format!("the server is {version}"),
                Some(hint),
            ));
        }
        let cluster = on("wsrep_on")
            || (!variable("group_replication_group_name").is_empty()
                && !on("group_replication_single_primary_mode"));
        if cluster {
            let said = "multi-primary clusters are not supported by this version";
            let hint = "a node whose clock is ahead would give a lock away too early: \
                        use a database with a single primary";
            return Err(StoreError::rejected(said, Some(hint)));
        }
        // A privileged user may write in spite of `read_only`: on a replica that goes nowhere.
        if ["read_only", "super_read_only", "innodb_read_only"]
            .into_iter()
            .any(on)
        {
            let said = format!("the server at {} is read-only", self.server.at);
            if self.server.greeted.load(Ordering::Relaxed) {
                return Err(StoreError::Unavailable(said.into()));
            }
            return Err(StoreError::rejected(said, Some("connect to the primary")));
        }
        self.collation = if mariadb {
            "utf8mb4_nopad_bin"
        } else {
            "utf8mb4_0900_bin"
        };
        self.longest = variable("max_allowed_packet").parse().unwrap_or(1 << 20) / 2;
        // MySQL knows no 0, and waits for a second at least.
        self.never_waits = mariadb;
        let settings = Self::SETTINGS.replace("{wait}", if mariadb { "0" } else { "1" });
        self.conn
            .query_drop(settings)
            .await
            .map_err(|e| self.failed(&e))?;
        self.conn
            .query_drop(Self::ISOLATION)
            .await
            .map_err(|e| self.failed(&e))
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

    /// Put the table and the collation into a statement.
    pub(super) fn fill(&self, statement: &str) -> String {
        self.server
            .table
            .fill(statement)
            .replace("{collation}", self.collation)
    }

    pub(super) fn collation(&self) -> &'static str {
        self.collation
    }

    /// Carry out a statement that reads nothing. The driver prepares it once for each connection.
    pub(super) async fn execute(
        &mut self,
        statement: &str,
        params: Params,
    ) -> Result<Done, StoreError> {
        let statement = self.fill(statement);
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
        statement: &str,
        params: Params,
    ) -> Result<Vec<Row>, StoreError> {
        let statement = self.fill(statement);
        self.conn
            .exec(statement, params)
            .await
            .map_err(|e| self.failed(&e))
    }

    /// Carry out a statement that cannot be prepared.
    pub(super) async fn define(&mut self, statement: String) -> Result<(), StoreError> {
        self.conn
            .query_drop(statement)
            .await
            .map_err(|e| self.failed(&e))
    }

    fn failed(&mut self, error: &mysql_async::Error) -> StoreError {
        let (meaning, broken) = meaning(&self.server.at, error);
        self.broken |= broken;
        meaning
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
        // Too many connections, shutting down, gone, killed, cluster node not ready, no answer;
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
        | 3168
        | 4031 => unavailable(said),
        _ if error.state.starts_with("40") => (StoreError::Contention(said.into()), false),
        _ if error.state.starts_with("08") => unavailable(said),
        1146 => refused(Some(INIT)),
        1054 | 1176 => refused(Some(UPGRADE)),
        1044 | 1142 | 1143 | 1227 => refused(Some(
            "grant this user SELECT, INSERT, UPDATE and DELETE on the table, and for `dblock init` \
             CREATE, ALTER and INDEX",
        )),
        1045 | 1698 => refused(Some("check user name and password")),
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
    fn versions_are_read_as_both_servers_write_them() {
        assert_eq!(numbers("8.0.36-0ubuntu0.22.04.1"), [8, 0, 36]);
        assert_eq!(numbers("10.11.19-MariaDB-0+deb12u1"), [10, 11, 19]);
        assert_eq!(numbers("5.5.5-10.6.1-MariaDB"), [10, 6, 1]);
        assert!(numbers("5.7.44-log") < [8, 0, 17]);
    }
}
