//! Clusters of servers that can all be written to, each with a clock of its own: Galera, Percona
//! XtraDB Cluster, and Group Replication without a single primary.
//!
//! A commit goes to all of them in one order, and each lets a transaction pass only if no earlier
//! one, which it had not seen, has written the same row. So the conditions of a statement still
//! hold at its commit, or the statement fails (error 1213 or 3101) and is tried again. A node that
//! lags therefore does no harm to a statement that writes: it cannot grant what another node has
//! granted, nor renew or release what is gone. Only the *conclusion* from a plain read that a grant
//! is gone needs a recent row: before such a read the node is told to catch up.
//!
//! The clock of a node is not compared with what another has written: see [`Version`].

use mysql_async::Value;

use protocol::Version;

/// How the servers of a cluster agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    Galera,
    Group,
}

/// A lease that has ended, so that the lock may be granted: by the clock of the one server there
/// is.
pub(crate) const ENDED: &str = "expires_at <= UTC_TIMESTAMP(6)";
/// A lease that has not.
pub(crate) const LIVE: &str = "expires_at > UTC_TIMESTAMP(6)";

/// The same on a cluster: it is the lease that this client has watched for its whole length. Null
/// for each: it has watched none.
pub(crate) const ENDED_ON_CLUSTER: &str = "
               token = :seen_token
               AND expires_at = TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL :seen_expires_at MICROSECOND
               AND renewed_at <=> TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL :seen_renewed_at MICROSECOND";
/// On a cluster a lease lives until another client acquires the lock.
pub(crate) const LIVE_ON_CLUSTER: &str = "expires_at IS NOT NULL";

/// Whether the server takes writes of all users. A privileged user may write in spite of
/// `read_only`, and what is written to a replica is lost at the failover. MariaDB says OFF, MySQL
/// 0; some versions know more values.
pub(crate) const WRITABLE: &str = "CONCAT(@@global.read_only) IN ('0', 'OFF')";

/// Fill in the conditions on a lease. In a statement about many locks, the watched version stands
/// beside each.
pub(crate) fn fill(statement: &str, cluster: Option<Cluster>) -> String {
    let (ended, live, grace) = match cluster {
        None => (ENDED, LIVE, "1 MINUTE"),
        Some(_) => (ENDED_ON_CLUSTER, LIVE_ON_CLUSTER, "1 DAY"),
    };
    let each = ended.replace(":seen_", "g.seen_");
    let text = statement.replace("{ended}", ended);
    let text = text.replace("{grace}", grace);
    let text = text.replace("{writable}", WRITABLE);
    text.replace("{ended_each}", &each).replace("{live}", live)
}

/// The parameters of [`ENDED_ON_CLUSTER`].
pub(crate) fn version(expired_version: Option<&Version>) -> [(String, Value); 3] {
    let (token, expires_at, renewed_at) = match expired_version {
        None => (None, None, None),
        Some(seen) => (Some(seen.token), Some(seen.expires_at), seen.renewed_at),
    };
    [
        ("seen_token".into(), token.into()),
        ("seen_expires_at".into(), expires_at.into()),
        ("seen_renewed_at".into(), renewed_at.into()),
    ]
}

impl Cluster {
    /// Let the next statements wait until this node has caught up with the others.
    pub(crate) fn catch_up(self) -> &'static str {
        match self {
            Self::Galera => "SET SESSION wsrep_sync_wait = 1",
            Self::Group => "SET SESSION group_replication_consistency = 'BEFORE'",
        }
    }

    /// Let them no longer wait.
    pub(crate) fn stop_catching_up(self) -> &'static str {
        match self {
            Self::Galera => "SET SESSION wsrep_sync_wait = DEFAULT",
            Self::Group => "SET SESSION group_replication_consistency = DEFAULT",
        }
    }
}
