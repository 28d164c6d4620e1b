//! PostgreSQL 12 and later.
//!
//! Each call is one statement, and so one transaction and one round trip. Only a call that did not do
//! all that it was asked for costs a second one, which tells why: "look or make" of an acquire, which
//! makes the row of a new name too, and a plain read of the others. The statements hold these rules,
//! which whoever joins from another language has to hold too:
//!
//! - The time is `statement_timestamp()`: when the server began to execute the message that carries the
//!   statement. So it is one value throughout a statement, to the microsecond; it is never later than
//!   the lock on a row, so an expiry is judged late and never early; and never earlier than the request,
//!   from which trust counts. It takes a message of its own for each statement: it is one value for a
//!   whole string of statements, and for all that a function runs. `now()` is when the transaction began.
//! - No statement waits for a row. What is locked by somebody is skipped, and the answer says so.
//! - Whatever changes a token, a grant id, or frees a row by force, picks it with `FOR UPDATE`, which
//!   is what a fence (`FOR KEY SHARE`) keeps out. Renewal and release pick with `FOR NO KEY UPDATE`,
//!   which passes it.
//! - A lease without end ends at 9999-12-31 00:00:00 UTC. Others may have written `infinity`, from
//!   which nothing can be subtracted.
//! - Nothing is set but for the statement's own transaction (`set_config(…, true)`), since behind a
//!   pooler a session is not ours.
//!
//! An UPDATE would wait for a row, a `SELECT … FOR UPDATE SKIP LOCKED` does not. For one lock it stands in
//! a sub-select behind a plain `=`, for many in a CTE that is `MATERIALIZED`: both are carried out once
//! and first. What is set for the transaction stands in `RETURNING`, and so is set only where a row was
//! written.

// First: its macros are parts of statements below.
#[macro_use]
mod rows;

mod connection;
mod doctor;
mod error;
mod failover;
mod lane;
mod notify;
mod product;
mod statements;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use self::connection::Connection;
use self::lane::Direct;
use self::notify::{Listener, WAIT};
use self::rows::{micros, seen};
use super::{FenceText, Lane, Reply, Store, StoreError, Table, Tell, bounded};
use crate::doctor::Report;
use crate::error::Error;
use crate::store::connect::source::Source;
use crate::store::connect::url::Server;
use crate::store::postgres::connection::connector::Link;
use crate::store::postgres::error::{Kind, Refusal};
use crate::store::postgres::statements::acquire::{ACQUIRE, ACQUIRE_ONE, MAKE, MAKE_ONE, acquire};
use crate::store::postgres::statements::handover::{RESUME, TAKE_OVER, resume, take_over};
use crate::store::postgres::statements::release::{FORCE, RELEASE, RELEASE_ONE, force, release};
use crate::store::postgres::statements::renew::{RENEW, renew};
use protocol::{
    AcquireCommand, Force, Grant, Holder, ListFilter, LockInfo, LockName, LockRow, Outcome, Page,
    Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand, Ttl,
};

/// What makes the table, or adds to it what it lacks.
const INSTALL: &str = include_str!("../../../schema/postgres.sql");

/// From this size on a statement is planned each time, for its size. A prepared one may have been
/// planned for a handful, with loops within loops.
const LARGE: usize = 64;

/// The statements that may be prepared; the number of each is its place here.
#[derive(Clone, Copy)]
enum Sql {
    AcquireOne,
    Acquire,
    MakeOne,
    Make,
    Renew,
    TakeOverCommand,
    ResumeCommand,
    ReleaseOne,
    Release,
    Force,
    Read,
    ReadPage,
    Prune,
    Wait,
}

const STATEMENTS: [&str; 14] = [
    ACQUIRE_ONE,
    ACQUIRE,
    MAKE_ONE,
    MAKE,
    RENEW,
    TAKE_OVER,
    RESUME,
    RELEASE_ONE,
    RELEASE,
    FORCE,
    READ,
    READ_PAGE,
    PRUNE,
    WAIT,
];

/// What `docs/protocol.md` publishes.
#[cfg(test)]
pub(crate) const PUBLISHED: &[(&str, &str)] = &[
    ("acquire one", ACQUIRE_ONE),
    ("acquire many", ACQUIRE),
    ("read or make one", MAKE_ONE),
    ("read or make many", MAKE),
    ("renew", RENEW),
    ("preempt", TAKE_OVER),
    ("resume", RESUME),
    ("release one", RELEASE_ONE),
    ("release many", RELEASE),
    ("release by force", FORCE),
    ("wait", WAIT),
    ("read", READ),
    ("read a page", READ_PAGE),
    ("prune", PRUNE),
    ("fence", FENCE),
];

/// The engine of `postgres:` URLs.
#[derive(Debug)]
pub(crate) struct Postgres {
    link: Link,
    lane: Arc<Direct>,
    listener: Listener,
    table: Table,
    install: String,
    fence: FenceText,
}

impl Postgres {
    pub(crate) fn new(server: Server, source: Arc<Source>, table: &Table) -> Result<Self, Error> {
        let texts: Vec<_> = STATEMENTS.iter().map(|text| table.fill(text)).collect();
        let listener = Listener::new(table);
        let link = Link::new(server, source, table, texts, listener.shared())?;
        Ok(Self {
            lane: Arc::new(Direct::new(&link, &listener)),
            link,
            listener,
            table: table.clone(),
            install: table.fill(INSTALL),
            fence: FenceText {
                before: None,
                fence: table.fill(FENCE),
                may_lag: false,
            },
        })
    }
}

macro_rules! info {
    ($rest:literal) => {
        concat!(
            "
SELECT name::text, ",
            seen!(),
            ",
       ",
            micros!("acquired_at", "acquired_at"),
            ",
       ",
            micros!("renewed_at", "renewed_at"),
            ",
       ",
            micros!("expires_at", "expires_at"),
            ",
       metadata::text",
            $rest
        )
    };
}

/// Read the locks of these names: `$1`. Locks nothing.
const READ: &str = info!(
    "
  FROM {table} l WHERE name = ANY ($1) ORDER BY name COLLATE \"C\""
);

/// Read a page of rows: the next thousand behind the id `$1`, all or, where `$2`, those that are not
/// free; with names that begin with `$3`. Each row bears the last id of the page, and where none matches
/// one that has nothing else; null: there are no more.
const READ_PAGE: &str = concat!(
    "
WITH page AS MATERIALIZED (
    SELECT * FROM {table} WHERE id > $1 ORDER BY id LIMIT 1000
)",
    info!(
        ", (SELECT max(id)::bigint FROM page)
  FROM (SELECT) one LEFT JOIN page l
       ON NOT ($2 AND l.expires_at IS NULL) AND starts_with(l.name::text, $3)
 ORDER BY l.id"
    )
);

async fn read(on: &Connection, names: &[LockName]) -> Result<Vec<LockRow>, Refusal> {
    let texts: Vec<_> = names.iter().map(LockName::as_str).collect();
    let params: [connection::Param<'_>; 1] = [(&texts, Type::TEXT_ARRAY)];
    let rows = on
        .rows(Sql::Read as usize, names.len() < LARGE, &params)
        .await?;
    rows.iter().map(whole).collect()
}

/// All that is read of a row.
fn whole(row: &Row) -> Result<LockRow, Refusal> {
    Ok(LockRow {
        name: row.try_get(0)?,
        acquired_at: row.try_get(8)?,
        renewed_at: row.try_get(9)?,
        expires_at: row.try_get(10)?,
        metadata: row.try_get(11)?,
        ..seen(row, 1)?
    })
}

async fn page(on: &Connection, filter: &ListFilter, after: Option<i64>) -> Result<Page, Refusal> {
    let params: [connection::Param<'_>; 3] = [
        (&after.unwrap_or(i64::MIN), Type::INT8),
        (&filter.not_free, Type::BOOL),
        (&filter.prefix, Type::TEXT),
    ];
    let rows = on.rows(Sql::ReadPage as usize, true, &params).await?;
    let mut page = Page::default();
    for row in &rows {
        page.last = row.try_get(12)?;
        if row.try_get::<_, Option<&str>>(0)?.is_some() {
            page.rows.push(whole(row)?.into_info());
        }
    }
    Ok(page)
}

/// Delete what nobody has had for so long, on a page of a thousand rows behind the id `$3`: `$1`
/// microseconds, `$2` whether rows that do not say so too. One row: the last id of the page, null where
/// there are no more, and how many were deleted.
///
/// A row whose `granted_until` is set while `expires_at` is null was freed by 0.5, at a time that it
/// does not tell. One whose token is ahead of the clock, after more than a thousand grants a second,
/// stays: the row made anew begins at the clock, and its token has to be greater.
const PRUNE: &str = "
WITH page AS MATERIALIZED (
    SELECT id FROM {table} WHERE id > $3 ORDER BY id LIMIT 1000
), picked AS MATERIALIZED (
    SELECT id
      FROM {table}
     WHERE id > $3 AND id <= (SELECT max(id) FROM page)
       AND (expires_at <= statement_timestamp() - $1 * interval '1 microsecond'
        OR (expires_at IS NULL AND granted_until IS NULL
            AND renewed_at <= statement_timestamp() - $1 * interval '1 microsecond')
        OR (expires_at IS NULL AND (granted_until IS NOT NULL OR renewed_at IS NULL) AND $2))
       AND token < (extract(epoch FROM statement_timestamp()) * 1000)::bigint
       FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM {table} l USING picked p WHERE l.id = p.id RETURNING l.id
)
SELECT (SELECT max(id)::bigint FROM page), (SELECT count(*) FROM deleted)";

async fn prune(
    on: &Connection,
    idle: Duration,
    unknown: bool,
    after: Option<i64>,
) -> Result<Pruned, Refusal> {
    let params: [connection::Param<'_>; 3] = [
        (&micros(bounded(idle)), Type::INT8),
        (&unknown, Type::BOOL),
        (&after.unwrap_or(i64::MIN), Type::INT8),
    ];
    let rows = on.rows(Sql::Prune as usize, true, &params).await?;
    let Some(row) = rows.first() else {
        return Ok(Pruned::default());
    };
    let deleted: i64 = row.try_get(1)?;
    Ok(Pruned {
        deleted: deleted.unsigned_abs(),
        last: row.try_get(0)?,
    })
}

/// The fence: let this transaction commit only while the grant is there. In somebody's own transaction,
/// as its first statement: `$1` name, `$2` token, `$3` grant id. One row: it passes. No row, or a
/// serialisation failure (40001): the grant is gone, or was made after this transaction's snapshot.
///
/// `FOR KEY SHARE` is what `FOR UPDATE` skips, and nothing weaker: so renewals go on, other fences of the
/// same grant pass, and nobody gets the lock until this transaction has ended. Where a snapshot is old
/// it follows the row to its latest version, and fails where a `FOR UPDATE` is on the way.
///
/// It does not ask whether the lease has ended: an old snapshot does not see the renewals, and as long
/// as nobody was granted the lock nobody is harmed.
const FENCE: &str = "
SELECT id
  FROM {table}
 WHERE name = $1 AND token = $2 AND grant_id = $3 AND granted_until = expires_at
   FOR KEY SHARE";

async fn install(on: &Connection, script: &str) -> Result<(), Refusal> {
    // Two that make the table at once: the loser of the race is told one of many things. Some have no
    // code of their own ("tuple concurrently updated", XX000).
    let raced = ["42P07", "42701", "42710", "XX000"];
    on.script(script)
        .await
        .map_err(|refusal| match &refusal.code {
            Some(code) if raced.contains(&code.code()) => Refusal {
                kind: Kind::Contention,
                ..refusal
            },
            _ => refusal,
        })
}

/// Take locks by one of the two connections; waiters, and who listens, know what came of it.
async fn acquire_by(
    (listener, background): (&Listener, &Link),
    asks: &[AcquireCommand],
    outcomes: impl Future<Output = Result<Vec<Outcome>, StoreError>>,
) -> Result<Vec<Outcome>, StoreError> {
    let outcomes = outcomes.await?;
    let granted = asks.iter().zip(&outcomes);
    let granted = granted.filter_map(|(ask, outcome)| match outcome {
        Outcome::Granted { length, .. } => Some((ask.grant, Ttl::Finite(*length))),
        Outcome::Held(_) | Outcome::Busy => None,
    });
    listener.holds(background, granted);
    Ok(outcomes)
}

impl Store for Postgres {
    fn lane(&self) -> Option<Arc<dyn Lane>> {
        Some(Arc::clone(&self.lane) as _)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        let within = self.link.patience(within);
        Box::pin(self.link.on(within, |_| std::future::ready(Ok(()))))
    }

    fn acquire<'a>(
        &'a self,
        asks: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        let outcomes = self
            .link
            .on(within, move |on| async move { acquire(&on, asks).await });
        Box::pin(acquire_by((&self.listener, &self.link), asks, outcomes))
    }

    fn announce<'a>(
        &'a self,
        name: &'a LockName,
        pause: Duration,
        anew: bool,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(self.listener.announce(&self.link, name, pause, anew))
    }

    fn blocked_by(&self) -> Option<String> {
        self.link.blocked_by()
    }

    fn reconnect(&self) {
        if let Some(current) = self.link.current() {
            self.link.retire(&current);
        }
    }

    /// Behind a pooler, where no process can listen.
    fn waiters_poll(&self) -> bool {
        let current = self.link.current();
        current.is_none_or(|on| on.backend.is_none())
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        Box::pin(async move {
            let renewals = self
                .link
                .on(within, move |on| async move { renew(&on, grants).await })
                .await?;
            let of = |lost: bool| {
                let all = grants.iter().zip(&renewals);
                all.filter(move |(_, done)| matches!(done, Renewal::Lost(_)) == lost)
                    .map(|(grant, _)| grant)
            };
            let held = of(false).map(|(grant, ttl)| (grant.id, *ttl));
            self.listener.holds(&self.link, held);
            self.listener
                .holds_no_more(of(true).map(|(grant, _)| &grant.id));
            Ok(renewals)
        })
    }

    fn release<'a>(
        &'a self,
        returns: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        self.listener
            .holds_no_more(returns.iter().map(|what| &what.grant));
        Box::pin(
            self.link
                .on(within, move |on| async move { release(&on, returns).await }),
        )
    }

    fn page<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        Box::pin(self.link.on(
            within,
            move |on| async move { page(&on, filter, after).await },
        ))
    }

    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>> {
        Box::pin(self.link.on(within, move |on| async move {
            let rows = read(&on, names).await?;
            Ok(rows.into_iter().map(LockRow::into_info).collect())
        }))
    }

    fn look<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        Box::pin(self.link.on(within, move |on| async move {
            let rows = read(&on, names).await?;
            Ok(LockRow::holders(names, &rows))
        }))
    }

    fn take_over<'a>(&'a self, what: &'a TakeOverCommand, within: Duration) -> Reply<'a, Outcome> {
        Box::pin(async move {
            let outcome = self
                .link
                .on(within, move |on| async move { take_over(&on, what).await })
                .await?;
            if let Outcome::Granted { length, .. } = outcome {
                self.listener.released(&what.to.name);
                let held = std::iter::once((what.to.grant, Ttl::Finite(length)));
                self.listener.holds(&self.link, held);
            }
            Ok(outcome)
        })
    }

    fn resume<'a>(&'a self, what: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        Box::pin(async move {
            let taken = self
                .link
                .on(within, move |on| async move { resume(&on, what).await })
                .await?;
            if let Renewal::Renewed = taken {
                let held = std::iter::once((what.to.grant, Ttl::Finite(what.to.length)));
                self.listener.holds(&self.link, held);
            }
            Ok(taken)
        })
    }

    fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        Box::pin(self.link.on_patiently(within, move |on| async move {
            prune(&on, idle, unknown, after).await
        }))
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        Box::pin(async move {
            let forced = self
                .link
                .on(within, move |on| async move { force(&on, name).await })
                .await?;
            if let Force::Freed(_) = forced {
                self.listener.released(name);
            }
            Ok(forced)
        })
    }

    fn on_notified(&self, tell: Tell) {
        self.listener.on_notified(tell);
    }

    fn fence(&self) -> Option<&FenceText> {
        Some(&self.fence)
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        Box::pin(self.link.on_patiently(within, move |on| async move {
            install(&on, &self.install).await
        }))
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        Box::pin(self.link.on_patiently(within, move |on| async move {
            doctor::examine(&on, &self.table).await
        }))
    }
}
