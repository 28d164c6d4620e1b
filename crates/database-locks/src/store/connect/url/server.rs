//! The settings of a server from all sources.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::settings::Settings;
use crate::error::Error;
use crate::store::connect::tls;

/// In bytes. Tokens of cloud services have some KiB.
const LONGEST_PASSWORD: usize = 16 << 10;

/// The settings of one server, or of several hosts of which the first writable one is used.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Server {
    pub user: Option<String>,
    pub password: Option<String>,
    /// If there is no password: the one of libpq's file for each address.
    pub passwords_by_host: Vec<Option<String>>,
    /// Whether the password comes from a file, so that it may change.
    pub password_of_file: bool,
    /// libpq's password file, if it is not the default one.
    pub passfile: Option<PathBuf>,
    /// In the order of attempts; never empty.
    pub addresses: Vec<Address>,
    pub database: Option<String>,
    /// The application name, which the server shows.
    pub application: Option<String>,
    pub tls: tls::TlsOptions,
    /// PostgreSQL: whether the login is bound to the TLS connection.
    pub binding: Option<Binding>,
    /// PostgreSQL: settings of the session.
    pub settings: Settings,
    /// MySQL: the statement that is run on each new connection.
    pub init_command: Option<String>,
    /// The time for each host; `None`: the default of the engine.
    pub connect_timeout: Option<Duration>,
}

impl Server {
    /// The time for all hosts together.
    pub(crate) fn total_connect_timeout(&self, by_default: Duration) -> Duration {
        let hosts = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX);
        self.connect_timeout
            .map_or(by_default, |of_each| of_each.saturating_mul(hosts))
    }

    /// The password for one of the addresses.
    pub(crate) fn password_at(&self, at: usize) -> Option<&str> {
        let of_host = || self.passwords_by_host.get(at)?.as_deref();
        self.password.as_deref().or_else(of_host)
    }

    /// Refuse passwords that are longer than any token. A login may hash the password thousands of
    /// times on the thread that renews leases, and a huge one would keep that thread busy for
    /// minutes.
    pub(crate) fn check_passwords(&self) -> Result<(), Error> {
        let by_host = self.passwords_by_host.iter().flatten();
        let mut own = self.password.iter().chain(by_host);
        if let Some(long) = own.find(|password| password.len() > LONGEST_PASSWORD) {
            let got = format!("{} bytes long", long.len());
            let allowed = "16 KiB at most; see whether it is read from the right place";
            return Err(Error::config("password", got, allowed));
        }
        Ok(())
    }

    /// The settings without passwords. If two are equal, certificate files need not be read again.
    pub(crate) fn without_passwords(&self) -> Self {
        Self {
            password: None,
            passwords_by_host: Vec::new(),
            ..self.clone()
        }
    }
}

/// Leaves out the password and what may contain one.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .field("database", &self.database)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(String, u16),
    /// The file of a socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// SCRAM channel binding, with libpq's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Binding {
    Disable,
    #[default]
    Prefer,
    Require,
}
