//! Watches CMD, the lock and the signals until CMD has ended.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use database_locks::{LockGuard, LostReason};
use nix::sys::signal::{Signal, raise};
use tokio::time::sleep;

use super::held::Held;
use crate::cli::{OnLost, RunArgs};
use crate::names;
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
    /// A lock was lost, the one at this place, and this signal ended the process group.
    Stopped(usize, LostReason, Signal),
}

pub(super) struct Supervisor<'a> {
    args: &'a RunArgs,
    held: Vec<Held>,
    notices: &'a Notices,
    child: Child,
    signals: &'a mut Signals,
    terminal: Option<Terminal>,
    /// The locks that are gone, while CMD may run on: they were released by their tickets, or
    /// `--on-lost ignore`.
    gone: BTreeSet<usize>,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        args: &'a RunArgs,
        held: Vec<Held>,
        notices: &'a Notices,
        child: Child,
        signals: &'a mut Signals,
        terminal: Option<Terminal>,
    ) -> Self {
        Self {
            args,
            held,
            notices,
            child,
            signals,
            terminal,
            gone: BTreeSet::new(),
        }
    }

    /// Returns when CMD has ended.
    pub(super) async fn supervise(&mut self) -> Outcome {
        let all = self.held.iter().enumerate();
        let mut lost: Losses = all
            .map(|(at, one)| {
                let lost = one.guard.lost();
                Box::pin(async move { (at, lost.await.reason()) }) as _
            })
            .collect();
        loop {
            tokio::select! {
                biased;
                change = self.child.change() => match change {
                    Change::Ended(end) => return Outcome::Ended(end),
                    Change::Stopped(signal) => self.child_stopped(signal).await,
                },
                (at, reason) = next_loss(&mut lost) => {
                    if let Some(signal) = self.lock_lost(at, reason).await {
                        return Outcome::Stopped(at, reason, signal);
                    }
                }
                signal = self.signals.next() => self.forward(signal),
                // The notice is recorded, and counts when the lock is lost.
                () = receive(&mut self.held) => {}
            }
        }
    }

    /// Whether CMD is in the foreground of the terminal, also after it has ended.
    pub(super) fn child_has_terminal(&self) -> bool {
        let terminal = self.terminal.as_ref();
        terminal.is_some_and(|terminal| terminal.is_foreground_group(self.child.group()))
    }

    /// Takes the terminal back. Its modes are restored if CMD was ended by a signal.
    pub(super) fn finish(self, by_signal: bool) -> Vec<Held> {
        if let Some(terminal) = &self.terminal {
            terminal.take_back_from(self.child.group());
            if by_signal {
                terminal.restore_modes();
            }
        }
        self.held
    }

    /// Stops CMD and returns the signal that ended it; `None` if CMD may run on.
    async fn lock_lost(&mut self, at: usize, reason: LostReason) -> Option<Signal> {
        let is_last = self.gone.len() + 1 == self.held.len();
        if is_last {
            self.notices.lock_is_over();
        }
        let Held { guard, listener } = &mut self.held[at];
        // A leader that runs on would run beside the next one.
        if !self.args.leads && listener.is_released(reason).await {
            self.gone.insert(at);
            return None;
        }
        self.notices.lock_is_over();
        let grace = match self.args.on_lost {
            OnLost::Ignore => {
                let what = names::what(guard.name(), guard.slot());
                let loss = loss_message(guard, reason);
                output::error(&format!(
                    "{what} {loss}; CMD runs on without it (--on-lost ignore)"
                ));
                self.gone.insert(at);
                return None;
            }
            OnLost::Kill => None,
            OnLost::Term => Some(self.args.grace()),
        };
        Some(self.child.stop(self.signals, grace).await)
    }

    fn may_run(&self) -> bool {
        let mut all = self.held.iter().enumerate();
        self.args.on_lost == OnLost::Ignore
            || all.all(|(at, one)| self.gone.contains(&at) || one.guard.is_held())
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

/// The losses that are waited for: the place of the lock, and the reason.
type Losses = Vec<Pin<Box<dyn Future<Output = (usize, LostReason)> + Send>>>;

/// Completes with the next loss. Each lock is lost once.
async fn next_loss(lost: &mut Losses) -> (usize, LostReason) {
    poll_fn(|context| {
        for place in 0..lost.len() {
            if let Poll::Ready(loss) = lost[place].as_mut().poll(context) {
                drop(lost.remove(place));
                return Poll::Ready(loss);
            }
        }
        Poll::Pending
    })
    .await
}

/// Waits for the next notice of a release. Cancel safe.
async fn receive(held: &mut [Held]) {
    let mut all: Vec<_> = (held.iter_mut())
        .map(|one| Box::pin(one.listener.receive()))
        .collect();
    poll_fn(|context| {
        let mut polled = all.iter_mut().map(|one| one.as_mut().poll(context));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}
