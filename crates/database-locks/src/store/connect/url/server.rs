//! The URLs of database servers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::settings::Settings;
use super::{FORMS, decode, refuse};
use crate::error::Error;
use crate::store::connect::tls;

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
    pub tls: tls::Wanted,
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
    pub(crate) fn connecting(&self, by_default: Duration) -> Duration {
        let hosts = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX);
        self.connect_timeout
            .map_or(by_default, |of_each| of_each.saturating_mul(hosts))
    }

    /// What to log in with at one of the addresses.
    pub(crate) fn password_at(&self, at: usize) -> Option<&str> {
        let of_host = || self.passwords_by_host.get(at)?.as_deref();
        self.password.as_deref().or_else(of_host)
    }

    /// A login may hash the password thousands of times over, on the thread that renews leases: what is
    /// longer than passwords and tokens are would keep that thread busy for minutes.
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

/// What an option is about.
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
    Secret,
    Session,
    Binding,
    Options,
    SearchPath,
    InitCommand,
    ConnectTimeout,
    Service,
    Passfile,
}

/// What the servers' URLs differ in.
pub(crate) struct Dialect {
    port: u16,
    /// The file of a socket, given what stands in the place of a host and its port.
    socket: fn(&Path, u16) -> PathBuf,
    options: &'static [(&'static str, Key)],
}

/// In bytes. A cloud's tokens have some KiB.
const LONGEST_PASSWORD: usize = 16 << 10;

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
        ("sslkey", Key::Secret),
        ("channel_binding", Key::Binding),
        ("options", Key::Options),
        ("search_path", Key::SearchPath),
        ("connect_timeout", Key::ConnectTimeout),
        ("target_session_attrs", Key::Session),
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
        ("sslkey", Key::Secret),
        ("ssl-key", Key::Secret),
        ("init_command", Key::InitCommand),
        ("connect_timeout", Key::ConnectTimeout),
    ],
};

/// What one source says of a server: the URL, a service, the environment, an option file. What it
/// leaves out is filled in from the next one.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) service: Option<String>,
    places: Places,
    database: Option<String>,
    application: Option<String>,
    tls: tls::Wanted,
    binding: Option<Binding>,
    settings: Settings,
    init_command: Option<String>,
    connect_timeout: Option<Duration>,
    passfile: Option<PathBuf>,
    password_of_file: bool,
}

/// What a URL says, and nothing else.
pub(crate) fn draft(rest: &str, dialect: &Dialect) -> Result<Draft, Error> {
    let Some(rest) = rest.strip_prefix("//") else {
        return refuse("has no `//` behind its scheme", &format!("write {FORMS}"));
    };
    let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
    // Else a part of the password would be taken for an option, and shown as an unknown one.
    if options.contains('@') {
        let hint = "percent-encode: `?` in a user name or password is %3F, and `@` is %40";
        return refuse("has an `@` behind its `?`", hint);
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    // Else a part of the password would be taken for the host, and shown as one that cannot be found.
    if database.contains('@') {
        let hint = "percent-encode: `/` in a user name or password is %2F, and `@` is %40";
        return refuse("has an `@` behind its `/`", hint);
    }
    // The last `@`: a password that was not encoded may hold one as well.
    let (login, places) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(decode(password, "password")?)),
        None => (login, None),
    };
    let mut draft = Draft {
        user: some(decode(user, "user name")?),
        password,
        places: Places::listed(places)?,
        database: some(decode(database, "database name")?),
        ..Draft::default()
    };
    for option in options.split('&').filter(|o| !o.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = decode(value, "option")?;
        match dialect.key(name) {
            Some(key) => draft.take(key, name, value)?,
            None => return unknown(name, dialect),
        }
    }
    Ok(draft)
}

impl Dialect {
    pub(crate) fn key(&self, name: &str) -> Option<Key> {
        let known = self.options.iter().find(|(known, _)| *known == name);
        known.map(|(_, key)| *key)
    }
}

impl Draft {
    /// Remember what one option says, in the place of what was said before.
    pub(crate) fn take(&mut self, key: Key, name: &str, value: String) -> Result<(), Error> {
        match key {
            Key::Host => self.places.hosts = value.split(',').map(|h| (h.into(), None)).collect(),
            Key::Port => self.places.ports = ports(&value)?,
            Key::Socket => self.places.socket(value)?,
            Key::User => self.user = some(value),
            Key::Password => self.password = Some(value),
            Key::Database => self.database = some(value),
            Key::Application => self.application = some(value),
            Key::TlsMode => self.tls.mode = Some(tls::Mode::of(name, &value)?),
            Key::Roots => self.tls.roots = Some(tls::Roots::of(name, &value)?),
            Key::Certificate => self.tls.certificate = Some(tls::file_of(name, value)?),
            Key::Secret => self.tls.key = Some(tls::file_of(name, value)?),
            Key::Session => session(&value)?,
            Key::Binding => self.binding = Some(binding(&value)?),
            Key::Options => self.settings.options(&value)?,
            Key::SearchPath => self.settings.set("search_path", &value)?,
            Key::InitCommand if value.trim().is_empty() => {
                return refuse(
                    "has an empty `init_command`",
                    "give a statement, or leave it out",
                );
            }
            Key::InitCommand => self.init_command = Some(value),
            Key::ConnectTimeout => self.connect_timeout = Some(seconds(&value)?),
            Key::Service => self.service = some(value),
            Key::Passfile => self.passfile = some(value).map(Into::into),
        }
        Ok(())
    }

    /// Whether nothing that another source says of it would count.
    pub(crate) fn has(&self, key: Key) -> bool {
        let no_tls = self.tls.mode == Some(tls::Mode::Disable);
        match key {
            Key::Host | Key::Socket => !self.places.is_open(),
            Key::Port => self.places.has_port(),
            Key::User => self.user.is_some(),
            Key::Password => self.password.is_some(),
            Key::Database => self.database.is_some(),
            Key::Application => self.application.is_some(),
            Key::TlsMode => self.tls.mode.is_some(),
            Key::Roots => no_tls || self.tls.roots.is_some(),
            Key::Certificate | Key::Secret => {
                no_tls || self.tls.certificate.is_some() || self.tls.key.is_some()
            }
            Key::Binding => self.binding.is_some(),
            Key::ConnectTimeout => self.connect_timeout.is_some(),
            _ => false,
        }
    }

    /// Fill in what was left out with what the next source says.
    pub(crate) fn fill(&mut self, from: Self) {
        self.user = self.user.take().or(from.user);
        if self.password.is_none() {
            self.password = from.password;
            self.password_of_file = from.password_of_file;
        }
        self.places.fill(from.places);
        self.database = self.database.take().or(from.database);
        self.application = self.application.take().or(from.application);
        self.tls.fill(from.tls);
        self.binding = self.binding.or(from.binding);
        self.settings.fill(from.settings);
        self.connect_timeout = self.connect_timeout.or(from.connect_timeout);
        self.passfile = self.passfile.take().or(from.passfile);
    }

    /// What was said so far stands in a file.
    pub(crate) fn of_file(mut self) -> Self {
        self.password_of_file = self.password.is_some();
        self
    }

    /// Add to `options` what libpq's variable `PGOPTIONS` sets that locks let anyone set. It may
    /// hold more, for other programs.
    pub(crate) fn settings_of(&mut self, options: &str) {
        self.settings.options_that_may_be(options);
    }

    /// How long to connect for, as libpq has it: what is not positive means no limit, and here the
    /// usual one.
    pub(crate) fn libpq_timeout(&mut self, text: &str) -> Result<(), Error> {
        match text.trim().parse::<i64>() {
            Ok(seconds) if seconds > 0 => {
                let seconds = u64::try_from(seconds).unwrap_or(60).min(60);
                self.connect_timeout = Some(Duration::from_secs(seconds));
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(_) => seconds(text).map(drop),
        }
    }

    /// libpq's file of passwords, unless it was said already.
    pub(crate) fn passfile_or(&mut self, path: Option<String>) {
        self.passfile = self.passfile.take().or(path.map(Into::into));
    }

    pub(crate) fn finish(self, dialect: &Dialect) -> Result<Server, Error> {
        self.tls.check()?;
        Ok(Server {
            user: self.user,
            password: self.password,
            passwords_by_host: Vec::new(),
            password_of_file: self.password_of_file,
            passfile: self.passfile,
            addresses: self.places.addresses(dialect)?,
            database: self.database,
            application: self.application,
            tls: self.tls,
            binding: self.binding.unwrap_or_default(),
            settings: self.settings,
            init_command: self.init_command,
            connect_timeout: self.connect_timeout,
        })
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn unknown<T>(key: &str, dialect: &Dialect) -> Result<T, Error> {
    let key: String = key.chars().take(40).collect();
    let names: Vec<_> = dialect.options.iter().map(|(name, _)| *name).collect();
    refuse(
        format!("has the unknown option `{}`", key.escape_debug()),
        &format!("the options are {}", names.join(", ")),
    )
}

/// What kind of server is looked for. Locks have to be written, so it is always the same one: one
/// that can be written to.
fn session(value: &str) -> Result<(), Error> {
    match value {
        "any" | "read-write" | "primary" => Ok(()),
        _ => refuse(
            "has a target_session_attrs that asks for a server that cannot be written to",
            "locks have to be written: read-write, primary and any all mean a server that can be",
        ),
    }
}

fn seconds(value: &str) -> Result<Duration, Error> {
    match value.parse() {
        Ok(seconds @ 1..=60) => Ok(Duration::from_secs(seconds)),
        _ => refuse(
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
        _ => refuse(
            "has an unknown channel_binding",
            "it can be disable, prefer or require",
        ),
    }
}

/// Where to look for servers, as it was written.
#[derive(Default)]
struct Places {
    /// A name, address or path each, and its port; empty: not said.
    hosts: Vec<(String, Option<u16>)>,
    /// Of the option: one for all of the hosts, or one for each.
    ports: Vec<u16>,
}

impl Places {
    /// `host:port,[::1]:port,%2Frun%2Fsocket`
    fn listed(text: &str) -> Result<Self, Error> {
        let mut hosts = Vec::new();
        for place in text.split(',') {
            let (host, port) = host_and_port(place)?;
            hosts.push((decode(host, "host")?, port));
        }
        let ports = Vec::new();
        Ok(Self { hosts, ports })
    }

    fn socket(&mut self, path: String) -> Result<(), Error> {
        if !path.starts_with('/') {
            return refuse(
                "has a socket that is no path",
                "write socket=/absolute/path",
            );
        }
        if self.hosts.len() > 1 {
            let hint = "give either; in a list of hosts a socket is written as %2Fpath%2Fto%2Fit";
            return refuse("has several hosts and a socket", hint);
        }
        self.hosts = vec![(path, None)];
        Ok(())
    }

    /// Whether no host was said.
    fn is_open(&self) -> bool {
        match &*self.hosts {
            [] => true,
            [(host, _)] => host.is_empty(),
            _ => false,
        }
    }

    fn has_port(&self) -> bool {
        !self.ports.is_empty() || self.hosts.iter().any(|(_, port)| port.is_some())
    }

    /// Hosts and ports are filled in each for itself, as libpq does it.
    fn fill(&mut self, from: Self) {
        let port = self.hosts.iter().find_map(|(_, port)| *port);
        if self.is_open() && !from.is_open() {
            self.hosts = from.hosts;
            self.ports = port.map_or_else(|| std::mem::take(&mut self.ports), |port| vec![port]);
        }
        if port.is_none() && self.ports.is_empty() {
            self.ports = from.ports;
        }
    }

    fn addresses(self, dialect: &Dialect) -> Result<Vec<Address>, Error> {
        let (mut hosts, ports) = (self.hosts, &self.ports);
        if hosts.is_empty() {
            hosts.push((String::new(), None));
        }
        let count = hosts.len();
        if ports.len() > 1 && ports.len() != count {
            return refuse(
                format!("has {count} hosts and {} ports", ports.len()),
                "give one port for all hosts, or one for each",
            );
        }
        let port_of = |at: usize| ports.get(at).or(ports.first()).copied();
        let address = |(at, (host, port)): (usize, (String, Option<u16>))| {
            let port = port_of(at).or(port).unwrap_or(dialect.port);
            Ok(match host {
                path if path.starts_with('/') => {
                    Address::Unix((dialect.socket)(Path::new(&path), port))
                }
                host if !host.is_empty() => Address::Tcp(host, port),
                _ if count == 1 => Address::Tcp("localhost".into(), port),
                _ => return refuse("has an empty host in its list", "write HOST:PORT,HOST:PORT"),
            })
        };
        hosts.into_iter().enumerate().map(address).collect()
    }
}

fn ports(value: &str) -> Result<Vec<u16>, Error> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    match value.split(',').map(port).collect() {
        Some(ports) => Ok(ports),
        None => refuse("has a port that is no number from 1 to 65535", "correct it"),
    }
}

fn host_and_port(place: &str) -> Result<(&str, Option<u16>), Error> {
    let (host, port) = match place
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((v6, rest)) => (v6, rest.strip_prefix(':')),
        None => match place.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    match port.filter(|p| !p.is_empty()).map(str::parse::<u16>) {
        None => Ok((host, None)),
        Some(Ok(port)) if port > 0 => Ok((host, Some(port))),
        // Not repeated: in `postgres://user:pass word/db` this is the password.
        Some(_) => refuse(
            "has a port that is no number from 1 to 65535",
            "write `@`, `:` and `/` in a user name or password as %40, %3A and %2F",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let said = parse(&format!("postgres://h/d?target_session_attrs={attrs}"));
            let said = said.expect_err(attrs).to_string();
            assert!(
                said.contains("target_session_attrs") && said.contains("read-write"),
                "{said}"
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
        let said = parse("postgres://h/d?sslmode=always")
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("sslmode") && said.contains("verify-full"),
            "{said}"
        );
    }

    #[test]
    fn a_server_is_shown_without_its_password() {
        let shown = format!("{:?}", server("postgres://u:hunter2@h/d?password=hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
