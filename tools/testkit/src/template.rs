//! Data directories that are made once on a machine, for each version of a server, and copied for
//! each server.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::Server;

/// To be increased whenever the users or settings of the saved directories change.
const EDITION: u32 = 1;

/// Where they are kept between runs.
const HOME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/testkit");

/// The data directory for servers of `program`. Where there is none yet, `make` makes one and
/// passes it on to be saved.
///
/// # Panics
///
/// If it cannot be saved.
pub(crate) fn of(name: &str, program: &Path, make: impl FnOnce(&dyn Fn(&Path))) -> PathBuf {
    let version = Command::new(program)
        .args(["--no-defaults", "--version"])
        .output()
        .expect("the server tells its version");
    let mut hasher = DefaultHasher::new();
    (EDITION, program, version.stdout).hash(&mut hasher);
    let saved = Path::new(HOME).join(format!("{name}-{:016x}", hasher.finish()));
    if saved.is_dir() {
        return saved;
    }
    make(&|data| save(data, &saved));
    saved
}

/// Saves under a temporary name first: several test processes may save at once.
fn save(data: &Path, saved: &Path) {
    std::fs::create_dir_all(HOME).expect("the directory of builds can be written to");
    let new = tempfile::tempdir_in(HOME).expect("the directory was made just now");
    let new = new.keep();
    copy_dir(data, &new, &|_| {});
    if std::fs::rename(&new, saved).is_err() {
        assert!(saved.is_dir(), "cannot save {}", saved.display());
        let _ = std::fs::remove_dir_all(&new);
    }
}

/// Copies a data directory of a server that does not run, for another.
///
/// # Panics
///
/// If it cannot be read, or there is no room.
pub(crate) fn copy(from: &Path, to: &Path, server: &Server) {
    std::fs::create_dir(to).expect("the directory can be written to");
    copy_dir(from, to, &|path| server.give(path));
}

fn copy_dir(from: &Path, to: &Path, give: &dyn Fn(&Path)) {
    give(to);
    for entry in std::fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("it can be read");
        let kind = entry.file_type().expect("it has one");
        let new = to.join(entry.file_name());
        if kind.is_dir() {
            std::fs::create_dir(&new).expect("there is room");
            copy_dir(&entry.path(), &new, give);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &new).expect("there is room");
            give(&new);
        }
    }
}
