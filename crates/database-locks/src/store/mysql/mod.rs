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

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mysql_async::{Params, Row, Value, from_value_opt, params};
use serde_json::json;

use super::rows::{Seen, judge, judge_ticket};
use super::{
    Ask, FenceText, Force, Grant, Outcome, Released, Renewal, Reply, Return, Store, StoreError,
    Table, TakeUp, keep_to, url,
};
use crate::doctor::Report;
use crate::error::Error;
use crate::info::LockInfo;
use crate::name::LockName;
use crate::timing::Ttl;
use crate::token::Token;

mod connection;
mod doctor;
mod fence;
mod install;
mod session;

use connection::{Line, Server, place};
use session::{Done, Session};

/// What `docs/protocol.md` publishes.
#[cfg(test)]
pub(super) const PUBLISHED: &[(&str, &str)] = &[
    ("acquire (MySQL)", Session::ACQUIRE),
    ("acquire (MariaDB)", Session::ACQUIRE_AT_ONCE),
    ("look whether somebody is making the row", Session::PROBE),
    ("make a row, granted", Session::CREATE),
    ("renew", Session::RENEW),
    ("take up", Session::TAKE_UP),
    ("release", Session::RELEASE),
    ("release by force", Session::FORCE),
    ("read", Session::READ_ONE),
    ("prune", Session::PRUNE),
    (
        "look whether a transaction has an older snapshot",
        fence::BEFORE,
    ),
    ("fence", fence::FENCE),
];

/// The engine `mysql://` and `mariadb://`.
pub(super) struct Mysql {
    server: Arc<Server>,
    /// Of their own, so that no crowd of acquires keeps a lease from being renewed.
    renewals: Line,
    rest: Line,
    fence: FenceText,
}

/// Without the options of the driver, which hold the password.
impl fmt::Debug for Mysql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mysql")
            .field("at", &self.server.at)
            .field("table", &self.server.table)
            .finish_non_exhaustive()
    }
}

impl Mysql {
    pub(super) fn new(server: &url::Server, table: &Table) -> Result<Self, Error> {
        let server = Arc::new(Server::new(server, table)?);
        let line = || Line::new(Arc::clone(&server));
        let (renewals, rest) = (line(), line());
        Ok(Self {
            server,
            renewals,
            rest,
            fence: FenceText {
                before: Some(table.fill(fence::BEFORE)),
                fence: table.fill(fence::FENCE),
            },
        })
    }
}

impl Store for Mysql {
    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        Box::pin(self.rest.call(within, |_| Box::pin(async { Ok(()) })))
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask], within: Duration) -> Reply<'a, Vec<Outcome>> {
        let asks = asks.to_vec();
        Box::pin(self.rest.call(within, |session| {
            Box::pin(async move {
                let mut outcomes = Vec::with_capacity(asks.len());
                for ask in &asks {
                    outcomes.push(session.acquire(ask).await?);
                }
                Ok(outcomes)
            })
        }))
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        let grants = grants.to_vec();
        Box::pin(self.renewals.call(within, |session| {
            Box::pin(async move { session.renew(&grants).await })
        }))
    }

    fn release<'a>(&'a self, returns: &'a [Return], within: Duration) -> Reply<'a, Vec<Released>> {
        let returns = returns.to_vec();
        Box::pin(self.rest.call(within, |session| {
            Box::pin(async move {
                let mut done = Vec::with_capacity(returns.len());
                for what in &returns {
                    done.push(session.release(what).await?);
                }
                Ok(done)
            })
        }))
    }

    fn read<'a>(
        &'a self,
        names: Option<&'a [LockName]>,
        within: Duration,
    ) -> Reply<'a, Vec<LockInfo>> {
        let names = names.map(<[LockName]>::to_vec);
        Box::pin(self.rest.call(within, |session| {
            Box::pin(async move {
                let rows = match &names {
                    Some(names) => session.read(names).await?,
                    None => session.read_all().await?,
                };
                Ok(rows.into_iter().map(Seen::into_info).collect())
            })
        }))
    }

    fn take_up<'a>(&'a self, what: &'a TakeUp, within: Duration) -> Reply<'a, Renewal> {
        let what = what.clone();
        Box::pin(self.rest.call(within, |session| {
            Box::pin(async move { session.take_up(&what).await })
        }))
    }

    fn prune(&self, idle: Duration, unknown: bool, within: Duration) -> Reply<'_, u64> {
        Box::pin(self.rest.call(within, move |session| {
            Box::pin(async move { session.prune(idle, unknown).await })
        }))
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        let name = name.clone();
        Box::pin(self.rest.call(within, |session| {
            Box::pin(async move { session.force(&name).await })
        }))
    }

    fn fence(&self) -> Option<&FenceText> {
        Some(&self.fence)
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
        Box::pin(self.rest.call(within, |session| {
            Box::pin(async move { session.examine().await })
        }))
    }
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

/// Nothing, where somebody else was in the way.
fn unless_contended<T>(done: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(StoreError::Contention(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

impl Session {
    /// Take a lock that is free or whose lease has run out.
    ///
    /// One row: granted, and the token comes back as the insert id. No row: somebody holds it or has
    /// its row locked, or there is no row. A row that was never granted begins at the time in ms.
    const ACQUIRE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND (expires_at IS NULL OR expires_at <= UTC_TIMESTAMP(6))
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = LAST_INSERT_ID(IF(l.token = 0,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000,
                   l.token + 1)),
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
           SET token = LAST_INSERT_ID(IF(token = 0,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000,
                   token + 1)),
               locked_by = :holder, grant_id = :grant,
               expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               acquired_at = UTC_TIMESTAMP(6), renewed_at = UTC_TIMESTAMP(6),
               metadata = :metadata
         WHERE name = :name AND (expires_at IS NULL OR expires_at <= UTC_TIMESTAMP(6))";

    async fn acquire(&mut self, ask: &Ask) -> Result<Outcome, StoreError> {
        let statement = if self.never_waits {
            Self::ACQUIRE_AT_ONCE
        } else {
            Self::ACQUIRE
        };
        let granted = self.execute(statement, params_of(ask)).await;
        let Some(Done { rows, id }) = unless_contended(granted)? else {
            return Ok(Outcome::Busy);
        };
        if rows > 0 {
            return Ok(Outcome::Granted {
                token: token(id),
                length: ask.length,
            });
        }
        match self.read(std::slice::from_ref(&ask.name)).await?.first() {
            Some(row) => Ok(row.refusal(ask.grant.as_str())),
            None => self.create(ask).await,
        }
    }

    /// Whether somebody is just creating this row: then it fails at once.
    ///
    /// The INSERT would wait for him, and MySQL cannot be told to wait for less than a second.
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

    async fn create(&mut self, ask: &Ask) -> Result<Outcome, StoreError> {
        let name = params! { "name" => ask.name.as_str() };
        if unless_contended(self.query(Self::PROBE, name).await)?.is_none()
            || unless_contended(self.execute(Self::CREATE, params_of(ask)).await)?.is_none()
        {
            return Ok(Outcome::Busy);
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
                  FROM JSON_TABLE(:grants, '$[*]' COLUMNS (
                           name varchar(255) CHARACTER SET utf8mb4 PATH '$.name',
                           token bigint PATH '$.token',
                           grant_id char(32) CHARACTER SET ascii PATH '$.grant',
                           locked_by varchar(255) CHARACTER SET utf8mb4 PATH '$.holder',
                           length bigint PATH '$.length')) g
                       STRAIGHT_JOIN {table} l FORCE INDEX (name)
                       ON l.name = g.name COLLATE {collation}
                 WHERE l.token = g.token AND l.grant_id = g.grant_id
                   AND l.locked_by = g.locked_by COLLATE {collation}
                   AND l.expires_at > UTC_TIMESTAMP(6) AND l.granted_until = l.expires_at
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

    async fn renew(&mut self, grants: &[(Grant, Ttl)]) -> Result<Vec<Renewal>, StoreError> {
        let mut answers = Vec::with_capacity(grants.len());
        let describe = |(grant, ttl): &(Grant, Ttl)| {
            let mut grant = json!({
                "name": grant.name.as_str(), "token": grant.token.get(),
                "grant": grant.id.as_str(), "holder": &*grant.holder,
            });
            if let Ttl::Lasting(length) = ttl {
                grant["length"] = micros(*length).into();
            }
            grant
        };
        for (chunk, text) in packed(grants, self.longest, describe) {
            let done = self
                .execute(Self::RENEW, params! { "grants" => text })
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
        let rows = self.read(&names).await?;
        let rows: HashMap<&str, &Seen> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
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

    /// Put another grant in the place of one that is still held. That the second may stand there
    /// already is for a request that is made again, since its reply was lost.
    const TAKE_UP: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND token = :token AND grant_id IN (:from, :grant)
                   AND expires_at > UTC_TIMESTAMP(6) AND granted_until = expires_at
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.locked_by = :holder, l.grant_id = :grant, l.metadata = :metadata,
               l.expires_at = GREATEST(l.expires_at,
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND),
               l.granted_until = GREATEST(l.expires_at,
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND),
               l.renewed_at = UTC_TIMESTAMP(6)";

    async fn take_up(&mut self, what: &TakeUp) -> Result<Renewal, StoreError> {
        let to = &what.to;
        let params = params! {
            "name" => to.name.as_str(), "token" => what.token.get(),
            "from" => what.from.as_str(), "grant" => to.grant.as_str(),
            "holder" => &*to.holder, "metadata" => &*to.metadata, "length" => micros(to.length),
        };
        match unless_contended(self.execute(Self::TAKE_UP, params).await)? {
            None => return Ok(Renewal::Busy),
            Some(done) if done.rows > 0 => return Ok(Renewal::Renewed),
            Some(_) => {}
        }
        let rows = self.read(std::slice::from_ref(&to.name)).await?;
        Ok(judge_ticket(what, rows.first()))
    }

    /// Delete what nobody has had for so long. A row whose `granted_until` is set while `expires_at`
    /// is null was freed by 0.5, at a time that it does not tell.
    const PRUNE: &str = "
        DELETE l FROM (SELECT id FROM {table}
                        WHERE expires_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND
                           OR (expires_at IS NULL AND granted_until IS NULL
                               AND renewed_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND)
                           OR (expires_at IS NULL AND :unknown
                               AND (granted_until IS NOT NULL OR renewed_at IS NULL))
                        LIMIT 500 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id";

    async fn prune(&mut self, idle: Duration, unknown: bool) -> Result<u64, StoreError> {
        let params = params! { "idle" => micros(idle), "unknown" => unknown };
        Ok(self.execute(Self::PRUNE, params).await?.rows)
    }

    /// Free what is still held by exactly this grant, with any token where it is not known.
    const RELEASE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND grant_id = :grant AND token = IFNULL(:token, token)
                   AND locked_by = :holder COLLATE {collation} AND granted_until = expires_at
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = NULL, l.granted_until = NULL, l.grant_id = NULL,
               l.renewed_at = UTC_TIMESTAMP(6)";

    async fn release(&mut self, what: &Return) -> Result<Released, StoreError> {
        let params = params! {
            "name" => what.name.as_str(), "grant" => what.grant.as_str(),
            "token" => what.token.map(Token::get), "holder" => &*what.holder,
        };
        match unless_contended(self.execute(Self::RELEASE, params).await)? {
            None => return Ok(Released::Busy),
            Some(done) if done.rows > 0 => return Ok(Released::Freed),
            Some(_) => {}
        }
        let rows = self.read(std::slice::from_ref(&what.name)).await?;
        let ours = rows.first().is_some_and(|row| {
            row.intact
                && row.grant.as_deref() == Some(what.grant.as_str())
                && row.holder.as_deref() == Some(&*what.holder)
                && what.token.is_none_or(|token| token.get() == row.token)
        });
        Ok(if ours {
            Released::Busy
        } else {
            Released::NotOurs
        })
    }

    /// Free a lock whoever has it, as long as that is still who was seen.
    ///
    /// The token rises, which tells the holder at its next renewal, as `locked_by` stays.
    const FORCE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND expires_at > UTC_TIMESTAMP(6)
                   AND token = :token AND locked_by <=> :holder COLLATE {collation}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = IF(l.token = 0,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000,
                   l.token + 1),
               l.expires_at = NULL, l.granted_until = NULL, l.grant_id = NULL,
               l.renewed_at = UTC_TIMESTAMP(6)";

    async fn force(&mut self, name: &LockName) -> Result<Force, StoreError> {
        let rows = self.read(std::slice::from_ref(name)).await?;
        let Some(row) = rows.first().filter(|row| row.is_held()) else {
            return Ok(Force::WasFree);
        };
        let params = params! {
            "name" => name.as_str(), "token" => row.token, "holder" => row.holder.as_deref(),
        };
        Ok(
            match unless_contended(self.execute(Self::FORCE, params).await)? {
                Some(done) if done.rows > 0 => Force::Freed(row.occupant()),
                _ => Force::Busy,
            },
        )
    }
}

/// What is read of a row, in the order in which [`seen`] takes it.
macro_rules! read {
    ($from:literal) => {
        concat!(
            "
        SELECT l.name, l.locked_by, l.token, l.grant_id,
               TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), l.expires_at) AS expires_in,
               IFNULL(l.expires_at = TIMESTAMP'9999-12-31 00:00:00', 0) AS endless,
               l.granted_until <=> l.expires_at AS intact,
               TIMESTAMPDIFF(MICROSECOND, l.acquired_at, UTC_TIMESTAMP(6)) AS held_for,
               TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', l.acquired_at)
                   AS acquired_at,
               TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', l.renewed_at)
                   AS renewed_at,
               TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', l.expires_at)
                   AS expired_at,
               l.metadata
          FROM ",
            $from
        )
    };
}

impl Session {
    const READ_ALL: &str = read!("{table} l ORDER BY l.name");
    const READ_ONE: &str = read!("{table} l WHERE l.name = :name");
    const READ_THESE: &str = read!(
        "JSON_TABLE(:names, '$[*]' COLUMNS (
                   name varchar(255) CHARACTER SET utf8mb4 PATH '$')) n
               STRAIGHT_JOIN {table} l FORCE INDEX (name) ON l.name = n.name COLLATE {collation}
         ORDER BY l.name"
    );

    async fn read_all(&mut self) -> Result<Vec<Seen>, StoreError> {
        Ok(self
            .query(Self::READ_ALL, Params::Empty)
            .await?
            .into_iter()
            .map(seen)
            .collect())
    }

    async fn read(&mut self, names: &[LockName]) -> Result<Vec<Seen>, StoreError> {
        if let [name] = names {
            let name = params! { "name" => name.as_str() };
            return Ok(self
                .query(Self::READ_ONE, name)
                .await?
                .into_iter()
                .map(seen)
                .collect());
        }
        let names: BTreeSet<&LockName> = names.iter().collect();
        let names: Vec<&LockName> = names.into_iter().collect();
        let mut rows = Vec::with_capacity(names.len());
        for (_, text) in packed(&names, self.longest, |name| json!(name.as_str())) {
            let found = self
                .query(Self::READ_THESE, params! { "names" => text })
                .await?;
            rows.extend(found.into_iter().map(seen));
        }
        Ok(rows)
    }
}

fn params_of(ask: &Ask) -> Params {
    params! {
        "name" => ask.name.as_str(), "holder" => &*ask.holder, "grant" => ask.grant.as_str(),
        "length" => micros(ask.length), "metadata" => &*ask.metadata,
    }
}

fn token(id: u64) -> Token {
    Token::from_db(i64::try_from(id).unwrap_or(i64::MAX))
}

/// A row of [`read`]. What cannot be understood is taken as null: one bad row must not hide the rest.
fn seen(mut row: Row) -> Seen {
    fn value<T: mysql_async::prelude::FromValue>(row: &mut Row, column: usize) -> Option<T> {
        match row.take(column)? {
            Value::NULL => None,
            value => from_value_opt(value).ok(),
        }
    }
    fn text(row: &mut Row, column: usize) -> Option<String> {
        value(row, column).map(|text: Vec<u8>| String::from_utf8_lossy(&text).into_owned())
    }
    let row = &mut row;
    Seen {
        name: text(row, 0).unwrap_or_default(),
        holder: text(row, 1),
        token: value(row, 2).unwrap_or_default(),
        grant: text(row, 3),
        expires_in: value(row, 4),
        endless: value(row, 5) == Some(1),
        intact: value(row, 6) == Some(1),
        held_for: value(row, 7),
        acquired_at: value(row, 8),
        renewed_at: value(row, 9),
        expires_at: value(row, 10),
        metadata: text(row, 11),
    }
}

/// Cut a list into as few JSON arrays as fit into a statement.
fn packed<T>(
    mut items: &[T],
    longest: usize,
    describe: impl Fn(&T) -> serde_json::Value,
) -> Vec<(&[T], String)> {
    let mut packs = Vec::new();
    while !items.is_empty() {
        let (mut text, mut taken) = (String::from("["), 0);
        for item in items {
            let item = describe(item).to_string();
            if taken > 0 {
                if text.len() + item.len() + 2 > longest {
                    break;
                }
                text.push(',');
            }
            text.push_str(&item);
            taken += 1;
        }
        text.push(']');
        let (pack, rest) = items.split_at(taken);
        packs.push((pack, text));
        items = rest;
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_where_the_packet_ends() {
        let items = ["aa", "bb", "cc"];
        let texts = |longest| {
            let packs = packed(&items, longest, |item| json!(item));
            packs.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert_eq!(texts(1000), [r#"["aa","bb","cc"]"#]);
        assert_eq!(texts(11), [r#"["aa","bb"]"#, r#"["cc"]"#]);
        // One that is too long by itself is left to the server to refuse.
        assert_eq!(texts(1).len(), 3);
    }
}
