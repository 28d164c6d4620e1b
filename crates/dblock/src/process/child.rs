//! CMD: a process in a group of its own.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::unistd::{Pid, getpid, getppid, tcsetpgrp};
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::time::sleep;

use crate::exit;
use crate::signals::{self, Ignored, Signals};
use crate::terminal::Terminal;

/// How often to look whether a group still has members: nothing tells when the last one ends.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a group that was killed is waited for. Longer would be of no use: what is left then are
/// zombies that are not reaped, or processes that hang in the kernel.
const UNTIL_KILLED: Duration = Duration::from_secs(1);

/// What became of CMD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has ended.
    Ended(End),
    /// It was stopped by this signal, and waits to be continued.
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

    /// As a shell would say it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => exit::of_signal(signal),
        }
    }
}

/// A running command; it leads a process group.
#[derive(Debug)]
pub(crate) struct Child {
    group: Pid,
    changed: Stream,
    ended: Option<End>,
}

impl Child {
    /// Start it. It inherits what we inherited: streams, environment, signal mask, what is ignored;
    /// and the terminal where it `gets` that.
    ///
    /// From here on SIGTTOU is blocked on this thread: a terminal that was lent must not stop us
    /// when we say something, or take it back.
    pub(crate) fn start(
        command: &[OsString],
        environment: &[(&str, &OsStr)],
        ignored: Ignored,
        gets: Option<&Terminal>,
    ) -> io::Result<Self> {
        // Listened to before there is anything to be missed.
        let changed = signal(SignalKind::child())?;
        let [program, arguments @ ..] = command else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut wanted = Command::new(program);
        wanted
            .args(arguments)
            .envs(environment.iter().copied())
            .process_group(0);
        let mask = signals::hold_back()?;
        prepare(&mut wanted, mask, ignored, gets)?;
        let started = wanted.spawn();
        mask.thread_set_mask()?;
        SigSet::from(Signal::SIGTTOU).thread_block()?;
        let group = Pid::from_raw(started?.id() as i32);
        Ok(Self {
            group,
            changed,
            ended: None,
        })
    }

    /// Its process group, which bears the pid of its leader.
    pub(crate) fn group(&self) -> Pid {
        self.group
    }

    /// Wait until it has ended or was stopped.
    pub(crate) async fn change(&mut self) -> Change {
        loop {
            if let Some(change) = self.look() {
                return change;
            }
            self.changed.recv().await;
        }
    }

    /// Reaps everything that has ended: as the first process of a container we inherit orphans.
    fn look(&mut self) -> Option<Change> {
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

    /// Send a signal to the whole group. An error means that the group is gone.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = killpg(self.group, signal);
    }

    /// Wait until its leader has ended, and then its whole group, for so long at most.
    ///
    /// Signals go on to it meanwhile.
    async fn all_ended(&mut self, signals: &mut Signals, within: Duration) -> bool {
        let all = async {
            loop {
                tokio::select! {
                    change = self.change() => if let Change::Ended(_) = change { break },
                    signal = signals.next() => self.signal(signal),
                }
            }
            while killpg(self.group, None).is_ok() {
                sleep(LOOK_EVERY).await;
                self.look();
            }
        };
        tokio::time::timeout(within, all).await.is_ok()
    }

    /// End the whole group: by TERM, and what is left after the grace by KILL. Without a grace by
    /// KILL at once. Answers with the signal that did it, once the leader has ended.
    pub(crate) async fn end(&mut self, signals: &mut Signals, grace: Option<Duration>) -> Signal {
        if let Some(grace) = grace {
            self.signal(Signal::SIGTERM);
            // A stopped process has to be continued to receive it.
            self.signal(Signal::SIGCONT);
            if self.all_ended(signals, grace).await {
                return Signal::SIGTERM;
            }
        }
        self.signal(Signal::SIGKILL);
        while self.ended.is_none() {
            self.change().await;
        }
        self.all_ended(signals, UNTIL_KILLED).await;
        Signal::SIGKILL
    }
}

/// Say what is to be done between fork and exec.
///
/// Signals are held back meanwhile (see [`signals::hold_back`]). Our handlers would swallow in the
/// new process what is for CMD, so they go first; then the terminal is ours to give; and last the
/// mask is what it was: CMD never runs without what it needs, and misses nothing.
#[allow(
    unsafe_code,
    reason = "only the new process can ask for its parent-death signal and take the terminal"
)]
fn prepare(
    wanted: &mut Command,
    mask: SigSet,
    ignored: Ignored,
    gets: Option<&Terminal>,
) -> io::Result<()> {
    let as_usual = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let terminal = gets.map(Terminal::handle).transpose()?;
    #[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
    let parent = getpid();
    // SAFETY: between fork and exec only system calls are made that are async-signal-safe (prctl,
    // getppid, sigaction, getpid, ioctl, sigprocmask); nothing allocates or takes a lock, which
    // another thread may have held at the fork. `sigaction` sets no handler that could be unsafe.
    unsafe {
        wanted.pre_exec(move || {
            // If we are killed, CMD must not go on without its lock. Of what it started itself the
            // kernel knows nothing.
            #[cfg(target_os = "linux")]
            {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != parent {
                    return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
                }
            }
            for signal in signals::passed_on().chain([Signal::SIGCHLD]) {
                let ignored = ignored.contains(signal);
                sigaction(signal, if ignored { &ignore } else { &as_usual })?;
            }
            if let Some(terminal) = &terminal {
                // Where that is not possible, CMD gets it when it asks for it.
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
    fn the_end_of_a_command_is_told_as_a_shell_tells_it() {
        assert_eq!(End::Exit(3).code(), 3);
        assert_eq!(End::Signal(2).code(), 130);
        assert_eq!(End::Signal(34).code(), 162);
    }
}
