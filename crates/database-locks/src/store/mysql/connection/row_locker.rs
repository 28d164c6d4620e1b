//! Finds the session that holds a row lock on the row of a lock.
//!
//! MariaDB shows a lock only while another transaction waits for it. So one connection waits for the row,
//! and another one asks the server which transaction it waits for.
//!
//! The two may reach different servers, behind HAProxy or with several hosts in the URL, and a proxy may give
//! them numbers of its own. Session 57 of the other server is a stranger, which may wait for a row too. So the
//! statement that waits has a random mark, and the look-up requires it.

use std::sync::Arc;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Error, Params, Row, params};

use super::config::Server;
use super::session::Session;
use crate::store::api::{StoreError, UNKNOWN_SESSION};
use crate::store::blocking_session::BlockingSession;
use crate::store::connect::table::Rows;
use protocol::{LockName, Slot};

/// MariaDB shows the same answer for 100 ms.
const PAUSE: Duration = Duration::from_millis(120);

/// A session that locks a row: its id, user, host, and for how many seconds its transaction is open.
type Locker = (u64, Option<String>, Option<String>, Option<u64>);

impl Session {
    /// Waits for the row. The transaction ends with the statement.
    const WAIT_FOR_ROW: &str =
        "SELECT /* {mark} */ id FROM {table} WHERE name = :name{? AND slot = :slot?} FOR UPDATE";
    const WAIT_FOR_ROW_AT_MOST: &str = "SET innodb_lock_wait_timeout = 1";

    /// The session for which the session `:id` waits with the statement that has `:mark`, first one that does
    /// not wait itself. Not by `innodb_trx` alone, whose rows the server renews only after 100 ms without a
    /// reader. The transaction may seem to begin later than now, if the server's clock was set back.
    const ROW_LOCKER: &str = "
        SELECT b.processlist_id, b.processlist_user, b.processlist_host,
               GREATEST(0, TIMESTAMPDIFF(SECOND,
                   CONVERT_TZ(x.trx_started, 'SYSTEM', '+00:00'), UTC_TIMESTAMP()))
          FROM performance_schema.threads r
               JOIN performance_schema.data_lock_waits w ON w.requesting_thread_id = r.thread_id
               JOIN performance_schema.threads b ON b.thread_id = w.blocking_thread_id
               LEFT JOIN information_schema.innodb_trx x ON x.trx_mysql_thread_id = b.processlist_id
         WHERE r.processlist_id = :id AND LOCATE(:mark, r.processlist_info) > 0
         ORDER BY EXISTS (SELECT 1 FROM performance_schema.data_lock_waits o
                           WHERE o.requesting_thread_id = w.blocking_thread_id), x.trx_started
         LIMIT 1";

    /// On MariaDB one client at a time looks: its tables of locks are renewed only after 100 ms in which
    /// no client reads them. The lock ends with the session.
    const TAKE_TURN: &str = "SELECT GET_LOCK('database_locks row locker', 2)";

    /// [`ROW_LOCKER`](Self::ROW_LOCKER) on MariaDB.
    const ROW_LOCKER_ON_MARIADB: &str = "
        SELECT b.trx_mysql_thread_id, p.user, p.host,
               GREATEST(0, TIMESTAMPDIFF(SECOND,
                   CONVERT_TZ(b.trx_started, 'SYSTEM', '+00:00'), UTC_TIMESTAMP()))
          FROM information_schema.innodb_trx r
               JOIN information_schema.innodb_lock_waits w ON w.requesting_trx_id = r.trx_id
               JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_trx_id
               LEFT JOIN information_schema.processlist p ON p.id = b.trx_mysql_thread_id
         WHERE r.trx_mysql_thread_id = :id AND LOCATE(:mark, r.trx_query) > 0
         ORDER BY b.trx_started LIMIT 1";

    /// Whether another transaction has the row locked for as long as this one waits.
    async fn waits_for_row(
        &mut self,
        of: Rows,
        mark: &str,
        params: Params,
    ) -> Result<bool, StoreError> {
        let statement = self.fill(of, Self::WAIT_FOR_ROW).replace("{mark}", mark);
        let waited: Result<Vec<Row>, Error> = self.conn.exec(statement, params).await;
        match waited {
            Ok(_) => Ok(false),
            Err(Error::Server(refused)) if refused.code == 1205 => Ok(true),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The locker, for a user without the rights to see it.
    fn unknown(&self) -> String {
        let rights = match self.mariadb {
            true => "PROCESS",
            false => "PROCESS and SELECT on performance_schema.*",
        };
        format!("{UNKNOWN_SESSION} ({rights} would show it)")
    }

    async fn row_locker(&mut self, id: u32, mark: &str) -> Result<Option<Locker>, StoreError> {
        let statement = match self.mariadb {
            true => Self::ROW_LOCKER_ON_MARIADB,
            false => Self::ROW_LOCKER,
        };
        let rows = self.rows_as(statement, params! { "id" => id, "mark" => mark });
        Ok(rows.await?.into_iter().next())
    }
}

/// The session that has the row of this lock or permit locked. It takes the right PROCESS, and on MySQL
/// SELECT on `performance_schema`.
pub(crate) async fn row_locker(
    server: &Arc<Server>,
    name: &LockName,
    slot: Slot,
) -> Result<Option<String>, StoreError> {
    let (mut waiting, mut asking) = tokio::try_join!(Session::open(server), Session::open(server))?;
    (waiting.execute_unprepared(Session::WAIT_FOR_ROW_AT_MOST)).await?;
    let (id, mark) = (waiting.conn.id(), format!("{:032x}", fastrand::u128(..)));
    let mut may_look = true;
    if asking.mariadb {
        // A cluster may refuse it. Without it the look-up may take longer.
        let _ = asking.execute_unprepared(Session::TAKE_TURN).await;
    }
    let ask = async {
        loop {
            tokio::time::sleep(PAUSE).await;
            match asking.row_locker(id, &mark).await {
                Ok(Some(locker)) => return described(locker),
                Ok(None) => {}
                // A right is missing. The wait finds out whether the row is locked.
                Err(failure) => {
                    tracing::debug!("cannot see which session has the row locked: {failure}");
                    may_look = false;
                    return std::future::pending().await;
                }
            }
        }
    };
    let params = params! { "name" => name.as_str(), "slot" => slot.range().0 };
    let locker = tokio::select! {
        biased;
        locker = ask => locker,
        waits = waiting.waits_for_row(Rows::of(slot), &mark, params) => {
            return Ok(waits?.then(|| match may_look {
                true => UNKNOWN_SESSION.to_owned(),
                false => asking.unknown(),
            }));
        }
    };
    // It would wait on for a second, and other transactions of the holder behind it. The look-up has found it
    // by its number on the server that gets this.
    let _ = asking.execute_unprepared(&format!("KILL {id}")).await;
    Ok(Some(locker))
}

/// The session, and how to end it.
fn described((id, user, host, open): Locker) -> String {
    let session = BlockingSession {
        id: format!("id {id}"),
        user,
        host,
        open: open.map(Duration::from_secs),
        ..BlockingSession::default()
    };
    // 0 stands for a transaction that was prepared for two-phase commit.
    match id {
        0 => "a prepared transaction, to be ended as XA RECOVER shows".to_owned(),
        id => format!("{session}; `KILL {id}` ends it"),
    }
}
