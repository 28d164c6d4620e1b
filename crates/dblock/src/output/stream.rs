//! Writes to stdout and stderr.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fstat, stat};

use super::sanitize::{on_one_line, without_secrets};
use crate::exit::{self, Failure};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Suppresses [`result`] and [`notice`]: `--quiet`.
pub(crate) fn set_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

pub(crate) fn stdout_has_colours() -> bool {
    has_colours(io::stdout().is_terminal())
}

pub(crate) fn stderr_has_colours() -> bool {
    has_colours(io::stderr().is_terminal())
}

/// See <https://no-color.org>.
fn has_colours(is_terminal: bool) -> bool {
    let is = |name: &str, condition: &dyn Fn(&OsStr) -> bool| {
        std::env::var_os(name).is_some_and(|value| condition(&value))
    };
    is_terminal
        && !is("NO_COLOR", &|value| !value.is_empty())
        && !is("TERM", &|term| term == "dumb")
}

/// Prints the result of a command, one line, on stdout; nothing with `--quiet`.
pub(crate) fn result(line: &str) -> Result<(), Failure> {
    match is_quiet() {
        true => Ok(()),
        false => print(&format!("{}\n", on_one_line(line))),
    }
}

/// Prints a line that is no error on stderr; nothing with `--quiet`.
pub(crate) fn notice(message: &str) {
    if !is_quiet() {
        error(message);
    }
}

/// Prints a line on stderr, without passwords; nothing for an empty message.
pub(crate) fn error(message: &str) {
    if !message.is_empty() {
        // If stderr cannot be written, there is no other place to report that.
        let line = on_one_line(&without_secrets(message));
        let _ = writeln!(io::stderr(), "dblock: {line}");
    }
}

pub(crate) fn help(text: &str) -> Result<(), Failure> {
    print(&format!("{}\n", text.trim_end()))
}

/// The help that takes the place of an error message, where arguments are missing.
pub(crate) fn help_on_stderr(text: &str) {
    // If stderr cannot be written, there is no other place to report that.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether stdout was closed when this process was started.
///
/// Rust's runtime then opens `/dev/null` for reading and writing in its place, before `main`; the
/// `>/dev/null` of a shell opens it for writing only.
pub(crate) fn stdout_is_closed() -> bool {
    let stdout = io::stdout();
    let both_ways = fcntl_getfl(&stdout).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::RDWR);
    let device = |stat: Stat| {
        let is_device = FileType::from_raw_mode(stat.st_mode).is_char_device();
        is_device.then_some(stat.st_rdev)
    };
    let here = fstat(&stdout).ok().and_then(device);
    let null = stat("/dev/null").ok().and_then(device);
    both_ways && here.is_some() && here == null
}

/// Writes to stdout. A closed pipe is an error too: a ticket must arrive.
pub(crate) fn print_all(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes to stdout. A closed pipe (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match print_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            exit::NOT_PRINTED,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}
