//! Locks in MySQL and MariaDB.
//!
//! The statements are such as both servers take: no `RETURNING`, so tokens come back by
//! `LAST_INSERT_ID(…)`, which the server sends along with the number of rows.
//!
//! All of them that write to a row that exists (but for one on MariaDB) pick it in a derived table
//! with `FOR UPDATE SKIP LOCKED` and then update what was picked:
//!
//! - `LIMIT` keeps the server from merging the two, which MySQL refuses (error 1093) and which would
//!   wait for a row that is locked.
//! - `STRAIGHT_JOIN` and `FORCE INDEX` keep it from reading the table the other way round, or as a
//!   whole, as it does with a small one: that would wait for the rows of others.
//!
//! `UTC_TIMESTAMP` is the time at which the statement began. That is as good as the moment itself,
//! since no statement waits.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mysql_async::{Params, Value, params};
use serde_json::json;

use super::{FenceText, Lane, Reply, Store, StoreError, Table, bounded, keep_to};
use crate::doctor::Report;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::connect::source::Source;
use crate::store::connect::url;
use protocol::{
    AcquireCommand, Force, Grant, Holder, ListFilter, LockInfo, LockName, LockRow, Outcome, Page,
    Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand, Token, Ttl, judge,
    judge_ticket,
};

mod cluster;
mod connection;
mod doctor;
mod error;
mod lane;
mod rows;
mod statements;

use cluster::version;
use connection::session::{Done, Session};
use connection::{Line, Server, place};
use lane::DirectPath;
use rows::packed;

/// What `docs/protocol.md` publishes.
#[cfg(test)]
pub(crate) const PUBLISHED: &[(&str, &str)] = &[
    ("settings of a session", Session::SETTINGS),
    (
        "the insert id, where a trigger hides it",
        Session::INSERTED_ID,
    ),
    ("isolation of a session", Session::ISOLATION),
    ("settings of a session on Galera", Session::CURRENT),
    ("what the server is", Session::VARIABLES),
    ("whether a node of Galera is ready", Session::STATE),
    ("whether a node of Galera replicates", Session::REPLICATED),
    ("whether a node of Galera is connected", Session::CONNECTED),
    ("whether a member of a group is ready", Session::MEMBER),
    ("whether the table is fit", Session::SHAPE),
    ("acquire (MySQL)", Session::ACQUIRE),
    ("acquire (MariaDB)", Session::ACQUIRE_AT_ONCE),
    ("`{ended}`", cluster::ENDED),
    ("`{ended}` on a cluster", cluster::ENDED_ON_CLUSTER),
    ("`{live}`", cluster::LIVE),
    ("`{live}` on a cluster", cluster::LIVE_ON_CLUSTER),
    ("`{writable}`", cluster::WRITABLE),
    ("whether the server can be written to", Session::IS_WRITABLE),
    (
        "check whether another client is making the row (MySQL)",
        Session::PROBE,
    ),
    ("acquire many", Session::ACQUIRE_MANY),
    (
        "check whether another client is making one of many rows",
        Session::PROBE_MANY,
    ),
    ("find the free ones of many (MariaDB)", Session::FREE_ONES),
    ("acquire these (MariaDB)", Session::ACQUIRE_THESE),
    ("make a row, granted", Session::CREATE),
    ("make many rows, granted", Session::CREATE_MANY),
    ("renew", Session::RENEW),
    ("renew on a cluster", Session::RENEW_ON_CLUSTER),
    ("preempt", Session::TAKE_OVER),
    ("resume", Session::RESUME),
    ("resume on a cluster", Session::TAKE_UP_ON_CLUSTER),
    ("release (MySQL)", Session::RELEASE),
    ("release (MariaDB)", Session::RELEASE_AT_ONCE),
    ("release many", Session::RELEASE_MANY),
    ("release these (MariaDB)", Session::RELEASE_THESE),
    ("release by force", Session::FORCE),
    ("read", Session::READ_ONE),
    ("poll many", Session::READ_THESE),
    ("find the end of a page", Session::PAGE_END),
    ("read a page", Session::READ_PAGE),
    ("prune", Session::PRUNE),
    ("prune on a cluster", Session::PRUNE_ON_CLUSTER),
    (
        "check whether a transaction has an older snapshot",
        statements::fence::BEFORE,
    ),
    ("fence", statements::fence::FENCE),
];

/// The engine `mysql://` and `mariadb://`.
pub(crate) struct Mysql {
    server: Arc<Server>,
    /// The connection of the background thread.
    line: Line,
    /// That of callers. While the other one cannot be had, renewals go over it.
    lane: Arc<DirectPath>,
    /// Where there is one server, and on a cluster.
    fence: [FenceText; 2],
}

/// Without the options of the driver, which hold the password.
impl fmt::Debug for Mysql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mysql")
            .field("at", &self.server.at())
            .field("table", &self.server.table)
            .finish_non_exhaustive()
    }
}

impl Mysql {
    pub(crate) fn new(
        said: url::Server,
        source: Arc<Source>,
        table: &Table,
    ) -> Result<Self, Error> {
        let server = Arc::new(Server::new(said, source, table)?);
        let fence = |may_lag| FenceText {
            before: Some(table.fill(statements::fence::BEFORE)),
            fence: table.fill(statements::fence::FENCE),
            may_lag,
        };
        Ok(Self {
            line: Line::new(Arc::clone(&server)),
            lane: Arc::new(DirectPath::new(Arc::clone(&server))),
            server,
            fence: [fence(false), fence(true)],
        })
    }
}

impl Store for Mysql {
    fn lane(&self) -> Option<Arc<dyn Lane>> {
        Some(Arc::clone(&self.lane) as Arc<dyn Lane>)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        let within = self.server.patience(within);
        Box::pin(self.line.call(within, |_| Box::pin(async { Ok(()) })))
    }

    fn acquire<'a>(
        &'a self,
        asks: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        let asks = asks.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.acquire_many(&asks).await })
        }))
    }

    /// A connection that cannot be had leaves half of the time to that of the lane.
    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        Box::pin(async move {
            let until = clock::now() + within;
            let first = match self.line.is_up() || !self.lane.is_up() {
                true => within,
                false => within / 2,
            };
            let sent = Arc::new(AtomicBool::new(false));
            let (asked, begun) = (grants.to_vec(), Arc::clone(&sent));
            let done = self.line.call_first(first, move |session| {
                begun.store(true, Ordering::Release);
                Box::pin(async move { session.renew(&asked).await })
            });
            let done = done.await;
            let left = until - clock::now();
            let may_ask_again = !sent.load(Ordering::Acquire) && self.lane.is_up();
            let failure = match done {
                Err(failure) if may_ask_again && !left.is_zero() => failure,
                done => return done,
            };
            match self.lane.renew(grants.to_vec(), left).await {
                // It has none either: what the server said of the first stands.
                Err(other) if other.is_undone() => Err(failure),
                done => done,
            }
        })
    }

    fn prepare_to_renew(&self) {
        self.line.dial();
    }

    fn release<'a>(
        &'a self,
        returns: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        let returns = returns.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.release_many(&returns).await })
        }))
    }

    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>> {
        let names = names.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move {
                let rows = session.read_latest(&names).await?;
                Ok(rows.into_iter().map(LockRow::into_info).collect())
            })
        }))
    }

    fn page<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let filter = filter.clone();
        Box::pin(self.line.call(within, move |session| {
            Box::pin(async move { session.page(&filter, after).await })
        }))
    }

    fn look<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        let names = names.to_vec();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move {
                let rows = session.read(&names).await?;
                Ok(LockRow::holders(&names, &rows))
            })
        }))
    }

    fn take_over<'a>(&'a self, what: &'a TakeOverCommand, within: Duration) -> Reply<'a, Outcome> {
        let what = what.clone();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.take_over(&what).await })
        }))
    }

    fn resume<'a>(&'a self, what: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        let what = what.clone();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.resume(&what).await })
        }))
    }

    fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        Box::pin(self.line.call(within, move |session| {
            Box::pin(async move { session.prune(idle, unknown, after).await })
        }))
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        let name = name.clone();
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.force(&name).await })
        }))
    }

    fn fence(&self) -> Option<&FenceText> {
        let cluster = self.server.clustered.load(Ordering::Relaxed);
        Some(&self.fence[usize::from(cluster)])
    }

    fn reconnect(&self) {
        self.line.reconnect();
    }

    /// It changes the row that the renewal would have to change.
    fn renews_under_fence(&self) -> bool {
        false
    }

    /// On a connection of its own: DDL may take long, and waits.
    fn install(&self, within: Duration) -> Reply<'_, ()> {
        let work = async move { Session::open(&self.server).await?.install().await };
        Box::pin(async move {
            let done = keep_to(within, work, || ()).await;
            done.map_err(|failure| place(&self.server, failure))
        })
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        Box::pin(self.line.call(within, |session| {
            Box::pin(async move { session.examine().await })
        }))
    }
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

impl Session {
    /// Take a lock that is free or whose lease has run out.
    ///
    /// One row: granted, and the token comes back as the insert id. No row: somebody holds it or has
    /// its row locked, or there is no row. A row that was never granted begins at the time in ms.
    const ACQUIRE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND (expires_at IS NULL OR {ended}) AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = LAST_INSERT_ID(GREATEST(l.token + 1,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000)),
               l.locked_by = :holder, l.grant_id = :grant,
               l.expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.acquired_at = UTC_TIMESTAMP(6), l.renewed_at = UTC_TIMESTAMP(6),
               l.metadata = :metadata";

    /// The same for MariaDB, which can be told not to wait at all: a row that is locked fails it at
    /// once (error 1205), as if it were skipped.
    ///
    /// What a join sets goes through a temporary table, and since `locked_by` and `metadata` are
    /// longtext, MariaDB makes that one on disk: 0.2 ms, as much as all the rest and the commit.
    /// Not `WHERE id = (SELECT … SKIP LOCKED)`, which reads the whole table.
    const ACQUIRE_AT_ONCE: &str = "
        UPDATE {table} FORCE INDEX (name)
           SET token = LAST_INSERT_ID(GREATEST(token + 1,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000)),
               locked_by = :holder, grant_id = :grant,
               expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               acquired_at = UTC_TIMESTAMP(6), renewed_at = UTC_TIMESTAMP(6),
               metadata = :metadata
         WHERE name = :name AND (expires_at IS NULL OR {ended}) AND {writable}";

    async fn acquire(&mut self, ask: &AcquireCommand) -> Result<Outcome, StoreError> {
        let statement = if self.never_waits {
            Self::ACQUIRE_AT_ONCE
        } else {
            Self::ACQUIRE
        };
        let granted = self.execute(statement, params_of(ask)).await;
        if let Err(failure @ StoreError::Unavailable(_)) = granted {
            return self.held_or(failure, ask).await;
        }
        let Some(Done { rows, id }) = self.unless_contended(granted)? else {
            return Ok(Outcome::Busy);
        };
        if rows > 0 {
            return Ok(Outcome::Granted {
                token: token(id),
                length: ask.length,
            });
        }
        match self.read(std::slice::from_ref(&ask.name)).await?.first() {
            Some(row) => self.refused(ask, row).await,
            None => self.create(ask).await,
        }
    }

    /// What a try comes to that could not write: the lock is held, or the failure.
    async fn held_or(
        &mut self,
        failure: StoreError,
        ask: &AcquireCommand,
    ) -> Result<Outcome, StoreError> {
        if self.is_broken() || !failure.is_answer() {
            return Err(failure);
        }
        let rows = self.read(std::slice::from_ref(&ask.name)).await;
        match rows.ok().as_deref() {
            Some([row]) => match self.refused(ask, row).await? {
                held @ Outcome::Held(_) => Ok(held),
                // An earlier request may have made it.
                Outcome::Granted { .. } => Err(failure),
                Outcome::Busy => Err(failure.undone()),
            },
            // There is nothing to be given back, behind what blocks this.
            Some(_) => Err(failure.undone()),
            None => Err(failure),
        }
    }

    /// Whether another client is just creating this row: then it fails at once.
    ///
    /// The INSERT would wait for that client, and MySQL cannot be told to wait for less than a second. On
    /// MariaDB the INSERT itself fails at once.
    const PROBE: &str = "SELECT id FROM {table} WHERE name = :name FOR UPDATE NOWAIT";

    /// Make a row that is granted from the beginning.
    const CREATE: &str = "
        INSERT INTO {table}
               (name, locked_by, grant_id, expires_at, granted_until,
                token, acquired_at, renewed_at, metadata)
        VALUES (:name, :holder, :grant,
                UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
                UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
                TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                    DIV 1000,
                UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), :metadata)";

    async fn create(&mut self, ask: &AcquireCommand) -> Result<Outcome, StoreError> {
        if !self.never_waits {
            let name = params! { "name" => ask.name.as_str() };
            let probed = self.query(Self::PROBE, name).await;
            if self.unless_contended(probed)?.is_none() {
                return Ok(Outcome::Busy);
            }
        }
        let began = clock::now();
        let made = self.execute(Self::CREATE, params_of(ask)).await;
        if self.unless_contended(made)?.is_none() {
            // On MySQL it may have waited for a row that was made after the look, or for the table.
            let name = params! { "name" => ask.name.as_str() };
            let waited = clock::now() - began >= connection::session::TABLE_WAIT;
            let blocked = waited && {
                let probed = self.query(Self::PROBE, name).await;
                self.unless_contended(probed)?
                    .is_some_and(|rows| rows.is_empty())
            };
            return match blocked {
                true => Err(self.blocked()),
                false => Ok(Outcome::Busy),
            };
        }
        // The insert id is that of the column `id` here, so the token is read back.
        let rows = self.read(std::slice::from_ref(&ask.name)).await?;
        Ok(
            match rows.first().map(|row| row.refusal(ask.grant.as_str())) {
                Some(Outcome::Granted { token, .. }) => Outcome::Granted {
                    token,
                    length: ask.length,
                },
                Some(other) => other,
                None => Outcome::Busy,
            },
        )
    }

    /// Lengthen what is still held by exactly these grants; `length` is null for one without end.
    ///
    /// `expires_at` and `granted_until` come out the same whichever is set first. The insert id is
    /// what became `renewed_at`, in microseconds since 1970: it tells the rows that this statement
    /// has renewed from others, should there be any. No longtext in the list: see above.
    const RENEW: &str = "
        UPDATE (SELECT l.id, g.length
                  FROM (SELECT j.* FROM JSON_TABLE(:grants, '$[*]' COLUMNS (
                           name varchar(255) CHARACTER SET utf8mb4 PATH '$.name',
                           token bigint PATH '$.token',
                           grant_id char(32) CHARACTER SET ascii PATH '$.grant',
                           locked_by varchar(255) CHARACTER SET utf8mb4 PATH '$.holder',
                           length bigint PATH '$.length')) j
                         LIMIT 1000000) g
                       STRAIGHT_JOIN {table} l FORCE INDEX (name)
                       ON l.name = g.name COLLATE {collation}
                 WHERE l.token = g.token AND l.grant_id = g.grant_id
                   AND l.locked_by = g.locked_by COLLATE {collation}
                   AND {live} AND l.granted_until = l.expires_at AND {writable}
                 LIMIT 1000000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = GREATEST(l.expires_at, IFNULL(
                   UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00')),
               l.granted_until = GREATEST(l.expires_at, IFNULL(
                   UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00')),
               l.renewed_at = TIMESTAMP'1970-01-01 00:00:00' + INTERVAL LAST_INSERT_ID(
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
               ) MICROSECOND";

    pub(crate) async fn renew(
        &mut self,
        grants: &[(Grant, Ttl)],
    ) -> Result<Vec<Renewal>, StoreError> {
        let mut answers = Vec::with_capacity(grants.len());
        let describe = |(grant, ttl): &(Grant, Ttl)| {
            let mut grant = json!({
                "name": grant.name.as_str(), "token": grant.token.get(),
                "grant": grant.id.as_str(), "holder": &*grant.holder,
            });
            if let Ttl::Finite(length) = ttl {
                grant["length"] = micros(*length).into();
            }
            grant
        };
        let statement = match self.cluster {
            None => Self::RENEW,
            Some(_) => Self::RENEW_ON_CLUSTER,
        };
        for (chunk, text) in packed(grants, self.longest, describe) {
            let done = self
                .execute(statement, params! { "grants" => text })
                .await?;
            if done.rows == chunk.len() as u64 {
                answers.extend(chunk.iter().map(|_| Renewal::Renewed));
            } else {
                self.judge(chunk, done, &mut answers).await?;
            }
        }
        Ok(answers)
    }

    /// Not all of them were renewed: which were, and what became of the others.
    async fn judge(
        &mut self,
        grants: &[(Grant, Ttl)],
        done: Done,
        answers: &mut Vec<Renewal>,
    ) -> Result<(), StoreError> {
        let names: Vec<LockName> = grants.iter().map(|(grant, _)| grant.name.clone()).collect();
        let rows = self.read_latest(&names).await?;
        let rows: HashMap<&str, &LockRow> =
            rows.iter().map(|row| (row.name.as_str(), row)).collect();
        for (grant, _) in grants {
            let row = rows.get(grant.name.as_str()).copied();
            let at = row
                .and_then(|row| row.renewed_at)
                .and_then(|at| u64::try_from(at).ok());
            answers.push(match judge(grant, row) {
                Renewal::Busy if done.rows > 0 && at == Some(done.id) => Renewal::Renewed,
                verdict => verdict,
            });
        }
        Ok(())
    }

    /// Take a lock from its own holder, who comes again, as long as that is still the grant that was
    /// seen. The end of the lease is not asked for: a renewal in between makes it no other grant.
    const TAKE_OVER: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND locked_by = :holder COLLATE {collation}
                   AND token = :seen_token AND grant_id <=> :seen_grant
                   AND {live} AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = LAST_INSERT_ID(GREATEST(l.token + 1,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000)),
               l.grant_id = :grant,
               l.expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.acquired_at = UTC_TIMESTAMP(6), l.renewed_at = UTC_TIMESTAMP(6),
               l.metadata = :metadata";

    async fn take_over(&mut self, what: &TakeOverCommand) -> Result<Outcome, StoreError> {
        let to = &what.to;
        let params = params! {
            "name" => to.name.as_str(), "holder" => &*to.holder, "grant" => to.grant.as_str(),
            "length" => micros(to.length), "metadata" => &*to.metadata,
            "seen_token" => what.token.get(), "seen_grant" => what.grant.as_deref(),
        };
        let done = self.execute(Self::TAKE_OVER, params).await;
        match self.unless_contended(done)? {
            None => return Ok(Outcome::Busy),
            Some(Done { rows, id }) if rows > 0 => {
                return Ok(Outcome::Granted {
                    token: token(id),
                    length: to.length,
                });
            }
            Some(_) => {}
        }
        let rows = self.read(std::slice::from_ref(&to.name)).await?;
        let Some(row) = rows.first() else {
            return Ok(Outcome::Busy);
        };
        Ok(match self.refused(to, row).await? {
            Outcome::Held(_) => row.not_taken_over(what),
            outcome => outcome,
        })
    }

    /// Put another grant in the place of one that is still held. That the second may stand there
    /// already is for a request that is made again, since its reply was lost.
    const RESUME: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND token = :token AND grant_id IN (:from, :grant)
                   AND {live} AND granted_until = expires_at AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.locked_by = :holder, l.grant_id = :grant, l.metadata = :metadata,
               l.expires_at = GREATEST(l.expires_at,
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND),
               l.granted_until = GREATEST(l.expires_at,
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND),
               l.renewed_at = UTC_TIMESTAMP(6)";

    async fn resume(&mut self, what: &ResumeCommand) -> Result<Renewal, StoreError> {
        let to = &what.to;
        let params = params! {
            "name" => to.name.as_str(), "token" => what.token.get(),
            "from" => what.from.as_str(), "grant" => to.grant.as_str(),
            "holder" => &*to.holder, "metadata" => &*to.metadata, "length" => micros(to.length),
        };
        let statement = match self.cluster {
            None => Self::RESUME,
            Some(_) => Self::TAKE_UP_ON_CLUSTER,
        };
        let done = self.execute(statement, params).await;
        match self.unless_contended(done)? {
            None => return Ok(Renewal::Busy),
            Some(done) if done.rows > 0 => return Ok(Renewal::Renewed),
            Some(_) => {}
        }
        let rows = self.read_latest(std::slice::from_ref(&to.name)).await?;
        Ok(judge_ticket(what, rows.first()))
    }

    /// Delete the locks of a page that have been free for so long. A row whose `granted_until` is set while `expires_at`
    /// is null was freed by 0.5, at a time that it does not tell. One whose token is ahead of the clock,
    /// after more than a thousand grants a second, stays: the row made anew begins at the clock, and
    /// its token has to be greater.
    const PRUNE: &str = "
        DELETE l FROM (SELECT id FROM {table} FORCE INDEX (PRIMARY)
                        WHERE id > :after AND id <= :last
                          AND (expires_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND
                           OR (expires_at IS NULL AND granted_until IS NULL
                               AND renewed_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND)
                           OR (expires_at IS NULL AND :unknown
                               AND (granted_until IS NOT NULL OR renewed_at IS NULL)))
                          AND token < TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00',
                                                    UTC_TIMESTAMP(6)) DIV 1000
                          AND {writable}
                        LIMIT 1000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id";

    async fn prune(
        &mut self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
    ) -> Result<Pruned, StoreError> {
        let (first, after) = (after.is_none(), after.unwrap_or(i64::MIN));
        let end = self.page_end(after).await?;
        if end.is_none() && !first {
            return Ok(Pruned::default());
        }
        // An empty table is pruned as well: a right that is missing shows there too.
        let last = end.unwrap_or(after);
        let params = params! {
            "idle" => micros(bounded(idle)), "unknown" => unknown, "after" => after, "last" => last,
        };
        let statement = match self.cluster {
            None => Self::PRUNE,
            Some(_) => Self::PRUNE_ON_CLUSTER,
        };
        Ok(Pruned {
            deleted: self.execute(statement, params).await?.rows,
            last: end,
        })
    }

    /// Free what is still held by exactly this grant, with any token where it is not known.
    const RELEASE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND grant_id = :grant AND token = IFNULL(:token, token)
                   AND locked_by = :holder COLLATE {collation} AND granted_until = expires_at
                   AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = NULL, l.granted_until = NULL, l.grant_id = NULL,
               l.renewed_at = UTC_TIMESTAMP(6)";

    /// The same for MariaDB, as with `ACQUIRE_AT_ONCE`.
    const RELEASE_AT_ONCE: &str = "
        UPDATE {table} FORCE INDEX (name)
           SET expires_at = NULL, granted_until = NULL, grant_id = NULL,
               renewed_at = UTC_TIMESTAMP(6)
         WHERE name = :name AND grant_id = :grant AND token = IFNULL(:token, token)
           AND locked_by = :holder COLLATE {collation} AND granted_until = expires_at
           AND {writable}";

    async fn release(&mut self, what: &ReleaseCommand) -> Result<Released, StoreError> {
        let params = params! {
            "name" => what.name.as_str(), "grant" => what.grant.as_str(),
            "token" => what.token.map(Token::get), "holder" => &*what.holder,
        };
        let statement = if self.never_waits {
            Self::RELEASE_AT_ONCE
        } else {
            Self::RELEASE
        };
        let done = self.execute(statement, params).await;
        match self.unless_contended(done)? {
            None => return Ok(Released::Busy),
            Some(done) if done.rows > 0 => return Ok(Released::Freed),
            Some(_) => {}
        }
        let rows = self.read_latest(std::slice::from_ref(&what.name)).await?;
        let ours = rows.first().is_some_and(|row| row.is_of(what));
        Ok(if ours {
            Released::Busy
        } else {
            Released::NotHeld
        })
    }

    /// Free a lock whoever has it, as long as that is still who was seen.
    ///
    /// The token rises, which tells the holder at its next renewal, as `locked_by` stays.
    const FORCE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND {live} AND {writable}
                   AND token = :token AND locked_by <=> :holder COLLATE {collation}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = GREATEST(l.token + 1,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000),
               l.expires_at = NULL, l.granted_until = NULL, l.grant_id = NULL,
               l.renewed_at = UTC_TIMESTAMP(6)";

    async fn force(&mut self, name: &LockName) -> Result<Force, StoreError> {
        let rows = self.read_latest(std::slice::from_ref(name)).await?;
        let Some(row) = rows.first().filter(|row| row.is_held()) else {
            return Ok(Force::WasFree);
        };
        let params = params! {
            "name" => name.as_str(), "token" => row.token, "holder" => row.holder.as_deref(),
        };
        let done = self.execute(Self::FORCE, params).await;
        Ok(match self.unless_contended(done)? {
            Some(done) if done.rows > 0 => Force::Freed(row.holder()),
            _ => Force::Busy,
        })
    }
}

/// Those that a statement does not name are left out by the driver.
fn params_of(ask: &AcquireCommand) -> Params {
    let named = [
        ("name".into(), ask.name.as_str().into()),
        ("holder".into(), (&*ask.holder).into()),
        ("grant".into(), ask.grant.as_str().into()),
        ("length".into(), micros(ask.length).into()),
        ("metadata".into(), (&*ask.metadata).into()),
    ];
    let named: Vec<(String, Value)> = named
        .into_iter()
        .chain(version(ask.expired_version.as_ref()))
        .collect();
    named.into()
}

fn token(id: u64) -> Token {
    Token::from_db(i64::try_from(id).unwrap_or(i64::MAX))
}
