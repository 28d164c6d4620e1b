//! The controlling terminal: handed to CMD, and taken back.

use std::fs::File;
use std::io::IsTerminal;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};

/// The controlling terminal, which sends the signals of Ctrl-C and Ctrl-Z.
#[derive(Debug)]
pub(crate) struct Terminal {
    tty: File,
    modes: Option<Termios>,
}

impl Terminal {
    /// `None` if the process has no controlling terminal, as in a cron job.
    pub(crate) fn open() -> Option<Self> {
        let tty = File::options()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .ok()?;
        let modes = tcgetattr(&tty).ok();
        Some(Self { tty, modes })
    }

    /// A second handle, for the new process.
    pub(super) fn handle(&self) -> std::io::Result<File> {
        self.tty.try_clone()
    }

    /// Whether the process group of `dblock` is in the foreground.
    pub(crate) fn is_foreground(&self) -> bool {
        tcgetpgrp(&self.tty) == Ok(getpgrp())
    }

    /// Whether CMD is put into the foreground at its start.
    ///
    /// Not if `dblock` is one of several processes of a job: in a pipeline (`dblock run … | less`)
    /// the others need the terminal too, and in a script Ctrl-C must end the script. Signals are
    /// forwarded then, and CMD gets the terminal when it first uses it.
    pub(crate) fn goes_to_child(&self) -> bool {
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        at_terminal && getpgrp() == getpid() && self.is_foreground()
    }

    /// Puts a process group into the foreground; an error changes nothing.
    ///
    /// SIGTTOU must be blocked on this thread.
    pub(crate) fn give_to(&self, group: Pid) {
        let _ = tcsetpgrp(&self.tty, group);
    }

    /// Puts `dblock` back into the foreground, if the group of CMD is there.
    ///
    /// SIGTTOU must be blocked on this thread.
    pub(crate) fn take_back_from(&self, group: Pid) {
        if self.is_foreground_group(group) {
            let _ = tcsetpgrp(&self.tty, getpgrp());
        }
    }

    /// Whether this process group is in the foreground.
    pub(crate) fn is_foreground_group(&self, group: Pid) -> bool {
        tcgetpgrp(&self.tty) == Ok(group)
    }

    /// Restores the terminal modes from the start, after CMD was killed. A shell does so only for
    /// a process that a signal ended, and `dblock` exits normally.
    pub(crate) fn restore_modes(&self) {
        if let Some(modes) = self.modes.as_ref().filter(|_| self.is_foreground()) {
            let _ = tcsetattr(&self.tty, SetArg::TCSANOW, modes);
        }
    }
}
