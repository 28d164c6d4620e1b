//! Reading rows.

use std::collections::BTreeSet;
use std::time::Duration;

use mysql_async::{Params, Row, params};
use serde_json::json;
use tokio::time::timeout;

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::rows::{lock_row, packed};
use protocol::{Holder, Human, ListFilter, LockName, LockRow, Page, Slot};

/// How long a waiter's read waits for the earlier commits of other nodes. Renewals wait behind it;
/// on a node that needs longer, their commits take as long.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);

/// The columns of a row, under the names that [`lock_row`] uses.
macro_rules! read {
    ($from:literal) => {
        read!("", $from)
    };
    ($more:literal, $from:literal) => {
        concat!(
            "
        SELECT l.name, {?l.slot, l.permits, ?}l.locked_by, l.token, l.grant_id, l.shared,
               TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), l.expires_at) AS expires_in,
               IFNULL(l.expires_at = TIMESTAMP'9999-12-31 00:00:00', 0) AS is_infinite,
               NOT (l.granted_until <=> l.expires_at) AS is_legacy,
               TIMESTAMPDIFF(MICROSECOND, l.acquired_at, UTC_TIMESTAMP(6)) AS held_for,
               TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', l.acquired_at)
                   AS acquired_at,
               TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', l.renewed_at)
                   AS renewed_at,
               TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', l.expires_at)
                   AS expired_at,
               l.metadata, {writable} AS writable",
            $more,
            "
          FROM ",
            $from
        )
    };
}

impl Session {
    /// Whether the server is writable, for a read that found no row.
    pub(crate) const IS_WRITABLE: &str = "SELECT {writable} AS writable";

    /// The last of the next thousand ids; null if there are no more.
    pub(crate) const PAGE_END: &str = "
        SELECT MAX(p.id) FROM (SELECT id FROM {table} WHERE id > :after ORDER BY id LIMIT 1000) p";
    /// The rows of such a page: all, or those that are not free; with names that have the prefix.
    pub(crate) const READ_PAGE: &str = read!(
        "{table} l
         WHERE l.id > :after AND l.id <= :last AND (:all OR l.expires_at IS NOT NULL)
           AND LEFT(l.name, CHAR_LENGTH(:prefix)) = :prefix COLLATE {collation}{? AND l.slot <> -1?}
         ORDER BY l.id"
    );
    pub(crate) const READ_ONE: &str = read!("{table} l WHERE l.name = :name{? ORDER BY l.slot?}");
    pub(crate) const READ_BATCH: &str = read!(
        "JSON_TABLE(:names, '$[*]' COLUMNS (
                   name varchar(255) CHARACTER SET utf8mb4 PATH '$')) n
               STRAIGHT_JOIN {table} l FORCE INDEX (name) ON l.name = n.name COLLATE {collation}
         ORDER BY l.name"
    );

    /// Read a page of rows.
    pub(crate) async fn page(
        &mut self,
        of: Rows,
        filter: &ListFilter,
        after: Option<i64>,
    ) -> Result<Page, StoreError> {
        self.catch_up().await?;
        let page = self.page_here(of, filter, after.unwrap_or(i64::MIN)).await;
        self.stop_catching_up().await?;
        page
    }

    /// The last id of the page after the id `after`; `None` if there are no more rows.
    pub(crate) async fn page_end(
        &mut self,
        of: Rows,
        after: i64,
    ) -> Result<Option<i64>, StoreError> {
        let mut end = self
            .query(of, Self::PAGE_END, params! { "after" => after })
            .await?;
        let last = end.pop().and_then(|mut row| row.take::<Option<i64>, _>(0));
        Ok(last.flatten())
    }

    async fn page_here(
        &mut self,
        of: Rows,
        filter: &ListFilter,
        after: i64,
    ) -> Result<Page, StoreError> {
        let last = self.page_end(of, after).await?;
        // An empty table is read as well, so that a missing column is an error and not an empty
        // list.
        if last.is_none() && after > i64::MIN {
            return Ok(Page::default());
        }
        let these = params! {
            "after" => after, "last" => last.unwrap_or(after), "all" => !filter.not_free,
            "prefix" => &filter.prefix,
        };
        let rows = self.query(of, Self::READ_PAGE, these).await?;
        let rows = self.lock_rows(of, rows)?;
        Ok(Page {
            rows: rows.into_iter().map(LockRow::into_info).collect(),
            last,
        })
    }

    pub(crate) async fn read(
        &mut self,
        of: Rows,
        names: &[&LockName],
    ) -> Result<Vec<LockRow>, StoreError> {
        let names: BTreeSet<&LockName> = names.iter().copied().collect();
        let names: Vec<&LockName> = names.into_iter().collect();
        let mut rows = Vec::with_capacity(names.len());
        if let [name] = *names {
            let name = params! { "name" => name.as_str() };
            rows = self.query(of, Self::READ_ONE, name).await?;
        } else {
            for (_, text) in packed(&names, self.max_parameter_len, |name| json!(name.as_str())) {
                let text = params! { "names" => text };
                rows.extend(self.query(of, Self::READ_BATCH, text).await?);
            }
        }
        if rows.len() < names.len() {
            // No row tells whether the server is writable, and the caller may conclude that a grant
            // is gone, or insert a row.
            let answer = self.rows(of, Self::IS_WRITABLE, Params::Empty).await?;
            self.must_be_writable(answer.first())?;
        }
        self.lock_rows(of, rows)
    }

    /// The row of a lock or permit.
    pub(super) async fn row(
        &mut self,
        name: &LockName,
        slot: Slot,
    ) -> Result<Option<LockRow>, StoreError> {
        let rows = self.read(Rows::of(slot), &[name]).await?;
        Ok(rows.into_iter().find(|row| row.slot == slot))
    }

    /// [`row`](Self::row), by [`read_latest`](Self::read_latest).
    pub(crate) async fn latest_row(
        &mut self,
        name: &LockName,
        slot: Slot,
    ) -> Result<Option<LockRow>, StoreError> {
        let rows = self.read_latest(Rows::of(slot), &[name]).await?;
        Ok(rows.into_iter().find(|row| row.slot == slot))
    }

    /// The holder of each, as far as this node knows. See [`read_to_wait`](Self::read_to_wait).
    pub(crate) async fn holders(
        &mut self,
        names: &[LockName],
    ) -> Result<Vec<Option<Holder>>, StoreError> {
        let each: Vec<&LockName> = names.iter().collect();
        let rows = self.read_to_wait(Rows::Locks, &each).await?;
        Ok(LockRow::holders(names, &rows))
    }

    /// Read for a waiter, which waits as long as the rows show a holder.
    ///
    /// A node that is cut off and has not noticed shows the holder of a lock that was released long
    /// ago. So every few seconds the read waits until the node has caught up, and if it does not,
    /// the connection is given up and another node asked.
    pub(crate) async fn read_to_wait(
        &mut self,
        of: Rows,
        names: &[&LockName],
    ) -> Result<Vec<LockRow>, StoreError> {
        if !self.may_be_behind() {
            return self.read(of, names).await;
        }
        let Ok(rows) = timeout(CATCH_UP_WITHIN, self.read_latest(of, names)).await else {
            self.note_in_step(false);
            let (at, within) = (&self.address, Human(CATCH_UP_WITHIN));
            let message =
                format!("{at}: the cluster node did not catch up with the others within {within}");
            return Err(StoreError::Unavailable(message.into()));
        };
        if rows.is_ok() {
            self.note_in_step(true);
        }
        rows
    }

    /// Rows of [`read`], unless the server has become read-only since the session was opened.
    pub(super) fn lock_rows(
        &mut self,
        of: Rows,
        rows: Vec<Row>,
    ) -> Result<Vec<LockRow>, StoreError> {
        self.must_be_writable(rows.first())?;
        let multi_primary = self.cluster.is_some();
        Ok(rows
            .into_iter()
            .map(|row| lock_row(of, row, multi_primary))
            .collect())
    }

    /// Give up the connection if the server has become read-only, as in a failover. For a
    /// privileged user, statements would go on working on what is now a replica.
    pub(super) fn must_be_writable(&mut self, row: Option<&Row>) -> Result<(), StoreError> {
        let writable: Option<i64> = row.and_then(|row| row.get_opt("writable")?.ok());
        match writable {
            Some(0) => Err(self.became_read_only()),
            _ => Ok(()),
        }
    }

    /// Read rows that are as recent as the commits of all nodes. Only they may show that a grant is
    /// gone.
    pub(crate) async fn read_latest(
        &mut self,
        of: Rows,
        names: &[&LockName],
    ) -> Result<Vec<LockRow>, StoreError> {
        self.catch_up().await?;
        let rows = self.read(of, names).await;
        self.stop_catching_up().await?;
        rows
    }

    /// [`read_latest`](Self::read_latest), of owned names.
    pub(crate) async fn latest_rows(
        &mut self,
        of: Rows,
        names: &[LockName],
    ) -> Result<Vec<LockRow>, StoreError> {
        let names: Vec<&LockName> = names.iter().collect();
        self.read_latest(of, &names).await
    }

    /// On a cluster: make the next reads wait for the earlier commits of other nodes.
    pub(crate) async fn catch_up(&mut self) -> Result<(), StoreError> {
        match self.catch_up_to_decide().await {
            // If this user may not set it, the read shows what this node has applied.
            Err(StoreError::Rejected { .. }) => Ok(()),
            done => done,
        }
    }

    /// As [`catch_up`](Self::catch_up), where a read that lags would let a shared grant in beside an
    /// exclusive one. The node may be another one than that which committed the caller's own row.
    pub(super) async fn catch_up_to_decide(&mut self) -> Result<(), StoreError> {
        match self.cluster {
            None => Ok(()),
            Some(cluster) => self.execute_unprepared(cluster.catch_up()).await,
        }
    }

    /// End that.
    pub(crate) async fn stop_catching_up(&mut self) -> Result<(), StoreError> {
        let Some(cluster) = self.cluster else {
            return Ok(());
        };
        match self.execute_unprepared(cluster.stop_catching_up()).await {
            failure @ Err(StoreError::Unavailable(_)) => failure,
            _ => Ok(()),
        }
    }
}
