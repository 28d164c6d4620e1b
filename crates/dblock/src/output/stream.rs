//! The two streams, and whether they may have colours.

use std::io::{self, IsTerminal, Write as _};

use super::clean::{on_one_line, without_secrets};

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

/// One line on stdout.
pub(crate) fn say(line: &str) {
    print(&format!("{}\n", on_one_line(line)));
}

/// One line on stderr, in our name, without a password; nothing where there is nothing to say.
pub(crate) fn complain(said: &str) {
    if !said.is_empty() {
        // Nobody is left to be told that it could not be said.
        let line = on_one_line(&without_secrets(said));
        let _ = writeln!(io::stderr(), "dblock: {line}");
    }
}

/// Help, as it is.
pub(crate) fn help(text: &str, to_stderr: bool) {
    match to_stderr {
        true => drop(io::stderr().write_all(text.as_bytes())),
        false => print(&format!("{}\n", text.trim_end())),
    }
}

/// A text as it is.
pub(crate) fn text(text: &str) {
    print(text);
}

/// Where it matters that it was printed.
pub(super) fn checked(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A reader that has seen enough (`| head`) is no failure.
pub(super) fn print(text: &str) {
    let _ = checked(text);
}
