//! The two streams, and whether they may have colours.

use std::io::{self, IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fstat, stat};

use super::clean::{on_one_line, without_secrets};
use crate::exit::{self, Failure};

/// Set by `--quiet`.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on only errors are printed, and what a command was asked to print.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Whether what is printed may have colours.
pub(crate) fn on_stdout() -> bool {
    may_have_colours(io::stdout().is_terminal())
}

/// The same for what is said of errors.
pub(crate) fn on_stderr() -> bool {
    may_have_colours(io::stderr().is_terminal())
}

/// See <https://no-color.org>.
fn may_have_colours(terminal: bool) -> bool {
    let is = |name: &str, said: &dyn Fn(&std::ffi::OsStr) -> bool| {
        std::env::var_os(name).is_some_and(|value| said(&value))
    };
    terminal && !is("NO_COLOR", &|value| !value.is_empty()) && !is("TERM", &|term| term == "dumb")
}

/// One line on stdout that says what was done; nothing with `--quiet`.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    match is_quiet() {
        true => Ok(()),
        false => print(&format!("{}\n", on_one_line(line))),
    }
}

/// One line on stderr that is not an error; nothing with `--quiet`.
pub(crate) fn notice(said: &str) {
    if !is_quiet() {
        complain(said);
    }
}

/// One line on stderr, in our name, without a password; nothing where there is nothing to say.
pub(crate) fn complain(said: &str) {
    if !said.is_empty() {
        // There is no other place to report that stderr cannot be written.
        let line = on_one_line(&without_secrets(said));
        let _ = writeln!(io::stderr(), "dblock: {line}");
    }
}

/// Help, as it is.
pub(crate) fn help(text: &str, to_stderr: bool) -> Result<(), Failure> {
    match to_stderr {
        true => {
            // There is no other place to report that stderr cannot be written.
            let _ = io::stderr().write_all(text.as_bytes());
            Ok(())
        }
        false => print(&format!("{}\n", text.trim_end())),
    }
}

/// Whether stdout was closed when this process was started.
///
/// Rust's runtime then opens `/dev/null` in its place, for reading and writing, before anything of ours
/// runs; a shell's `>/dev/null` is for writing only.
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

/// A text as it is.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    print(text)
}

/// Write to stdout, and answer whether all of it was taken.
pub(super) fn checked(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Write to stdout. A reader that has seen enough (`| head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match checked(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let said = format!("cannot write to standard output: {error}");
            Err(Failure::new(exit::UNPRINTED, said))
        }
        _ => Ok(()),
    }
}
