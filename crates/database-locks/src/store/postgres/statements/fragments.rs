//! The parts that statements share. In the text of a statement they are placeholders.

/// A time, or the length from or to one, in microseconds. NULL for a time outside the range of this
/// protocol, from which the server may be unable to subtract (`infinity`).
macro_rules! micros {
    ($time:literal, $what:literal) => {
        concat!(
            "(extract(epoch FROM CASE WHEN ",
            $time,
            " BETWEEN '1970-01-01 00:00:00+00'
             AND '9999-12-31 00:00:00+00' THEN ",
            $what,
            " END) * 1000000)::bigint"
        )
    };
}

/// The state of the lock in a row `l`.
const STATE: &str = concat!(
    "l.locked_by::text, l.token, l.grant_id::text, l.shared,
       ",
    micros!("l.expires_at", "l.expires_at - statement_timestamp()"),
    " AS expires_in,
       l.expires_at >= '9999-12-31 00:00:00+00' AS is_infinite,
       l.granted_until IS DISTINCT FROM l.expires_at AS is_legacy,
       ",
    micros!("l.acquired_at", "statement_timestamp() - l.acquired_at"),
    " AS held_for"
);

/// All columns of a row `l`.
const ROW: &str = concat!(
    "name::text, {?slot, permits::bigint,?} {state},
       ",
    micros!("acquired_at", "acquired_at"),
    " AS acquired_at,
       ",
    micros!("renewed_at", "renewed_at"),
    " AS renewed_at,
       ",
    micros!("expires_at", "expires_at"),
    " AS expires_at,
       metadata::text"
);

/// The database's clock in milliseconds, the least new token.
const NOW_MS: &str = "(extract(epoch FROM statement_timestamp()) * 1000)::bigint";

/// The columns that a grant sets: `$2` grant id, `$3` holder, `$4` length, `$5` metadata.
const GRANT: &str = "
       locked_by = $3, grant_id = $2, metadata = $5,
       token = GREATEST(l.token + 1 + l.shared::int, {now_ms}),
       expires_at = statement_timestamp() + $4 * interval '1 microsecond',
       granted_until = statement_timestamp() + $4 * interval '1 microsecond',
       acquired_at = statement_timestamp(), renewed_at = statement_timestamp()";

/// Make the transaction that writes this row durable, even if the role's setting is `off`. A
/// stricter setting (`remote_apply`) stays.
const DURABLE: &str = "CASE current_setting('synchronous_commit')
       WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END";

/// Notify of a row of `f` that was freed or taken over. The name of the channel contains the number
/// of the table, so that clients which refer to the table by different names use the same channel.
const NOTIFY: &str = "pg_notify('database_locks_' || '{locks}'::regclass::oid, f.name::text)::text";

/// The number of permits of the semaphore `$1` that the operator has set, or NULL.
const LIMIT: &str = "(SELECT permits FROM {table} WHERE name = $1 AND slot = -1)";

/// Put the parts into the text of a statement. The names of the tables are put in afterwards.
pub(crate) fn expand(statement: &str) -> String {
    let grant_many = GRANT.replace("$2", "p.grant_id").replace("$3", "p.holder");
    let grant_many = grant_many
        .replace("$4", "p.length")
        .replace("$5", "p.metadata");
    [
        ("{row}", ROW),
        ("{state}", STATE),
        ("{grant}", GRANT),
        ("{grant_many}", grant_many.as_str()),
        ("{now_ms}", NOW_MS),
        ("{durable}", DURABLE),
        ("{notify}", NOTIFY),
        ("{limit}", LIMIT),
    ]
    .iter()
    .fold(statement.to_owned(), |text, (name, part)| {
        text.replace(name, part)
    })
}
