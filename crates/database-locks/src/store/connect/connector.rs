//! Where the server is, as the latest answer says, and the way to the first of its hosts that can
//! serve.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::hosts::{ConnectFailure, FailureKind, first_of, list};
use super::provider::{ProviderError, ServerProvider};
use super::url::{Address, Server};
use crate::error::Error;

/// What a caller that waits for the connection gets on top of the time that connecting may take.
const GRACE: Duration = Duration::from_secs(1);

/// What an engine makes of the settings of its server: options of its driver, certificates.
pub(crate) trait Endpoint: Sized {
    /// How long connecting may take, all hosts of the list included, unless the URL says it.
    const TIMEOUT: Duration;

    /// The same for other settings. May read the files of certificates.
    fn with(&self, server: Server) -> Result<Self, Error>;

    fn server(&self) -> &Server;
}

/// Connects to a server whose settings may change, or to that of several servers which can be
/// written to. The connections of a store share it.
pub(crate) struct Connector<E> {
    source: Arc<ServerProvider>,
    /// As the source said it last.
    endpoint: Mutex<Arc<E>>,
    /// The host that served last. Once one has, what is wrong with a server may be a failover under
    /// way.
    latest: Mutex<Option<Address>>,
}

impl<E: Endpoint> Connector<E> {
    pub(crate) fn new(source: Arc<ServerProvider>, endpoint: E) -> Self {
        Self {
            source,
            endpoint: Mutex::new(Arc::new(endpoint)),
            latest: Mutex::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> Arc<E> {
        let endpoint = self.endpoint.lock();
        Arc::clone(&endpoint.unwrap_or_else(PoisonError::into_inner))
    }

    /// Ask where the server is, and what to log in with.
    pub(crate) async fn ask(&self) -> Result<Arc<E>, ConnectFailure> {
        let failure = |kind, message| ConnectFailure::new(kind, message, None);
        let unusable = match self.has_served() {
            true => FailureKind::Unavailable,
            false => FailureKind::Refused,
        };
        let server = self.source.ask().await.map_err(|error| match error {
            ProviderError::Unusable(message) => failure(unusable, message),
            ProviderError::Later(message) => failure(FailureKind::Unavailable, message),
        })?;
        let before = self.endpoint();
        if server == *before.server() {
            return Ok(before);
        }
        let endpoint = before.with(server);
        let endpoint = Arc::new(endpoint.map_err(|error| failure(unusable, error.chain()))?);
        let mut latest = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Arc::clone(&endpoint);
        Ok(endpoint)
    }

    /// Connect to the first host that can serve, beginning with the one that served last. Answers
    /// which host it is.
    pub(crate) async fn connect<T, F>(
        &self,
        endpoint: &E,
        dial: impl Fn(usize, Duration) -> F,
    ) -> Result<(usize, T), ConnectFailure>
    where
        F: Future<Output = Result<T, ConnectFailure>>,
    {
        let (server, first) = (endpoint.server(), self.first(endpoint));
        first_of(
            &server.addresses,
            first,
            server.total_connect_timeout(E::TIMEOUT),
            dial,
        )
        .await
    }

    /// Which of the hosts to try first: the one that served last, if it is still in the list.
    pub(crate) fn first(&self, endpoint: &E) -> usize {
        let latest = self.latest();
        let place = |at: &Address| endpoint.server().addresses.iter().position(|it| it == at);
        latest.as_ref().and_then(place).unwrap_or(0)
    }

    /// A server was found fit.
    pub(crate) fn serves(&self, at: &Address) {
        *self.latest() = Some(at.clone());
    }

    /// Whether a server was found fit before.
    pub(crate) fn has_served(&self) -> bool {
        self.latest().is_some()
    }

    /// Whether another host has served since this one did.
    pub(crate) fn has_moved_from(&self, at: &Address) -> bool {
        self.latest().as_ref().is_some_and(|latest| latest != at)
    }

    fn latest(&self) -> MutexGuard<'_, Option<Address>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a login that is refused may be let in later: one was let in before, and its password
    /// may change.
    pub(crate) fn may_log_in_later(&self) -> bool {
        let may_change = self.source.may_change() || self.endpoint().server().password_of_file;
        may_change && self.has_served()
    }

    /// The function of the application that is asked for the settings just now and has not
    /// answered.
    pub(crate) fn waits_for(&self) -> Option<&'static str> {
        self.source.waits_for()
    }

    /// How long a caller waits that wants to know whether there is a connection.
    pub(crate) fn connect_deadline(&self, within: Duration) -> Duration {
        within.max(self.endpoint().server().total_connect_timeout(E::TIMEOUT) + GRACE)
    }

    /// All hosts, for messages. The options of drivers show the password.
    pub(crate) fn hosts(&self) -> String {
        list(&self.endpoint().server().addresses)
    }
}
