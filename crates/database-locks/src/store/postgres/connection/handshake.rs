//! The first query on a new connection, and the checks of the server.

use std::net::IpAddr;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::product;
use crate::store::connect::hosts::{ConnectFailure, FailureKind};
use crate::store::connect::url::Address;
use crate::store::postgres::error::{POOLER_HINT, ServerError};
use crate::store::postgres::rows::only;

/// The version below which `MATERIALIZED` is not understood.
const OLDEST: i32 = 120_000;

/// The properties of the server, and of the table if there is one.
pub(crate) struct Handshake {
    /// `version()`, which identifies the product.
    product: String,
    version: i32,
    version_text: String,
    standby: bool,
    read_only: bool,
    pub(crate) client: Option<(IpAddr, u16)>,
    pub(crate) server: Option<(IpAddr, u16)>,
    pub(crate) backend: i32,
    persistence: Option<String>,
    /// Type and collation of the column `name`.
    name: Option<Vec<i64>>,
    /// Whether that collation distinguishes all names.
    exact: bool,
    search_path: String,
}

/// One query, since each costs a round trip. Of the table only what two plain look-ups find: on a
/// new connection, everything else makes the server read its catalogue, at up to 1 ms each.
pub(crate) const HANDSHAKE: &str = "
    SELECT current_setting('server_version_num')::integer AS version,
           current_setting('server_version') AS version_text, version() AS product,
           pg_is_in_recovery() AS standby,
           current_setting('default_transaction_read_only')::boolean AS read_only,
           host(inet_client_addr()) AS client, inet_client_port() AS client_port,
           host(inet_server_addr()) AS server, inet_server_port() AS server_port,
           pg_backend_pid() AS backend,
           (SELECT relpersistence::text FROM pg_class
             WHERE oid = to_regclass('{table}')) AS persistence,
           (SELECT ARRAY[atttypid, attcollation]::bigint[] FROM pg_attribute
             WHERE attrelid = to_regclass('{table}') AND attname = 'name') AS name,
           current_setting('search_path') AS search_path";

/// The types `text` and `varchar`. `char` pads, and `citext` and others fold case.
const TEXTS: [i64; 2] = [25, 1043];
/// The collations that distinguish all names: that of the database, `C` and `POSIX`. Others may
/// not.
const EXACT: [i64; 3] = [100, 950, 951];
/// By JSON, since versions before 12, which are refused as too old, do not have the column.
const DETERMINISTIC: &str = "
    SELECT coalesce((to_jsonb(c) ->> 'collisdeterministic')::boolean, true)
      FROM pg_collation c WHERE oid = $1::bigint::oid";

impl Handshake {
    pub(crate) async fn ask(client: &Client, text: &str) -> Result<Self, ServerError> {
        let rows = match client.query_typed(text, &[]).await {
            // No right on the schema: the statements and `doctor` report it. The server itself can
            // still be checked.
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let without = HANDSHAKE.replace("{table}", "pg_catalog.no_table_of_locks");
                client.query_typed(&without, &[]).await?
            }
            Err(error) => return Err(Self::failed(client, error.into()).await),
            Ok(rows) => rows,
        };
        let row = only(&rows)?;
        let end = |ip: &str, port: &str| -> Result<_, ServerError> {
            let (ip, port): (Option<&str>, Option<i32>) = (row.try_get(ip)?, row.try_get(port)?);
            let ip = ip
                .and_then(|ip| ip.parse::<IpAddr>().ok())
                .map(|ip| ip.to_canonical());
            Ok(ip.zip(port.and_then(|port| u16::try_from(port).ok())))
        };
        let name: Option<Vec<i64>> = row.try_get("name")?;
        let exact = match name.as_deref() {
            Some([of, collation]) if TEXTS.contains(of) && !EXACT.contains(collation) => {
                let of = [(collation as _, Type::INT8)];
                let rows = client.query_typed(DETERMINISTIC, &of).await?;
                rows.first().map_or(Ok(true), |row| row.try_get(0))?
            }
            _ => true,
        };
        Ok(Self {
            version: row.try_get("version")?,
            version_text: row.try_get("version_text")?,
            standby: row.try_get("standby")?,
            read_only: row.try_get("read_only")?,
            client: end("client", "client_port")?,
            server: end("server", "server_port")?,
            backend: row.try_get("backend")?,
            persistence: row.try_get("persistence")?,
            name,
            exact,
            search_path: row.try_get("search_path")?,
            product: row.try_get("product")?,
        })
    }

    /// The error of a failed handshake, which other products may not support.
    async fn failed(client: &Client, error: ServerError) -> ServerError {
        let version = client.query_typed("SELECT version()", &[]).await;
        let version: Option<String> = version.ok().and_then(|rows| rows.first()?.try_get(0).ok());
        match version.as_deref().and_then(product::other_product) {
            Some(name) => ServerError::rejected(
                format!("the server is {name} and not PostgreSQL"),
                Some(product::HINT),
            ),
            None => error,
        }
    }

    /// Refuse a pooler that ignores the search path of the URL. Otherwise this client might use
    /// another table than other clients, and exclude none of them.
    pub(crate) fn check_search_path(
        &self,
        address: &Address,
        search_path: Option<&str>,
    ) -> Result<(), ConnectFailure> {
        match search_path {
            Some(wanted) if wanted != self.search_path => {
                let found = &self.search_path;
                let message =
                    format!("{address} looks for tables in {found}, whatever the URL says");
                Err(refused(message, POOLER_HINT))
            }
            _ => Ok(()),
        }
    }

    /// Refuse a server that cannot serve.
    pub(crate) fn check(&self, address: &Address, served: bool) -> Result<(), ConnectFailure> {
        if let Some(name) = product::other_product(&self.product) {
            let message = format!("{address} is {name} and not PostgreSQL");
            return Err(refused(message, product::HINT));
        }
        if self.version < OLDEST {
            let message = format!("{address} is PostgreSQL {}", self.version_text);
            return Err(refused(message, "PostgreSQL 12 or later is needed"));
        }
        let (message, hint) = if self.standby {
            let hint = "locks have to be written: connect to the primary";
            (format!("{address} is a read-only standby"), hint)
        } else if self.read_only {
            let hint = "locks have to be written: set default_transaction_read_only to off for this \
                        role and database, or connect to a primary";
            (
                format!("{address} is read-only (default_transaction_read_only is on)"),
                hint,
            )
        } else {
            return Ok(());
        };
        // If a server has served before, this is a failover, which a waiter waits for, and not a
        // mistake in the URL.
        Err(match served {
            true => ConnectFailure::new(FailureKind::Unavailable, message, None),
            false => ConnectFailure::new(FailureKind::ReadOnly, message, Some(hint)),
        })
    }

    /// Why the table cannot hold locks. It finds defects at which no statement fails.
    pub(crate) fn table_error(&self) -> Option<ServerError> {
        let of = self.name.as_ref().and_then(|name| name.first());
        let (message, hint) = match self.persistence.as_deref() {
            Some("u") => (
                "the table is UNLOGGED: a crash of the server would forget who holds what",
                "ALTER TABLE … SET LOGGED",
            ),
            Some("t") => (
                "the table is TEMPORARY: no other client can see it",
                "drop it, and make one with `dblock init` or `locks.migrate()`",
            ),
            _ if of.is_some_and(|of| !TEXTS.contains(of)) => (
                "the column name is neither varchar nor text: two names could be one lock",
                "ALTER TABLE … ALTER COLUMN name TYPE varchar(255)",
            ),
            _ if !self.exact => (
                "the column name has a nondeterministic collation: two names could be one lock",
                "ALTER TABLE … ALTER COLUMN name TYPE varchar(255) COLLATE \"C\"",
            ),
            _ => return None,
        };
        Some(ServerError::rejected(message, Some(hint)))
    }
}

fn refused(message: String, hint: &str) -> ConnectFailure {
    ConnectFailure::new(FailureKind::Refused, message, Some(hint))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use super::*;

    pub(in super::super) fn handshake(client: &str, server: &str) -> Handshake {
        let end = |text: &str| text.parse().ok().map(|a: SocketAddr| (a.ip(), a.port()));
        Handshake {
            product: "PostgreSQL 12.0 on x86_64-pc-linux-gnu".into(),
            version: OLDEST,
            version_text: "12.0".into(),
            standby: false,
            read_only: false,
            client: end(client),
            server: end(server),
            backend: 0,
            persistence: None,
            name: None,
            exact: true,
            search_path: "public".into(),
        }
    }

    #[test]
    fn only_a_server_that_never_served_us_is_refused_for_being_read_only() {
        let address = Address::Tcp("db".into(), 5432);
        let mut standby = handshake("", "");
        standby.standby = true;
        let kind = |served| standby.check(&address, served).unwrap_err().kind;
        assert_eq!(kind(false), FailureKind::ReadOnly);
        assert_eq!(kind(true), FailureKind::Unavailable);
    }

    #[test]
    fn a_search_path_that_did_not_arrive_is_refused() {
        let address = Address::Tcp("pooler".into(), 6432);
        let handshake = handshake("", "");
        assert!(handshake.check_search_path(&address, None).is_ok());
        assert!(
            handshake
                .check_search_path(&address, Some("public"))
                .is_ok()
        );
        let failure = handshake
            .check_search_path(&address, Some("app, public"))
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert_eq!(
            failure.message,
            "pooler:6432 looks for tables in public, whatever the URL says"
        );
    }

    #[test]
    fn another_product_is_refused_by_its_name_and_not_for_its_version() {
        let mut other = handshake("", "");
        other.product = "PostgreSQL 11.2-YB-2.18.0.1-b0 on x86_64-pc-linux-gnu".into();
        other.version = 110_002;
        let address = Address::Tcp("db".into(), 5433);
        let failure = other.check(&address, true).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert_eq!(failure.message, "db:5433 is YugabyteDB and not PostgreSQL");
    }

    #[test]
    fn an_old_version_is_refused_with_its_number() {
        let mut old = handshake("", "");
        (old.version, old.version_text) = (110_022, "11.22 (Debian)".into());
        let failure = old
            .check(&Address::Tcp("db".into(), 5432), true)
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert_eq!(failure.message, "db:5432 is PostgreSQL 11.22 (Debian)");
    }
}
