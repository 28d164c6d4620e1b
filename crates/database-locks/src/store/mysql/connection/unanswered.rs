//! Nodes of a cluster that leave requests unanswered, or may be cut off from the others: the next
//! connection is made to another node.

use std::sync::Arc;
use std::time::Duration;

use mysql_async::prelude::Queryable;

use super::config::Server;
use super::session::Session;
use crate::runtime::clock;
use crate::store::connect::url::Address;
use protocol::BootInstant;

/// A request that was given up earlier says nothing about the node: little of its time was left.
const HANGS_AFTER: Duration = Duration::from_millis(200);

/// How long a waiter believes what a node of a cluster shows of a lock, without a sign that the node
/// still receives the commits of the others.
const IN_STEP_FOR: Duration = Duration::from_secs(5);

/// A request that is under way. If it is dropped before it was [`answered`](Self::answered), the
/// next connection is made to another node of the cluster.
///
/// A node of Galera that has been cut off from the others, and has not noticed yet, calls itself
/// ready and accepts connections, while its commits hang. It may take as long as its
/// `evs.inactive_timeout` to notice, and longer while something keeps it from applying the change
/// of the group. The other nodes go on without it.
pub(crate) struct AvoidUnlessAnswered {
    /// `None`: the server is no node of a cluster, or has answered.
    node: Option<(Arc<Server>, Address)>,
    began: BootInstant,
}

impl AvoidUnlessAnswered {
    pub(crate) fn answered(mut self) {
        self.node = None;
    }
}

impl Drop for AvoidUnlessAnswered {
    fn drop(&mut self) {
        if let Some((server, address)) = &self.node
            && clock::now() - self.began >= HANGS_AFTER
        {
            tracing::trace!("{address}: no answer, so another node is tried first from now on");
            server.connector.avoid(address);
        }
    }
}

impl Session {
    /// Begin a request. See [`AvoidUnlessAnswered`].
    pub(crate) fn begin_request(&self) -> AvoidUnlessAnswered {
        let node = || (Arc::clone(&self.server), self.address.clone());
        AvoidUnlessAnswered {
            node: self.cluster.is_some().then(node),
            began: clock::now(),
        }
    }

    /// Whether the server answers a ping.
    pub(crate) async fn answers(&mut self, within: Duration) -> bool {
        let unanswered = self.begin_request();
        let pong = tokio::time::timeout(within, self.conn.ping()).await;
        if pong.is_ok() {
            unanswered.answered();
        }
        matches!(pong, Ok(Ok(())))
    }

    /// Make the next connection to another node of the cluster, if there is one that serves.
    pub(crate) fn avoid_node(&self) {
        if self.cluster.is_some() {
            tracing::trace!("{}: another node is tried first from now on", self.address);
            self.server.connector.avoid(&self.address);
        }
    }

    /// On a cluster: whether this node may have been cut off since it was known to be in step with
    /// the others, and another one could be asked instead.
    pub(crate) fn may_be_behind(&self) -> bool {
        self.cluster.is_some()
            && self.server.connector.has_several()
            && clock::now() - self.in_step_at >= IN_STEP_FOR
    }

    /// Record that this node has what the others have, or that it did not get it in time. Then the
    /// connection is in the middle of an answer.
    pub(crate) fn note_in_step(&mut self, in_step: bool) {
        if in_step {
            self.in_step_at = clock::now();
        } else {
            self.broken = true;
            self.avoid_node();
        }
    }

    /// Whether another node is preferred to the one of this connection.
    pub(crate) fn is_avoided(&self) -> bool {
        self.server.connector.avoids(&self.address)
    }
}
