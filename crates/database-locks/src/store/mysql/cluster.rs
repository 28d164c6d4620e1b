//! Servers that can all be written to, and have a clock each: Galera, Percona XtraDB Cluster, and Group
//! Replication without a single primary.
//!
//! A commit goes to all of them in one order, and each lets a transaction pass only if no earlier one,
//! which it had not seen, has written the same row. So whatever a statement of ours asks of a row, the
//! row is so at its commit, or the statement fails (error 1213 or 3101) and is tried again. What a node
//! has not heard of yet therefore does no harm to a statement that writes: it cannot grant what another
//! node has granted, nor renew or release what is gone. Only what is *concluded* from a plain read needs
//! to be recent, namely that a grant is gone: before such a read the node is told to catch up.
//!
//! Nor is the clock of a node compared with what another has written: see [`Version`].

use mysql_async::{Params, Value, from_row_opt};

use super::super::StoreError;
use crate::store::connect::hosts::Failure;
use crate::store::mysql::connection::session::Session;
use protocol::{AcquireCommand, Grant, LockName, LockRow, Outcome, Renewal, Ttl, Version};

/// How the servers of a cluster agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    Galera,
    Group,
}

/// A lease that has ended, so that the lock may be granted: by the clock of the one server there is.
pub(crate) const ENDED: &str = "expires_at <= UTC_TIMESTAMP(6)";
/// A lease that has not.
pub(crate) const LIVE: &str = "expires_at > UTC_TIMESTAMP(6)";

/// The same on a cluster: it is the one that was watched for as long as it lasts. Null for each: none
/// was.
pub(crate) const ENDED_ON_CLUSTER: &str = "
               token = :seen_token
               AND expires_at = TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL :seen_expires_at MICROSECOND
               AND renewed_at <=> TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL :seen_renewed_at MICROSECOND";
/// A row that stands is one that nobody has taken over.
pub(crate) const LIVE_ON_CLUSTER: &str = "expires_at IS NOT NULL";

/// Whether the server takes writes of everybody. A privileged user may write in spite of `read_only`, and
/// what is written to a replica goes nowhere. MariaDB says OFF, MySQL 0; some versions know more values.
pub(crate) const WRITABLE: &str = "CONCAT(@@global.read_only) IN ('0', 'OFF')";

/// Put into a statement what it says of the lease. In one about many locks, what was watched stands
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
    fn catch_up(self) -> &'static str {
        match self {
            Self::Galera => "SET SESSION wsrep_sync_wait = 1",
            Self::Group => "SET SESSION group_replication_consistency = 'BEFORE'",
        }
    }

    /// Let them no longer wait.
    fn go_on(self) -> &'static str {
        match self {
            Self::Galera => "SET SESSION wsrep_sync_wait = DEFAULT",
            Self::Group => "SET SESSION group_replication_consistency = DEFAULT",
        }
    }
}

impl Session {
    /// As a node of Galera is asked whether it can serve.
    pub(crate) const STATE: &str = "
        SHOW STATUS WHERE Variable_name IN
            ('wsrep_ready', 'wsrep_cluster_status', 'wsrep_local_state_comment')";
    /// The same of Group Replication. It takes the right to read that table. A member that is cut off
    /// from most of the others calls itself online, and what is written to it waits for ever.
    pub(crate) const MEMBER: &str = "
        SELECT IF(COUNT(IF(member_state = 'UNREACHABLE', 1, NULL)) * 2 >= COUNT(*),
                  'CUT OFF FROM MOST OF THE OTHERS',
                  IFNULL(MAX(IF(member_id = @@server_uuid, member_state, NULL)), 'OFFLINE'))
          FROM performance_schema.replication_group_members";

    /// Whether the node can serve. One that is cut off from most of the others, or is being made a copy
    /// of one of them, cannot just now; another may.
    pub(crate) async fn is_ready(&mut self, cluster: Cluster) -> Result<(), Failure<String>> {
        let state = match cluster {
            Cluster::Galera => {
                let found = self.pairs(Self::STATE).await?;
                let of = |name: &str| {
                    let named = found.iter().find(|(found, _)| found == name);
                    named.map(|(_, value)| value.as_str()).unwrap_or_default()
                };
                let ready = of("wsrep_ready") == "ON" && of("wsrep_cluster_status") == "Primary";
                (!ready).then(|| {
                    format!(
                        "{}, {}",
                        of("wsrep_cluster_status").to_lowercase(),
                        of("wsrep_local_state_comment").to_lowercase()
                    )
                })
            }
            Cluster::Group => match self.words(Self::MEMBER).await {
                // One that was started and has not joined takes writes that no other member hears of.
                Ok(found) => Some(found.into_iter().next().unwrap_or_else(|| "OFFLINE".into()))
                    .filter(|state| state != "ONLINE")
                    .map(|state| state.to_lowercase()),
                // `doctor` says that it cannot be seen, and which right it takes.
                Err(StoreError::Rejected { .. }) => None,
                Err(failure) => return Err(failure.into()),
            },
        };
        match state {
            None => Ok(()),
            Some(state) => {
                let said = format!("{}: the cluster node is not ready: {state}", self.at());
                Err(StoreError::Unavailable(said.into()).into())
            }
        }
    }

    pub(crate) const REPLICATED: &str = "SHOW VARIABLES LIKE 'wsrep_on'";
    pub(crate) const CONNECTED: &str = "SHOW GLOBAL STATUS LIKE 'wsrep_connected'";

    /// Refuse a node of Galera that was told not to pass on what is written to it.
    pub(crate) async fn is_replicated(&mut self) -> Result<(), Failure<String>> {
        for (statement, fine) in [(Self::REPLICATED, "ON"), (Self::CONNECTED, "OFF")] {
            let found = self.pairs(statement).await?;
            if found.iter().all(|(_, value)| value == fine) {
                return Ok(());
            }
        }
        let said = format!(
            "{}: the other nodes of the cluster learn nothing of what is written here: wsrep_on is OFF",
            self.at()
        );
        let hint = "set wsrep_on = ON, and see to it that init_command leaves it alone";
        Err(StoreError::rejected(said, Some(hint)).into())
    }

    /// Read what is known anywhere in the cluster, to conclude from it that a grant is gone.
    pub(crate) async fn read_latest(
        &mut self,
        names: &[LockName],
    ) -> Result<Vec<LockRow>, StoreError> {
        self.catch_up().await?;
        let rows = self.read(names).await;
        self.go_on().await?;
        rows
    }

    /// On a cluster: let the next read see what other nodes have committed before it.
    pub(crate) async fn catch_up(&mut self) -> Result<(), StoreError> {
        let Some(cluster) = self.cluster else {
            return Ok(());
        };
        match self.define(cluster.catch_up().to_owned()).await {
            // Where it may not be set the read shows what this node knows.
            Ok(()) | Err(StoreError::Rejected { .. }) => Ok(()),
            failure => failure,
        }
    }

    /// The reads behind this need not.
    pub(crate) async fn go_on(&mut self) -> Result<(), StoreError> {
        let Some(cluster) = self.cluster else {
            return Ok(());
        };
        match self.define(cluster.go_on().to_owned()).await {
            failure @ Err(StoreError::Unavailable(_)) => failure,
            _ => Ok(()),
        }
    }

    /// What an acquire that granted nothing has to say, from the row that stood in its way.
    pub(crate) async fn refused(
        &mut self,
        ask: &AcquireCommand,
        row: &LockRow,
    ) -> Result<Outcome, StoreError> {
        if self.cluster.is_none() || !row.is_granted(ask.grant.as_str()) {
            let outcome = row.refusal(ask.grant.as_str());
            let seen = match &outcome {
                Outcome::Held(of) => of.observed_expiry.as_ref().map(|expiry| &expiry.version),
                _ => None,
            };
            // As it was when it was watched: somebody has it locked, or this node has yet to hear that
            // another has changed it.
            return Ok(
                match seen.is_some() && seen == ask.expired_version.as_ref() {
                    true => Outcome::Busy,
                    false => outcome,
                },
            );
        }
        // The reply to an earlier request of the same grant was lost. How long it goes on the clock of
        // this node does not tell: so it is made to last as long as was asked, from now on.
        let token = protocol::Token::from_db(row.token);
        let grant = Grant {
            name: ask.name.clone(),
            token,
            id: ask.grant,
            holder: ask.holder.clone(),
        };
        let renewals = self.renew(&[(grant, Ttl::Finite(ask.length))]).await?;
        Ok(match renewals.first() {
            Some(Renewal::Renewed) => Outcome::Granted {
                token,
                length: ask.length,
            },
            _ => Outcome::Busy,
        })
    }

    /// The same as `RENEW`, on a cluster: it makes the lease no shorter than it was before, in length,
    /// and what is watched of it begins anew.
    ///
    /// How much is left of it no clock tells: the one of this node may be five minutes ahead of that of
    /// another, which has made it last for ten minutes, and so trusted for as long. Nor may the later of
    /// two ends stay: of a clock that was ahead it would stay for far longer than the ttl.
    pub(crate) const RENEW_ON_CLUSTER: &str = "
        UPDATE (SELECT l.id,
                       IF(l.expires_at = TIMESTAMP'9999-12-31 00:00:00', NULL,
                          GREATEST(g.length, IFNULL(
                              TIMESTAMPDIFF(MICROSECOND, l.renewed_at, l.expires_at), 0))) AS length
                  FROM (SELECT j.* FROM JSON_TABLE(:grants, '$[*]' COLUMNS (
                           name varchar(255) CHARACTER SET utf8mb4 PATH '$.name',
                           token bigint PATH '$.token',
                           grant_id char(32) CHARACTER SET ascii PATH '$.grant',
                           locked_by varchar(255) CHARACTER SET utf8mb4 PATH '$.holder',
                           length bigint PATH '$.length')) j
                         LIMIT 1000000) g
                       STRAIGHT_JOIN {table} l FORCE INDEX (name)
                       ON l.name = g.name COLLATE {collation}
                 WHERE l.token = g.token AND l.grant_id = g.grant_id
                   AND l.locked_by = g.locked_by COLLATE {collation}
                   AND {live} AND l.granted_until = l.expires_at AND {writable}
                 LIMIT 1000000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = IFNULL(UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00'),
               l.granted_until = IFNULL(UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00'),
               l.renewed_at = TIMESTAMP'1970-01-01 00:00:00' + INTERVAL LAST_INSERT_ID(
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
               ) MICROSECOND";

    /// The same as `RESUME`, on a cluster.
    pub(crate) const TAKE_UP_ON_CLUSTER: &str = "
        UPDATE (SELECT id,
                       IF(expires_at = TIMESTAMP'9999-12-31 00:00:00', NULL,
                          GREATEST(:length, IFNULL(
                              TIMESTAMPDIFF(MICROSECOND, renewed_at, expires_at), 0))) AS length
                  FROM {table}
                 WHERE name = :name AND token = :token AND grant_id IN (:from, :grant)
                   AND {live} AND granted_until = expires_at AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.locked_by = :holder, l.grant_id = :grant, l.metadata = :metadata,
               l.expires_at = IFNULL(UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00'),
               l.granted_until = IFNULL(UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00'),
               l.renewed_at = UTC_TIMESTAMP(6)";

    /// Delete the locks of a page that have been free for so long, on a cluster.
    ///
    /// Only what was released: of a lease that was left behind no clock says when it ended. What was
    /// released too early by a clock that is ahead does no harm. But a row that is made anew begins at
    /// the clock of the node that makes it, and its token has to be greater although that may be behind:
    /// by less than a day.
    pub(crate) const PRUNE_ON_CLUSTER: &str = "
        DELETE l FROM (SELECT id FROM {table} FORCE INDEX (PRIMARY)
                        WHERE id > :after AND id <= :last AND expires_at IS NULL
                          AND ((granted_until IS NULL
                                AND renewed_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND)
                            OR (:unknown AND (granted_until IS NOT NULL OR renewed_at IS NULL)))
                          AND token < TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00',
                                  UTC_TIMESTAMP(6) - INTERVAL 1 DAY) DIV 1000
                          AND {writable}
                        LIMIT 1000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id";

    /// The state of the cluster, for people; by name.
    pub(crate) async fn pairs(
        &mut self,
        statement: &'static str,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self.rows(statement, Params::Empty).await?;
        let pairs = rows.into_iter().filter_map(|row| from_row_opt(row).ok());
        Ok(pairs.collect())
    }

    async fn words(&mut self, statement: &'static str) -> Result<Vec<String>, StoreError> {
        let rows = self.rows(statement, Params::Empty).await?;
        Ok(rows
            .into_iter()
            .filter_map(|mut row| row.take_opt(0)?.ok())
            .collect())
    }
}
