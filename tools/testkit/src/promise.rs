//! The record of which promise was tested on which engine.

use std::io::Write;

/// Records that the calling test has shown promise `id` on `engine`.
///
/// Call it last, when every assertion has passed. It prints the line
/// `promise P1 postgres`, and appends it to the file that `DBLOCK_PROMISES` names,
/// because libtest swallows the output of a test that passes.
/// `scripts/check-promises` compares that file with `scripts/promises.expected`.
///
/// # Panics
///
/// If the file cannot be written: a promise that is not recorded counts as untested.
#[allow(
    clippy::print_stdout,
    reason = "the line is for a run of one test by hand"
)]
pub fn promise(id: &str, engine: &str) {
    let line = format!("promise {id} {engine}\n");
    print!("{line}");
    if let Some(path) = std::env::var_os("DBLOCK_PROMISES").filter(|path| !path.is_empty()) {
        // One write to a file opened for appending: the test binaries and their
        // threads share the file, and lines must not mix.
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("cannot record in {}: {error}", path.display()));
    }
}
