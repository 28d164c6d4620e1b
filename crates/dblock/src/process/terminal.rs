//! The controlling terminal: lent to CMD, and taken back.

use std::fs::File;
use std::io::IsTerminal;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};

/// The terminal that Ctrl-C and Ctrl-Z come from.
#[derive(Debug)]
pub(crate) struct Terminal {
    tty: File,
    modes: Option<Termios>,
}

impl Terminal {
    /// None: there is none, as in a cron job.
    pub(crate) fn open() -> Option<Self> {
        let tty = File::options()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .ok()?;
        let modes = tcgetattr(&tty).ok();
        Some(Self { tty, modes })
    }

    /// A handle of its own for the new process.
    pub(crate) fn handle(&self) -> std::io::Result<File> {
        self.tty.try_clone()
    }

    /// Whether it is our process group that it listens to.
    pub(crate) fn is_ours(&self) -> bool {
        tcgetpgrp(&self.tty) == Ok(getpgrp())
    }

    /// Whether CMD gets it from its start.
    ///
    /// Not when we are one of several in a job: in a pipeline (`dblock run … | less`) the others
    /// need it too, and in a script it is for the script to be ended by Ctrl-C. We pass signals on
    /// then, and CMD gets the terminal when it asks for it.
    pub(crate) fn goes_to_child(&self) -> bool {
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        at_terminal && getpgrp() == getpid() && self.is_ours()
    }

    /// Give it to a process group. Where that is not possible, things stay as they are.
    ///
    /// SIGTTOU must be blocked on this thread.
    pub(crate) fn give_to(&self, group: Pid) {
        let _ = tcsetpgrp(&self.tty, group);
    }

    /// Take it back from CMD's group, if that still has it.
    ///
    /// SIGTTOU must be blocked on this thread.
    pub(crate) fn take_back_from(&self, group: Pid) {
        if self.is_with(group) {
            let _ = tcsetpgrp(&self.tty, getpgrp());
        }
    }

    /// Whether CMD's group has it.
    pub(crate) fn is_with(&self, group: Pid) -> bool {
        tcgetpgrp(&self.tty) == Ok(group)
    }

    /// Set the modes that it had at the start: CMD was killed in the middle of something, and the
    /// shell, which sees us end in an orderly way, would leave them as they are.
    pub(crate) fn restore_modes(&self) {
        if let Some(modes) = self.modes.as_ref().filter(|_| self.is_ours()) {
            let _ = tcsetattr(&self.tty, SetArg::TCSANOW, modes);
        }
    }
}
