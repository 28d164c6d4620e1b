//! The scheme of a URL, and its engine.

use std::path::PathBuf;

use super::dialect::{MYSQL, POSTGRES};
use super::partial::{PartialServer, partial};
use super::server::Server;
use crate::error::Error;
use crate::store::connect::invalid::{FORMS, decode, invalid};

/// The database that a URL names.
#[derive(Debug)]
pub(crate) enum Target {
    Memory(String),
    Sqlite(PathBuf),
    Postgres(Server),
    Mysql(Server),
}

/// A parsed URL.
pub(super) enum Parsed {
    /// A database on this machine, which needs no further settings.
    Local(Target),
    Postgres(PartialServer),
    Mysql(PartialServer),
}

/// White space around a URL comes from the file or secret that it was read from, and is removed. A
/// control character within the URL is refused, since it would name another database or file.
pub(super) fn parse_scheme(url: &str) -> Result<Parsed, Error> {
    let url = url.trim();
    if url.is_empty() {
        return invalid("empty", FORMS);
    }
    if url.contains(char::is_control) {
        return invalid(
            "has a line break, a tab or another control character in it",
            "percent-encode one that is meant",
        );
    }
    let Some((scheme, rest)) = url.split_once(':') else {
        return invalid("a text without a scheme", FORMS);
    };
    match &*scheme.to_ascii_lowercase() {
        "memory" if rest.starts_with('/') => {
            invalid("has a `/` behind `memory:`", "write memory: or memory:NAME")
        }
        "memory" => Ok(Parsed::Local(Target::Memory(decode(rest, "name")?))),
        "sqlite" => sqlite(rest).map(Parsed::Local),
        "postgres" | "postgresql" => partial(rest, &POSTGRES).map(Parsed::Postgres),
        "mysql" | "mariadb" => partial(rest, &MYSQL).map(Parsed::Mysql),
        other => unknown(other, rest),
    }
}

/// The error for a scheme of other programs, with the one to use instead.
fn unknown<T>(scheme: &str, rest: &str) -> Result<T, Error> {
    let plain = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    // `jdbc:postgresql://…`, and `postgresql+psycopg2://…` of SQLAlchemy.
    let (engine, place) = match scheme {
        "jdbc" => rest.split_once(':').unwrap_or((rest, "")),
        _ => (scheme, rest),
    };
    // Without `//` it may be a misplaced password.
    if !place.starts_with("//") || !plain(engine) {
        return invalid("a text without a scheme", FORMS);
    }
    let shown = match scheme {
        "jdbc" => format!("jdbc:{engine}"),
        _ => scheme.to_owned(),
    };
    let instead = match engine
        .to_ascii_lowercase()
        .split('+')
        .next()
        .unwrap_or_default()
    {
        "postgres" | "postgresql" | "psql" | "postgis" => "postgres",
        "mysql" | "mariadb" | "mysql2" => "mysql",
        "sqlite" | "sqlite3" => {
            let hint = "write sqlite:///absolute/path or sqlite:relative/path";
            return invalid(
                format!("has the scheme `{shown}:` of another program"),
                hint,
            );
        }
        _ => {
            let hint = format!("write {FORMS}");
            return invalid(format!("has the unknown scheme `{shown}:`"), &hint);
        }
    };
    let jdbc = match scheme {
        "jdbc" => ", and user and password before the host: USER:PASSWORD@",
        _ => "",
    };
    invalid(
        format!("has the scheme `{shown}:` of another program"),
        &format!("write {instead}:// in its place{jdbc}"),
    )
}

fn sqlite(rest: &str) -> Result<Target, Error> {
    let allowed = "write sqlite:///absolute/path or sqlite:relative/path, without options";
    let path = match rest.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => {
            return invalid(
                "has two slashes before a path that is not absolute",
                allowed,
            );
        }
        None => rest,
    };
    if path.contains('?') {
        return invalid(
            "has options behind a `?`, which SQLite has none of",
            allowed,
        );
    }
    let path = decode(path, "path")?;
    if path.is_empty() || path.ends_with('/') {
        return invalid("has no file", allowed);
    }
    if path == ":memory:" {
        return invalid(
            "for a database that no other process can see",
            "memory: for locks of one process",
        );
    }
    Ok(Target::Sqlite(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect::url::parse;

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
    fn a_scheme_may_be_in_any_case() {
        for (url, kind) in [
            ("POSTGRES://H/d", "Postgres"),
            ("PostgreSQL://h/d", "Postgres"),
            ("MySQL://h/d", "Mysql"),
            ("MARIADB://h/d", "Mysql"),
            ("SQLite:///x", "Sqlite"),
            ("Memory:A", "Memory"),
        ] {
            let shown = format!("{:?}", parse(url).expect(url));
            assert!(shown.starts_with(kind), "{url}: {shown}");
        }
    }

    #[test]
    fn the_schemes_of_other_programs_are_told_with_what_to_write_instead() {
        for (url, known, instead) in [
            (
                "jdbc:postgresql://h/d?user=u&password=hunter2",
                "`jdbc:postgresql:`",
                "postgres://",
            ),
            ("JDBC:mysql://h/d", "`jdbc:mysql:`", "mysql://"),
            (
                "postgres+asyncpg://u:hunter2@h/d",
                "`postgres+asyncpg:`",
                "postgres://",
            ),
            (
                "postgresql+psycopg2://u:hunter2@h/d",
                "`postgresql+psycopg2:`",
                "postgres://",
            ),
            (
                "mysql+pymysql://u:hunter2@h/d",
                "`mysql+pymysql:`",
                "mysql://",
            ),
            (
                "mariadb+mariadbconnector://h/d",
                "`mariadb+mariadbconnector:`",
                "mysql://",
            ),
            (
                "sqlite+aiosqlite:///x",
                "`sqlite+aiosqlite:`",
                "sqlite:///absolute/path",
            ),
            ("sqlite3:///x", "`sqlite3:`", "sqlite:///absolute/path"),
            (
                "jdbc:oracle://h/d",
                "unknown scheme `jdbc:oracle:`",
                "mysql://",
            ),
        ] {
            let message = parse(url).expect_err(url).to_string();
            assert!(
                message.contains(known) && message.contains(instead),
                "{message}"
            );
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn white_space_around_a_url_is_cut() {
        for end in ["\n", "\r\n", " ", "\t", " \n\n"] {
            let named = |url: &str| parse(&format!("{end}{url}{end}")).expect("a URL");
            assert!(
                matches!(named("sqlite:///var/l.db"), Target::Sqlite(path) if path.ends_with("l.db"))
            );
            assert!(matches!(named("memory:a"), Target::Memory(name) if name == "a"));
            assert!(matches!(named("sqlite:a%20"), Target::Sqlite(path) if path.ends_with("a ")));
            let Target::Postgres(server) = named("postgres://u:p@h/d") else {
                panic!("another engine");
            };
            assert_eq!(server.database.as_deref(), Some("d"), "{end:?}");
            let empty = parse(end).expect_err("no URL").to_string();
            assert!(empty.starts_with("`url` is empty"), "{empty}");
        }
    }

    #[test]
    fn a_control_character_within_a_url_is_refused() {
        for bad in [
            "postgres://u:p@h/d\n?sslmode=require",
            "postgres://u:p\n@h/d",
            "mysql://u:p@h\t/d",
            "sqlite:///var/l.db\nsqlite:///var/m.db",
            "memory:a\u{7f}b",
        ] {
            let message = parse(bad).expect_err(bad).to_string();
            assert!(message.contains("control character"), "{message}");
        }
        assert!(
            parse("postgres://u:p%0A@h/d").is_ok(),
            "what is encoded is meant"
        );
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
            "postgres://u:hunter2@h/d?sslmode=always",
            "postgres://u:hunter2@h/d?sslmode=hunter2",
            "postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=",
            "postgres://u:hunter2@h/d?target_session_attrs=read-only",
            "postgres://u:hunter2@h/d?channel_binding=hunter2",
            "postgres://u:hunter2@a,,b/d",
            "postgres://u:hunter2@a,b/d?port=1,2,3",
            "mysql://u:hunter2@a,b/d?socket=/s",
            "mysql://u:hunter2@a/d?target_session_attrs=any",
            "postgres://u:hunter2@h/d?sslcert=/hunter",
            "postgres://u:hunter2@h/d?sslcert=/c&sslkey=/k&sslmode=disable",
            "postgres://u:hunter2@h/d?connect_timeout=hunter2",
            "postgres://u:hunter2@h/d?connect_timeout=61",
            "postgres://u:hunter2@h/d?options=-c%20hunter2",
            "postgres://u:hunter2@h/d?init_command=x",
            "postgres://u:hunter2@h/d?listen_url=hunter2",
            "mysql://u:hunter2@h/d?options=-c%20search_path%3Da",
            "mysql://u:hunter2@h/d?init_command=",
            // An `@` that was not encoded: what looks like an option is a part of the password.
            "postgres://u:12?hunter2@h/d",
            "postgres://u:12?sslrootcert=hunter2@h/d",
            "postgres://u:p@hunter2/x@h/d",
            "mysql://u:12/hunter2@h/d",
            "mysql://u:hunter2@a:0/d",
            "sqlite:",
            "sqlite://x/hunter2",
            "sqlite:a?hunter2",
            "sqlite::memory:",
            "memory://x",
            "postgres://u:hunter2%ff@h/d",
        ] {
            let message = parse(bad).expect_err(bad).to_string();
            assert!(
                message.starts_with("`url` is ") || message.starts_with("`url` has "),
                "{message}"
            );
            assert!(!message.contains("hunter2"), "{bad}: {message}");
        }
    }
}
