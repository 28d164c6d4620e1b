//! Wall clocks of a process's own, by the library faketime.
//!
//! Only the wall clock is wrong: timeouts and sleeps of the process last as long as they should.

use std::io;
use std::path::{Path, PathBuf};

/// The library, if this machine has it.
pub fn library() -> Option<PathBuf> {
    let triples = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    let dirs = triples.map(|entry| entry.path()).chain(["/usr/lib".into()]);
    dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file())
}

/// The environment of a process whose clock is in the file `clock`. It reads the file again after
/// `cache` seconds, or each time that it reads the clock.
pub fn environment(
    library: &Path,
    clock: &Path,
    cache: Option<u32>,
) -> [(&'static str, String); 5] {
    let cache = match cache {
        Some(seconds) => ("FAKETIME_CACHE_DURATION", seconds.to_string()),
        None => ("FAKETIME_NO_CACHE", "1".into()),
    };
    [
        cache,
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
    ]
}

/// Sets a clock so many seconds ahead of the machine's, or behind it if that is negative.
///
/// # Errors
///
/// If the file cannot be written.
pub fn set(clock: &Path, ahead: i64) -> io::Result<()> {
    // By a rename: a process that reads half a number would have another time.
    let next = clock.with_extension("next");
    std::fs::write(&next, format!("{ahead:+}\n"))?;
    std::fs::rename(&next, clock)
}

/// Removes what killed processes left behind in shared memory. It is named by their pid, and
/// `faketime` does not start under the same pid again: `sem_open: File exists`.
pub fn remove_leftovers() {
    for entry in std::fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let pid = ["faketime_shm_", "sem.faketime_sem_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test may have removed it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
