//! Clusters of servers that can all be written to, each with a clock of its own: Galera, Percona
//! XtraDB Cluster, and Group Replication without a single primary.
//!
//! All nodes receive the commits in one order. A node certifies a transaction only if no earlier
//! transaction that it had not seen has written the same row. So either the conditions of a
//! statement still hold at its commit, or the statement fails (error 1213 or 3101) and is tried
//! again. A node that lags does no harm to a statement that writes: it cannot grant a lock that
//! another node has granted, nor renew or release a grant that is gone. Only a plain read from
//! which the client *concludes* that a grant is gone needs a recent row. Before such a read the
//! session is set to wait until the node has caught up.
//!
//! The clock of a node is not compared with times that another node has written: see [`Version`].

use mysql_async::Params;

use protocol::Version;

/// The kind of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    Galera,
    Group,
}

/// The clock of the server, in microseconds since 1970.
pub(crate) const CLOCK: &str =
    "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))";

/// The condition that a lease has ended, by the clock of a single server.
pub(crate) const ENDED: &str = "expires_at <= UTC_TIMESTAMP(6)";
/// The condition that a lease has not ended.
pub(crate) const LIVE: &str = "expires_at > UTC_TIMESTAMP(6)";

/// [`ENDED`] on a cluster: the lease is the one that this client has observed for its full length.
/// All parameters are null if it has observed none.
///
/// A rest ends by the clock of this node too. It protects no work, so a wrong clock makes it
/// shorter and nothing worse.
pub(crate) const ENDED_ON_CLUSTER: &str = "
               token = :seen_token
               AND expires_at = TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL :seen_expires_at MICROSECOND
               AND renewed_at <=> TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL :seen_renewed_at MICROSECOND
               OR grant_id IS NULL AND granted_until = expires_at
               AND expires_at <= UTC_TIMESTAMP(6)";
/// [`LIVE`] on a cluster, where a lease lives until another client acquires the lock.
pub(crate) const LIVE_ON_CLUSTER: &str = "expires_at IS NOT NULL";

/// The condition that the latest grant began too long ago to keep this one from beginning. The
/// parameter is null if it keeps none, and an `acquired_at` further in the future is from before
/// the clock was set back. On a cluster it is the clock of the node that made that grant, and the
/// window absorbs the difference of the clocks. Of a lock that was ever shared every grant is due:
/// the client refuses it then, since the latest one may have given up while it waited for shared
/// ones.
pub(crate) const DUE: &str = "
               (NOT shared AND acquired_at BETWEEN UTC_TIMESTAMP(6) - INTERVAL :not_within MICROSECOND
                                AND UTC_TIMESTAMP(6) + INTERVAL :not_within MICROSECOND)
               IS NOT TRUE";

/// The length of a renewed lease; null for one without end.
pub(crate) const LENGTH: &str = "g.length";
/// [`LENGTH`] on a cluster: no shorter than before, and clients that observe the lease start again.
///
/// No clock tells how much of the lease is left: the clock of this node may be five minutes ahead of
/// that of another node, which has granted the lease for ten minutes. Nor may the later of two ends
/// stay: one written by a clock that was ahead would stay for far longer than the ttl.
pub(crate) const LENGTH_ON_CLUSTER: &str = "
                       IF(l.expires_at = TIMESTAMP'9999-12-31 00:00:00', NULL,
                          GREATEST(g.length, IFNULL(
                              TIMESTAMPDIFF(MICROSECOND, l.renewed_at, l.expires_at), 0)))";

/// The end of a renewed lease.
pub(crate) const UNTIL: &str = "
               GREATEST(l.expires_at, IFNULL(UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00'))";
/// [`UNTIL`] on a cluster.
pub(crate) const UNTIL_ON_CLUSTER: &str =
    "IFNULL(UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND, TIMESTAMP'9999-12-31 00:00:00')";

/// The condition that the server accepts writes of all users. A privileged user may write in spite
/// of `read_only`, and writes to a replica are lost at a failover. `read_only` is OFF on MariaDB
/// and 0 on MySQL; some versions have further values.
pub(crate) const WRITABLE: &str = "CONCAT(@@global.read_only) IN ('0', 'OFF')";

/// Put the conditions on a lease, its clock, its length and its end into a statement. A statement about many locks has the observed
/// version of each in its list.
pub(crate) fn fill(statement: &str, cluster: Option<Cluster>) -> String {
    let (ended, live, grace) = match cluster {
        None => (ENDED, LIVE, "1 MINUTE"),
        Some(_) => (ENDED_ON_CLUSTER, LIVE_ON_CLUSTER, "1 DAY"),
    };
    let (length, until) = match cluster {
        None => (LENGTH, UNTIL),
        Some(_) => (LENGTH_ON_CLUSTER, UNTIL_ON_CLUSTER),
    };
    let each = ended.replace(":seen_", "g.seen_");
    // The list of a statement about many locks has a column of that name too.
    let each = each.replace("grant_id", "l.grant_id");
    let due_each = DUE.replace(":not_within", "g.not_within");
    let text = statement.replace("{ended}", ended);
    let text = text.replace("{grace}", grace).replace("{clock}", CLOCK);
    let text = text.replace("{length}", length).replace("{until}", until);
    let text = text.replace("{writable}", WRITABLE);
    let text = text.replace("{ended_each}", &each).replace("{live}", live);
    text.replace("{due_each}", &due_each).replace("{due}", DUE)
}

/// These named parameters, and those of [`ENDED_ON_CLUSTER`].
pub(crate) fn with_version(mut params: Params, expired_version: Option<&Version>) -> Params {
    if let Params::Named(named) = &mut params {
        let mut add = |name: &str, value: Option<i64>| named.insert(name.into(), value.into());
        add("seen_token", expired_version.map(|seen| seen.token));
        add(
            "seen_expires_at",
            expired_version.map(|seen| seen.expires_at),
        );
        add(
            "seen_renewed_at",
            expired_version.and_then(|seen| seen.renewed_at),
        );
    }
    params
}

impl Cluster {
    /// Makes the next statements wait until this node has caught up with the others.
    pub(crate) fn catch_up(self) -> &'static str {
        match self {
            Self::Galera => "SET SESSION wsrep_sync_wait = 1",
            Self::Group => "SET SESSION group_replication_consistency = 'BEFORE'",
        }
    }

    /// Ends that.
    pub(crate) fn stop_catching_up(self) -> &'static str {
        match self {
            Self::Galera => "SET SESSION wsrep_sync_wait = DEFAULT",
            Self::Group => "SET SESSION group_replication_consistency = DEFAULT",
        }
    }
}
