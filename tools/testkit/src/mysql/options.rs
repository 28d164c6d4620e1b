//! Which server of MySQL or MariaDB to start, and how.

use std::path::PathBuf;

use crate::programs::{find_binary, require};
use crate::tls::Certificate;

/// Whose server it is: they differ in options, error messages and some SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// MariaDB, as the distribution has it.
    MariaDb,
    /// Oracle's MySQL, at the path in `DBLOCK_MYSQLD`: see `scripts/get-mysql`.
    MySql,
}

impl Flavor {
    /// Its name in promises and in `DBLOCK_REQUIRE`.
    pub fn engine(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadb",
            Self::MySql => "mysql",
        }
    }

    /// How its server program is called.
    pub fn binary(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadbd",
            Self::MySql => "mysqld",
        }
    }

    /// Its server program, not searched for in PATH: Debian's `mysqld` there is MariaDB's.
    pub fn program(self) -> Option<PathBuf> {
        match self {
            Self::MariaDb => find_binary("mariadbd", &[]),
            Self::MySql => std::env::var_os("DBLOCK_MYSQLD")
                .map(PathBuf::from)
                .filter(|program| program.is_file()),
        }
    }

    pub(crate) fn required_program(self) -> Option<PathBuf> {
        require(self.engine(), self.binary(), self.program())
    }
}

/// How to start a server: see `MariaDb::options`.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) flavor: Flavor,
    pub(crate) fsync: bool,
    pub(crate) tls: Option<Certificate>,
    pub(crate) settings: Vec<String>,
}

impl Options {
    pub(crate) fn new(flavor: Flavor) -> Self {
        Self {
            flavor,
            fsync: false,
            tls: None,
            settings: vec!["--default-time-zone=+00:00".into()],
        }
    }

    /// Waits for the disk at a commit. Off by default: the machine does not lose power
    /// during a test, and a killed server loses nothing that it has given the kernel.
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// The server's time zone as an offset, `+00:00` by default. Names would need tables
    /// that a new server does not have.
    #[must_use]
    pub fn time_zone(self, offset: &str) -> Self {
        self.set(&format!("default-time-zone={offset}"))
    }

    /// Offer TLS, with this certificate, and know users by those of its issuer. Without it the
    /// server offers none, although MySQL makes a certificate by itself: a proxy between would see
    /// nothing.
    #[must_use]
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = Some(certificate.clone());
        self
    }

    /// Any setting, as in `innodb-lock-wait-timeout=1`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(format!("--{setting}"));
        self
    }
}
