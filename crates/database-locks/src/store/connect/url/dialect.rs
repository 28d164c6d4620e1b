//! The differences between the URLs of PostgreSQL and MySQL, and the names of their options.

use std::path::{Path, PathBuf};

/// The subject of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Host,
    Port,
    Socket,
    User,
    Password,
    Database,
    Application,
    TlsMode,
    Roots,
    Certificate,
    PrivateKeyFile,
    TargetSessionAttrs,
    Binding,
    Options,
    SearchPath,
    InitCommand,
    ConnectTimeout,
    Service,
    Passfile,
}

/// The differences between the URLs of the servers.
pub(crate) struct Dialect {
    pub(crate) port: u16,
    /// The file of a socket, from the path in the place of the host, and the port.
    pub(crate) socket: fn(&Path, u16) -> PathBuf,
    pub(crate) options: &'static [(&'static str, Key)],
}

pub(crate) const POSTGRES: Dialect = Dialect {
    port: 5432,
    socket: |folder, port| folder.join(format!(".s.PGSQL.{port}")),
    options: &[
        ("host", Key::Host),
        ("port", Key::Port),
        ("user", Key::User),
        ("password", Key::Password),
        ("dbname", Key::Database),
        ("application_name", Key::Application),
        ("sslmode", Key::TlsMode),
        ("sslrootcert", Key::Roots),
        ("sslcert", Key::Certificate),
        ("sslkey", Key::PrivateKeyFile),
        ("channel_binding", Key::Binding),
        ("options", Key::Options),
        ("search_path", Key::SearchPath),
        ("connect_timeout", Key::ConnectTimeout),
        ("target_session_attrs", Key::TargetSessionAttrs),
        ("service", Key::Service),
        ("passfile", Key::Passfile),
    ],
};

pub(crate) const MYSQL: Dialect = Dialect {
    port: 3306,
    socket: |file, _| file.to_owned(),
    options: &[
        ("socket", Key::Socket),
        ("user", Key::User),
        ("password", Key::Password),
        ("sslmode", Key::TlsMode),
        ("ssl-mode", Key::TlsMode),
        ("sslrootcert", Key::Roots),
        ("ssl-ca", Key::Roots),
        ("sslcert", Key::Certificate),
        ("ssl-cert", Key::Certificate),
        ("sslkey", Key::PrivateKeyFile),
        ("ssl-key", Key::PrivateKeyFile),
        ("init_command", Key::InitCommand),
        ("connect_timeout", Key::ConnectTimeout),
    ],
};

impl Dialect {
    pub(crate) fn key(&self, name: &str) -> Option<Key> {
        let known = self.options.iter().find(|(known, _)| *known == name);
        known.map(|(_, key)| *key)
    }
}
