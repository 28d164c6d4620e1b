//! What the benchmark prints while it runs.

/// Prints a line of progress to standard error.
#[allow(
    clippy::print_stderr,
    reason = "the benchmark runs for minutes and says where it is"
)]
pub(crate) fn progress(line: &str) {
    eprintln!("bench: {line}");
}
