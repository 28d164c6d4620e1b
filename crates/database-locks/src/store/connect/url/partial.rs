//! The settings of a server from one source, and filling in the missing ones.

use std::time::Duration;

use super::dialect::{Dialect, Key};
use super::hosts::{HostList, ports};
use super::server::{Binding, Server};
use crate::error::Error;
use crate::store::connect::invalid::{FORMS, decode, invalid};
use crate::store::connect::tls;

/// The settings of a server from one source: the URL, a service, the environment, an option file.
/// Missing settings are filled in from the next source.
#[derive(Default)]
pub(crate) struct PartialServer {
    /// All but the addresses.
    pub(crate) server: Server,
    hosts: HostList,
    pub(crate) service: Option<String>,
}

/// Parse a URL, with nothing filled in.
pub(crate) fn partial(rest: &str, dialect: &Dialect) -> Result<PartialServer, Error> {
    let Some(rest) = rest.strip_prefix("//") else {
        return invalid("has no `//` behind its scheme", &format!("write {FORMS}"));
    };
    let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
    // Otherwise a part of the password would count as an option, and be shown as an unknown one.
    if options.contains('@') {
        let hint = "percent-encode: `?` in a user name or password is %3F, and `@` is %40";
        return invalid("has an `@` behind its `?`", hint);
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    // Otherwise a part of the password would count as the host, and be shown as one that cannot be
    // found.
    if database.contains('@') {
        let hint = "percent-encode: `/` in a user name or password is %2F, and `@` is %40";
        return invalid("has an `@` behind its `/`", hint);
    }
    // The last `@`, since a password that was not encoded may contain one as well.
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(decode(password, "password")?)),
        None => (login, None),
    };
    let mut partial = PartialServer {
        server: Server {
            user: some(decode(user, "user name")?),
            password,
            database: some(decode(database, "database name")?),
            ..Server::default()
        },
        hosts: HostList::listed(hosts)?,
        service: None,
    };
    for option in options.split('&').filter(|o| !o.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = decode(value, "option")?;
        match dialect.key(name) {
            Some(key) => partial.take(key, name, value)?,
            None => return unknown(name, dialect),
        }
    }
    Ok(partial)
}

impl PartialServer {
    /// Set an option. A later value replaces an earlier one.
    pub(crate) fn take(&mut self, key: Key, name: &str, value: String) -> Result<(), Error> {
        let Self {
            server,
            hosts,
            service,
        } = self;
        match key {
            Key::Host => hosts.entries = value.split(',').map(|h| (h.into(), None)).collect(),
            Key::Port => hosts.ports = ports(&value)?,
            Key::Socket => hosts.socket(value)?,
            Key::User => server.user = some(value),
            Key::Password => server.password = Some(value),
            Key::Database => server.database = some(value),
            Key::Application => server.application = some(value),
            Key::TlsMode => server.tls.mode = Some(tls::Mode::of(name, &value)?),
            Key::Roots => server.tls.roots = Some(tls::Roots::of(name, &value)?),
            Key::Certificate => server.tls.certificate = Some(tls::file_of(name, value)?),
            Key::PrivateKeyFile => server.tls.key = Some(tls::file_of(name, value)?),
            Key::TargetSessionAttrs => target_session_attrs(&value)?,
            Key::Binding => server.binding = Some(binding(&value)?),
            Key::Options => server.settings.options(&value)?,
            Key::SearchPath => server.settings.set("search_path", &value)?,
            Key::InitCommand if value.trim().is_empty() => {
                return invalid(
                    "has an empty `init_command`",
                    "give a statement, or leave it out",
                );
            }
            Key::InitCommand => server.init_command = Some(value),
            Key::ConnectTimeout => server.connect_timeout = Some(seconds(&value)?),
            Key::Service => *service = some(value),
            Key::Passfile => server.passfile = some(value).map(Into::into),
        }
        Ok(())
    }

    /// Whether the value of another source is ignored.
    pub(crate) fn has(&self, key: Key) -> bool {
        let server = &self.server;
        let no_tls = server.tls.mode == Some(tls::Mode::Disable);
        match key {
            Key::Host | Key::Socket => !self.hosts.is_empty(),
            Key::Port => self.hosts.has_port(),
            Key::User => server.user.is_some(),
            Key::Password => server.password.is_some(),
            Key::Database => server.database.is_some(),
            Key::Application => server.application.is_some(),
            Key::TlsMode => server.tls.mode.is_some(),
            Key::Roots => no_tls || server.tls.roots.is_some(),
            Key::Certificate | Key::PrivateKeyFile => {
                no_tls || server.tls.certificate.is_some() || server.tls.key.is_some()
            }
            Key::Binding => server.binding.is_some(),
            Key::ConnectTimeout => server.connect_timeout.is_some(),
            _ => false,
        }
    }

    /// Fill in missing settings from the next source.
    pub(crate) fn fill(&mut self, from: Self) {
        self.hosts.fill(from.hosts);
        let (server, from) = (&mut self.server, from.server);
        server.user = server.user.take().or(from.user);
        if server.password.is_none() {
            server.password = from.password;
            server.password_of_file = from.password_of_file;
        }
        server.database = server.database.take().or(from.database);
        server.application = server.application.take().or(from.application);
        server.tls.fill(from.tls);
        server.binding = server.binding.or(from.binding);
        server.settings.fill(from.settings);
        server.connect_timeout = server.connect_timeout.or(from.connect_timeout);
        server.passfile = server.passfile.take().or(from.passfile);
    }

    /// Mark that the settings so far come from a file.
    pub(crate) fn of_file(mut self) -> Self {
        self.server.password_of_file = self.server.password.is_some();
        self
    }

    /// Parse a connect timeout as libpq does: a number that is not positive means no limit, and
    /// here the default.
    pub(crate) fn libpq_timeout(&mut self, text: &str) -> Result<(), Error> {
        match text.trim().parse::<i64>() {
            Ok(seconds) if seconds > 0 => {
                let seconds = u64::try_from(seconds).unwrap_or(60).min(60);
                self.server.connect_timeout = Some(Duration::from_secs(seconds));
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(_) => seconds(text).map(drop),
        }
    }

    pub(crate) fn finish(self, dialect: &Dialect) -> Result<Server, Error> {
        self.server.tls.check()?;
        Ok(Server {
            addresses: self.hosts.addresses(dialect)?,
            ..self.server
        })
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn unknown<T>(key: &str, dialect: &Dialect) -> Result<T, Error> {
    let key: String = key.chars().take(40).collect();
    let names_in_file: Vec<_> = dialect.options.iter().map(|(name, _)| *name).collect();
    invalid(
        format!("has the unknown option `{}`", key.escape_debug()),
        &format!("the options are {}", names_in_file.join(", ")),
    )
}

/// Locks have to be written, so every value has to allow a writable server.
fn target_session_attrs(value: &str) -> Result<(), Error> {
    match value {
        "any" | "read-write" | "primary" => Ok(()),
        _ => invalid(
            "has a target_session_attrs that asks for a server that cannot be written to",
            "locks have to be written: read-write, primary and any all mean a server that can be",
        ),
    }
}

fn seconds(value: &str) -> Result<Duration, Error> {
    match value.parse() {
        Ok(seconds @ 1..=60) => Ok(Duration::from_secs(seconds)),
        _ => invalid(
            "has a connect_timeout that is no number from 1 to 60",
            "give whole seconds",
        ),
    }
}

fn binding(value: &str) -> Result<Binding, Error> {
    match value {
        "disable" => Ok(Binding::Disable),
        "prefer" => Ok(Binding::Prefer),
        "require" => Ok(Binding::Require),
        _ => invalid(
            "has an unknown channel_binding",
            "it can be disable, prefer or require",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect::url::server::Address;
    use crate::store::connect::url::{Target, parse};

    fn server(url: &str) -> Server {
        match parse(url) {
            Ok(Target::Postgres(server) | Target::Mysql(server)) => server,
            other => panic!("{url}: {other:?}"),
        }
    }

    fn addresses(url: &str) -> String {
        let shown: Vec<_> = server(url)
            .addresses
            .iter()
            .map(Address::to_string)
            .collect();
        shown.join(" ")
    }

    #[test]
    fn the_parts_of_a_url_are_decoded() {
        let s = server("postgres://us%40er:p%3Aw%2Fd@db.example:6000/my%20db?application_name=x");
        assert_eq!(s.user.as_deref(), Some("us@er"));
        assert_eq!(s.password.as_deref(), Some("p:w/d"));
        assert_eq!(s.addresses, [Address::Tcp("db.example".into(), 6000)]);
        assert_eq!(s.database.as_deref(), Some("my db"));
        assert_eq!(s.application.as_deref(), Some("x"));
        let s = server("mysql://root@[::1]/db");
        assert_eq!(s.addresses, [Address::Tcp("::1".into(), 3306)]);
    }

    #[test]
    fn hosts_are_tried_in_the_order_in_which_they_are_listed() {
        for (url, expected) in [
            (
                "postgres://u:p@h1:5433,h2,[::1]:5434/d",
                "h1:5433 h2:5432 [::1]:5434",
            ),
            ("mysql://u:p@h1,h2:3307/d", "h1:3306 h2:3307"),
            ("postgres:///d?host=h1,h2&port=6000", "h1:6000 h2:6000"),
            (
                "postgres:///d?port=6000,6001&host=h1,/run/pg",
                "h1:6000 /run/pg/.s.PGSQL.6001",
            ),
            (
                "postgres://%2Frun%2Fpg:6000,h2/d",
                "/run/pg/.s.PGSQL.6000 h2:5432",
            ),
            ("mariadb://%2Frun%2Fm.sock,h2/d", "/run/m.sock h2:3306"),
            ("postgres:///d", "localhost:5432"),
            ("postgres:///d?host=", "localhost:5432"),
        ] {
            assert_eq!(addresses(url), expected, "{url}");
        }
    }

    #[test]
    fn sockets_are_named_as_the_drivers_users_name_them() {
        assert_eq!(
            addresses("postgres:///db?host=/run/pg"),
            "/run/pg/.s.PGSQL.5432"
        );
        assert_eq!(
            addresses("postgres://u@%2Frun%2Fpg/db"),
            "/run/pg/.s.PGSQL.5432"
        );
        assert_eq!(
            addresses("mariadb://u@localhost/db?socket=/run/m.sock"),
            "/run/m.sock"
        );
    }

    #[test]
    fn a_server_is_one_that_can_be_written_to() {
        for attrs in ["any", "read-write", "primary"] {
            server(&format!("postgres://h/d?target_session_attrs={attrs}"));
        }
        for attrs in ["read-only", "standby", "prefer-standby", ""] {
            let message = parse(&format!("postgres://h/d?target_session_attrs={attrs}"));
            let message = message.expect_err(attrs).to_string();
            assert!(
                message.contains("target_session_attrs") && message.contains("read-write"),
                "{message}"
            );
        }
    }

    #[test]
    fn the_words_for_tls_are_those_of_either_server() {
        let mode = |url: &str| server(url).tls.mode;
        assert_eq!(
            mode("postgres://h/d?sslmode=verify-ca"),
            Some(tls::Mode::VerifyCa)
        );
        for word in [
            "sslmode=verify-full",
            "ssl-mode=VERIFY_IDENTITY",
            "sslmode=verify_identity",
        ] {
            assert_eq!(
                mode(&format!("mysql://h/d?{word}")),
                Some(tls::Mode::VerifyFull),
                "{word}"
            );
        }
        assert_eq!(
            mode("mysql://h/d?ssl-mode=REQUIRED"),
            Some(tls::Mode::Require)
        );
        let message = parse("postgres://h/d?sslmode=always")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("sslmode") && message.contains("verify-full"),
            "{message}"
        );
    }

    #[test]
    fn a_server_is_shown_without_its_password() {
        let shown = format!("{:?}", server("postgres://u:hunter2@h/d?password=hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
