//! Which programs this machine has, and what becomes of a test that needs a missing one.

use std::path::PathBuf;

/// Answers `found`, the program of an engine; if it is missing, skips the test or fails it.
///
/// `None` prints `skipped: no <binary>`, and the test returns. If the environment variable
/// `DBLOCK_REQUIRE` (a list with commas) names the engine, a missing program is a failure:
/// otherwise the whole suite could pass without testing anything.
///
/// # Panics
///
/// If the engine is required and missing.
#[allow(
    clippy::print_stdout,
    reason = "a skipped test says what it did not test"
)]
pub fn require<T>(engine: &str, binary: &str, found: Option<T>) -> Option<T> {
    if found.is_none() {
        let required = std::env::var("DBLOCK_REQUIRE").unwrap_or_default();
        assert!(
            !names(&required, engine),
            "{engine} is required, and there is no {binary}"
        );
        println!("skipped: no {binary}");
    }
    found
}

/// Whether the list `required` names `engine`.
fn names(required: &str, engine: &str) -> bool {
    required.split(',').any(|name| name.trim() == engine)
}

/// Finds a program in `dirs`, then in PATH, then where Debian keeps the servers.
pub fn find_binary(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    dirs.iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        // Debian leaves sbin out of a user's PATH, and mariadbd is there.
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_required_by_its_whole_name() {
        assert!(names("postgres, mariadb", "mariadb"));
        assert!(!names("postgres18", "postgres"));
        assert!(!names("", "postgres"));
    }

    #[test]
    fn a_missing_engine_that_is_not_required_is_skipped() {
        assert_eq!(
            require("no such engine", "no such binary", None::<()>),
            None
        );
    }
}
