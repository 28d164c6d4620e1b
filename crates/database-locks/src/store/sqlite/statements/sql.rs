//! The statements, with the name of the table.

use crate::store::connect::table::{Rows, Table};

/// The columns of a row, under the names that [`rows`](crate::store::sqlite::rows) uses.
/// `unixepoch` answers NULL for a text that is not a time.
macro_rules! lock_row {
    ($rest:literal) => {
        concat!(
            "SELECT name{?, slot, permits?}, locked_by, token, grant_id, shared,
                    unixepoch(expires_at, 'subsec') - unixepoch('now', 'subsec') AS expires_in,
                    expires_at LIKE '9999-12-31 00:00:00%' AS is_infinite,
                    granted_until IS NOT expires_at AS is_legacy,
                    unixepoch('now', 'subsec') - unixepoch(acquired_at, 'subsec') AS held_for,
                    unixepoch(acquired_at, 'subsec') AS acquired,
                    unixepoch(renewed_at, 'subsec') AS renewed,
                    unixepoch(expires_at, 'subsec') AS expires,
                    metadata
               FROM {table} ",
            $rest
        )
    };
}

/// Each statement: its name, its heading in `docs/protocol.md`, and its text.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident, $heading:literal = $text:expr;)+) => {
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Sql {
            $($(#[$doc])* $name,)+
        }

        /// The statements of one table.
        #[derive(Debug)]
        pub(crate) struct Statements([String; [$(Sql::$name),+].len()]);

        impl Statements {
            pub(crate) fn of(table: &Table, of: Rows) -> Self {
                Self([$(table.fill_in(of, $text)),+])
            }

            pub(crate) fn get(&self, sql: Sql) -> &str {
                &self.0[sql as usize]
            }
        }

        #[cfg(test)]
        pub(crate) const PUBLISHED: &[(&str, &str)] = &[$(($heading, $text)),+];
    };
}

statements! {
    /// Read the row of a lock, or those of permits, shared grants and the operator's limit (slot −1).
    /// Takes no lock of the file, so that a losing attempt writes nothing and waits for no writer.
    Read, "read" = lock_row!("WHERE name = ?1{? AND slot BETWEEN ?2 AND ?3 ORDER BY slot?}");

    /// The last of the next thousand ids after `?1`; null if there are no more.
    PageEnd, "find the end of a page" = "
    SELECT max(id) FROM (SELECT id FROM {table} WHERE id > ?1 ORDER BY id LIMIT 1000)";

    /// The rows of such a page, after `?1` up to `?2`: all or, if `?3`, those that are not free;
    /// with names that begin with `?4`.
    ReadPage, "read a page" = lock_row!(
    "WHERE id > ?1 AND id <= ?2 AND NOT (?3 AND expires_at IS NULL)
                AND substr(name, 1, length(?4)) = ?4{? AND slot <> -1?}
              ORDER BY id"
);

    /// Whether a lock is held or rests. One row: it does, and an acquire need not wait for the lock
    /// on the file.
    IsHeld, "check whether it is held" = "
    SELECT 1 FROM {table} WHERE name = ?1 AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')";

    /// Acquire a lock that is free, or whose lease has ended. One row changed: granted.
    ///
    /// `?6` and `?7` are how long ago the latest grant has to have begun, as modifiers into the
    /// past and into the future; null if it may have begun at any time.
    ///
    /// The token is the greater of the old one + 1 and the clock in milliseconds: so it exceeds the
    /// tokens of a deleted row, and of one that a backup or a copied table has brought back.
    Acquire, "acquire" = "
    UPDATE {table} SET
           {?permits = ?9, ?}locked_by = ?2, grant_id = ?3, metadata = ?4,
           token = max(token + 1 + shared, CAST(unixepoch('now', 'subsec') * 1000 AS integer)),
           expires_at = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           granted_until = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           acquired_at = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1{? AND slot = ?8?}
       AND (expires_at IS NULL OR expires_at <= strftime('%Y-%m-%d %H:%M:%f000', 'now'))
       AND (NOT shared AND acquired_at BETWEEN strftime('%Y-%m-%d %H:%M:%f000', 'now', ?6)
                            AND strftime('%Y-%m-%d %H:%M:%f000', 'now', ?7)) IS NOT TRUE";

    /// Acquire a lock that has no row. It comes second, since an INSERT also writes the row of
    /// `sqlite_sequence`, in another page.
    Insert, "acquire a lock that has no row" = "
    INSERT INTO {table}
           (name, {?slot, permits, ?}locked_by, grant_id, metadata, token,
            expires_at, granted_until, acquired_at, renewed_at)
    VALUES (?1, {??8, ?9, ?}?2, ?3, ?4, CAST(unixepoch('now', 'subsec') * 1000 AS integer),
            strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5), strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
            strftime('%Y-%m-%d %H:%M:%f000', 'now'), strftime('%Y-%m-%d %H:%M:%f000', 'now'))
    ON CONFLICT (name{?, slot?}) DO NOTHING";

    /// The token of a grant that was just made. `RETURNING` would make a table in memory for its
    /// one row, which takes longer than the rest of the statement.
    ReadToken, "read the token of a grant" = "SELECT token, shared FROM {table} WHERE name = ?1{? AND slot = ?2?}";

    /// Extend one lease, never shorten it. One row changed: renewed.
    Renew, "renew" = "
    UPDATE {table} SET
           expires_at = max(expires_at, ifnull(strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
                                               '9999-12-31 00:00:00.000000')),
           granted_until = max(expires_at, ifnull(strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
                                                  '9999-12-31 00:00:00.000000')),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1{? AND slot = ?6?} AND token = ?2 AND grant_id = ?3 AND locked_by = ?4
       AND granted_until = expires_at
       AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')";

    /// Preempt a grant of the same holder: `?6` token and `?7` grant id are those that were read.
    /// One row: granted. A row of this library without a grant id rests, and its rest is not ended.
    Preempt, "preempt" = "
    UPDATE {table} SET
           grant_id = ?3, metadata = ?4,
           token = max(token + 1 + shared, CAST(unixepoch('now', 'subsec') * 1000 AS integer)),
           expires_at = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           granted_until = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           acquired_at = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1 AND locked_by = ?2 AND token = ?6 AND grant_id IS ?7
       AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
       AND (grant_id IS NOT NULL OR granted_until IS NOT expires_at)
    RETURNING token, shared";

    /// Replace a grant that still holds the lock. The row may have the new grant already, since the
    /// request is repeated when its reply was lost.
    Resume, "resume" = "
    UPDATE {table} SET
           locked_by = ?5, grant_id = ?4, metadata = ?6,
           expires_at = max(expires_at, strftime('%Y-%m-%d %H:%M:%f000', 'now', ?7)),
           granted_until = max(expires_at, strftime('%Y-%m-%d %H:%M:%f000', 'now', ?7)),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1{? AND slot = ?8?} AND token = ?2 AND grant_id IN (?3, ?4)
       AND granted_until = expires_at
       AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')";

    /// Release the lock if this grant still holds it. A token of NULL matches any token: the client
    /// never received it. `?5` is for how long the lock rests; null if it is free at once.
    Release, "release" = "
    UPDATE {table} SET
           expires_at = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           granted_until = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5), grant_id = NULL,
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1{? AND slot BETWEEN ?6 AND ?7?} AND token = ifnull(?2, token) AND grant_id = ?3 AND locked_by = ?4
       AND granted_until = expires_at";

    /// Release a lock by force. The token is raised, so that the holder can tell this from a
    /// release with its own ticket.
    Force, "release by force" = "
    UPDATE {table} SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL,
           token = max(token + 1, CAST(unixepoch('now', 'subsec') * 1000 AS integer)),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1{? AND slot = ?2?} AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
    RETURNING token";

    /// The locks on a page, after `?3` up to `?4`, that were not held for the time `?1`.
    ///
    /// A row whose token is ahead of the clock, after more than a thousand grants a second, stays:
    /// the token of a new row starts at the clock, and has to be greater. The row of a lock that was
    /// ever shared stays: without its mark an exclusive grant would not look for shared ones.
    Idle, "find rows to prune" = "
    SELECT id, name{?, slot?} FROM {table}
     WHERE id > ?3 AND id <= ?4{? AND slot <> -1?} AND (NOT shared{? OR slot < -1?})
       AND (expires_at <= strftime('%Y-%m-%d %H:%M:%f000', 'now', ?1)
        OR (expires_at IS NULL AND granted_until IS NULL
            AND renewed_at <= strftime('%Y-%m-%d %H:%M:%f000', 'now', ?1))
        OR (expires_at IS NULL AND (granted_until IS NOT NULL OR renewed_at IS NULL) AND ?2))
       AND token < CAST(unixepoch('now', 'subsec') * 1000 AS integer)";

    /// Delete one of them.
    Prune, "prune" = "DELETE FROM {table} WHERE id = ?1";

    /// The permits of a semaphore that have a row, and the operator's limit (slot −1).
    Permits, "read permits" = "
    SELECT slot, permits, expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now') AS held
      FROM {permits} WHERE name = ?1 AND slot >= -1 ORDER BY slot";

    /// Of the permits that are held: the one with the grant `?2`, or else the one whose lease ends
    /// first.
    FirstPermit, "read the permit whose lease ends first" = lock_row!(
    "WHERE name = ?1 AND slot >= 0
                AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
              ORDER BY grant_id IS ?2 DESC, expires_at LIMIT 1"
);

    /// Mark a lock as shared, which may not have a row.
    MarkShared, "mark a lock as shared" = "
    INSERT INTO {locks} (name, token, shared, renewed_at)
    VALUES (?1, CAST(unixepoch('now', 'subsec') * 1000 AS integer), true,
            strftime('%Y-%m-%d %H:%M:%f000', 'now'))
    ON CONFLICT (name) DO UPDATE SET shared = true";

    /// End a lease or a rest that has run out. The grant id stays, which tells the holder that its
    /// lease has expired.
    EndLease, "end a lease that has run out" = "
    UPDATE {locks} SET expires_at = NULL, granted_until = NULL,
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1";

    /// Insert a shared grant.
    InsertShared, "acquire, shared" = "
    INSERT INTO {permits}
           (name, slot, shared, locked_by, grant_id, metadata, token,
            expires_at, granted_until, acquired_at, renewed_at)
    SELECT name, ?6, true, ?2, ?3, ?4, token + 1,
           strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5), strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           strftime('%Y-%m-%d %H:%M:%f000', 'now'), strftime('%Y-%m-%d %H:%M:%f000', 'now')
      FROM {locks} WHERE name = ?1
    ON CONFLICT (name, slot) DO NOTHING";

    /// The shared grants of a lock, a thousand at most, the one that ends first in front. One that
    /// was released by force does not count: its row tells the holder.
    Readers, "read the shared grants" = lock_row!(
    "WHERE name = ?1 AND slot <= -2 AND expires_at IS NOT NULL
              ORDER BY expires_at LIMIT 1000"
);

    /// Delete a shared grant: released, or dead and without an open fence.
    DeleteShared, "release, shared" = "
    DELETE FROM {permits} WHERE name = ?1 AND slot = ?2 AND grant_id IS ?3";

    /// The limits that operators have set.
    Limits, "read limits" = "
    SELECT name, permits FROM {permits} WHERE slot = -1 AND permits IS NOT NULL";

    /// Set the operator's limit.
    SetLimit, "set a limit" = "
    INSERT INTO {permits} (name, slot, permits) VALUES (?1, -1, ?2)
    ON CONFLICT (name, slot) DO UPDATE SET permits = ?2";
}
