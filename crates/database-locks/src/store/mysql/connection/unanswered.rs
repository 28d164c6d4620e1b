//! Notices a node of a cluster that leaves requests unanswered.

use std::sync::Arc;
use std::time::Duration;

use super::config::Server;
use super::session::Session;
use crate::runtime::clock;
use crate::store::connect::url::Address;
use protocol::BootInstant;

/// A request that was given up earlier says nothing about the node: little of its time was left.
const HANGS_AFTER: Duration = Duration::from_millis(200);

/// A request that is under way. If it is dropped before it was [`answered`](Self::answered), the
/// next connection is made to another node of the cluster.
///
/// A node of Galera that has been cut off from the others, and has not noticed yet, calls itself
/// ready and accepts connections, while its commits hang. It may take as long as its
/// `evs.inactive_timeout` to notice, and longer while something keeps it from applying the change
/// of the group. The other nodes go on without it.
pub(crate) struct Unanswered {
    /// `None`: the server is no node of a cluster, or has answered.
    node: Option<(Arc<Server>, Address)>,
    began: BootInstant,
}

impl Unanswered {
    pub(crate) fn begin(session: &Session) -> Self {
        let node = || (Arc::clone(&session.server), session.address.clone());
        Self {
            node: session.cluster.is_some().then(node),
            began: clock::now(),
        }
    }

    pub(crate) fn answered(mut self) {
        self.node = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some((server, address)) = &self.node
            && clock::now() - self.began >= HANGS_AFTER
        {
            tracing::trace!("{address}: no answer, so another node is tried first from now on");
            server.connector.avoid(address);
        }
    }
}
