//! Where the server is and how to talk to it, as it was said latest.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::connector;
use crate::error::Error;
use crate::store::connect::source::{Missing, Source};
use crate::store::connect::tls::{Encrypt, Tls};
use crate::store::connect::url::{Address, Binding, Server};

/// How long one attempt to connect may take, name resolution and password check included, and all
/// hosts of the list. Less than the patience of an acquire, whose error then says what it was that
/// did not answer.
const DIAL: Duration = Duration::from_secs(4);

/// Where the server is, or the several of which one can be written to, and how to log in.
pub(crate) struct Endpoint {
    server: Server,
    encrypt: Encrypt,
    /// None where there shall be no TLS.
    pub(crate) tls: Option<MakeRustlsConnect>,
}

impl Endpoint {
    /// Reads the files of certificates.
    pub(crate) fn new(server: Server) -> Result<Self, Error> {
        let tls = Tls::new(&server.tls)?;
        let encrypt = tls.encrypt;
        let tls = match encrypt {
            Encrypt::Never => None,
            Encrypt::IfOffered | Encrypt::Always => Some(connector(&tls)?),
        };
        Ok(Self {
            server,
            encrypt,
            tls,
        })
    }

    /// As it is now said to be. Where no more than the password has changed, files of certificates
    /// are not read again.
    pub(crate) async fn anew(self: &Arc<Self>, source: &Source) -> Result<Arc<Self>, Missing> {
        let server = source.ask().await?;
        if server == self.server {
            return Ok(Arc::clone(self));
        }
        if server.without_passwords() == self.server.without_passwords() {
            return Ok(Arc::new(Self {
                server,
                encrypt: self.encrypt,
                tls: self.tls.clone(),
            }));
        }
        let anew = Self::new(server).map_err(|error| Missing::Unusable(error.chain()))?;
        Ok(Arc::new(anew))
    }

    /// Whether another password may be there the next time.
    pub(crate) fn password_may_change(&self) -> bool {
        self.server.password_of_file
    }

    pub(crate) fn addresses(&self) -> &[Address] {
        &self.server.addresses
    }

    /// For how long all of them together are tried.
    pub(crate) fn dialling(&self) -> Duration {
        self.server.connecting(DIAL)
    }

    /// What the server has to say that it is, where the URL sets it.
    pub(crate) fn search_path(&self) -> Option<&str> {
        self.server.settings.get("search_path")
    }

    /// What the driver needs to log in at one of the addresses.
    pub(crate) fn config(&self, at: usize) -> Config {
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
        // Poolers pass it on. Start-up `options` they refuse, and a SET would reach some connection
        // of the pooler's and stay there: so nothing is set but what the URL says, here or later.
        if let Some(options) = server.settings.start_up() {
            config.options(options);
        }
        config.application_name(server.application.as_deref().unwrap_or("database-locks"));
        config.channel_binding(match server.binding {
            Binding::Disable => ChannelBinding::Disable,
            Binding::Prefer => ChannelBinding::Prefer,
            Binding::Require => ChannelBinding::Require,
        });
        // With "prefer" the driver goes without only where the server answers that it has no TLS;
        // what is wrong with a certificate ends the attempt. There is none on a socket.
        config.ssl_mode(match (&server.addresses[at], self.encrypt) {
            (Address::Unix(_), _) | (_, Encrypt::Never) => SslMode::Disable,
            (_, Encrypt::IfOffered) => SslMode::Prefer,
            (_, Encrypt::Always) => SslMode::Require,
        });
        config
    }
}
