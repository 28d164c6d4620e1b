//! Conversion of rows, and durations as modifiers of SQLite's date functions.

use std::time::Duration;

use rusqlite::Row;

use crate::store::api::bounded;
use crate::store::connect::table::Rows;
use protocol::{LockRow, Outcome, Slot, Token};

/// A duration as a modifier. Rounded up, so that it is never shorter than the trust of the holder.
pub(crate) fn modifier(length: Duration) -> String {
    let ms = length.as_micros().div_ceil(1000);
    format!("+{}.{:03} seconds", ms / 1000, ms % 1000)
}

/// A duration as a modifier into the past.
pub(crate) fn ago(length: Duration) -> String {
    modifier(bounded(length)).replacen('+', "-", 1)
}

pub(crate) fn lock_row(of: Rows, row: &Row<'_>) -> rusqlite::Result<LockRow> {
    let (slot, permits) = match of {
        Rows::Locks => (Slot::Lock, None),
        Rows::Permits => {
            let slot = Slot::from_db(row.get("slot")?);
            (slot.unwrap_or(Slot::AnyPermit), row.get("permits")?)
        }
    };
    let micros = |column| -> rusqlite::Result<Option<i64>> {
        let seconds = row.get::<_, Option<f64>>(column)?;
        Ok(seconds.map(|seconds| (seconds * 1e6) as i64))
    };
    Ok(LockRow {
        name: row.get("name")?,
        slot,
        permits,
        holder: row.get("locked_by")?,
        token: row.get("token")?,
        grant: row.get("grant_id")?,
        expires_in: micros("expires_in")?,
        is_infinite: row
            .get::<_, Option<bool>>("is_infinite")?
            .unwrap_or_default(),
        is_legacy: row.get("is_legacy")?,
        is_shared: row.get("shared")?,
        held_for: micros("held_for")?,
        acquired_at: micros("acquired")?,
        renewed_at: micros("renewed")?,
        expires_at: micros("expires")?,
        metadata: row.get("metadata")?,
        ..LockRow::default()
    })
}

/// The outcome of a grant, by the token in its row.
pub(crate) fn granted(slot: Slot, length: Duration, row: &Row<'_>) -> rusqlite::Result<Outcome> {
    let token = Token::from_db(row.get("token")?);
    Ok(Outcome::granted(slot, token, length).of_shared(row.get("shared")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_never_rounded_down() {
        assert_eq!(modifier(Duration::from_micros(1_500_001)), "+1.501 seconds");
        assert_eq!(
            modifier(Duration::from_secs(315_576_000)),
            "+315576000.000 seconds"
        );
        assert_eq!(ago(Duration::from_micros(1)), "-0.001 seconds");
    }
}
