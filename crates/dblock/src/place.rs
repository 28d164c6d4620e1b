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

/// A table of a database.
pub(crate) struct Place {
    /// None: a file of our own.
    pub(crate) url: Option<String>,
    pub(crate) table: Option<String>,
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
    /// Connect now; a database that is away is an error.
    pub(crate) async fn connect(&self) -> Result<Locks, Failure> {
        Ok(self.builder()?.connect().await?)
    }

    /// Connect when it is needed: an acquire then tries to for as long as it may wait.
    pub(crate) fn open(&self) -> Result<Locks, Failure> {
        Ok(self.builder()?.connect_lazy()?)
    }

    fn builder(&self) -> Result<LocksBuilder, Failure> {
        let builder = Locks::builder(self.url()?);
        Ok(match &self.table {
            Some(table) => builder.table(table),
            None => builder,
        })
    }

    fn url(&self) -> Result<String, Failure> {
        Ok(match &self.url {
            // One process alone has it, and that is this one.
            Some(url) if url.starts_with("memory:") => {
                return Err(Failure::usage(
                    "the URL (--url, DATABASE_LOCKS_URL) is that of locks in memory, which exclude no \
                     other process: give a database, or no URL for a file of this user",
                ));
            }
            Some(url) => url.clone(),
            None => {
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
                url_of(&file)
            }
        })
    }

    pub(crate) fn table(&self) -> &str {
        self.table.as_deref().unwrap_or(USUAL_TABLE)
    }

    /// Where it is, for people: without user name and password.
    pub(crate) fn shown(&self) -> String {
        match &self.url {
            Some(url) => output::without_secrets(url.trim_end()),
            None => usual_file()
                .map(|file| file.display().to_string())
                .unwrap_or_default(),
        }
    }
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
    fn any_path_can_be_written_as_a_url() {
        assert_eq!(
            url_of(Path::new("/a b/c?d%e/f")),
            "sqlite:///a%20b/c%3Fd%25e/f"
        );
    }
}
