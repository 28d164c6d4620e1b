//! From a URL to an engine.
//!
//! Parsed here rather than by the drivers: each of them knows other options, and their messages
//! repeat what they could not read, a password included.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::error::Error;

/// What a URL names.
#[derive(Debug)]
pub(super) enum Target {
    Memory(String),
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    Sqlite(PathBuf),
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Postgres(Server),
    #[cfg_attr(not(feature = "mysql"), allow(dead_code))]
    Mysql(Server),
}

/// A server and who wants to talk to it.
pub(super) struct Server {
    pub user: Option<String>,
    pub password: Option<String>,
    /// A host name or address; none where `socket` says where the server is.
    pub host: String,
    pub port: u16,
    /// The folder (PostgreSQL) or file (MySQL) of a Unix socket.
    pub socket: Option<PathBuf>,
    pub database: Option<String>,
    /// Shown by the server beside the connection.
    pub application: Option<String>,
}

/// Without the password.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("socket", &self.socket)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

const FORMS: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE, mysql://…, mariadb://…, \
                     sqlite:///absolute/path, sqlite:relative/path, memory: or memory:NAME";

fn refuse<T>(got: impl Into<String>, allowed: &str) -> Result<T, Error> {
    Err(Error::config("url", got, allowed))
}

pub(super) fn parse(url: &str) -> Result<Target, Error> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return refuse("a text without a scheme", FORMS);
    };
    match scheme {
        "memory" if rest.starts_with('/') => refuse("of another form", "memory: or memory:NAME"),
        "memory" => Ok(Target::Memory(decode(rest, "name")?)),
        "sqlite" => sqlite(rest),
        "postgres" | "postgresql" => Ok(Target::Postgres(server(rest, &POSTGRES)?)),
        "mysql" | "mariadb" => Ok(Target::Mysql(server(rest, &MYSQL)?)),
        // Without `//` it may be a password in the wrong place.
        word if rest.starts_with("//") && word.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            refuse(format!("of the unknown scheme `{word}:`"), FORMS)
        }
        _ => refuse("a text without a scheme", FORMS),
    }
}

fn sqlite(rest: &str) -> Result<Target, Error> {
    let allowed = "sqlite:///absolute/path or sqlite:relative/path, without options";
    let path = match rest.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => return refuse("of two slashes", allowed),
        None => rest,
    };
    if path.contains('?') {
        return refuse("with options", allowed);
    }
    let path = decode(path, "path")?;
    if path.is_empty() || path.ends_with('/') {
        return refuse("without a file", allowed);
    }
    if path == ":memory:" {
        return refuse(
            "for a database that no other process can see",
            "memory: for one process",
        );
    }
    Ok(Target::Sqlite(path.into()))
}

/// What the servers' URLs differ in.
struct Dialect {
    port: u16,
    socket_option: &'static str,
    tls_options: &'static [&'static str],
    options: &'static str,
}

const POSTGRES: Dialect = Dialect {
    port: 5432,
    socket_option: "host",
    tls_options: &["sslmode"],
    options: "host, port, user, password, dbname, application_name, sslmode",
};

const MYSQL: Dialect = Dialect {
    port: 3306,
    socket_option: "socket",
    tls_options: &["sslmode", "ssl-mode"],
    options: "socket, user, password, sslmode, ssl-mode",
};

fn server(rest: &str, dialect: &Dialect) -> Result<Server, Error> {
    let Some(rest) = rest.strip_prefix("//") else {
        return refuse("without `//`", FORMS);
    };
    let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    // The last `@`: a password that somebody forgot to encode may hold one as well.
    let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(decode(password, "password")?)),
        None => (login, None),
    };
    let some = |text: String| Some(text).filter(|t| !t.is_empty());
    let mut server = Server {
        user: some(decode(user, "user name")?),
        password,
        host: String::new(),
        port: dialect.port,
        socket: None,
        database: some(decode(database, "database name")?),
        application: None,
    };
    if place.contains(',') {
        return refuse("of several hosts", "one host");
    }
    let (host, port) = host_and_port(place)?;
    server.port = port.unwrap_or(dialect.port);
    match decode(host, "host")? {
        path if path.starts_with('/') => server.socket = Some(path.into()),
        host if host.is_empty() => server.host = "localhost".into(),
        host => server.host = host,
    }
    for option in options.split('&').filter(|o| !o.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let value = decode(value, "option")?;
        match key {
            key if key == dialect.socket_option && value.starts_with('/') => {
                server.socket = Some(value.into());
            }
            "host" if dialect.socket_option == "host" && !value.is_empty() => server.host = value,
            "port" if dialect.socket_option == "host" => {
                let Ok(port) = value.parse() else {
                    return refuse("with a bad port", "a port of 1 to 65535");
                };
                server.port = port;
            }
            "dbname" if dialect.socket_option == "host" => server.database = some(value),
            "application_name" if dialect.socket_option == "host" => {
                server.application = some(value);
            }
            "user" => server.user = some(value),
            "password" => server.password = Some(value),
            key if dialect.tls_options.contains(&key) => match &*value {
                // "prefer" takes an unencrypted connection where the server has no better one.
                "disable" | "DISABLED" | "prefer" | "PREFERRED" | "allow" => {}
                _ => {
                    let allowed = "disable or prefer: this version has no TLS yet";
                    return refuse(format!("with `{key}` that asks for TLS"), allowed);
                }
            },
            key => {
                let key: String = key.chars().take(40).collect();
                let got = format!("with the unknown option `{}`", key.escape_debug());
                return refuse(
                    got,
                    &format!("without it; the options are {}", dialect.options),
                );
            }
        }
    }
    Ok(server)
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
            "with a bad port",
            "a port of 1 to 65535; `@`, `:` and `/` in a \
                           user name or password must be written %40, %3A and %2F",
        ),
    }
}

fn decode(text: &str, what: &str) -> Result<String, Error> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
        _ => refuse(
            format!("with a {what} that is not UTF-8 without NUL"),
            "percent-encoded UTF-8",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pg(url: &str) -> Server {
        match parse(url) {
            Ok(Target::Postgres(server) | Target::Mysql(server)) => server,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_parts_of_a_url_are_decoded() {
        let s = pg("postgres://us%40er:p%3Aw%2Fd@db.example:6000/my%20db?application_name=x");
        assert_eq!(s.user.as_deref(), Some("us@er"));
        assert_eq!(s.password.as_deref(), Some("p:w/d"));
        assert_eq!((&*s.host, s.port), ("db.example", 6000));
        assert_eq!(s.database.as_deref(), Some("my db"));
        assert_eq!(s.application.as_deref(), Some("x"));
        let s = pg("mysql://root@[::1]/db");
        assert_eq!((&*s.host, s.port), ("::1", 3306));
    }

    #[test]
    fn sockets_are_named_as_the_drivers_users_name_them() {
        let socket = |url| pg(url).socket.unwrap().to_string_lossy().into_owned();
        assert_eq!(socket("postgres:///db?host=/run/pg"), "/run/pg");
        assert_eq!(socket("postgres://u@%2Frun%2Fpg/db"), "/run/pg");
        assert_eq!(
            socket("mariadb://u@localhost/db?socket=/run/m.sock"),
            "/run/m.sock"
        );
    }

    #[test]
    fn files_are_absolute_with_three_slashes_and_relative_without() {
        let path = |url| match parse(url) {
            Ok(Target::Sqlite(path)) => path.to_string_lossy().into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(path("sqlite:///var/l.db"), "/var/l.db");
        assert_eq!(path("sqlite:l%20x.db"), "l x.db");
        assert!(matches!(parse("memory:a"), Ok(Target::Memory(name)) if name == "a"));
    }

    #[test]
    fn a_refused_url_is_not_repeated() {
        for bad in [
            "hunter2",
            "",
            "hunter2:secret",
            "redis://:hunter2@h/",
            "postgres:hunter2",
            "postgres://u:hunter2",
            "postgres://u:hunter2@h:hunter2/",
            "postgres://u:p@h/?hunter=2",
            "postgres://u:hunter2@h/d?sslmode=require",
            "mysql://u:hunter2@a,b/d",
            "sqlite:",
            "sqlite://x/hunter2",
            "sqlite:a?hunter2",
            "sqlite::memory:",
            "memory://x",
            "postgres://u:hunter2%ff@h/d",
        ] {
            let said = parse(bad).unwrap_err().to_string();
            assert!(said.starts_with("`url` is "), "{said}");
            assert!(!said.contains("hunter2"), "{bad}: {said}");
        }
    }

    #[test]
    fn a_server_is_shown_without_its_password() {
        let shown = format!("{:?}", pg("postgres://u:hunter2@h/d"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
