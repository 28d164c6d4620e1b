//! Lock files of open fences, since SQLite has no row locks.
//!
//! A fence has a shared `flock` on the file of its lock. A client that would grant the lock tries
//! an exclusive one first, without waiting, and skips the lock if that fails. The kernel unlocks it
//! when the process ends, however that happens.
//!
//! Both check and lock while they have the write lock of the database, so either the fence sees the
//! grant, or the grant sees the fence. A file exists only while its fence is open. Prune removes
//! the files that a killed process left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use protocol::Slot;
use rustix::fs::{FlockOperation, flock};

/// The folder of lock files, beside the database.
#[derive(Debug)]
pub(crate) struct Fences {
    database: PathBuf,
    folder: PathBuf,
    table: String,
}

/// An open fence. Its drop closes it.
#[derive(Debug)]
pub(crate) struct OpenFence {
    file: File,
    path: PathBuf,
}

/// Whether the path still leads to this file.
fn is_same_file(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => identity(ours) == identity(there),
        _ => false,
    }
}

/// Give a new file or folder the group and the owner of the database, as far as this process may.
/// SQLite does so with its own additional files, since root may be the first to open a fence.
fn match_owner(path: &Path, database: &fs::Metadata) {
    let _ = chown(path, None, Some(database.gid()));
    let _ = chown(path, Some(database.uid()), None);
}

/// Remove the file of a fence that no other process has locked.
///
/// Only with an exclusive lock, and only if the path still leads to it. Otherwise another process
/// would keep its lock on a file that no client can find.
fn remove(file: &File, path: &Path) {
    if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_same_file(file, path) {
        // A file that stays is removed by the next prune.
        let _ = fs::remove_file(path);
    }
}

impl Drop for OpenFence {
    fn drop(&mut self) {
        remove(&self.file, &self.path);
        // A forked child may have a copy of the descriptor, which shares the lock.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Fences {
    /// The fences of the database at `path`.
    pub(crate) fn of_database(path: &Path, table: &str) -> Self {
        let mut folder = path.as_os_str().to_owned();
        folder.push("-fences");
        Self {
            database: path.to_owned(),
            folder: folder.into(),
            table: table.to_owned(),
        }
    }

    /// The file of a lock, by a hash (FNV-1a), since names of locks may be longer than those of
    /// files. Two locks with one hash would only wait for each other's fences.
    fn path(&self, name: &str, slot: Slot) -> PathBuf {
        let slot = slot
            .column()
            .map_or(String::new(), |slot| format!("\0{slot}"));
        let bytes = self.table.bytes().chain([0]).chain(name.bytes());
        let bytes = bytes.chain(slot.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.folder.join(format!("{hash:016x}"))
    }

    /// Whether a fence of this lock is open. Needs the write lock.
    pub(crate) fn is_open(&self, name: &str, slot: Slot) -> io::Result<bool> {
        match OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(name, slot))
        {
            Ok(file) => match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(false),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
                Err(error) => Err(error.into()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.about(&error)),
        }
    }

    /// Open a fence of this lock; `None` if its file is being removed. Needs the write lock, which
    /// the caller keeps until it has read the row.
    pub(crate) fn open(&self, name: &str, slot: Slot) -> io::Result<Option<OpenFence>> {
        let path = self.path(name, slot);
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => self.make(&path),
            opened => opened,
        };
        let file = file.map_err(|error| self.about(&error))?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(is_same_file(&file, &path).then_some(OpenFence { file, path })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Create the file, and the folder if it is missing, with the permissions of the database.
    fn make(&self, path: &Path) -> io::Result<File> {
        let database = fs::metadata(&self.database)?;
        let readable = database.mode() & 0o666;
        if !self.folder.exists() {
            fs::create_dir(&self.folder)?;
            match_owner(&self.folder, &database);
            let searchable = readable | (readable & 0o444) >> 2;
            fs::set_permissions(&self.folder, Permissions::from_mode(searchable))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        match_owner(path, &database);
        file.set_permissions(Permissions::from_mode(readable))?;
        Ok(file)
    }

    /// Remove the files that no process has locked. Needs the write lock.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let ours = |name: &str| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(ours)
                && let Ok(file) = File::open(entry.path())
            {
                remove(&file, &entry.path());
            }
        }
    }

    fn about(&self, error: &io::Error) -> io::Error {
        let message = format!(
            "the folder of open fences {}: {error}",
            self.folder.display()
        );
        io::Error::new(error.kind(), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside a database of that mode.
    fn fences(mode: u32) -> (tempfile::TempDir, Fences) {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("locks.sqlite3");
        fs::write(&database, "").unwrap();
        fs::set_permissions(&database, Permissions::from_mode(mode)).unwrap();
        let fences = Fences::of_database(&database, "t");
        (folder, fences)
    }

    #[test]
    fn who_may_use_the_database_may_use_its_fences() {
        for (mode, of_folder) in [(0o600, 0o700), (0o660, 0o770), (0o664, 0o775)] {
            let (_folder, fences) = fences(mode);
            let open = fences.open("job", protocol::Slot::Lock).unwrap().unwrap();
            let mode_of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
            assert_eq!(mode_of(&fences.folder), of_folder);
            assert_eq!(mode_of(&open.path), mode);
        }
    }

    #[test]
    fn fences_belong_to_the_owner_of_the_database_where_root_opens_the_first() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (_folder, fences) = fences(0o640);
        chown(&fences.database, Some(4711), Some(4712)).unwrap();
        let open = fences.open("job", protocol::Slot::Lock).unwrap().unwrap();
        for path in [&fences.folder, &open.path] {
            let found = fs::metadata(path).unwrap();
            assert_eq!(
                (found.uid(), found.gid()),
                (4711, 4712),
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn a_file_is_there_only_while_its_fence_is_open() {
        let (_folder, fences) = fences(0o600);
        assert!(!fences.is_open("job", protocol::Slot::Lock).unwrap());
        let (first, second) = (
            fences.open("job", protocol::Slot::Lock).unwrap(),
            fences.open("job", protocol::Slot::Lock).unwrap(),
        );
        assert!(first.is_some() && second.is_some());
        assert!(
            fences.is_open("job", protocol::Slot::Lock).unwrap()
                && !fences.is_open("another", protocol::Slot::Lock).unwrap()
        );
        drop(first);
        fences.sweep();
        assert!(fences.is_open("job", protocol::Slot::Lock).unwrap());
        drop(second);
        assert!(!fences.is_open("job", protocol::Slot::Lock).unwrap());
        assert_eq!(fs::read_dir(&fences.folder).unwrap().count(), 0);
    }

    #[test]
    fn what_was_left_behind_is_swept_up_and_nothing_else() {
        let (_folder, fences) = fences(0o600);
        drop(fences.open("job", protocol::Slot::Lock).unwrap());
        fs::write(fences.path("dead", protocol::Slot::Lock), "").unwrap();
        fs::write(fences.folder.join("notes.txt"), "").unwrap();
        let open = fences.open("alive", protocol::Slot::Lock).unwrap();
        fences.sweep();
        assert!(!fences.path("dead", protocol::Slot::Lock).exists());
        assert!(fences.path("alive", protocol::Slot::Lock).exists() && open.is_some());
        assert!(fences.folder.join("notes.txt").exists());
    }

    #[test]
    fn the_lock_of_a_file_that_was_replaced_is_not_given() {
        let (_folder, fences) = fences(0o600);
        let first = fences.open("job", protocol::Slot::Lock).unwrap().unwrap();
        fs::remove_file(&first.path).unwrap();
        let second = fences.open("job", protocol::Slot::Lock).unwrap().unwrap();
        drop(first);
        assert!(
            fences.is_open("job", protocol::Slot::Lock).unwrap(),
            "the second one's file is there"
        );
        drop(second);
    }
}
