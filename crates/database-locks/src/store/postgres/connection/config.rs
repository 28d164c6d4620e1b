//! The addresses of the server, and the options of the driver for each.

use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls;
use crate::error::Error;
use crate::store::connect::connector::ConnectTarget;
use crate::store::connect::tls::{Encrypt, Tls};
use crate::store::connect::url::{Address, Binding, Server};

/// The addresses of one server, or of several of which one is writable, and how to log in.
pub(crate) struct ServerConfig {
    server: Server,
    encrypt: Encrypt,
    /// `None` without TLS.
    pub(crate) tls: Option<MakeRustlsConnect>,
}

impl ConnectTarget for ServerConfig {
    /// Includes name resolution and password check. Shorter than the deadline of an acquire, so
    /// that its error names the host that did not answer.
    const TIMEOUT: Duration = Duration::from_secs(4);

    /// Certificate files are read again only if the TLS settings have changed.
    fn with(&self, server: Server) -> Result<Self, Error> {
        if server.without_passwords() != self.server.without_passwords() {
            return Self::new(server);
        }
        Ok(Self {
            server,
            encrypt: self.encrypt,
            tls: self.tls.clone(),
        })
    }

    fn server(&self) -> &Server {
        &self.server
    }
}

impl ServerConfig {
    /// Reads the files of certificates.
    pub(crate) fn new(server: Server) -> Result<Self, Error> {
        let tls = Tls::new(&server.tls)?;
        let encrypt = tls.encrypt;
        let tls = match encrypt {
            Encrypt::Never => None,
            Encrypt::IfOffered | Encrypt::Always => Some(tls::connector(&tls)?),
        };
        Ok(Self {
            server,
            encrypt,
            tls,
        })
    }

    pub(crate) fn addresses(&self) -> &[Address] {
        &self.server.addresses
    }

    /// The search path that the URL sets.
    pub(crate) fn search_path(&self) -> Option<&str> {
        self.server.settings.get("search_path")
    }

    /// The options of the driver for one of the addresses.
    pub(crate) fn driver_config(&self, at: usize) -> Config {
        let (server, mut config) = (&self.server, Config::new());
        if let Some(user) = &server.user {
            config.user(user);
        }
        if let Some(password) = server.password_at(at) {
            config.password(password);
        }
        if let Some(database) = &server.database {
            config.dbname(database);
        }
        // Only settings of the URL are set, here or later. Poolers refuse other start-up `options`,
        // and a SET would change some connection of the pooler for good.
        if let Some(options) = server.settings.start_up() {
            config.options(options);
        }
        config.application_name(server.application.as_deref().unwrap_or("database-locks"));
        config.channel_binding(match server.binding.unwrap_or_default() {
            Binding::Disable => ChannelBinding::Disable,
            Binding::Prefer => ChannelBinding::Prefer,
            Binding::Require => ChannelBinding::Require,
        });
        // With "prefer" the driver goes without TLS only if the server answers that it has none; a
        // wrong certificate ends the attempt. A Unix socket has no TLS.
        config.ssl_mode(match (&server.addresses[at], self.encrypt) {
            (Address::Unix(_), _) | (_, Encrypt::Never) => SslMode::Disable,
            (_, Encrypt::IfOffered) => SslMode::Prefer,
            (_, Encrypt::Always) => SslMode::Require,
        });
        config
    }
}
