//! The database and table that a command works on.

use std::ffi::OsString;
use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use database_locks::{Locks, LocksBuilder};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::exit::Failure;
use crate::output;

const DEFAULT_TABLE: &str = "database_locks_lock";

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// Like [`ENCODED`], for a path: its separators are not encoded.
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');

// `#[locked]` functions read the same variables.
const URL_VARIABLE: &str = "DATABASE_LOCKS_URL";
const FILE_VARIABLE: &str = "DATABASE_LOCKS_URL_FILE";
const TABLE_VARIABLE: &str = "DATABASE_LOCKS_TABLE";

/// The database and table that a command works on.
pub(crate) struct Target {
    database: Database,
    table: Option<String>,
}

enum Database {
    /// Neither a URL nor a file was given: the SQLite file of this user.
    Default,
    /// May contain a password.
    Url(String),
    /// The path of a file that contains the URL.
    UrlFile(PathBuf),
}

/// Does not show the URL, which may contain a password.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Options take precedence over the environment.
    ///
    /// A variable that is set but empty is an error: it may be a secret that was not mounted, and
    /// falling back to a local file would exclude no other machine.
    pub(crate) fn new(
        url: Option<String>,
        file: Option<PathBuf>,
        table: Option<String>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let text = |name: &str| {
            let text = variable(name).map(OsString::into_string).transpose();
            text.map_err(|_| Failure::usage(format!("{name} is not UTF-8, must be UTF-8")))
        };
        let database = match (url, file) {
            (Some(url), _) => Database::Url(url),
            (None, Some(file)) => Database::UrlFile(file),
            (None, None) => match (text(URL_VARIABLE)?, variable(FILE_VARIABLE)) {
                (Some(_), Some(_)) => {
                    return Err(Failure::usage(format!(
                        "{URL_VARIABLE} and {FILE_VARIABLE} are both set, and only one database can be \
                         used: unset one of them"
                    )));
                }
                (Some(url), None) => Database::Url(url),
                (None, Some(file)) if file.is_empty() => {
                    return Err(Failure::usage(format!(
                        "{FILE_VARIABLE} is empty: set it to a file that contains the URL, or unset it"
                    )));
                }
                (None, Some(file)) => Database::UrlFile(file.into()),
                (None, None) => Database::Default,
            },
        };
        let table = table.map_or_else(|| text(TABLE_VARIABLE), |table| Ok(Some(table)))?;
        Ok(Self { database, table })
    }

    /// Connects at once and creates no SQLite file, except the default one, which any command may
    /// create.
    pub(crate) async fn connect(&self) -> Result<Locks, Failure> {
        let create = matches!(self.database, Database::Default);
        refuse_memory(self.builder()?.create(create).connect().await?)
    }

    /// Connects at once. An SQLite file that is missing is created.
    pub(crate) async fn connect_and_create(&self) -> Result<Locks, Failure> {
        refuse_memory(self.builder()?.connect().await?)
    }

    /// Connects with the first request, so that the wait of an acquire covers the connection. An
    /// SQLite file that is missing is created.
    pub(crate) fn connect_lazy(&self) -> Result<Locks, Failure> {
        refuse_memory(self.builder()?.connect_lazy()?)
    }

    fn builder(&self) -> Result<LocksBuilder, Failure> {
        let builder = match &self.database {
            Database::Default => Locks::builder(sqlite_url(&default_file()?)),
            Database::Url(url) => Locks::builder(url),
            Database::UrlFile(path) => Locks::builder_from_file(path)?,
        };
        Ok(match &self.table {
            Some(table) => builder.table(table),
            None => builder,
        })
    }

    pub(crate) fn table(&self) -> &str {
        self.table.as_deref().unwrap_or(DEFAULT_TABLE)
    }

    /// The table of permits, which the library names after that of locks.
    pub(crate) fn permit_table(&self) -> String {
        let table = self.table();
        format!("{}_permit", table.strip_suffix("_lock").unwrap_or(table))
    }

    /// The database as messages name it, without user name and password.
    pub(crate) fn display(&self) -> String {
        match &self.database {
            Database::Default => default_path()
                .map(|file| file.display().to_string())
                .unwrap_or_default(),
            Database::Url(url) => output::without_secrets(url.trim()),
            Database::UrlFile(path) => format!("the database of {}", path.display()),
        }
    }
}

/// Refuses `memory:`, which no other process can see.
fn refuse_memory(locks: Locks) -> Result<Locks, Failure> {
    match locks.engine() {
        "memory" => Err(Failure::usage(
            "the URL (--url, --url-file, DATABASE_LOCKS_URL) is `memory:`, and locks in memory exclude \
             no other process: give the URL of a database, or none for a local SQLite file",
        )),
        _ => Ok(locks),
    }
}

/// The default SQLite file. Its folder is created if it is missing.
fn default_file() -> Result<PathBuf, Failure> {
    let file = default_path()?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    // For its owner only: a user who can write to the folder can take every lock.
    let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    created.map_err(|error| {
        Failure::unavailable(format!(
            "cannot create the folder {}: {error}; give a database with --url",
            folder.display()
        ))
    })?;
    Ok(file)
}

fn sqlite_url(file: &Path) -> String {
    format!(
        "sqlite://{}",
        percent_encode(file.as_os_str().as_bytes(), ENCODED_IN_PATH)
    )
}

fn default_path() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME");
    let file = default_path_in(std::env::var_os("XDG_STATE_HOME"), home.clone())?;
    // A service account may have no home folder. It is not created, since root would own it.
    match home.map(PathBuf::from) {
        Some(home) if file.starts_with(&home) && !home.is_dir() => {
            Err(Failure::unavailable(format!(
                "the home folder {} (HOME) is missing: give a database with --url or \
                 DATABASE_LOCKS_URL, or a folder with XDG_STATE_HOME",
                home.display()
            )))
        }
        _ => Ok(file),
    }
}

/// A relative path is ignored, as the XDG specification demands: it would mean another database in
/// every working folder.
fn default_path_in(state: Option<OsString>, home: Option<OsString>) -> Result<PathBuf, Failure> {
    let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute(state).or_else(|| Some(absolute(home)?.join(".local/state")));
    state
        .map(|folder| folder.join("dblock/locks.sqlite3"))
        .ok_or_else(|| {
            Failure::usage(
                "HOME is not set, so there is no folder for the default SQLite file: give a \
                 database with --url or DATABASE_LOCKS_URL",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdg_state_home_takes_precedence_over_home() {
        let at = |state: Option<&str>, home: Option<&str>| {
            let file = default_path_in(state.map(Into::into), home.map(Into::into));
            file.map(|path| path.display().to_string())
                .map_err(|failure| failure.code)
        };
        assert_eq!(
            at(Some("/s"), Some("/h")),
            Ok("/s/dblock/locks.sqlite3".into())
        );
        for unfit in [None, Some(""), Some("relative")] {
            let home = Ok("/h/.local/state/dblock/locks.sqlite3".into());
            assert_eq!(at(unfit, Some("/h")), home);
        }
        assert_eq!(at(None, None), Err(2));
    }

    #[test]
    fn options_take_precedence_over_the_environment_and_two_databases_are_refused() {
        let at = |url: Option<&str>, file: Option<&str>, set: &[(&str, &str)]| {
            let variable = |name: &str| {
                let set = set.iter().find(|(known, _)| *known == name);
                set.map(|(_, value)| OsString::from(value))
            };
            let target = Target::new(url.map(Into::into), file.map(Into::into), None, variable);
            target.map_err(|failure| failure.message).map(|target| {
                let database = match &target.database {
                    Database::Default => "default".to_owned(),
                    Database::Url(url) => format!("url {url}"),
                    Database::UrlFile(path) => format!("file {}", path.display()),
                };
                format!("{database} {}", target.table())
            })
        };
        let both = [(URL_VARIABLE, "a"), (FILE_VARIABLE, "/b")];
        let table = "database_locks_lock";
        for (url, file, set, expected) in [
            (None, None, &[][..], "default"),
            (Some("x"), None, &both, "url x"),
            (None, Some("/y"), &both, "file /y"),
            (None, None, &both[..1], "url a"),
            (None, None, &both[1..], "file /b"),
            (None, None, &[(URL_VARIABLE, "")], "url "),
        ] {
            assert_eq!(at(url, file, set), Ok(format!("{expected} {table}")));
        }
        assert!(
            at(None, None, &both)
                .unwrap_err()
                .contains("only one database")
        );
        let empty = at(None, None, &[(FILE_VARIABLE, "")]).unwrap_err();
        assert!(
            empty.starts_with("DATABASE_LOCKS_URL_FILE is empty"),
            "{empty}"
        );
        let named = at(None, None, &[(TABLE_VARIABLE, "app.locks")]);
        assert_eq!(named, Ok("default app.locks".into()));
    }

    #[test]
    fn any_path_can_be_written_as_a_url() {
        assert_eq!(
            sqlite_url(Path::new("/a b/c?d%e/f")),
            "sqlite:///a%20b/c%3Fd%25e/f"
        );
    }
}
