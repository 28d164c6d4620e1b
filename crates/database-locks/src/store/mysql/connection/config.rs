//! Where the server is, what a connection to it is made with, and what was found out about it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mysql_async::{ClientIdentity, Opts, OptsBuilder, SslOpts};

use crate::error::Error;
use crate::store::api::StoreError;
use crate::store::connect::hosts::list;
use crate::store::connect::source::{Missing, Source};
use crate::store::connect::table::Table;
use crate::store::connect::tls::{Check, Encrypt, Tls};
use crate::store::connect::url::{self, Address};

/// How long a connection may take to be made, all hosts of the list included. Longer than the patience
/// of a short lease on purpose: where the way to the server is slow, attempts cut off at 100 ms would
/// never get through.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
/// What a caller that waits for the connection gets on top of the time that it may take.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// So that a firewall does not forget an idle connection in the first place.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The server, or the several of which one can be written to, and what was found out about it.
pub(crate) struct Server {
    /// Where the endpoint is asked for.
    pub(crate) source: Arc<Source>,
    /// The latest answer of the source.
    endpoint: Mutex<Arc<Endpoint>>,
    pub(crate) table: Table,
    /// Which of the hosts served last: of both connections, which belong on the same one.
    pub(crate) latest: AtomicUsize,
    /// Whether a server was once found fit: a read-only one is then a failover under way.
    pub(crate) greeted: AtomicBool,
    /// Whether it was one of a cluster.
    pub(crate) clustered: AtomicBool,
    /// Whether the table was once found fit: if it is missing after that, it may come back.
    pub(crate) found: AtomicBool,
}

/// Where the server is and how to talk to it.
pub(crate) struct Endpoint {
    /// From the URL and the environment.
    settings: url::Server,
    tls: Tls,
    pub(crate) hosts: Vec<Host>,
}

/// One way to connect.
pub(crate) struct Host {
    pub(crate) address: Address,
    pub(crate) opts: Opts,
    /// Used if the server answers that it has no TLS.
    pub(crate) without_tls: Option<Opts>,
}

impl Host {
    /// Whether it has no TLS, or no client certificate.
    pub(crate) fn is_anonymous(&self) -> bool {
        let tls = self.opts.ssl_opts();
        tls.is_none_or(|tls| tls.client_identity().is_none())
    }
}

impl Endpoint {
    fn new(settings: url::Server, tls: Tls) -> Self {
        let host = |(at, address): (usize, &Address)| Host::new(&settings, at, address, &tls);
        let hosts = settings.addresses.iter().enumerate().map(host).collect();
        Self {
            settings,
            tls,
            hosts,
        }
    }

    /// For how long all of the hosts together are tried.
    pub(crate) fn connecting(&self) -> Duration {
        self.settings.connecting(CONNECT)
    }

    /// The statement to run on each new connection.
    pub(crate) fn init_command(&self) -> Option<&str> {
        self.settings.init_command.as_deref()
    }

    pub(crate) fn addresses(&self) -> &[Address] {
        &self.settings.addresses
    }
}

impl Host {
    fn new(settings: &url::Server, at: usize, address: &Address, tls: &Tls) -> Self {
        let common = OptsBuilder::default()
            .user(settings.user.clone())
            .pass(settings.password_at(at))
            .db_name(settings.database.clone())
            // By default the driver asks a server on loopback for its socket and goes there
            // instead.
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            // "Affected" rows are those that were found, even if no value of theirs has changed.
            .client_found_rows(true)
            // Known, so that the driver does not ask for them at each connect.
            .max_allowed_packet(Some(1 << 26))
            // The session keeps what it has prepared, and one that the driver closes meanwhile
            // would be of no use.
            .stmt_cache_size(0)
            .wait_timeout(Some(0));
        let (plain, encrypt) = match address {
            Address::Tcp(host, port) => {
                let plain = common.ip_or_hostname(host.clone()).tcp_port(*port);
                (plain, tls.encrypt)
            }
            // The driver would ask for TLS there, and then not begin with it.
            Address::Unix(path) => (common.socket(Some(path.to_string_lossy())), Encrypt::Never),
        };
        let (opts, without_tls) = match encrypt {
            Encrypt::Never => (plain, None),
            Encrypt::IfOffered => (plain.clone().ssl_opts(secured(tls)), Some(plain.into())),
            Encrypt::Always => (plain.ssl_opts(secured(tls)), None),
        };
        Self {
            address: address.clone(),
            opts: opts.into(),
            without_tls,
        }
    }
}

impl Server {
    /// Reads the files of certificates.
    pub(crate) fn new(
        settings: url::Server,
        source: Arc<Source>,
        table: &Table,
    ) -> Result<Self, Error> {
        let tls = Tls::new(&settings.tls)?;
        Ok(Self {
            source,
            endpoint: Mutex::new(Arc::new(Endpoint::new(settings, tls))),
            table: table.clone(),
            latest: AtomicUsize::new(0),
            greeted: AtomicBool::new(false),
            clustered: AtomicBool::new(false),
            found: AtomicBool::new(false),
        })
    }

    /// The latest endpoint.
    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        let endpoint = self.endpoint.lock();
        Arc::clone(&endpoint.unwrap_or_else(PoisonError::into_inner))
    }

    /// Ask where the server is, and what to log in with. Where no more than the password has changed,
    /// files of certificates are not read again.
    pub(crate) async fn ask(&self) -> Result<Arc<Endpoint>, StoreError> {
        let greeted = self.greeted.load(Ordering::Relaxed);
        let unusable = |message: String| match greeted {
            true => StoreError::Unavailable(message.into()),
            false => StoreError::rejected(message, None),
        };
        let settings = self.source.ask().await.map_err(|missing| match missing {
            Missing::Unusable(message) => unusable(message),
            Missing::Later(message) => StoreError::Unavailable(message.into()),
        })?;
        let before = self.endpoint();
        if settings == before.settings {
            return Ok(before);
        }
        let tls = match settings.tls == before.settings.tls {
            true => before.tls.clone(),
            false => Tls::new(&settings.tls).map_err(|error| unusable(error.chain()))?,
        };
        let endpoint = Arc::new(Endpoint::new(settings, tls));
        let mut latest = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Arc::clone(&endpoint);
        Ok(endpoint)
    }

    /// Whether a refused login may succeed later: it succeeded before, and its password may change.
    pub(crate) fn may_log_in_later(&self) -> bool {
        let may_change = self.source.may_change() || self.endpoint().settings.password_of_file;
        may_change && self.greeted.load(Ordering::Relaxed)
    }

    /// All hosts, for messages. The driver's own options show the password.
    pub(crate) fn at(&self) -> String {
        list(self.endpoint().addresses())
    }

    /// How long a caller waits for the connection itself.
    pub(crate) fn patience(&self, within: Duration) -> Duration {
        within.max(self.endpoint().connecting() + AFTERWARDS)
    }
}

/// What the driver needs to talk TLS.
fn secured(tls: &Tls) -> SslOpts {
    let roots = || tls.roots.iter().map(|root| root.to_vec().into()).collect();
    let checked = || {
        let opts = SslOpts::default().with_disable_built_in_roots(true);
        opts.with_root_certs(roots())
    };
    let opts = match tls.check {
        // Signatures are checked all the same.
        Check::Nothing => SslOpts::default().with_danger_accept_invalid_certs(true),
        // The driver knows that only the name was wrong by looking for this word in the text of the
        // error, where it no longer stands (https://github.com/blackbeam/mysql_async/issues/404). But
        // the name that was asked for does, and the name is looked at last of all.
        Check::Chain => checked()
            .with_danger_skip_domain_validation(true)
            .with_danger_tls_hostname_override(Some("NotValidForName")),
        Check::ChainAndName => checked(),
    };
    opts.with_client_identity(tls.identity.as_ref().map(|identity| {
        let (chain, key) = identity.pem.clone();
        ClientIdentity::new(chain.into(), key.into())
    }))
}
