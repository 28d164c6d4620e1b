//! The identity of the server, by which a failover is noticed.
//!
//! A cluster has a *system identifier* from when it was made, which its standbys share, and a
//! *timeline*, which goes up with each promotion. Both may be read by every role:
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA> and
//! <https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-BACKUP>.

use tokio_postgres::Client;

use crate::store::connect::hosts::ConnectFailure;
use crate::store::connect::url::Address;
use crate::store::postgres::error::ServerError;
use protocol::Primary;

/// The timeline is the first eight digits of the name of the WAL file that is being written.
/// `pg_control_checkpoint()` shows the former timeline for minutes after a promotion.
const IDENTITY: &str = "
    SELECT system_identifier AS system,
           CASE WHEN NOT pg_is_in_recovery()
                THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline
      FROM pg_control_system()";

/// Query the identity of the server. `None` if it is unknown: services that differ from PostgreSQL
/// may lack these functions, and a standby has no timeline of its own.
pub(crate) async fn ask(client: &Client) -> Option<Primary> {
    let rows = match client.query_typed(IDENTITY, &[]).await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::debug!(
                "the server does not say which it is: {}",
                ServerError::from(error).message
            );
            return None;
        }
    };
    let row = rows.first()?;
    let timeline: Option<&str> = row.try_get("timeline").ok()?;
    Some(Primary {
        system: row.try_get("system").ok()?,
        timeline: u32::from_str_radix(timeline?, 16).ok()?,
    })
}

/// Refuse a former primary, which does not have the grants of the primary that replaced it.
///
/// If an operator brings a former primary back, the programs that the new one has served have to be
/// restarted. Otherwise a process might alternate between the two.
pub(crate) fn no_step_back(
    address: &Address,
    found: Option<Primary>,
    latest: Option<Primary>,
) -> Result<(), ConnectFailure> {
    match (found, latest) {
        (Some(found), Some(latest))
            if found.system == latest.system && found.timeline < latest.timeline =>
        {
            let (old, new) = (found.timeline, latest.timeline);
            Err(ServerError::unavailable(format!(
                "{address} is a former primary, of timeline {old}, and that of timeline {new} has \
                 taken its place (if it was brought back on purpose, restart this program)"
            ))
            .into())
        }
        _ => Ok(()),
    }
}

/// Log that another server has replaced the former one.
pub(crate) fn log(before: Primary, now: Primary) {
    let which = match before.system == now.system {
        true => format!("timeline {} after {}", now.timeline, before.timeline),
        false => format!("system {} after {}", now.system, before.system),
    };
    tracing::warn!(
        "another server has taken the place of the database's ({which}): locks that it does not know \
         of are lost"
    );
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
            // Another cluster has other timelines.
            (server(7, 1), server(1, 2)),
        ] {
            assert!(step(found, latest).is_ok(), "{found:?} after {latest:?}");
        }
        let failure = step(server(1, 2), server(1, 3)).unwrap_err();
        assert_eq!(
            failure.kind,
            crate::store::connect::hosts::FailureKind::Unavailable
        );
        let message = "db:5432 is a former primary, of timeline 2, and that of timeline 3 has";
        assert!(failure.message.starts_with(message), "{}", failure.message);
    }
}
