//! `dblock run NAME -- CMD…`

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use database_locks::{Error, Lock, LockGuard, Locks, LostReason, Ttl};
use nix::sys::signal::{Signal, raise};
use tokio::time::sleep;

use crate::args::{Job, OnLost};
use crate::child::{Change, Child, End};
use crate::exit::{self, Failure};
use crate::nested;
use crate::notices::Notices;
use crate::output::{complain, human, without_secrets};
use crate::place::Place;
use crate::release_notice::{Listener, ReleaseNotice};
use crate::signals::{Ignored, Signals};
use crate::terminal::Terminal;

use super::take::{cannot_listen, row, take};

/// How long after it was stopped for touching the terminal CMD is continued in the background, so
/// that one which tries again and again does not keep the machine busy.
const IN_BACKGROUND: Duration = Duration::from_millis(200);

/// Hold the lock, run CMD, free the lock: always in this order.
pub(crate) async fn run(place: &Place, job: Job, notices: &Notices) -> Result<u8, Failure> {
    let ticket = match &job.ticket {
        Some(ticket) => Some(ticket.read(&job.wish.name)?),
        None => None,
    };
    let ignored = Ignored::at_start();
    let mut signals = Signals::listen(ignored).map_err(cannot_listen)?;
    let margin = margin(job.wish.ttl, job.grace())?;

    let notice = ticket.as_ref().map(ReleaseNotice::begin);
    let settings = |lock: Lock| {
        // The program alone: its arguments may hold passwords.
        let program = job.command.first().map(Path::new).and_then(Path::file_name);
        match program {
            Some(program) => lock.metadata("command", program.to_string_lossy()),
            None => lock,
        }
        .margin(margin)
    };
    let taken = take(
        place,
        &job.wish,
        ticket.as_ref(),
        &mut signals,
        notices,
        settings,
    );
    let (locks, guard) = taken.await?;
    if let Some(notice) = notice {
        notice.done();
    }
    signals.listen_to_all().map_err(cannot_listen)?;

    let listener = Listener::listen(&guard.ticket());
    let terminal = Terminal::open();
    let at_start = terminal
        .as_ref()
        .filter(|terminal| terminal.goes_to_child());
    let child = match start(&job, &guard, ignored, at_start) {
        Ok(child) => child,
        Err(failure) => {
            // The failure is reported; that the lock was not released changes nothing about it.
            let _ = guard.release().await;
            return Err(failure);
        }
    };

    let mut running = Running {
        job: &job,
        guard: &guard,
        notices,
        child,
        signals,
        terminal,
        listener,
        without: false,
    };
    let outcome = running.outcome().await;
    notices.over();
    let signalled = matches!(
        outcome,
        Outcome::Stopped(..) | Outcome::Ended(End::Signal(_))
    );
    running.take_terminal_back(signalled);
    let mut listener = running.listener;
    Ok(finish(&locks, guard, outcome, &job, &mut listener).await)
}

/// How long before the lease's end CMD is told to stop: the grace, and something for the telling.
fn margin(ttl: Ttl, grace: Duration) -> Result<Duration, Failure> {
    let Ttl::Finite(ttl) = ttl else {
        return Ok(grace);
    };
    // A ttl that is too short for any lease is refused by the library, in its words.
    if !grace.is_zero() && ttl <= grace.saturating_mul(2) {
        let fits = match ttl / 4 {
            short if short < Duration::from_secs(1) => format!("{}ms", short.as_millis()),
            short => format!("{}s", short.as_secs()),
        };
        return Err(Failure::usage(format!(
            "--ttl is {}, must be more than twice the --grace of {}, since CMD has to be stopped \
             before another client can have the lock: give a longer --ttl or a shorter --grace, say \
             --grace {fits}",
            human(ttl),
            human(grace)
        )));
    }
    // Capped, or a lease of an hour would be given up six minutes before its end.
    let telling = (ttl / 2).saturating_sub(grace) / 5;
    Ok(grace + telling.min((ttl / 100).max(Duration::from_secs(3))))
}

/// Start CMD with what it needs to know of the lock.
fn start(
    job: &Job,
    guard: &LockGuard,
    ignored: Ignored,
    terminal: Option<&Terminal>,
) -> Result<Child, Failure> {
    if !guard.is_held() {
        let said = format!(
            "lock `{}` was lost before CMD was started: try again",
            job.wish.name
        );
        return Err(Failure::new(exit::LOST, said));
    }
    let token = guard.token().to_string();
    let name = job.wish.name.as_str();
    let ticket = guard.ticket().to_string();
    let grants = nested::with(guard.grant_id());
    let environment = [
        ("DBLOCK_NAME", OsStr::new(name)),
        ("DBLOCK_TOKEN", OsStr::new(&token)),
        ("DBLOCK_GRANT", OsStr::new(guard.grant_id())),
        (nested::VARIABLE, OsStr::new(&grants)),
        ("DBLOCK_HOLDER", OsStr::new(guard.holder())),
        ("DBLOCK_TICKET", OsStr::new(&ticket)),
    ];
    Child::start(&job.command, &environment, ignored, terminal).map_err(|error| {
        let program = job.command.first().map(|program| program.to_string_lossy());
        let program = without_secrets(&program.unwrap_or_default());
        match error.kind() {
            io::ErrorKind::NotFound => {
                let said = format!("`{program}` is not there: check the spelling, or its PATH");
                Failure::new(exit::NOT_FOUND, said)
            }
            _ => Failure::new(
                exit::CANNOT_RUN,
                format!("`{program}` cannot be run: {error}"),
            ),
        }
    })
}

/// What came first: CMD's end, or that of the lease.
enum Outcome {
    Ended(End),
    /// Lost, and CMD ended by that signal.
    Stopped(LostReason, Signal),
}

/// Whether CMD itself, or a process that it gave its ticket to, released or resumed the lock: that
/// is no loss.
async fn given_away(reason: LostReason, listener: &mut Listener) -> bool {
    matches!(reason, LostReason::Released | LostReason::Resumed) || listener.released().await
}

/// What the library says of the loss.
fn in_words(guard: &LockGuard, reason: LostReason) -> String {
    let loss = guard.loss().map(|loss| loss.to_string());
    loss.unwrap_or_else(|| format!("lost: {reason}"))
}

/// The loss of the lock, once.
async fn first_loss(lost: &mut Option<impl Future<Output = LostReason> + Unpin>) -> LostReason {
    let Some(future) = lost else {
        return std::future::pending().await;
    };
    let reason = future.await;
    *lost = None;
    reason
}

/// CMD, and all that may happen to it.
struct Running<'a> {
    job: &'a Job,
    guard: &'a LockGuard,
    notices: &'a Notices,
    child: Child,
    signals: Signals,
    terminal: Option<Terminal>,
    listener: Listener,
    /// CMD may run without the lock, which was lost.
    without: bool,
}

impl Running<'_> {
    async fn outcome(&mut self) -> Outcome {
        let lost = self.guard.lost();
        let mut lost = Some(Box::pin(async { lost.await.reason() }));
        loop {
            tokio::select! {
                biased;
                change = self.child.change() => match change {
                    Change::Ended(end) => return Outcome::Ended(end),
                    Change::Stopped(signal) => self.stopped(signal).await,
                },
                reason = first_loss(&mut lost) => {
                    if let Some(signal) = self.lost(reason).await {
                        return Outcome::Stopped(reason, signal);
                    }
                }
                signal = self.signals.next() => self.pass_on(signal),
                // What was told counts when the lock is lost.
                () = self.listener.hear() => {}
            }
        }
    }

    /// The lock is lost: end CMD, unless it may go on.
    async fn lost(&mut self, reason: LostReason) -> Option<Signal> {
        self.notices.over();
        let grace = match self.job.on_lost {
            _ if given_away(reason, &mut self.listener).await => {
                self.without = true;
                return None;
            }
            OnLost::Ignore => {
                let name = &self.job.wish.name;
                let lost = in_words(self.guard, reason);
                complain(&format!(
                    "lock `{name}` {lost}; CMD goes on without it (--on-lost ignore)"
                ));
                self.without = true;
                return None;
            }
            OnLost::Kill => None,
            OnLost::Term => Some(self.job.grace()),
        };
        Some(self.child.end(&mut self.signals, grace).await)
    }

    fn may_go_on(&self) -> bool {
        self.without || self.guard.is_held() || self.job.on_lost == OnLost::Ignore
    }

    fn pass_on(&self, signal: Signal) {
        // After a freeze: what was stopped must not go on before it was told that the lock is lost.
        if signal != Signal::SIGCONT || self.may_go_on() {
            self.child.signal(signal);
        }
    }

    /// CMD was stopped. If that was for the shell to get its prompt back, stop with it.
    ///
    /// Not otherwise: the process that stops CMD alone continues it alone, and would not continue
    /// `dblock`.
    async fn stopped(&mut self, signal: i32) {
        let group = self.child.group();
        let Some(terminal) = &self.terminal else {
            return;
        };
        let is = |one: Signal| signal == one as i32;
        let wants_terminal = is(Signal::SIGTTIN) || is(Signal::SIGTTOU);
        if wants_terminal && terminal.is_ours() {
            self.go_on();
            return;
        }
        if !(wants_terminal || is(Signal::SIGTSTP) || terminal.is_with(group)) {
            return;
        }
        terminal.take_back_from(group);
        // Of the signals that stop one, SIGTSTP has a handler by now, and SIGSTOP would stop us even
        // where there is no shell to continue us. On this one we either wait here for SIGCONT or,
        // where no shell would send it, do not stop at all.
        let _ = raise(Signal::SIGTTIN);
        if wants_terminal && !self.terminal.as_ref().is_some_and(Terminal::is_ours) {
            sleep(IN_BACKGROUND).await;
        }
        self.go_on();
    }

    /// Continue CMD, with the terminal if we have it, unless the lock is lost. (Then CMD is
    /// continued to be ended.)
    fn go_on(&self) {
        if !self.may_go_on() {
            return;
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|terminal| terminal.is_ours()) {
            terminal.give_to(self.child.group());
        }
        self.child.signal(Signal::SIGCONT);
    }

    fn take_terminal_back(&self, signalled: bool) {
        let Some(terminal) = &self.terminal else {
            return;
        };
        terminal.take_back_from(self.child.group());
        if signalled {
            terminal.restore_modes();
        }
    }
}

/// CMD has ended: free the lock, say what must be said, and end as CMD did.
async fn finish(
    locks: &Locks,
    guard: LockGuard,
    outcome: Outcome,
    job: &Job,
    listener: &mut Listener,
) -> u8 {
    let name = &job.wish.name;
    match outcome {
        Outcome::Stopped(reason, signal) => {
            let grace = Ttl::from(job.grace());
            let how = match signal {
                Signal::SIGKILL if job.on_lost == OnLost::Term => {
                    format!("TERM, and KILL after the grace of {grace}")
                }
                Signal::SIGKILL => "KILL".to_owned(),
                _ => format!("TERM, and ended within the grace of {grace}"),
            };
            let lost = in_words(&guard, reason);
            let named = guard
                .loss()
                .is_some_and(|loss| loss.now_held_by().is_some());
            let now = match named {
                true => String::new(),
                false => match row(locks, name).await {
                    // The row may still be as this very grant left it.
                    Some(row) if row.grant.as_deref() == Some(guard.grant_id()) => {
                        "; no other holder has it yet".to_owned()
                    }
                    Some(row) => format!("; it is now {}", row.holder_summary()),
                    None => "; see who has it now with `dblock list`".to_owned(),
                },
            };
            complain(&format!(
                "lock `{name}` {lost}; CMD was stopped, its process group got {how}{now}"
            ));
            // The end of the process waits for what it gives back.
            drop(guard);
            exit::LOST
        }
        Outcome::Ended(end) => {
            let lost_before = !guard.is_held();
            match guard.release().await {
                Ok(()) => {}
                // Said when it was lost.
                Err(Error::Lost { .. }) if lost_before && job.on_lost == OnLost::Ignore => {}
                Err(Error::Lost { reason, .. }) if given_away(reason, listener).await => {}
                Err(error @ Error::Lost { .. }) => complain(&format!(
                    "{}, just before CMD ended by itself: others may have run at the same time",
                    error.chain()
                )),
                Err(error) => {
                    let why = match error {
                        Error::Unavailable { .. } => format!(
                            "lock `{name}` was not released: the database did not answer within \
                             the time for it"
                        ),
                        error => error.chain(),
                    };
                    complain(&format!(
                        "{why}; it is free when its ttl ends ({}), or by `dblock release --force`",
                        job.wish.ttl
                    ));
                }
            }
            end.code()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_kill_falls_before_the_end_of_the_lease() {
        for (ttl, grace) in [(30, 5), (11, 5), (3600, 600), (1, 0)] {
            let margin = margin(secs(ttl).into(), secs(grace)).unwrap();
            assert!(margin > secs(grace), "{ttl} {grace}: {margin:?}");
            assert!(margin < secs(ttl) / 2, "{ttl} {grace}: {margin:?}");
        }
        assert_eq!(margin(secs(30).into(), secs(5)).unwrap(), secs(7));
        assert_eq!(margin(secs(3600).into(), secs(5)).unwrap(), secs(41));
        assert_eq!(margin(Ttl::Infinite, secs(5)).unwrap(), secs(5));
    }

    #[test]
    fn a_ttl_that_leaves_no_room_for_the_grace_is_refused_with_both_numbers() {
        let failure = margin(secs(10).into(), secs(5)).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(failure.said.contains("--ttl is 10s"), "{}", failure.said);
        assert!(failure.said.contains("--grace of 5s"), "{}", failure.said);
        assert!(margin(secs(30).into(), Duration::MAX).is_err());
        assert!(margin(Ttl::Infinite, Duration::MAX).is_ok());
        assert!(failure.said.ends_with("say --grace 2s"), "{}", failure.said);
    }
}
