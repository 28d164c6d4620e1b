//! Taking locks: those whose rows are there, and those that have none yet.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::store::postgres::connection::{Connection, Param};
use crate::store::postgres::error::{Kind, Refusal};
use crate::store::postgres::failover;
use crate::store::postgres::rows::{micros, place, seen};
use crate::store::postgres::{LARGE, Sql};
use protocol::{AcquireCommand, Outcome, Token};

/// What a grant writes into a row.
macro_rules! grant {
    ($holder:literal, $grant:literal, $metadata:literal, $length:literal) => {
        concat!(
            "
       locked_by = ",
            $holder,
            ", grant_id = ",
            $grant,
            ", metadata = ",
            $metadata,
            ",
       token = GREATEST(l.token + 1, ",
            clock_ms!(),
            "),
       expires_at = statement_timestamp() + ",
            $length,
            " * interval '1 microsecond',
       granted_until = statement_timestamp() + ",
            $length,
            " * interval '1 microsecond',
       acquired_at = statement_timestamp(), renewed_at = statement_timestamp()"
        )
    };
}

/// Take one lock that is free or whose lease has run out.
///
/// `$1` name, `$2` grant id, `$3` holder, `$4` length in microseconds, `$5` metadata. One row: granted;
/// its place among what was asked, and the token. No row: lost, and "look or make" tells to whom.
///
/// The sub-select is run once and first, since it stands behind a plain `=`. It picks the newest version
/// of the row. A lock that is held is not picked, so losing writes nothing, not even a transaction id.
///
/// A grant must survive a crash, or two could be made.
///
/// The token is the greater of the old one + 1 and the database's clock in milliseconds: so it exceeds
/// those of a row that was deleted, and of one that a backup or a copied table has put back.
pub(crate) const ACQUIRE_ONE: &str = concat!(
    "
UPDATE {table} l SET",
    grant!("$3", "$2", "$5", "$4"),
    "
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND (expires_at IS NULL OR expires_at <= statement_timestamp())
                FOR UPDATE SKIP LOCKED)
RETURNING 1::bigint, token,
       ",
    durable!()
);

/// The same for many: `$1` names, `$2` grant ids, `$3` holders, `$4` lengths, `$5` metadata.
///
/// Asked for twice, a lock is granted once: an UPDATE writes a row only once. Each row is looked up by its name: see
/// [`RENEW`](super::renew::RENEW).
pub(crate) const ACQUIRE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT l.id, a.*
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
           WITH ORDINALITY AS a(name, grant_id, holder, length, metadata, place),
           LATERAL (SELECT id FROM {table}
                     WHERE name = a.name
                       AND (expires_at IS NULL OR expires_at <= statement_timestamp())
                       FOR UPDATE SKIP LOCKED) l
)
UPDATE {table} l SET",
    grant!("p.holder", "p.grant_id", "p.metadata", "p.length"),
    "
  FROM picked p
 WHERE l.id = p.id
RETURNING p.place, l.token,
       ",
    durable!()
);

/// Look who has a lock that an acquire did not get; if it has no row, make one, granted. Parameters as
/// for [`ACQUIRE_ONE`]. One row: its place, whether it is granted, and either the token or what stands in
/// the way. No row: another client makes the row just now.
///
/// This is the one statement that may have to wait: for a client that has just inserted the same name
/// and not yet committed. It gives up after 50 ms, since the renewals on this connection wait behind
/// it. The lease counts from before the wait, as the trust in it does.
pub(crate) const MAKE_ONE: &str = concat!(
    "
WITH made AS (
    INSERT INTO {table} (name, locked_by, grant_id, metadata, token,
           expires_at, granted_until, acquired_at, renewed_at)
    SELECT $1, $3, $2, $5, ",
    clock_ms!(),
    ",
           statement_timestamp() + $4 * interval '1 microsecond',
           statement_timestamp() + $4 * interval '1 microsecond',
           statement_timestamp(), statement_timestamp()
     WHERE NOT EXISTS (SELECT FROM {table} WHERE name = $1)
       AND set_config('lock_timeout', '50ms', true) IS NOT NULL
        ON CONFLICT (name) DO NOTHING
 RETURNING token, ",
    durable!(),
    "
)
SELECT 1::bigint, true, NULL::text, token, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint
  FROM made
 UNION ALL
SELECT 1::bigint, false, ",
    seen!(),
    "
  FROM {table} l
 WHERE name = $1"
);

/// The same for many; parameters as for [`ACQUIRE`].
pub(crate) const MAKE: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT a.*
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
           WITH ORDINALITY AS a(name, grant_id, holder, length, metadata, place)
), made AS (
    INSERT INTO {table} (name, locked_by, grant_id, metadata, token,
           expires_at, granted_until, acquired_at, renewed_at)
    SELECT a.name, a.holder, a.grant_id, a.metadata, ",
    clock_ms!(),
    ",
           statement_timestamp() + a.length * interval '1 microsecond',
           statement_timestamp() + a.length * interval '1 microsecond',
           statement_timestamp(), statement_timestamp()
      FROM asked a
     WHERE a.name NOT IN (SELECT l.name FROM asked a JOIN {table} l ON l.name = a.name)
       AND set_config('lock_timeout', '50ms', true) IS NOT NULL
     ORDER BY a.name COLLATE \"C\"
        ON CONFLICT (name) DO NOTHING
 RETURNING grant_id::text, token, ",
    durable!(),
    "
)
SELECT a.place, true, NULL::text, m.token, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint
  FROM asked a JOIN made m ON m.grant_id = a.grant_id
 UNION ALL
SELECT a.place, false, ",
    seen!(),
    "
  FROM asked a JOIN {table} l ON l.name = a.name"
);

pub(crate) async fn acquire(
    on: &Connection,
    asks: &[AcquireCommand],
) -> Result<Vec<Outcome>, Refusal> {
    let all: Vec<&AcquireCommand> = asks.iter().collect();
    let rows = with_asks(on, [Sql::AcquireOne, Sql::Acquire], &all).await?;
    let mut outcomes = vec![None; asks.len()];
    for row in &rows {
        let at = place(row, asks.len())?;
        outcomes[at] = Some(granted(asks[at].length, row.try_get(1)?));
    }
    let (lost, at): (Vec<&AcquireCommand>, Vec<usize>) = (asks.iter().zip(0..))
        .filter(|(_, at)| outcomes[*at].is_none())
        .unzip();
    for (at, outcome) in at.into_iter().zip(look_or_make(on, &lost).await?) {
        outcomes[at] = Some(outcome);
    }
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    failover::granted(on, asks.iter().zip(&outcomes));
    Ok(outcomes)
}

fn granted(length: Duration, token: i64) -> Outcome {
    let token = Token::from_db(token);
    Outcome::Granted { token, length }
}

/// Run the statement for one, or the one for many.
async fn with_asks(
    on: &Connection,
    [one, many]: [Sql; 2],
    asks: &[&AcquireCommand],
) -> Result<Vec<Row>, Refusal> {
    if asks.is_empty() {
        return Ok(Vec::new());
    }
    if let [ask] = asks {
        let params: [Param<'_>; 5] = [
            (&ask.name.as_str(), Type::TEXT),
            (&ask.grant.as_str(), Type::TEXT),
            (&&*ask.holder, Type::TEXT),
            (&micros(ask.length), Type::INT8),
            (&&*ask.metadata, Type::TEXT),
        ];
        return on.rows(one as usize, true, &params).await;
    }
    let names: Vec<_> = asks.iter().map(|ask| ask.name.as_str()).collect();
    let grants: Vec<_> = asks.iter().map(|ask| ask.grant.as_str()).collect();
    let holders: Vec<_> = asks.iter().map(|ask| &*ask.holder).collect();
    let lengths: Vec<_> = asks.iter().map(|ask| micros(ask.length)).collect();
    let metadata: Vec<_> = asks.iter().map(|ask| &*ask.metadata).collect();
    let params: [Param<'_>; 5] = [
        (&names, Type::TEXT_ARRAY),
        (&grants, Type::TEXT_ARRAY),
        (&holders, Type::TEXT_ARRAY),
        (&lengths, Type::INT8_ARRAY),
        (&metadata, Type::TEXT_ARRAY),
    ];
    on.rows(many as usize, asks.len() < LARGE, &params).await
}

/// What became of those that were not granted. A row that another client is making just now is busy.
async fn look_or_make(on: &Connection, asks: &[&AcquireCommand]) -> Result<Vec<Outcome>, Refusal> {
    match made(on, asks).await {
        Err(refusal) if refusal.kind == Kind::Contention && asks.len() == 1 => {
            Ok(vec![Outcome::Busy])
        }
        // One name that another client holds back must not keep a thousand others from being made:
        // each alone, in any order, until it is clear that there is more than one.
        Err(refusal) if refusal.kind == Kind::Contention => {
            let mut outcomes = vec![Outcome::Busy; asks.len()];
            let (start, mut failures) = (fastrand::usize(..asks.len()), 0);
            for at in (start..asks.len()).chain(0..start) {
                match made(on, &asks[at..=at]).await {
                    Err(refusal) if refusal.kind == Kind::Contention => failures += 1,
                    done => outcomes[at] = done?.remove(0),
                }
                if failures == 2 {
                    break;
                }
            }
            Ok(outcomes)
        }
        done => done,
    }
}

async fn made(on: &Connection, asks: &[&AcquireCommand]) -> Result<Vec<Outcome>, Refusal> {
    let rows = with_asks(on, [Sql::MakeOne, Sql::Make], asks).await?;
    let mut outcomes = vec![Outcome::Busy; asks.len()];
    for row in &rows {
        let at = place(row, asks.len())?;
        outcomes[at] = match row.try_get(1)? {
            true => granted(asks[at].length, row.try_get(3)?),
            false => seen(row, 2)?.refusal(asks[at].grant.as_str()),
        };
    }
    Ok(outcomes)
}
