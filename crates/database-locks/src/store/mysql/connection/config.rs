//! The server: where it is, how to connect to it, and what is known about it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mysql_async::{ClientIdentity, Opts, OptsBuilder, SslOpts};

use crate::error::Error;
use crate::store::connect::connector::{ConnectTarget, Connector};
use crate::store::connect::provider::ServerProvider;
use crate::store::connect::table::Table;
use crate::store::connect::tls::{Check, Encrypt, Tls};
use crate::store::connect::url::{self, Address};

/// Often enough that a firewall does not drop an idle connection.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// One server, or several of which one is writable, and what is known about it.
pub(crate) struct Server {
    pub(crate) connector: Connector<ServerConfig>,
    pub(crate) table: Table,
    /// Whether it is a node of a cluster.
    pub(crate) clustered: AtomicBool,
    /// Whether the table was usable once. If it is missing after that, it may come back.
    pub(crate) found: AtomicBool,
    /// Whether the table of permits was found.
    pub(crate) permits_found: AtomicBool,
}

/// The addresses of the server, and the options of the driver for each.
pub(crate) struct ServerConfig {
    /// From the URL, the environment and files.
    settings: url::Server,
    tls: Tls,
    pub(crate) hosts: Vec<Host>,
}

/// One address, with the options of the driver.
pub(crate) struct Host {
    pub(crate) address: Address,
    pub(crate) opts: Opts,
    /// The options to use if the server offers no TLS.
    pub(crate) without_tls: Option<Opts>,
}

impl Host {
    /// Whether it logs in without a client certificate.
    pub(crate) fn is_anonymous(&self) -> bool {
        let tls = self.opts.ssl_opts();
        tls.is_none_or(|tls| tls.client_identity().is_none())
    }
}

impl ConnectTarget for ServerConfig {
    /// Longer than the deadlines of a short lease: on a slow network, attempts that end after 100
    /// ms would never succeed.
    const TIMEOUT: Duration = Duration::from_secs(3);

    /// Certificate files are read again only if the TLS settings have changed.
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

impl ServerConfig {
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

    /// The statement that the URL runs on each new connection.
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
            // By default the driver asks a server on loopback for its socket and connects to that.
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            // The number of affected rows then counts the rows found, changed or not.
            .client_found_rows(true)
            // Set, so that the driver does not query them at each connect.
            .max_allowed_packet(Some(1 << 26))
            // The session keeps its prepared statements, and the driver must not close them.
            .stmt_cache_size(0)
            .wait_timeout(Some(0));
        let (plain, encrypt) = match address {
            Address::Tcp(host, port) => {
                let plain = common.ip_or_hostname(host.clone()).tcp_port(*port);
                (plain, tls.encrypt)
            }
            // The driver would ask for TLS on a socket and then not start it.
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
            connector: Connector::new(source, ServerConfig::new(settings)?),
            table: table.clone(),
            clustered: AtomicBool::new(false),
            found: AtomicBool::new(false),
            permits_found: AtomicBool::new(false),
        })
    }
}

/// The TLS options of the driver.
fn secured(tls: &Tls) -> SslOpts {
    let roots = || tls.roots.iter().map(|root| root.to_vec().into()).collect();
    let checked = || {
        let opts = SslOpts::default().with_disable_built_in_roots(true);
        opts.with_root_certs(roots())
    };
    let opts = match tls.check {
        // Signatures are checked in any case.
        Check::Nothing => SslOpts::default().with_danger_accept_invalid_certs(true),
        // The driver recognises a wrong name by this word in the text of the error, which no longer
        // contains it (https://github.com/blackbeam/mysql_async/issues/404). The text does contain
        // the requested name, and the name is checked last.
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
