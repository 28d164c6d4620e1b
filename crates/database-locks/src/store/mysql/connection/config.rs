//! Where the server is, what a connection to it is made with, and what was found out about it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mysql_async::{ClientIdentity, Opts, OptsBuilder, SslOpts};

use crate::error::Error;
use crate::store::connect::connector::{self, Connector};
use crate::store::connect::provider::ServerProvider;
use crate::store::connect::table::Table;
use crate::store::connect::tls::{Check, Encrypt, Tls};
use crate::store::connect::url::{self, Address};

/// So that a firewall does not forget an idle connection in the first place.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The server, or the several of which one can be written to, and what was found out about it.
pub(crate) struct Server {
    pub(crate) connector: Connector<Endpoint>,
    pub(crate) table: Table,
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

impl connector::Endpoint for Endpoint {
    /// Longer than the patience of a short lease on purpose: where the way to the server is slow,
    /// attempts that are cut off at 100 ms would never get through.
    const TIMEOUT: Duration = Duration::from_secs(3);

    /// If no more than a password has changed, files of certificates are not read again.
    fn with(&self, settings: url::Server) -> Result<Self, Error> {
        match settings.tls == self.settings.tls {
            true => Ok(Self::with_tls(settings, self.tls.clone())),
            false => Self::new(settings),
        }
    }

    fn server(&self) -> &url::Server {
        &self.settings
    }
}

impl Endpoint {
    /// Reads the files of certificates.
    fn new(settings: url::Server) -> Result<Self, Error> {
        let tls = Tls::new(&settings.tls)?;
        Ok(Self::with_tls(settings, tls))
    }

    fn with_tls(settings: url::Server, tls: Tls) -> Self {
        let host = |(at, address): (usize, &Address)| Host::new(&settings, at, address, &tls);
        let hosts = settings.addresses.iter().enumerate().map(host).collect();
        Self {
            settings,
            tls,
            hosts,
        }
    }

    /// The statement to run on each new connection.
    pub(crate) fn init_command(&self) -> Option<&str> {
        self.settings.init_command.as_deref()
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
        source: Arc<ServerProvider>,
        table: &Table,
    ) -> Result<Self, Error> {
        Ok(Self {
            connector: Connector::new(source, Endpoint::new(settings)?),
            table: table.clone(),
            clustered: AtomicBool::new(false),
            found: AtomicBool::new(false),
        })
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
        // error, where it no longer stands (https://github.com/blackbeam/mysql_async/issues/404).
        // But the name that was asked for does, and the name is looked at last of all.
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
