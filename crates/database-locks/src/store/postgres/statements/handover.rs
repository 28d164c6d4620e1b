//! Taking a lock from whoever has it: from the same holder, or by a ticket.

use std::slice;

use tokio_postgres::types::Type;

use crate::store::postgres::connection::{Connection, Param};
use crate::store::postgres::error::Refusal;
use crate::store::postgres::rows::micros;
use crate::store::postgres::{Sql, failover, read};
use protocol::{Outcome, Renewal, ResumeCommand, TakeOverCommand, Token, judge_ticket};

/// Take a lock from its own holder, who comes again: parameters as for [`ACQUIRE_ONE`](crate::store::postgres::ACQUIRE_ONE),
/// with `$6` the token and `$7` the grant id that were seen. One row: granted, with its token. No row: a
/// read tells why.
///
/// The grant that ends is notified, as by a release by force.
///
/// The end of the lease is not asked for: a renewal in between makes it no other grant. `FOR UPDATE`
/// as for every new token, so that an open fence keeps it out.
pub(crate) const TAKE_OVER: &str = concat!(
    "
UPDATE {table} f SET
       grant_id = $2, metadata = $5,
       token = GREATEST(token + 1, ",
    clock_ms!(),
    "),
       expires_at = statement_timestamp() + $4 * interval '1 microsecond',
       granted_until = statement_timestamp() + $4 * interval '1 microsecond',
       acquired_at = statement_timestamp(), renewed_at = statement_timestamp()
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND locked_by = $3 AND token = $6
                AND grant_id IS NOT DISTINCT FROM $7 AND expires_at > statement_timestamp()
                FOR UPDATE SKIP LOCKED)
RETURNING token,
       ",
    durable!(),
    ",
       ",
    ring!("true")
);

pub(crate) async fn take_over(on: &Connection, what: &TakeOverCommand) -> Result<Outcome, Refusal> {
    let to = &what.to;
    let params: [Param<'_>; 7] = [
        (&to.name.as_str(), Type::TEXT),
        (&to.grant.as_str(), Type::TEXT),
        (&&*to.holder, Type::TEXT),
        (&micros(to.length), Type::INT8),
        (&&*to.metadata, Type::TEXT),
        (&what.token.get(), Type::INT8),
        (&what.grant.as_deref(), Type::TEXT),
    ];
    let rows = on
        .rows(Sql::TakeOverCommand as usize, true, &params)
        .await?;
    let outcome = match rows.first() {
        Some(row) => Outcome::Granted {
            token: Token::from_db(row.try_get(0)?),
            length: to.length,
        },
        None => (read(on, slice::from_ref(&to.name)).await?.first())
            .map_or(Outcome::Busy, |row| row.not_taken_over(what)),
    };
    failover::granted(on, [(to, &outcome)].into_iter());
    Ok(outcome)
}

/// Put another grant in the place of one that is still held.
///
/// `$1` name, `$2` token, `$3` the grant that ends, `$4` the one that begins, `$5` its holder, `$6` its
/// metadata, `$7` length in microseconds. One row: resumed. No row: a read tells why.
///
/// That `$4` may stand there already is for a request that is made again, since its reply was lost.
pub(crate) const RESUME: &str = concat!(
    "
UPDATE {table} SET
       locked_by = $5, grant_id = $4, metadata = $6, renewed_at = statement_timestamp(),
       expires_at = GREATEST(expires_at, statement_timestamp() + $7 * interval '1 microsecond'),
       granted_until = GREATEST(expires_at, statement_timestamp() + $7 * interval '1 microsecond')
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND token = $2 AND grant_id IN ($3, $4)
                AND expires_at > statement_timestamp() AND granted_until = expires_at
                FOR UPDATE SKIP LOCKED)
RETURNING ",
    durable!()
);

pub(crate) async fn resume(on: &Connection, what: &ResumeCommand) -> Result<Renewal, Refusal> {
    let to = &what.to;
    let params: [Param<'_>; 7] = [
        (&to.name.as_str(), Type::TEXT),
        (&what.token.get(), Type::INT8),
        (&what.from.as_str(), Type::TEXT),
        (&to.grant.as_str(), Type::TEXT),
        (&&*to.holder, Type::TEXT),
        (&&*to.metadata, Type::TEXT),
        (&micros(to.length), Type::INT8),
    ];
    let rows = on.rows(Sql::ResumeCommand as usize, true, &params).await?;
    if rows.is_empty() {
        let rows = read(on, slice::from_ref(&to.name)).await?;
        return Ok(judge_ticket(what, rows.first()));
    }
    failover::confirmed(on, [&to.grant].into_iter());
    Ok(Renewal::Renewed)
}
