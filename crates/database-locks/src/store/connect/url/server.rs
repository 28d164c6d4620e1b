//! What is known of a server, once all sources are read.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::settings::Settings;
use crate::error::Error;
use crate::store::connect::tls;

/// In bytes. A cloud's tokens have some KiB.
const LONGEST_PASSWORD: usize = 16 << 10;

/// One server, or several of which the first that can be written to is the one; and who wants to
/// talk to it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub user: Option<String>,
    pub password: Option<String>,
    /// Where there is no password: the one of libpq's file for each of the addresses.
    pub passwords_by_host: Vec<Option<String>>,
    /// The password is a file's, which may have another one the next time.
    pub password_of_file: bool,
    /// libpq's file of passwords, where it is not the usual one.
    pub passfile: Option<PathBuf>,
    /// In the order in which they are tried; never empty.
    pub addresses: Vec<Address>,
    pub database: Option<String>,
    /// Shown by the server beside the connection.
    pub application: Option<String>,
    pub tls: tls::TlsOptions,
    /// Whether the password is only good over this very TLS connection; PostgreSQL.
    pub binding: Binding,
    /// Of the session; PostgreSQL.
    pub settings: Settings,
    /// What is run on each new connection; MySQL.
    pub init_command: Option<String>,
    /// For how long a host is tried; none: as long as the engine thinks fit.
    pub connect_timeout: Option<Duration>,
}

impl Server {
    /// For how long all of its hosts together are tried.
    pub(crate) fn total_connect_timeout(&self, by_default: Duration) -> Duration {
        let hosts = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX);
        self.connect_timeout
            .map_or(by_default, |of_each| of_each.saturating_mul(hosts))
    }

    /// What to log in with at one of the addresses.
    pub(crate) fn password_at(&self, at: usize) -> Option<&str> {
        let of_host = || self.passwords_by_host.get(at)?.as_deref();
        self.password.as_deref().or_else(of_host)
    }

    /// A login may hash the password thousands of times over, on the thread that renews leases:
    /// what is longer than passwords and tokens are would keep that thread busy for minutes.
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

    /// The same without what a login alone needs. Two that are equal so differ in nothing that a
    /// connection is prepared with.
    pub(crate) fn without_passwords(&self) -> Self {
        Self {
            password: None,
            passwords_by_host: Vec::new(),
            ..self.clone()
        }
    }
}

/// Without the password, nor what might hold one.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .field("database", &self.database)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Where a server is.
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

/// SCRAM channel binding, in libpq's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Binding {
    Disable,
    #[default]
    Prefer,
    Require,
}
