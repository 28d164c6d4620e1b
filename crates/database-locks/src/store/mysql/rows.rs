//! Conversion of rows, and lists of parameters as JSON.

use std::collections::HashMap;
use std::time::Duration;

use mysql_async::prelude::FromValue;
use mysql_async::{Row, Value, from_value_opt};

use crate::store::connect::table::Rows;
use protocol::{LockRow, Outcome, Slot, Token};

/// The token in an insert id.
pub(crate) fn token(id: u64) -> Token {
    Token::from_db(i64::try_from(id).unwrap_or(i64::MAX))
}

/// The outcome of an acquire with this insert id: the token, with its highest bit set if the lock
/// was ever shared.
pub(crate) fn granted_as(id: u64, length: Duration) -> Outcome {
    const SHARED: u64 = 1 << 63;
    Outcome::granted(Slot::Lock, token(id & !SHARED), length).of_shared(id & SHARED != 0)
}

/// A row of the reading statements. A value that cannot be converted counts as null, since one bad
/// row must not hide the others.
pub(crate) fn lock_row(of: Rows, mut row: Row, multi_primary: bool) -> LockRow {
    fn value<T: FromValue>(row: &mut Row, column: &str) -> Option<T> {
        match row.take(column)? {
            Value::NULL => None,
            value => from_value_opt(value).ok(),
        }
    }
    fn string(row: &mut Row, column: &str) -> Option<String> {
        value(row, column).map(|bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned())
    }
    let row = &mut row;
    LockRow {
        name: string(row, "name").unwrap_or_default(),
        slot: match of {
            Rows::Locks => Slot::Lock,
            Rows::Permits => {
                let slot = value(row, "slot").and_then(Slot::from_db);
                slot.unwrap_or(Slot::AnyPermit)
            }
        },
        permits: value(row, "permits"),
        holder: string(row, "locked_by"),
        token: value(row, "token").unwrap_or_default(),
        grant: string(row, "grant_id"),
        expires_in: value(row, "expires_in"),
        is_infinite: value(row, "is_infinite") == Some(1),
        is_legacy: value(row, "is_legacy") == Some(1),
        is_shared: value(row, "shared") == Some(1),
        held_for: value(row, "held_for"),
        acquired_at: value(row, "acquired_at"),
        renewed_at: value(row, "renewed_at"),
        expires_at: value(row, "expired_at"),
        metadata: string(row, "metadata"),
        multi_primary,
    }
}

/// The rows by their names and slots.
pub(crate) fn by_slot(rows: &[LockRow]) -> HashMap<(&str, Slot), &LockRow> {
    let keyed = rows.iter().map(|row| ((row.name.as_str(), row.slot), row));
    keyed.collect()
}

/// Split a list into the fewest JSON arrays that fit into a statement.
pub(crate) fn packed<T>(
    mut items: &[T],
    max_parameter_len: usize,
    describe: impl Fn(&T) -> serde_json::Value,
) -> Vec<(&[T], String)> {
    let mut packs = Vec::new();
    while !items.is_empty() {
        let (mut text, mut taken) = (String::from("["), 0);
        for item in items {
            let item = describe(item).to_string();
            if taken > 0 {
                if text.len() + item.len() + 2 > max_parameter_len {
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_long_list_is_cut_where_the_packet_ends() {
        let items = ["aa", "bb", "cc"];
        let texts = |max_parameter_len| {
            let packs = packed(&items, max_parameter_len, |item| json!(item));
            packs.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert_eq!(texts(1000), [r#"["aa","bb","cc"]"#]);
        assert_eq!(texts(11), [r#"["aa","bb"]"#, r#"["cc"]"#]);
        // An item that is too long by itself is left to the server to refuse.
        assert_eq!(texts(1).len(), 3);
    }
}
