//! What is in the way of a statement that does not come back: a session that has the table locked.
//!
//! It is asked on a connection of its own, since ours waits. Where a pooler is in between the backend of
//! a statement is not known, and nothing is asked.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::runtime::clock;
use crate::store::postgres::connection::connector::Shared;
use crate::store::postgres::connection::{Connection, Param};
use crate::store::postgres::error::Refusal;
use protocol::{BootInstant, Human};

/// A statement that takes as long may be blocked.
pub(crate) const LONG: Duration = Duration::from_secs(1);
/// How often it is asked at most; an answer counts for twice as long.
const EACH: Duration = Duration::from_secs(1);
/// How long it may take to ask, with the connection for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who blocks the backend `$1`. What other users do is hidden from a role without `pg_read_all_stats`,
/// but not who they are.
const BLOCKERS: &str = "
SELECT by.pid, a.usename::text, a.application_name,
       (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint
  FROM unnest(pg_blocking_pids($1)) AS by(pid)
       LEFT JOIN pg_stat_activity a ON a.pid = by.pid
 ORDER BY a.xact_start
 LIMIT 1";

/// What was last found out.
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

    /// Who blocks us, where that has been found out just now.
    pub(crate) fn by(&self) -> Option<String> {
        let (by, at) = self.found().by.clone()?;
        (clock::now() <= at + 2 * EACH).then_some(by)
    }

    fn may_ask(&self) -> bool {
        let (mut found, now) = (self.found(), clock::now());
        let may = found.asked.is_none_or(|at| now >= at + EACH);
        if may {
            found.asked = Some(now);
        }
        may
    }
}

/// Find out who blocks a statement on this connection, again and again until it is dropped.
pub(crate) async fn look(link: &Shared, on: &Connection) -> Infallible {
    loop {
        look_once(link, on).await;
        tokio::time::sleep(EACH / 4).await;
    }
}

async fn look_once(link: &Shared, on: &Connection) {
    let Some(backend) = on.backend.filter(|_| link.blocked.may_ask()) else {
        return;
    };
    let asked = tokio::time::timeout(PATIENCE, ask(link, backend)).await;
    match asked {
        Ok(Ok(by)) => link.blocked.found().by = by.map(|by| (by, clock::now())),
        Ok(Err(refusal)) => tracing::debug!("cannot see what blocks us: {}", refusal.said),
        Err(_) => tracing::debug!("cannot see what blocks us in time"),
    }
}

async fn ask(link: &Shared, backend: i32) -> Result<Option<String>, Refusal> {
    let endpoint = link.ask().await?;
    let at = link.first(&endpoint);
    let other = Connection::dial((link, true), &endpoint, at, PATIENCE).await?;
    let params: [Param<'_>; 1] = [(&backend, Type::INT4)];
    let rows = other.ask(BLOCKERS, &params).await?;
    rows.first().map(described).transpose()
}

fn described(row: &Row) -> Result<String, Refusal> {
    let pid: i32 = row.try_get(0)?;
    let (user, program): (Option<&str>, Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
    let open: Option<i64> = row.try_get(3)?;
    let mut about = Vec::new();
    about.extend(user.map(|user| format!("user {user}")));
    about.extend(program.filter(|it| !it.is_empty()).map(str::to_owned));
    let open = open.and_then(|open| u64::try_from(open).ok());
    about.extend(open.map(|open| {
        format!(
            "in a transaction for {}",
            Human(Duration::from_millis(open))
        )
    }));
    let about = match about.is_empty() {
        true => String::new(),
        false => format!(" ({})", about.join(", ")),
    };
    // It is 0 for a transaction that was prepared to be committed in two phases.
    Ok(match pid {
        0 => "a prepared transaction (pg_prepared_xacts)".to_owned(),
        pid => format!("the session of pid {pid}{about}"),
    })
}
