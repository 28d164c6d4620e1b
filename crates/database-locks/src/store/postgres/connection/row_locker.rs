//! Finds the session that holds a row lock on the row of a lock.
//!
//! A row says which transaction locks it, but not in a form that SQL can read. So one connection waits
//! for the row, and another one asks the server which session it waits for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::Row;

use super::blocked::{BLOCKERS, described};
use super::dial::dial;
use super::server::Server;
use super::session::{Param, Session};
use crate::store::api::{StoreError, UNKNOWN_SESSION};
use crate::store::postgres::error::ServerError;

const PAUSE: Duration = Duration::from_millis(20);
/// In case that the server does not notice the end of the connection, or this process is frozen.
const BEGIN: &str =
    "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '2s'";
/// Waits for the row `$1`, `$2`. With the placeholders of [`Table::fill`](crate::store::Table).
pub(crate) const WAIT: &str =
    "SELECT id FROM {table} WHERE name = $1 AND $2::int IS NOT NULL{? AND slot = $2?} FOR UPDATE";

/// The session that has the row locked for which `wait` waits, a filled [`WAIT`].
pub(crate) async fn row_locker(
    server: &Server,
    (wait, name, slot): (&str, &str, i32),
    within: Duration,
) -> Result<Option<String>, StoreError> {
    let config = server.connector.ask().await?;
    let at = (server.connector.first(&config), within);
    let params: [&dyn Param; 2] = [&name, &slot];
    let (waiting, asking) = tokio::try_join!(
        dial(server, None, &config, at),
        dial(server, None, &config, at)
    )?;
    let Some(backend) = waiting.backend.filter(|_| waiting.is_unpooled) else {
        return is_locked(&waiting, wait, &params).await;
    };
    waiting.script(BEGIN).await?;
    // Its statement is cancelled when it is dropped.
    waiting.late.store(true, Ordering::Relaxed);
    tokio::select! {
        biased;
        locker = blocker(&asking, backend) => locker,
        waited = waiting.query(wait, &params) => match waited {
            Ok(_) => Ok(None),
            Err(error) if error.is_lock_timeout() => Ok(Some(UNKNOWN_SESSION.to_owned())),
            Err(error) => Err(error.into()),
        },
    }
}

/// Behind a pooler nothing waits: the waits of many clients would take all of its few connections to the
/// server.
async fn is_locked(
    session: &Session,
    wait: &str,
    params: &[&dyn Param],
) -> Result<Option<String>, StoreError> {
    let locked = "a session that cannot be looked for through a pooler: connect directly to see it";
    match session.query(&format!("{wait} NOWAIT"), params).await {
        Ok(_) => Ok(None),
        Err(error) if error.is_lock_timeout() => Ok(Some(locked.to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// The session that blocks a backend, as soon as one does, and how to end it.
async fn blocker(asking: &Session, backend: i32) -> Result<Option<String>, StoreError> {
    loop {
        let rows = asking.query(BLOCKERS, &[&backend]).await?;
        if let Some(row) = rows.first() {
            return Ok(Some(with_advice(row)?));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn with_advice(row: &Row) -> Result<String, ServerError> {
    let pid: i32 = row.try_get("pid")?;
    let session = described(row)?;
    Ok(match pid {
        0 => format!("{session}, to be committed or rolled back by its name"),
        pid => format!("{session}; `SELECT pg_terminate_backend({pid})` ends it"),
    })
}
