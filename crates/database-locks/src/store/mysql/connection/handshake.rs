//! Making a connection: TLS, login, and the checks of the server.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Error, Opts, Params};
use rustls::crypto::{CryptoProvider, ring};

use super::config::{Host, Server, ServerConfig};
use super::driver::DriverConnection;
use super::interpolate;
use super::panic::catch_panic;
use super::session::Session;
use super::settings::Settings;
use crate::store::api::StoreError;
use crate::store::connect::hosts::{ConnectFailure, FailureKind};
use crate::store::connect::tls::{TlsFailure, tls_failure};
use crate::store::connect::url::Address;
use crate::store::mysql::cluster::Cluster;
use crate::store::mysql::error::classify;
use protocol::BootInstant;

impl Session {
    /// Connect to the first host that can be written to.
    pub(crate) async fn open(server: &Arc<Server>) -> Result<Self, StoreError> {
        let config = server.connector.ask().await?;
        let hosts = &config.hosts;
        if hosts.iter().any(|host| host.opts.db_name().is_none()) {
            let hint = "end the URL with the database that holds the table: mysql://HOST/DATABASE";
            return Err(StoreError::rejected("no database was named", Some(hint)));
        }
        let connected =
            (server.connector).connect(&config, |at, _| Self::open_at(server, &config, at));
        let (at, session) = connected.await?;
        server.connector.serves(&hosts[at].address);
        server
            .clustered
            .store(session.cluster.is_some(), Ordering::Relaxed);
        Ok(session)
    }

    /// Connect, check the server, and set up the session.
    async fn open_at(
        server: &Arc<Server>,
        config: &ServerConfig,
        at: usize,
    ) -> Result<Self, ConnectFailure> {
        let host = &config.hosts[at];
        let mut session = Self {
            conn: DriverConnection::new(login(server, host).await?),
            prepared: HashMap::new(),
            server: Arc::clone(server),
            address: host.address.clone(),
            cluster: None,
            single_primary: false,
            max_parameter_len: 0,
            mariadb: false,
            table_checked: false,
            prepared_refused: false,
            broken: false,
            in_step_at: BootInstant::ZERO,
        };
        session.handshake(config.init_command()).await?;
        Ok(session)
    }

    /// Not `@@name`, which fails for a variable that one of the servers does not have.
    pub(crate) const VARIABLES: &str = "
        SHOW VARIABLES WHERE Variable_name IN
            ('version', 'read_only', 'super_read_only', 'innodb_read_only', 'wsrep_on',
             'wsrep_provider',
             'group_replication_group_name', 'group_replication_single_primary_mode',
             'max_allowed_packet')";

    /// The settings that the statements rely on, whatever the server's defaults are. They are set
    /// before the first query, since a `sql_select_limit`, for one, hides rows of every answer.
    ///
    /// `lock_wait_timeout` limits the wait for an ALTER TABLE, which is a year by default. MySQL
    /// has no `innodb_lock_wait_timeout` of 0 and waits for at least a second. Without
    /// `unique_checks` a name could be inserted twice. READ COMMITTED keeps a statement from
    /// locking the gaps between rows.
    pub(crate) const SETTINGS: &str = "
        SET NAMES utf8mb4, autocommit = 1, lock_wait_timeout = 1,
            innodb_lock_wait_timeout = IF(VERSION() LIKE '%MariaDB%', 0, 1),
            sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
            sql_safe_updates = 0, sql_select_limit = 18446744073709551615, unique_checks = 1";
    /// A node of Galera that is cut off from the others must fail and not answer with stale rows.
    pub(crate) const CURRENT: &str = "SET SESSION wsrep_dirty_reads = 0";
    pub(crate) const ISOLATION: &str =
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";

    async fn configure(&mut self) -> Result<(), StoreError> {
        self.execute_unprepared(Self::SETTINGS).await?;
        self.execute_unprepared(Self::ISOLATION).await
    }

    async fn handshake(&mut self, init_command: Option<&str>) -> Result<(), ConnectFailure> {
        self.configure().await?;
        let found: Result<Vec<_>, _> = self.conn.query(Self::VARIABLES).await;
        let found = Settings::new(found.map_err(|e| self.failed(&e))?);
        let version = found.get("version");
        let mariadb = version.contains("MariaDB");
        let least = if mariadb { [10, 6, 0] } else { [8, 0, 17] };
        if numbers(version) < least {
            let hint = "MySQL 8.0.17 or MariaDB 10.6 at least: older ones cannot skip locked rows, or \
                        have no collation that keeps all names apart";
            let message = format!("the server at {} is {version}", self.address);
            return Err(StoreError::rejected(message, Some(hint)).into());
        }
        let member = !found.get("group_replication_group_name").is_empty();
        self.single_primary = member && found.on("group_replication_single_primary_mode");
        self.cluster = match found.on("wsrep_on") {
            true => Some(Cluster::Galera),
            false => (member && !self.single_primary).then_some(Cluster::Group),
        };
        match self.cluster {
            Some(cluster) => self.check_ready(cluster).await?,
            // With a single primary, too, a member that has left the group accepts writes that no
            // other member receives.
            None if self.single_primary => self.check_ready(Cluster::Group).await?,
            None if !matches!(found.get("wsrep_provider"), "" | "none") => {
                self.check_replicated().await?
            }
            None => {}
        }
        // A privileged user may write in spite of `read_only`. On a replica such writes are lost at
        // a failover.
        let read_only = ["read_only", "super_read_only", "innodb_read_only"];
        if read_only.into_iter().any(|name| found.on(name)) {
            return Err(self.read_only());
        }
        let packet: usize = found.get("max_allowed_packet").parse().unwrap_or(1 << 20);
        self.max_parameter_len = packet / (interpolate::LITERAL_FACTOR + 1);
        self.mariadb = mariadb;
        let galera = self.cluster == Some(Cluster::Galera);
        if let Some(command) = init_command {
            self.run_init_command(command).await?;
            if galera {
                self.check_replicated().await?;
            }
            self.configure().await?;
        }
        if galera {
            self.execute_unprepared(Self::CURRENT).await?;
        }
        Ok(())
    }

    /// The error for a read-only server.
    fn read_only(&self) -> ConnectFailure {
        // If a server has served before, this is a failover, and the URL is right.
        let served = self.server.connector.has_served();
        let message = format!("the server at {} is read-only", self.address);
        let hint = "locks have to be written: connect to the primary";
        ConnectFailure::new(FailureKind::ReadOnly, message, (!served).then_some(hint))
    }

    /// Run the `init_command` of the URL. The settings that the statements rely on are set again
    /// after it.
    ///
    /// A transaction that it left open would hide every grant from other clients, and with a
    /// stopped clock (`SET timestamp`) no lease would ever end.
    async fn run_init_command(&mut self, command: &str) -> Result<(), ConnectFailure> {
        let answer = self.conn.query_drop(command).await;
        answer.map_err(|error| match &error {
            // The statement may contain a secret, and a syntax error repeats a part of it.
            Error::Server(refused) => {
                let (at, code) = (&self.address, refused.code);
                let why = match code {
                    1064 => "it is not understood",
                    _ => &*refused.message,
                };
                let message = format!("{at}: init_command failed: {why} (error {code})");
                ConnectFailure::from(StoreError::rejected(message, Some("correct it in the URL")))
            }
            error => self.failed(error).into(),
        })?;
        for after in ["COMMIT AND NO CHAIN NO RELEASE", "SET timestamp = DEFAULT"] {
            match self.conn.query_drop(after).await {
                // The server does not allow setting it.
                Err(Error::Server(refused)) if refused.code == 1290 => {}
                done => done.map_err(|error| self.failed(&error))?,
            }
        }
        Ok(())
    }

    /// The state of a node of Galera.
    pub(crate) const STATE: &str = "
        SHOW STATUS WHERE Variable_name IN
            ('wsrep_ready', 'wsrep_cluster_status', 'wsrep_local_state_comment')";
    /// The state of a member of Group Replication. The user needs the right to read that table. A
    /// member that is cut off from most of the others still calls itself online, and writes to it
    /// wait for ever.
    pub(crate) const MEMBER: &str = "
        SELECT IF(COUNT(IF(member_state = 'UNREACHABLE', 1, NULL)) * 2 >= COUNT(*),
                  'CUT OFF FROM MOST OF THE OTHERS',
                  IFNULL(MAX(IF(member_id = @@server_uuid, member_state, NULL)), 'OFFLINE'))
          FROM performance_schema.replication_group_members";

    /// Refuse a node that cannot serve at present: it is cut off from most of the others, or is
    /// receiving a state transfer. Another node may serve.
    pub(crate) async fn check_ready(&mut self, cluster: Cluster) -> Result<(), ConnectFailure> {
        let state = match cluster {
            Cluster::Galera => {
                let found = self.settings(&[Self::STATE]).await?;
                let of = |name: &str| found.get(name).to_lowercase();
                let (cluster, node) = (of("wsrep_cluster_status"), of("wsrep_local_state_comment"));
                let ready = found.get("wsrep_ready") == "ON" && cluster == "primary";
                (!ready).then(|| format!("{cluster}, {node}"))
            }
            Cluster::Group => match self.rows_as::<String>(Self::MEMBER, Params::Empty).await {
                // A member that was started and has not joined accepts writes that no other member
                // receives.
                Ok(found) => Some(found.into_iter().next().unwrap_or_else(|| "OFFLINE".into()))
                    .filter(|state| state != "ONLINE")
                    .map(|state| state.to_lowercase()),
                // `doctor` reports the missing right.
                Err(StoreError::Rejected { .. }) => None,
                Err(failure) => return Err(failure.into()),
            },
        };
        let Some(state) = state else { return Ok(()) };
        let message = format!("{}: the cluster node is not ready: {state}", self.address);
        Err(StoreError::Unavailable(message.into()).into())
    }

    pub(crate) const REPLICATED: &str = "SHOW VARIABLES LIKE 'wsrep_on'";
    pub(crate) const CONNECTED: &str = "SHOW GLOBAL STATUS LIKE 'wsrep_connected'";

    /// Refuse a node of Galera that is set not to replicate what is written to it.
    pub(crate) async fn check_replicated(&mut self) -> Result<(), ConnectFailure> {
        let replicated = self.settings(&[Self::REPLICATED]).await?;
        if !replicated.is_not("wsrep_on", "ON") {
            return Ok(());
        }
        let connected = self.settings(&[Self::CONNECTED]).await?;
        if !connected.is_not("wsrep_connected", "OFF") {
            return Ok(());
        }
        let message = format!(
            "{}: the other nodes of the cluster learn nothing of what is written here: wsrep_on is OFF",
            self.address
        );
        let hint = "set wsrep_on = ON, and see to it that init_command leaves it alone";
        Err(StoreError::rejected(message, Some(hint)).into())
    }
}

/// Connect, with TLS or without.
async fn login(server: &Server, host: &Host) -> Result<Conn, ConnectFailure> {
    let at = &host.address;
    // The driver uses the default provider of the process, and rustls panics if there is none and
    // two are built in. A default that the program has chosen stays.
    if host.opts.ssl_opts().is_some() && CryptoProvider::get_default().is_none() {
        // Another thread may be doing the same.
        let _ = ring::default_provider().install_default();
    }
    let mut connected = dial(&host.opts, at).await?;
    // TLS is left out only if the server itself answered that it has none.
    if let (Err(Error::Driver(DriverError::NoClientSslFlagFromServer)), Some(opts)) =
        (&connected, &host.without_tls)
    {
        connected = dial(opts, at).await?;
    }
    connected.map_err(|error| {
        let none = matches!(error, Error::Driver(DriverError::NoClientSslFlagFromServer));
        let about_tls = none.then(TlsFailure::none_offered);
        if let Some(TlsFailure { message, hint, .. }) = about_tls.or_else(|| tls_failure(&error)) {
            return StoreError::rejected(format!("{at}: {message}"), Some(hint)).into();
        }
        let message = match &error {
            Error::Server(refused) if refused.code == 1045 => {
                format!("{at}: {} (error 1045)", refused.message)
            }
            error => return classify(&at.to_string(), error).0.into(),
        };
        let failure = match at {
            // The password may have been changed since it was read.
            _ if server.connector.may_log_in_later() => StoreError::Unavailable(message.into()),
            // MariaDB answers no more than this if TLS is required.
            Address::Tcp(..) if host.is_anonymous() => {
                let hint = "check user name and password; a server that wants TLS says the same \
                            (sslmode=require), or a client certificate (sslcert and sslkey)";
                StoreError::rejected(message, Some(hint))
            }
            _ => classify(&at.to_string(), &error).0,
        };
        failure.into()
    })
}

/// Let the driver connect. It may panic if the server asks for an authentication plugin that is not
/// built in.
async fn dial(opts: &Opts, at: &Address) -> Result<Result<Conn, Error>, StoreError> {
    catch_panic(Conn::new(opts.clone())).await.map_err(|panic| {
        let message = format!("{at}: the MySQL driver panicked at login: {panic}");
        StoreError::rejected(message, None)
    })
}

/// The numbers of a version, such as `10.11.19-MariaDB-…`, `8.0.36-log`, or MariaDB's former
/// `5.5.5-10.6.1-…`.
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
    fn versions_are_read_as_both_servers_write_them() {
        assert_eq!(numbers("8.0.36-0ubuntu0.22.04.1"), [8, 0, 36]);
        assert_eq!(numbers("10.11.19-MariaDB-0+deb12u1"), [10, 11, 19]);
        assert_eq!(numbers("5.5.5-10.6.1-MariaDB"), [10, 6, 1]);
        assert!(numbers("5.7.44-log") < [8, 0, 17]);
    }
}
