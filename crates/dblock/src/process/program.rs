//! Whether CMD can be started.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

/// Fails if the program does not exist, or may not be executed: as `exec` would, but before the lock
/// is acquired. In doubt it succeeds.
pub(crate) fn check(program: &OsStr) -> io::Result<()> {
    if program.is_empty() {
        return Err(Errno::NOENT.into());
    }
    if program.as_bytes().contains(&b'/') {
        return is_executable(Path::new(program)).map_err(Into::into);
    }
    let Some(folders) = std::env::var_os("PATH") else {
        return Ok(());
    };
    let mut failure = Errno::NOENT;
    for folder in std::env::split_paths(&folders) {
        match is_executable(&folder.join(program)) {
            Ok(()) => return Ok(()),
            // A later folder may have one that can be executed.
            Err(denied @ Errno::ACCESS) => failure = denied,
            Err(_) => {}
        }
    }
    Err(failure.into())
}

fn is_executable(path: &Path) -> Result<(), Errno> {
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Err(error @ (Errno::NOENT | Errno::NOTDIR | Errno::ACCESS)) => Err(error),
        _ if path.is_dir() => Err(Errno::ACCESS),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_exec_finds_it() {
        let kind = |program: &str| check(OsStr::new(program)).map_err(|error| error.kind());
        assert_eq!(kind("sh"), Ok(()));
        assert_eq!(kind("/bin/sh"), Ok(()));
        for missing in ["no-such-program", "./no-such-program", "/bin/sh/x", ""] {
            let failed = kind(missing).expect_err(missing);
            assert!(
                [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&failed),
                "{missing}: {failed}"
            );
        }
        for denied in ["/", "/dev/null"] {
            assert_eq!(
                kind(denied),
                Err(io::ErrorKind::PermissionDenied),
                "{denied}"
            );
        }
    }
}
