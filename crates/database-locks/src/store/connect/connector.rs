//! Connects to the first usable host of a server whose settings may change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::hosts::{ConnectFailure, FailureKind, first_of, list, order};
use super::provider::{ProviderError, ServerProvider};
use super::url::{Address, Server};
use crate::error::Error;

/// The time that a caller waits for a connection on top of the connect timeout.
const GRACE: Duration = Duration::from_secs(1);

/// An engine's view of the settings of its server: options of its driver, certificates.
pub(crate) trait ConnectTarget: Sized {
    /// The default connect timeout, for all hosts of the list together.
    const TIMEOUT: Duration;

    /// The target for other settings. May read certificate files.
    fn with(&self, server: Server) -> Result<Self, Error>;

    fn server(&self) -> &Server;
}

/// Connects to a server whose settings may change, or to the writable one of several servers. The
/// connections of a store share it.
pub(crate) struct Connector<T> {
    source: Arc<ServerProvider>,
    /// By the latest answer of the provider.
    target: Mutex<Arc<T>>,
    /// The host that served last. Once there is one, a failure may be part of a failover.
    latest: Mutex<Option<Address>>,
    /// A host to try last: see [`avoid`](Self::avoid).
    avoided: Mutex<Option<Address>>,
}

impl<T: ConnectTarget> Connector<T> {
    pub(crate) fn new(source: Arc<ServerProvider>, target: T) -> Self {
        Self {
            source,
            target: Mutex::new(Arc::new(target)),
            latest: Mutex::default(),
            avoided: Mutex::default(),
        }
    }

    pub(crate) fn target(&self) -> Arc<T> {
        let target = self.target.lock();
        Arc::clone(&target.unwrap_or_else(PoisonError::into_inner))
    }

    /// Ask the provider for the server and the credentials.
    pub(crate) async fn ask(&self) -> Result<Arc<T>, ConnectFailure> {
        let failure = |kind, message| ConnectFailure::new(kind, message, None);
        let unusable = match self.has_served() {
            true => FailureKind::Unavailable,
            false => FailureKind::Refused,
        };
        let server = self.source.ask().await.map_err(|error| match error {
            ProviderError::Unusable(message) => failure(unusable, message),
            ProviderError::Later(message) => failure(FailureKind::Unavailable, message),
        })?;
        let before = self.target();
        if server == *before.server() {
            return Ok(before);
        }
        let target = before.with(server);
        let target = Arc::new(target.map_err(|error| failure(unusable, error.chain()))?);
        let mut latest = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Arc::clone(&target);
        Ok(target)
    }

    /// Connect to the first usable host, beginning with the one that served last. Answers which
    /// host it is.
    pub(crate) async fn connect<S, F>(
        &self,
        target: &T,
        dial: impl Fn(usize, Duration) -> F,
    ) -> Result<(usize, S), ConnectFailure>
    where
        F: Future<Output = Result<S, ConnectFailure>>,
    {
        let server = target.server();
        let avoided = self.avoided().as_ref().and_then(|at| place(target, at));
        first_of(
            &server.addresses,
            order(server.addresses.len(), self.first(target), avoided),
            server.total_connect_timeout(T::TIMEOUT),
            dial,
        )
        .await
    }

    /// The index of the host to try first: the one that served last, if it is still in the list.
    pub(crate) fn first(&self, target: &T) -> usize {
        let latest = self.latest();
        let latest = latest.as_ref().and_then(|at| place(target, at));
        latest.unwrap_or(0)
    }

    /// Record that this host serves.
    pub(crate) fn serves(&self, at: &Address) {
        *self.latest() = Some(at.clone());
        self.avoided().take_if(|avoided| avoided == at);
    }

    /// Try this host last from now on, until it serves again because no other host does.
    ///
    /// For a node of a cluster all of whose nodes can be written to. Of other servers the host that
    /// served last is the primary, and another one may accept writes that are lost.
    pub(crate) fn avoid(&self, at: &Address) {
        if self.has_several() {
            *self.avoided() = Some(at.clone());
        }
    }

    /// Whether there is more than one host.
    pub(crate) fn has_several(&self) -> bool {
        self.target().server().addresses.len() > 1
    }

    /// Whether to prefer any other host to this one.
    pub(crate) fn avoids(&self, at: &Address) -> bool {
        self.avoided().as_ref() == Some(at)
    }

    /// Whether any host has served before.
    pub(crate) fn has_served(&self) -> bool {
        self.latest().is_some()
    }

    /// Whether another host has served since.
    pub(crate) fn has_moved_from(&self, at: &Address) -> bool {
        self.latest().as_ref().is_some_and(|latest| latest != at)
    }

    fn avoided(&self) -> MutexGuard<'_, Option<Address>> {
        self.avoided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latest(&self) -> MutexGuard<'_, Option<Address>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a refused login may succeed later: an earlier one has succeeded, and the password
    /// may change.
    pub(crate) fn may_log_in_later(&self) -> bool {
        let may_change = self.source.may_change() || self.target().server().password_of_file;
        may_change && self.has_served()
    }

    /// The function of the program that has been called for the settings and has not returned.
    pub(crate) fn waits_for(&self) -> Option<&'static str> {
        self.source.waits_for()
    }

    /// How long a caller waits to learn whether there is a connection.
    pub(crate) fn connect_deadline(&self, within: Duration) -> Duration {
        within.max(self.target().server().total_connect_timeout(T::TIMEOUT) + GRACE)
    }

    /// All hosts, for messages.
    pub(crate) fn hosts(&self) -> String {
        list(&self.target().server().addresses)
    }
}

/// The index of a host in the list.
fn place<T: ConnectTarget>(target: &T, at: &Address) -> Option<usize> {
    target.server().addresses.iter().position(|it| it == at)
}
