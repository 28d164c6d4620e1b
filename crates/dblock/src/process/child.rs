//! CMD: a child process that leads a process group.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::unistd::{Pid, getpid, getppid, tcsetpgrp};
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::time::sleep;

use super::signals::{self, Ignored, Signals};
use super::terminal::Terminal;
use crate::exit;

/// The interval of polling for the end of a process group. The kernel sends no signal for it.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long to wait for a group after KILL. Only zombies that their parent does not reap, and
/// processes that hang in the kernel, last longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// A change of the state of CMD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Ended(End),
    /// This signal stopped it; it can be continued.
    Stopped(i32),
}

/// How CMD ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exit(u8),
    Signal(i32),
}

impl End {
    fn of(status: WaitStatus) -> Self {
        match status.terminating_signal() {
            Some(signal) => Self::Signal(signal),
            None => Self::Exit(status.exit_status().unwrap_or_default() as u8),
        }
    }

    /// The exit code that a shell would report.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => exit::of_signal(signal),
        }
    }
}

/// The running CMD.
#[derive(Debug)]
pub(crate) struct Child {
    group: Pid,
    changed: Stream,
    ended: Option<End>,
}

impl Child {
    /// Starts CMD, in the foreground of `terminal` if that is given. CMD inherits the streams, the
    /// environment, the signal mask and the ignored signals of `dblock`.
    ///
    /// SIGTTOU stays blocked on this thread: `dblock` must not be stopped when it writes to the
    /// terminal, or takes it back, from the background.
    pub(crate) fn start(
        command: &[OsString],
        environment: Vec<(&str, OsString)>,
        ignored: Ignored,
        terminal: Option<&Terminal>,
    ) -> io::Result<Self> {
        // Before the start, so that no change is missed.
        let changed = signal(SignalKind::child())?;
        let [program, arguments @ ..] = command else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut child = Command::new(program);
        child.args(arguments).envs(environment).process_group(0);
        let mask = signals::block_forwarded()?;
        set_up(&mut child, mask, ignored, terminal)?;
        let started = child.spawn();
        mask.thread_set_mask()?;
        SigSet::from(Signal::SIGTTOU).thread_block()?;
        let group = Pid::from_raw(started?.id() as i32);
        Ok(Self {
            group,
            changed,
            ended: None,
        })
    }

    /// The process group, whose id is the pid of CMD.
    pub(crate) fn group(&self) -> Pid {
        self.group
    }

    /// Waits until CMD has ended or was stopped. Cancel safe.
    pub(crate) async fn change(&mut self) -> Change {
        loop {
            if let Some(change) = self.reap() {
                return change;
            }
            self.changed.recv().await;
        }
    }

    /// Reaps all children that have ended: as process 1 of a container, `dblock` inherits orphans.
    fn reap(&mut self) -> Option<Change> {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        while let Ok(Some((pid, status))) = wait(options) {
            if pid.as_raw_nonzero().get() != self.group.as_raw() {
                continue;
            }
            match status.stopping_signal() {
                Some(signal) => return Some(Change::Stopped(signal)),
                None => self.ended = Some(End::of(status)),
            }
        }
        self.ended.map(Change::Ended)
    }

    /// Sends a signal to the process group. An error is ignored: the group has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = killpg(self.group, signal);
    }

    /// Waits until CMD and then its whole group has ended; `false` after the timeout. Signals are
    /// forwarded in the meantime.
    async fn group_ended(&mut self, signals: &mut Signals, timeout: Duration) -> bool {
        let ended = async {
            loop {
                tokio::select! {
                    change = self.change() => if let Change::Ended(_) = change { break },
                    signal = signals.next() => self.signal(signal),
                }
            }
            while killpg(self.group, None).is_ok() {
                sleep(POLL_INTERVAL).await;
                self.reap();
            }
        };
        tokio::time::timeout(timeout, ended).await.is_ok()
    }

    /// Ends the process group with TERM, and after the grace with KILL; without a grace with KILL
    /// at once. Returns the signal that ended the group.
    pub(crate) async fn stop(&mut self, signals: &mut Signals, grace: Option<Duration>) -> Signal {
        if let Some(grace) = grace {
            self.signal(Signal::SIGTERM);
            // A stopped process receives TERM only when it is continued.
            self.signal(Signal::SIGCONT);
            if self.group_ended(signals, grace).await {
                return Signal::SIGTERM;
            }
        }
        self.signal(Signal::SIGKILL);
        while self.ended.is_none() {
            self.change().await;
        }
        self.group_ended(signals, KILL_TIMEOUT).await;
        Signal::SIGKILL
    }
}

/// Sets up the work of the new process between fork and exec.
///
/// Signals are blocked until its end (see [`signals::block_forwarded`]), and delivered to CMD after
/// it. The handlers of `dblock` are removed first, or they would swallow signals for CMD.
#[allow(
    unsafe_code,
    reason = "only the new process can ask for its parent-death signal and take the terminal"
)]
fn set_up(
    child: &mut Command,
    mask: SigSet,
    ignored: Ignored,
    terminal: Option<&Terminal>,
) -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let terminal = terminal.map(Terminal::handle).transpose()?;
    #[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
    let parent = getpid();
    // SAFETY: between fork and exec only system calls are made that are async-signal-safe (prctl,
    // getppid, sigaction, getpid, ioctl, sigprocmask); nothing allocates or takes a lock, which
    // another thread may have held at the fork. `sigaction` sets no handler that could be unsafe.
    unsafe {
        child.pre_exec(move || {
            // If dblock is killed, CMD must not run on without the lock. This covers CMD itself,
            // not the processes that it starts.
            #[cfg(target_os = "linux")]
            {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != parent {
                    return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
                }
            }
            for signal in signals::forwarded().chain([Signal::SIGCHLD]) {
                let ignored = ignored.contains(signal);
                sigaction(signal, if ignored { &ignore } else { &default })?;
            }
            if let Some(terminal) = &terminal {
                // After an error CMD gets the terminal when it first uses it.
                let _ = tcsetpgrp(terminal, getpid());
            }
            mask.thread_set_mask()?;
            Ok(())
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_of_a_command_is_the_one_that_a_shell_reports() {
        assert_eq!(End::Exit(3).code(), 3);
        assert_eq!(End::Signal(2).code(), 130);
        assert_eq!(End::Signal(34).code(), 162);
    }
}
