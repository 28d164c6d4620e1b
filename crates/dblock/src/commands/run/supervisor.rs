//! Watches CMD, the lock and the signals until CMD has ended.

use std::future::Future;
use std::time::Duration;

use database_locks::{LockGuard, LostReason};
use nix::sys::signal::{Signal, raise};
use tokio::time::sleep;

use crate::cli::{OnLost, RunArgs};
use crate::commands::release_notice::Listener;
use crate::notices::Notices;
use crate::output;
use crate::process::{Change, Child, End, Signals, Terminal};

/// The pause before CMD is continued in the background, after it was stopped for using the
/// terminal. Without it, a CMD that repeats such a use would keep the machine busy.
const BACKGROUND_PAUSE: Duration = Duration::from_millis(200);

/// How CMD ended.
pub(super) enum Outcome {
    /// By itself.
    Ended(End),
    /// The lock was lost, and this signal ended the process group.
    Stopped(LostReason, Signal),
}

pub(super) struct Supervisor<'a> {
    args: &'a RunArgs,
    guard: &'a LockGuard,
    notices: &'a Notices,
    child: Child,
    signals: &'a mut Signals,
    terminal: Option<Terminal>,
    listener: Listener,
    /// The lock is gone, and CMD may run on: it was released by its ticket, or `--on-lost ignore`.
    runs_without_lock: bool,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        args: &'a RunArgs,
        guard: &'a LockGuard,
        notices: &'a Notices,
        child: Child,
        signals: &'a mut Signals,
        terminal: Option<Terminal>,
        listener: Listener,
    ) -> Self {
        Self {
            args,
            guard,
            notices,
            child,
            signals,
            terminal,
            listener,
            runs_without_lock: false,
        }
    }

    /// Returns when CMD has ended.
    pub(super) async fn supervise(&mut self) -> Outcome {
        let lost = self.guard.lost();
        let mut lost = Some(Box::pin(async { lost.await.reason() }));
        loop {
            tokio::select! {
                biased;
                change = self.child.change() => match change {
                    Change::Ended(end) => return Outcome::Ended(end),
                    Change::Stopped(signal) => self.child_stopped(signal).await,
                },
                reason = first_loss(&mut lost) => {
                    if let Some(signal) = self.lock_lost(reason).await {
                        return Outcome::Stopped(reason, signal);
                    }
                }
                signal = self.signals.next() => self.forward(signal),
                // The notice is recorded, and counts when the lock is lost.
                () = self.listener.receive() => {}
            }
        }
    }

    /// Whether CMD is in the foreground of the terminal, also after it has ended.
    pub(super) fn child_has_terminal(&self) -> bool {
        let terminal = self.terminal.as_ref();
        terminal.is_some_and(|terminal| terminal.is_foreground_group(self.child.group()))
    }

    /// Takes the terminal back. Its modes are restored if CMD was ended by a signal.
    pub(super) fn finish(self, by_signal: bool) -> Listener {
        if let Some(terminal) = &self.terminal {
            terminal.take_back_from(self.child.group());
            if by_signal {
                terminal.restore_modes();
            }
        }
        self.listener
    }

    /// Stops CMD and returns the signal that ended it; `None` if CMD may run on.
    async fn lock_lost(&mut self, reason: LostReason) -> Option<Signal> {
        self.notices.lock_is_over();
        // A leader that runs on would run beside the next one.
        if !self.args.leads && self.listener.is_released(reason).await {
            self.runs_without_lock = true;
            return None;
        }
        let grace = match self.args.on_lost {
            OnLost::Ignore => {
                let name = &self.args.lock.name;
                let loss = loss_message(self.guard, reason);
                output::error(&format!(
                    "lock `{name}` {loss}; CMD runs on without it (--on-lost ignore)"
                ));
                self.runs_without_lock = true;
                return None;
            }
            OnLost::Kill => None,
            OnLost::Term => Some(self.args.grace()),
        };
        Some(self.child.stop(self.signals, grace).await)
    }

    fn may_run(&self) -> bool {
        self.runs_without_lock || self.guard.is_held() || self.args.on_lost == OnLost::Ignore
    }

    /// After a loss CONT is not forwarded: a stopped CMD must get TERM before it runs on.
    fn forward(&self, signal: Signal) {
        if signal != Signal::SIGCONT || self.may_run() {
            self.child.signal(signal);
        }
    }

    /// CMD was stopped. If that was to return to the shell (Ctrl-Z), `dblock` stops too.
    ///
    /// Otherwise `dblock` runs on: another process has stopped CMD alone, and continues it alone.
    async fn child_stopped(&mut self, signal: i32) {
        let group = self.child.group();
        let Some(terminal) = &self.terminal else {
            return;
        };
        let is = |one: Signal| signal == one as i32;
        let wants_terminal = is(Signal::SIGTTIN) || is(Signal::SIGTTOU);
        if wants_terminal && terminal.is_foreground() {
            self.continue_child();
            return;
        }
        if !(wants_terminal || is(Signal::SIGTSTP) || terminal.is_foreground_group(group)) {
            return;
        }
        terminal.take_back_from(group);
        // SIGTSTP has a handler, and SIGSTOP would stop dblock even if no shell continues it. With
        // SIGTTIN it stops here until SIGCONT, or not at all if no shell would send that.
        let _ = raise(Signal::SIGTTIN);
        if wants_terminal && !self.has_foreground() {
            sleep(BACKGROUND_PAUSE).await;
        }
        self.continue_child();
    }

    /// Continues CMD, in the foreground if `dblock` is there. After a loss it stays stopped until
    /// it gets TERM.
    fn continue_child(&self) {
        if !self.may_run() {
            return;
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|_| self.has_foreground()) {
            terminal.give_to(self.child.group());
        }
        self.child.signal(Signal::SIGCONT);
    }

    fn has_foreground(&self) -> bool {
        self.terminal.as_ref().is_some_and(Terminal::is_foreground)
    }
}

/// The description of the loss by the library: `lost …`.
pub(super) fn loss_message(guard: &LockGuard, reason: LostReason) -> String {
    let loss = guard.loss().map(|loss| loss.to_string());
    loss.unwrap_or_else(|| format!("lost: {reason}"))
}

/// Completes with the loss once, and then never again.
async fn first_loss(lost: &mut Option<impl Future<Output = LostReason> + Unpin>) -> LostReason {
    let Some(future) = lost else {
        return std::future::pending().await;
    };
    let reason = future.await;
    *lost = None;
    reason
}
