//! Acquiring and releasing many locks at once on MariaDB, which can be set not to wait. These
//! statements update a single table and need no temporary table.
//!
//! Those of [`batch`](crate::store::mysql::statements::batch) join the table with the commands, and
//! MariaDB puts the values that a join sets into a temporary table first, on disk since there is a
//! longtext among them. For a thousand locks that takes longer than everything else. Here the
//! position of a row in a list selects its values.
//!
//! A locked row fails the whole statement at once. It has then changed nothing, and its locks are
//! left to the statements that skip locked rows.

use std::collections::HashMap;
use std::iter::repeat_n;
use std::sync::LazyLock;

use mysql_async::{Value, params};
use serde_json::json;

use crate::store::api::{StoreError, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::{QueryResult, Session, typed};
use crate::store::mysql::rows::{packed, token};
use protocol::{AcquireCommand, Outcome, ReleaseCommand, Slot, Token};

/// The numbers of rows for which there is a statement. Shorter lists are filled up with their last
/// row.
const SMALL_LIST: usize = 32;
const LARGE_LIST: usize = 256;
/// With fewer rows the statements of `batch` are as fast.
const MIN_ROWS: usize = 8;

/// A statement with its lists written out.
fn written_out(statement: &str, rows: usize) -> String {
    let list = |of: &str| repeat_n(of, rows).collect::<Vec<_>>().join(", ");
    let text = statement.replace("{list}", &list("?"));
    text.replace("{grants}", &list("(?, ?, ?, ?)"))
}

/// A lock that was free when it was read.
struct Free<'a> {
    command: &'a AcquireCommand,
    /// Its position among the commands.
    at: usize,
    id: i64,
}

impl Session {
    /// Find which of many locks are free, among those that were never shared.
    pub(crate) const FREE_ON_MARIADB: &str = "
        SELECT l.name, l.id
          FROM JSON_TABLE(:names, '$[*]' COLUMNS (
                   name varchar(255) CHARACTER SET utf8mb4 PATH '$')) n
               STRAIGHT_JOIN {table} l FORCE INDEX (name) ON l.name = n.name COLLATE {collation}
         WHERE NOT l.shared AND (l.expires_at IS NULL OR {ended})";

    /// Acquire those that are still free. The ids are sorted, so that `INTERVAL` finds the position
    /// of each by bisection.
    ///
    /// All get the same token, the time in ms, which is also the insert id, so no read has to
    /// follow. A row whose token is not below it is left to the statement that increments the
    /// token.
    pub(crate) const ACQUIRE_BATCH_ON_MARIADB: &str = "
        UPDATE {table} FORCE INDEX (PRIMARY)
           SET token = LAST_INSERT_ID({clock} DIV 1000),
               locked_by = ELT(INTERVAL(id, {list}), {list}),
               grant_id = ELT(INTERVAL(id, {list}), {list}),
               metadata = ELT(INTERVAL(id, {list}), {list}),
               expires_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND,
               granted_until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND,
               acquired_at = UTC_TIMESTAMP(6), renewed_at = UTC_TIMESTAMP(6)
         WHERE id IN ({list}) AND (expires_at IS NULL OR {ended}) AND NOT shared
           AND token < {clock} DIV 1000
           AND {writable}";

    /// Release what is still held by exactly these grants. The insert id is the new `renewed_at`.
    pub(crate) const RELEASE_BATCH_ON_MARIADB: &str = "
        UPDATE {table} FORCE INDEX (name)
           SET expires_at = NULL, granted_until = NULL, grant_id = NULL,
               renewed_at = TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL LAST_INSERT_ID({clock}) MICROSECOND
         WHERE name IN ({list})
           AND (name, grant_id, token, locked_by COLLATE {collation}) IN ({grants})
           AND granted_until = expires_at AND {writable}";

    /// Acquire with these statements what they can acquire. `None`: left to the other statements.
    /// On a cluster they do not apply, since no clock tells which leases have ended.
    pub(crate) async fn acquire_on_mariadb(
        &mut self,
        commands: &[&AcquireCommand],
    ) -> Result<Vec<Option<Outcome>>, StoreError> {
        static OF_FEW: LazyLock<String> =
            LazyLock::new(|| written_out(Session::ACQUIRE_BATCH_ON_MARIADB, SMALL_LIST));
        static OF_MANY: LazyLock<String> =
            LazyLock::new(|| written_out(Session::ACQUIRE_BATCH_ON_MARIADB, LARGE_LIST));
        let mut outcomes = vec![None; commands.len()];
        if !self.mariadb || self.cluster.is_some() || commands.len() < MIN_ROWS {
            return Ok(outcomes);
        }
        let free = self.free(commands).await?;
        for free in free.chunks(LARGE_LIST) {
            let Some(last) = free.last() else { continue };
            let (statement, rows) = match free.len() <= SMALL_LIST {
                true => (&*OF_FEW, SMALL_LIST),
                false => (&*OF_MANY, LARGE_LIST),
            };
            let padded = || free.iter().chain(repeat_n(last, rows - free.len()));
            let ids = || padded().map(|free| Value::from(free.id));
            let length = || Value::from(micros(last.command.length));
            let mut params: Vec<Value> = Vec::with_capacity(7 * rows + 2);
            params.extend(ids());
            params.extend(padded().map(|free| Value::from(&*free.command.holder)));
            params.extend(ids());
            params.extend(padded().map(|free| Value::from(free.command.grant.as_str())));
            params.extend(ids());
            params.extend(padded().map(|free| Value::from(&*free.command.metadata)));
            params.extend([length(), length()]);
            params.extend(ids());
            let done = self.attempt(Rows::Locks, statement, params.into());
            // With fewer rows another client was first with some, and a read has to tell which.
            let all = |done: &QueryResult| done.rows == free.len() as u64;
            let Some(done) = done.await?.filter(all) else {
                continue;
            };
            for free in free {
                let outcome = Outcome::granted(Slot::Lock, token(done.id), free.command.length);
                outcomes[free.at] = Some(outcome);
            }
        }
        Ok(outcomes)
    }

    /// The free locks, ordered by id. Only those with the length of the first, since a statement
    /// has one length, and those that may follow the latest grant at any time.
    async fn free<'a>(
        &mut self,
        commands: &[&'a AcquireCommand],
    ) -> Result<Vec<Free<'a>>, StoreError> {
        let mut by_name = HashMap::with_capacity(commands.len());
        for (at, &command) in commands.iter().enumerate() {
            if command.not_within.is_none() && command.length == commands[0].length {
                let name = command.name.as_str();
                by_name.entry(name).or_insert((at, command));
            }
        }
        let mut found = Vec::with_capacity(by_name.len());
        let names: Vec<&str> = by_name.keys().copied().collect();
        for (_, names) in packed(&names, self.max_parameter_len, |name| json!(name)) {
            let names = params! { "names" => names };
            let rows = self.query(Rows::Locks, Self::FREE_ON_MARIADB, names);
            for (name, id) in typed::<(String, i64)>(rows.await?) {
                let asked = by_name.remove(&*name);
                found.extend(asked.map(|(at, command)| Free { command, at, id }));
            }
        }
        found.sort_unstable_by_key(|free| free.id);
        Ok(found)
    }

    /// Release them. `None`: nothing was changed, and the other statements have to release them,
    /// which for many locks are as fast. No name may occur twice.
    pub(crate) async fn release_on_mariadb(
        &mut self,
        commands: &[ReleaseCommand],
    ) -> Result<Option<QueryResult>, StoreError> {
        static STATEMENT: LazyLock<String> =
            LazyLock::new(|| written_out(Session::RELEASE_BATCH_ON_MARIADB, SMALL_LIST));
        let fits = (MIN_ROWS..=SMALL_LIST).contains(&commands.len());
        let (Some(last), true) = (commands.last(), fits && self.mariadb) else {
            return Ok(None);
        };
        let fits = |command: &ReleaseCommand| command.token.is_some() && command.rest.is_zero();
        if !commands.iter().all(fits) {
            return Ok(None);
        }
        let padding = SMALL_LIST - commands.len();
        let padded = || commands.iter().chain(repeat_n(last, padding));
        let mut params: Vec<Value> = Vec::with_capacity(5 * SMALL_LIST);
        params.extend(padded().map(|command| Value::from(command.name.as_str())));
        params.extend(padded().flat_map(|command| {
            [
                command.name.as_str().into(),
                command.grant.as_str().into(),
                command.token.map(Token::get).into(),
                Value::from(&*command.holder),
            ]
        }));
        self.attempt(Rows::Locks, &STATEMENT, params.into()).await
    }
}
