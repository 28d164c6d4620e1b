//! Which database, and where it is when nobody says.

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

/// The name of the table unless it is given.
const USUAL_TABLE: &str = "database_locks_lock";

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The same in a path.
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');

/// Environment variables; `#[locked]` functions of programs read the same.
const URL_VARIABLE: &str = "DATABASE_LOCKS_URL";
const FILE_VARIABLE: &str = "DATABASE_LOCKS_URL_FILE";
const TABLE_VARIABLE: &str = "DATABASE_LOCKS_TABLE";

/// A table of a database.
pub(crate) struct Place {
    database: Database,
    table: Option<String>,
}

enum Database {
    /// A file of this user's own.
    Own,
    /// May hold a password.
    Url(String),
    /// The URL stands in this file.
    File(PathBuf),
}

/// Without the URL, which may hold a password.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Place {
    /// Options come before the environment.
    ///
    /// A variable that is set and empty is not passed over: it may be a secret that is missing, and
    /// locks in a file of this machine would exclude no other machine.
    pub(crate) fn new(
        url: Option<String>,
        file: Option<PathBuf>,
        table: Option<String>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let text = |name: &str| {
            let text = variable(name).map(OsString::into_string).transpose();
            text.map_err(|_| {
                Failure::usage(format!("{name} is not UTF-8, must be a text in UTF-8"))
            })
        };
        let database = match (url, file) {
            (Some(url), _) => Database::Url(url),
            (None, Some(file)) => Database::File(file),
            (None, None) => match (text(URL_VARIABLE)?, variable(FILE_VARIABLE)) {
                (Some(_), Some(_)) => {
                    return Err(Failure::usage(format!(
                        "{URL_VARIABLE} and {FILE_VARIABLE} are both set, and name two databases: \
                         unset one of them"
                    )));
                }
                (Some(url), None) => Database::Url(url),
                (None, Some(file)) if file.is_empty() => {
                    return Err(Failure::usage(format!(
                        "{FILE_VARIABLE} is empty: name a file with the URL, or unset it"
                    )));
                }
                (None, Some(file)) => Database::File(file.into()),
                (None, None) => Database::Own,
            },
        };
        let table = table.map_or_else(|| text(TABLE_VARIABLE), |table| Ok(Some(table)))?;
        Ok(Self { database, table })
    }

    /// Connect now; a database that is away is an error. A file of SQLite has to be there.
    pub(crate) async fn connect(&self) -> Result<Locks, Failure> {
        // That of this user may be made by each command: it is where it ought to be.
        let own = matches!(self.database, Database::Own);
        shared(self.builder()?.create(own).connect().await?)
    }

    /// The same, and make a file of SQLite that is not there.
    pub(crate) async fn connect_and_create(&self) -> Result<Locks, Failure> {
        shared(self.builder()?.connect().await?)
    }

    /// Connect when it is needed: an acquire then tries to for as long as it may wait. Makes a file of
    /// SQLite that is not there.
    pub(crate) fn open(&self) -> Result<Locks, Failure> {
        shared(self.builder()?.connect_lazy()?)
    }

    fn builder(&self) -> Result<LocksBuilder, Failure> {
        let builder = match &self.database {
            Database::Own => Locks::builder(url_of(&own_file()?)),
            Database::Url(url) => Locks::builder(url),
            Database::File(path) => Locks::builder_from_file(path)?,
        };
        Ok(match &self.table {
            Some(table) => builder.table(table),
            None => builder,
        })
    }

    pub(crate) fn table(&self) -> &str {
        self.table.as_deref().unwrap_or(USUAL_TABLE)
    }

    /// Where it is, for people: without user name and password.
    pub(crate) fn shown(&self) -> String {
        match &self.database {
            Database::Own => usual_file()
                .map(|file| file.display().to_string())
                .unwrap_or_default(),
            Database::Url(url) => output::without_secrets(url.trim()),
            Database::File(path) => format!("the database of {}", path.display()),
        }
    }
}

/// Locks that another process can see.
fn shared(locks: Locks) -> Result<Locks, Failure> {
    match locks.engine() {
        "memory" => Err(Failure::usage(
            "the URL (--url, --url-file, DATABASE_LOCKS_URL) is that of locks in memory, which exclude \
             no other process: give a database, or no URL for a file of this user",
        )),
        _ => Ok(locks),
    }
}

/// The file of this user's own, in a folder that is there.
fn own_file() -> Result<PathBuf, Failure> {
    let file = usual_file()?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    // For their owner only: who can write there can take every lock.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| {
        let shown = folder.display();
        Failure::unavailable(format!(
            "cannot make the folder {shown}: {error}; give a database with --url"
        ))
    })?;
    Ok(file)
}

fn url_of(file: &Path) -> String {
    format!(
        "sqlite://{}",
        percent_encode(file.as_os_str().as_bytes(), ENCODED_IN_PATH)
    )
}

fn usual_file() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME");
    let file = usual_file_in(std::env::var_os("XDG_STATE_HOME"), home.clone())?;
    // A home folder that is missing belongs to a user who keeps no files: root must not make it.
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

/// A relative path is not to be used, by the XDG specification; it would also mean another database
/// in every folder.
fn usual_file_in(state: Option<OsString>, home: Option<OsString>) -> Result<PathBuf, Failure> {
    let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute(state).or_else(|| Some(absolute(home)?.join(".local/state")));
    state
        .map(|folder| folder.join("dblock/locks.sqlite3"))
        .ok_or_else(|| {
            Failure::usage(
                "there is no home folder to keep the locks in (HOME is not set): \
             give a database with --url or DATABASE_LOCKS_URL",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_folder_comes_before_the_home_folder() {
        let at = |state: Option<&str>, home: Option<&str>| {
            let file = usual_file_in(state.map(Into::into), home.map(Into::into));
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
    fn options_come_before_the_environment_and_two_databases_are_refused() {
        let at = |url: Option<&str>, file: Option<&str>, set: &[(&str, &str)]| {
            let variable = |name: &str| {
                let set = set.iter().find(|(known, _)| *known == name);
                set.map(|(_, value)| OsString::from(value))
            };
            let place = Place::new(url.map(Into::into), file.map(Into::into), None, variable);
            place.map_err(|failure| failure.said).map(|place| {
                let database = match &place.database {
                    Database::Own => "own".to_owned(),
                    Database::Url(url) => format!("url {url}"),
                    Database::File(path) => format!("file {}", path.display()),
                };
                format!("{database} {}", place.table())
            })
        };
        let both = [(URL_VARIABLE, "a"), (FILE_VARIABLE, "/b")];
        let usual = "database_locks_lock";
        for (url, file, set, expected) in [
            (None, None, &[][..], "own"),
            (Some("x"), None, &both, "url x"),
            (None, Some("/y"), &both, "file /y"),
            (None, None, &both[..1], "url a"),
            (None, None, &both[1..], "file /b"),
            (None, None, &[(URL_VARIABLE, "")], "url "),
        ] {
            assert_eq!(at(url, file, set), Ok(format!("{expected} {usual}")));
        }
        assert!(at(None, None, &both).unwrap_err().contains("two databases"));
        let empty = at(None, None, &[(FILE_VARIABLE, "")]).unwrap_err();
        assert!(
            empty.starts_with("DATABASE_LOCKS_URL_FILE is empty"),
            "{empty}"
        );
        let table = at(None, None, &[(TABLE_VARIABLE, "app.locks")]);
        assert_eq!(table, Ok("own app.locks".into()));
    }

    #[test]
    fn any_path_can_be_written_as_a_url() {
        assert_eq!(
            url_of(Path::new("/a b/c?d%e/f")),
            "sqlite:///a%20b/c%3Fd%25e/f"
        );
    }
}
