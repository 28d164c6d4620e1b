//! Reading rows, and writing lists that are as long as a statement may be.

use std::collections::BTreeSet;

use mysql_async::{Params, Row, Value, from_value_opt, params};
use serde_json::json;

use super::super::StoreError;
use crate::store::mysql::connection::session::Session;
use protocol::{ListFilter, LockName, LockRow, Page};

/// What is read of a row, in the order in which [`seen`] takes it.
macro_rules! read {
    ($from:literal) => {
        concat!(
            "
        SELECT l.name, l.locked_by, l.token, l.grant_id,
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
               l.metadata, {writable} AS writable
          FROM ",
            $from
        )
    };
}

/// The column of [`read`] that tells whether the server can be written to.
const WRITABLE_AT: usize = 12;

impl Session {
    /// The same where there is no row that would tell it.
    pub(crate) const IS_WRITABLE: &str = "SELECT {writable}";

    /// The last of the next thousand ids; null where there are no more.
    pub(crate) const PAGE_END: &str = "
        SELECT MAX(p.id) FROM (SELECT id FROM {table} WHERE id > :after ORDER BY id LIMIT 1000) p";
    /// The rows of such a page: all, or those that are not free; with names that begin so.
    pub(crate) const READ_PAGE: &str = read!(
        "{table} l
         WHERE l.id > :after AND l.id <= :last AND (:all OR l.expires_at IS NOT NULL)
           AND LEFT(l.name, CHAR_LENGTH(:prefix)) = :prefix COLLATE {collation}
         ORDER BY l.id"
    );
    pub(crate) const READ_ONE: &str = read!("{table} l WHERE l.name = :name");
    pub(crate) const READ_THESE: &str = read!(
        "JSON_TABLE(:names, '$[*]' COLUMNS (
                   name varchar(255) CHARACTER SET utf8mb4 PATH '$')) n
               STRAIGHT_JOIN {table} l FORCE INDEX (name) ON l.name = n.name COLLATE {collation}
         ORDER BY l.name"
    );

    /// Read a page of rows.
    pub(crate) async fn page(
        &mut self,
        filter: &ListFilter,
        after: Option<i64>,
    ) -> Result<Page, StoreError> {
        self.catch_up().await?;
        let page = self.page_here(filter, after.unwrap_or(i64::MIN)).await;
        self.go_on().await?;
        page
    }

    /// Where the page behind the id `after` ends; none: there are no more rows.
    pub(crate) async fn page_end(&mut self, after: i64) -> Result<Option<i64>, StoreError> {
        let mut end = self
            .query(Self::PAGE_END, params! { "after" => after })
            .await?;
        let last = end.pop().and_then(|mut row| row.take::<Option<i64>, _>(0));
        Ok(last.flatten())
    }

    async fn page_here(&mut self, filter: &ListFilter, after: i64) -> Result<Page, StoreError> {
        let last = self.page_end(after).await?;
        // An empty table is read as well: one that lacks a column is an error, and no empty list.
        if last.is_none() && after > i64::MIN {
            return Ok(Page::default());
        }
        let these = params! {
            "after" => after, "last" => last.unwrap_or(after), "all" => !filter.not_free,
            "prefix" => &filter.prefix,
        };
        let rows = self.query(Self::READ_PAGE, these).await?;
        let rows = self.seen(rows)?;
        Ok(Page {
            rows: rows.into_iter().map(LockRow::into_info).collect(),
            last,
        })
    }

    pub(crate) async fn read(&mut self, names: &[LockName]) -> Result<Vec<LockRow>, StoreError> {
        let names: BTreeSet<&LockName> = names.iter().collect();
        let names: Vec<&LockName> = names.into_iter().collect();
        let mut rows = Vec::with_capacity(names.len());
        if let [name] = *names {
            let name = params! { "name" => name.as_str() };
            rows = self.query(Self::READ_ONE, name).await?;
        } else {
            for (_, text) in packed(&names, self.longest, |name| json!(name.as_str())) {
                let text = params! { "names" => text };
                rows.extend(self.query(Self::READ_THESE, text).await?);
            }
        }
        if rows.len() < names.len() {
            // No row shows it, and the caller may conclude that a grant is gone, or make a row.
            let told = self.rows(Self::IS_WRITABLE, Params::Empty).await?;
            self.must_be_writable(told.first(), 0)?;
        }
        self.seen(rows)
    }

    /// Rows of [`read`], unless the server has become read-only since the session was opened.
    fn seen(&mut self, rows: Vec<Row>) -> Result<Vec<LockRow>, StoreError> {
        self.must_be_writable(rows.first(), WRITABLE_AT)?;
        let multi_primary = self.cluster.is_some();
        Ok(rows
            .into_iter()
            .map(|row| seen(row, multi_primary))
            .collect())
    }

    /// Give up a connection to a server that has become read-only, as in a failover: for a privileged
    /// user statements go on working there, on what is a replica by now.
    fn must_be_writable(&mut self, row: Option<&Row>, at: usize) -> Result<(), StoreError> {
        let writable: Option<i64> = row.and_then(|row| row.get_opt(at)?.ok());
        match writable {
            Some(0) => Err(self.has_become_read_only()),
            _ => Ok(()),
        }
    }
}

/// A row of [`read`]. What cannot be understood is taken as null: one bad row must not hide the rest.
fn seen(mut row: Row, multi_primary: bool) -> LockRow {
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
    LockRow {
        name: text(row, 0).unwrap_or_default(),
        holder: text(row, 1),
        token: value(row, 2).unwrap_or_default(),
        grant: text(row, 3),
        expires_in: value(row, 4),
        is_infinite: value(row, 5) == Some(1),
        is_legacy: value(row, 6) == Some(1),
        held_for: value(row, 7),
        acquired_at: value(row, 8),
        renewed_at: value(row, 9),
        expires_at: value(row, 10),
        metadata: text(row, 11),
        multi_primary,
    }
}

/// Cut a list into as few JSON arrays as fit into a statement.
pub(crate) fn packed<T>(
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
