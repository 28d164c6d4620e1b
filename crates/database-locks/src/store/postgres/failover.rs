//! Which server it is that answers: after a failover it is another one than that which granted.
//!
//! A cluster has a *system identifier* from when it was made, which its standbys share, and a
//! *timeline*, which goes up with each promotion. Both may be read by every role:
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA> and
//! <https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-BACKUP>.

use tokio_postgres::Client;

use super::connection::Connection;
use crate::client::own_grants::{self, Primary};
use crate::store::connect::hosts::Failure;
use crate::store::connect::url::Address;
use crate::store::postgres::error::{Kind, Refusal};
use protocol::{AcquireCommand, Grant, GrantId, LockRow, Outcome, Renewal, judge, judge_elsewhere};

/// The timeline is the first eight digits of the name of the file that is being written. Not that of
/// `pg_control_checkpoint()`, which for minutes after a promotion is still the old one.
const IDENTITY: &str = "
    SELECT system_identifier,
           CASE WHEN NOT pg_is_in_recovery()
                THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END
      FROM pg_control_system()";

/// Ask who it is. None where that is not to be known: a service that is not quite PostgreSQL may lack
/// these functions, and a standby writes no timeline.
pub(crate) async fn ask(client: &Client) -> Option<Primary> {
    let rows = match client.query_typed(IDENTITY, &[]).await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::debug!(
                "the server does not say which it is: {}",
                Refusal::from(error).said
            );
            return None;
        }
    };
    let row = rows.first()?;
    let timeline: Option<&str> = row.try_get(1).ok()?;
    Some(Primary {
        system: row.try_get(0).ok()?,
        timeline: u32::from_str_radix(timeline?, 16).ok()?,
    })
}

/// Refuse a primary whose place another one has taken: what it grants, that one does not know of.
///
/// Whoever brings an old primary back as it was, beside the new one or after it, has to restart what
/// was served by the new one: the other way round a process would go from one to the other, and back.
pub(crate) fn no_step_back(
    address: &Address,
    found: Option<Primary>,
    latest: Option<Primary>,
) -> Result<(), Failure<&'static str>> {
    match (found, latest) {
        (Some(found), Some(latest))
            if found.system == latest.system && found.timeline < latest.timeline =>
        {
            let (old, new) = (found.timeline, latest.timeline);
            Err(Refusal::unavailable(format!(
                "{address} is a former primary, of timeline {old}, and that of timeline {new} has \
                 taken its place (if it was brought back on purpose, restart this program)"
            ))
            .into())
        }
        _ => Ok(()),
    }
}

/// Another server has taken the place of the one that served before.
pub(crate) fn tell(before: Primary, now: Primary) {
    let which = match before.system == now.system {
        true => format!("timeline {} after {}", now.timeline, before.timeline),
        false => format!("system {} after {}", now.system, before.system),
    };
    tracing::warn!(
        "another server has taken the place of the database's ({which}): locks that it does not know \
         of are lost"
    );
}

/// Remember who made these grants.
pub(crate) fn granted<'a>(
    on: &Connection,
    asked: impl Iterator<Item = (&'a AcquireCommand, &'a Outcome)>,
) {
    let granted = asked.filter(|(_, outcome)| matches!(outcome, Outcome::Granted { .. }));
    confirmed(on, granted.map(|(ask, _)| &ask.grant));
}

/// Remember who granted or renewed these.
pub(crate) fn confirmed<'a>(on: &Connection, grants: impl Iterator<Item = &'a GrantId>) {
    if let Some(server) = on.server {
        own_grants::confirmed(server, grants.copied());
    }
}

/// What a plain read says of each grant that was not renewed; `rows` in the order of `grants`, none for
/// one that is gone.
///
/// Where another server says so than the one that confirmed the grant last, it is not known what
/// happened to it, but that it was forgotten.
pub(crate) async fn judge_all(
    on: &Connection,
    unrenewed: Vec<(&Grant, Option<&LockRow>)>,
) -> Result<Vec<Renewal>, Refusal> {
    let verdicts: Vec<_> = unrenewed
        .iter()
        .map(|(grant, row)| {
            let before = own_grants::confirmer(grant.id);
            match (before, on.server) {
                (Some(before), Some(now)) if before != now => judge_elsewhere(grant, *row),
                _ => judge(grant, *row),
            }
        })
        .collect();
    let lost = verdicts.iter().any(|it| matches!(it, Renewal::Lost(_)));
    if lost && !on.is_direct() && on.server.is_some() && ask(&on.client).await != on.server {
        // A pooler has gone on to another server under a connection that stayed. A new one knows
        // which, and asks again.
        return Err(Refusal {
            kind: Kind::Gone,
            said: "the pooler leads to another server than before".into(),
            code: None,
        });
    }
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_primary_is_refused_and_any_other_server_is_not() {
        let address = Address::Tcp("db".into(), 5432);
        let server = |system, timeline| Some(Primary { system, timeline });
        let step = |found, latest| no_step_back(&address, found, latest);
        for (found, latest) in [
            (server(1, 2), None),
            (None, server(1, 2)),
            (server(1, 2), server(1, 2)),
            (server(1, 3), server(1, 2)),
            // Another cluster counts its own.
            (server(7, 1), server(1, 2)),
        ] {
            assert!(step(found, latest).is_ok(), "{found:?} after {latest:?}");
        }
        let failure = step(server(1, 2), server(1, 3)).unwrap_err();
        assert_eq!(
            failure.verdict,
            crate::store::connect::hosts::Verdict::Unavailable
        );
        let said = "db:5432 is a former primary, of timeline 2, and that of timeline 3 has";
        assert!(failure.said.starts_with(said), "{}", failure.said);
    }
}
