//! Finds the session that blocks a statement by a lock on the table.
//!
//! It needs another connection, since that of the statement waits. Behind a pooler the backend of a
//! statement is not known, and no query is sent.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_postgres::Row;

use super::dial::dial;
use super::server::Server;
use super::session::Session;
use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::blocking_session::BlockingSession;
use crate::store::postgres::error::ServerError;
use protocol::BootInstant;

/// A statement that takes this long may be blocked.
pub(crate) const SLOW: Duration = Duration::from_secs(1);
/// The least time between two queries. An answer is valid for twice as long.
const INTERVAL: Duration = Duration::from_secs(1);
/// The deadline of the query, including its connection.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// The session that blocks the backend `$1`, or that blocks the session that does, and so on. A role
/// without `pg_read_all_stats` sees the user and the program of other sessions, but not their
/// statements.
pub(super) const BLOCKERS: &str = "
WITH RECURSIVE blockers(pid) AS (
    SELECT unnest(pg_blocking_pids($1))
     UNION
    SELECT unnest(pg_blocking_pids(pid)) FROM blockers
)
SELECT by.pid, a.usename::text AS role, a.application_name AS program, host(a.client_addr) AS host,
       (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint AS open
  FROM blockers by LEFT JOIN pg_stat_activity a ON a.pid = by.pid
 ORDER BY cardinality(pg_blocking_pids(by.pid)) > 0, a.xact_start
 LIMIT 1";

/// The latest answer.
#[derive(Default)]
pub(crate) struct Blocked(Mutex<Found>);

#[derive(Default)]
struct Found {
    asked: Option<BootInstant>,
    by: Option<(String, BootInstant)>,
}

impl Blocked {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that blocks the statements of this store, if the latest answer is still valid.
    pub(crate) fn by(&self) -> Option<String> {
        let (by, at) = self.found().by.clone()?;
        (clock::now() <= at + 2 * INTERVAL).then_some(by)
    }

    fn may_ask(&self) -> bool {
        let (mut found, now) = (self.found(), clock::now());
        let may = found.asked.is_none_or(|at| now >= at + INTERVAL);
        if may {
            found.asked = Some(now);
        }
        may
    }
}

/// Query which session blocks this connection, repeatedly, until the future is dropped.
pub(crate) async fn watch(blocked: &Blocked, server: &Server, session: &Session) -> Infallible {
    loop {
        update(blocked, server, session).await;
        tokio::time::sleep(INTERVAL / 4).await;
    }
}

async fn update(blocked: &Blocked, server: &Server, session: &Session) {
    let Some(backend) = session.backend.filter(|_| blocked.may_ask()) else {
        return;
    };
    let asked = tokio::time::timeout(QUERY_TIMEOUT, ask(server, backend)).await;
    match asked {
        Ok(Ok(by)) => blocked.found().by = by.map(|by| (by, clock::now())),
        Ok(Err(error)) => tracing::debug!("cannot see what blocks a statement: {error}"),
        Err(_) => tracing::debug!("cannot see what blocks a statement in time"),
    }
}

async fn ask(server: &Server, backend: i32) -> Result<Option<String>, StoreError> {
    let config = server.connector.ask().await?;
    let at = server.connector.first(&config);
    let other = dial(server, None, &config, (at, QUERY_TIMEOUT)).await?;
    let rows = other.query(BLOCKERS, &[&backend]).await?;
    Ok(rows.first().map(described).transpose()?)
}

pub(super) fn described(row: &Row) -> Result<String, ServerError> {
    let pid: i32 = row.try_get("pid")?;
    let open: Option<i64> = row.try_get("open")?;
    let open = open.and_then(|open| u64::try_from(open).ok());
    let session = BlockingSession {
        id: format!("pid {pid}"),
        user: row.try_get("role")?,
        program: row.try_get("program")?,
        host: row.try_get("host")?,
        open: open.map(Duration::from_millis),
    };
    // 0 stands for a transaction that was prepared for two-phase commit.
    Ok(match pid {
        0 => "a prepared transaction (pg_prepared_xacts)".to_owned(),
        _ => session.to_string(),
    })
}
