//! From a URL to an engine.
//!
//! Parsed here rather than by the drivers: each of them knows other options, and their messages
//! repeat what they could not read, a password included.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::error::Error;

mod server;
mod settings;

#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(super) use server::Address;
#[cfg(feature = "postgres")]
pub(super) use server::Binding;
pub(super) use server::Server;
use server::{MYSQL, POSTGRES, server};

/// What a URL names.
#[derive(Debug)]
pub(super) enum Target {
    Memory(String),
    #[cfg_attr(not(feature = "sqlite-unbundled"), allow(dead_code))]
    Sqlite(PathBuf),
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Postgres(Server),
    #[cfg_attr(not(feature = "mysql"), allow(dead_code))]
    Mysql(Server),
}

const FORMS: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE, mysql://…, mariadb://…, \
                     sqlite:///absolute/path, sqlite:relative/path, memory: or memory:NAME";

fn refuse<T>(got: impl Into<String>, allowed: &str) -> Result<T, Error> {
    Err(Error::config("url", got, allowed))
}

/// A line break at the end is that of the file or secret which the URL was read from, and no part of
/// it. Within the URL it would name another database or file.
pub(super) fn parse(url: &str) -> Result<Target, Error> {
    let url = url.trim_end();
    if url.trim_start().is_empty() {
        return refuse("empty", FORMS);
    }
    if url.contains(char::is_control) {
        return refuse(
            "with a line break, a tab or another control character in it",
            "without: percent-encode one that is meant",
        );
    }
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
    fn white_space_at_the_end_of_a_url_is_cut() {
        for end in ["\n", "\r\n", " ", "\t", " \n\n"] {
            let named = |url: &str| parse(&format!("{url}{end}")).expect("a URL");
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
            "\nsqlite:///var/l.db",
            "memory:a\u{7f}b",
        ] {
            let said = parse(bad).expect_err(bad).to_string();
            assert!(said.contains("control character"), "{said}");
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
            "postgres://u:hunter2@h/d?listen_url=mysql%3A%2F%2Fu%3Ahunter2%40h%2Fd",
            "postgres://h/d?listen_url=postgres%3A%2F%2Fu%3Ahunter2%40h%3Ahunter2%2Fd",
            "postgres://h/d?listen_url=postgres%3A%2F%2Fu%3Ahunter2%40h%2Fd%3Fsslmode%3Dhunter2",
            "postgres://h/d?listen_url=postgres%3A%2F%2Fh%3Flisten_url%3Dpostgres%253A%252F%252Fhunter2",
            "postgres://h/d?listen_url=postgres://u:hunter2@h/d",
            "mysql://h/d?listen_url=postgres%3A%2F%2Fu%3Ahunter2%40h",
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
            let said = parse(bad).expect_err(bad).to_string();
            assert!(said.starts_with("`url` is "), "{said}");
            assert!(!said.contains("hunter2"), "{bad}: {said}");
        }
    }
}
