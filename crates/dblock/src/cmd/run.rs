//! `dblock run NAME -- CMD…`

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use database_locks::{Error, Lock, LockGuard, Locks, LostReason, Ttl};
use nix::sys::signal::{Signal, raise};
use percent_encoding::utf8_percent_encode;
use tokio::time::{sleep, timeout};

use crate::args::{Job, OnLost};
use crate::child::{Change, Child, End};
use crate::exit::{self, Failure};
use crate::output::{complain, without_secrets};
use crate::place::{ENCODED, Place};
use crate::signals::{Ignored, Signals};
use crate::terminal::Terminal;

/// How long what is given back in the background may take before we end all the same. The lease
/// then frees the lock.
const DRAIN: Duration = Duration::from_secs(2);
/// How long after it was stopped for touching the terminal CMD is continued in the background, so
/// that one which tries again and again does not keep the machine busy.
const IN_BACKGROUND: Duration = Duration::from_millis(200);

/// Hold the lock, run CMD, free the lock: always in this order.
pub(crate) async fn run(place: &Place, job: Job) -> Result<u8, Failure> {
    let ignored = Ignored::at_start();
    let mut signals = Signals::listen(ignored).map_err(cannot_listen)?;
    let margin = margin(job.ttl, job.grace())?;

    let (locks, wait) = connect(place, job.wait, &mut signals).await?;
    let lock = wanted(&locks, &job, margin, wait);
    let guard = match until_signal(&mut signals, lock.acquire()).await {
        Ok(acquired) => acquired.map_err(|error| refused(error, &job))?,
        Err(interrupted) => {
            drain(&locks).await;
            return Err(interrupted);
        }
    };
    signals.listen_to_all().map_err(cannot_listen)?;

    let terminal = Terminal::open();
    let at_start = terminal
        .as_ref()
        .filter(|terminal| terminal.goes_to_child());
    let child = match start(&job, &guard, ignored, at_start) {
        Ok(child) => child,
        Err(failure) => {
            // Said by whoever reads the failure: that it was not released changes nothing about it.
            let _ = guard.release().await;
            return Err(failure);
        }
    };

    let mut running = Running {
        job: &job,
        guard: &guard,
        child,
        signals,
        terminal,
        without: false,
    };
    let outcome = running.outcome().await;
    let signalled = matches!(
        outcome,
        Outcome::Stopped(..) | Outcome::Ended(End::Signal(_))
    );
    running.take_terminal_back(signalled);
    Ok(finish(&locks, guard, outcome, &job).await)
}

fn cannot_listen(error: io::Error) -> Failure {
    Failure::unavailable(format!("cannot listen to signals: {error}"))
}

/// How long before the lease's end CMD is told to stop: the grace, and something for the telling.
fn margin(ttl: Ttl, grace: Duration) -> Result<Duration, Failure> {
    let Ttl::Lasting(ttl) = ttl else {
        return Ok(grace);
    };
    // A ttl that is too short for any lease is refused by the library, in its words.
    if !grace.is_zero() && ttl <= grace * 2 {
        return Err(Failure::usage(format!(
            "--ttl is {}, must be more than twice the --grace of {}, for CMD has to be stopped \
             before the lock can be somebody else's: give a longer --ttl or a shorter --grace",
            Ttl::from(ttl),
            Ttl::from(grace)
        )));
    }
    Ok(grace + (ttl / 2).saturating_sub(grace) / 5)
}

/// Connect, within the wait; what is left of that is for the lock.
async fn connect(
    place: &Place,
    wait: Option<Duration>,
    signals: &mut Signals,
) -> Result<(Locks, Option<Duration>), Failure> {
    let Some(wait) = wait.filter(|wait| !wait.is_zero()) else {
        return Ok((until_signal(signals, place.connect()).await??, wait));
    };
    #[allow(clippy::disallowed_methods, reason = "no lease is measured by it")]
    let began = std::time::Instant::now();
    let connecting = until_signal(signals, timeout(wait, place.connect())).await?;
    let locks = connecting.map_err(|_| {
        let said = format!(
            "the database did not answer within the wait of {}",
            Ttl::from(wait)
        );
        Failure::unavailable(format!(
            "{said}: wait longer, or check --url or DATABASE_LOCKS_URL"
        ))
    })??;
    Ok((locks, Some(wait.saturating_sub(began.elapsed()))))
}

/// Before there is a CMD, a signal is for us.
async fn until_signal<T>(
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        signal = signals.next() => Err(Failure::interrupted(signal as i32)),
        done = work => Ok(done),
    }
}

fn wanted(locks: &Locks, job: &Job, margin: Duration, wait: Option<Duration>) -> Lock {
    let mut lock = locks.lock(job.name.as_str()).ttl(job.ttl).margin(margin);
    // The program alone: its arguments may hold passwords.
    if let Some(program) = job
        .command
        .first()
        .and_then(|path| Path::new(path).file_name())
    {
        lock = lock.metadata("command", program.to_string_lossy());
    }
    for (key, value) in &job.meta {
        lock = lock.metadata(key.as_str(), value.as_str());
    }
    if let Some(holder) = &job.owner {
        lock = lock.holder(holder.as_str());
    }
    match wait {
        Some(limit) => lock.wait(limit),
        None => lock,
    }
}

fn refused(mut error: Error, job: &Job) -> Failure {
    // The wait as it was asked for, the time to connect included.
    if let (Error::TimedOut { waited, .. }, Some(wait)) = (&mut error, job.wait) {
        *waited = wait;
    }
    let mut failure = Failure::from(error);
    if failure.code == exit::BUSY {
        failure.code = job.busy_exit;
    }
    failure
}

async fn drain(locks: &Locks) {
    // Over time: the lease ends by itself.
    let _ = timeout(DRAIN, locks.drain()).await;
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
            job.name
        );
        return Err(Failure::new(exit::LOST, said));
    }
    let token = guard.token().to_string();
    let name = job.name.as_str();
    let ticket = format!(
        "{token}.{}.{}",
        guard.grant_id(),
        utf8_percent_encode(name, ENCODED)
    );
    let environment = [
        ("DBLOCK_NAME", OsStr::new(name)),
        ("DBLOCK_TOKEN", OsStr::new(&token)),
        ("DBLOCK_GRANT", OsStr::new(guard.grant_id())),
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
    child: Child,
    signals: Signals,
    terminal: Option<Terminal>,
    /// CMD may run without the lock, which was lost.
    without: bool,
}

impl Running<'_> {
    async fn outcome(&mut self) -> Outcome {
        let mut lost = Some(Box::pin(self.guard.lost()));
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
            }
        }
    }

    /// The lock is lost: end CMD, unless it may go on.
    async fn lost(&mut self, reason: LostReason) -> Option<Signal> {
        let grace = match self.job.on_lost {
            // It was CMD itself that released the lock, by its ticket.
            _ if reason == LostReason::Released => {
                self.without = true;
                return None;
            }
            OnLost::Ignore => {
                let name = &self.job.name;
                complain(&format!(
                    "lock `{name}` lost: {reason}; CMD goes on without it (--on-lost ignore)"
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
    /// Not otherwise: whoever stops CMD alone will continue it alone, and nobody would continue us.
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
        // where nobody would send it, do not stop at all.
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
async fn finish(locks: &Locks, guard: LockGuard, outcome: Outcome, job: &Job) -> u8 {
    let name = &job.name;
    match outcome {
        Outcome::Stopped(reason, signal) => {
            let how = match signal {
                Signal::SIGKILL if job.on_lost == OnLost::Term => {
                    format!("KILL, after a grace of {}", Ttl::from(job.grace()))
                }
                Signal::SIGKILL => "KILL".to_owned(),
                _ => "TERM".to_owned(),
            };
            complain(&format!(
                "lock `{name}` lost: {reason}; CMD was stopped ({how}): see who has it now with \
                 `dblock list`"
            ));
            drop(guard);
            drain(locks).await;
            exit::LOST
        }
        Outcome::Ended(end) => {
            let lost_before = !guard.is_held();
            match guard.release().await {
                // Said when it was lost; or CMD did it itself.
                Err(Error::Lost { .. }) if lost_before && job.on_lost == OnLost::Ignore => {}
                Err(Error::Lost {
                    reason: LostReason::Released,
                    ..
                })
                | Ok(()) => {}
                Err(error @ Error::Lost { .. }) => complain(&format!(
                    "{}, just before CMD ended by itself: others may have run at the same time",
                    error.chain()
                )),
                Err(error) => complain(&format!(
                    "{}; it is free when its ttl ends ({}), or by `dblock release --force`",
                    error.chain(),
                    job.ttl
                )),
            }
            drain(locks).await;
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
        assert_eq!(margin(Ttl::Endless, secs(5)).unwrap(), secs(5));
    }

    #[test]
    fn a_ttl_that_leaves_no_room_for_the_grace_is_refused_with_both_numbers() {
        let failure = margin(secs(10).into(), secs(5)).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(failure.said.contains("--ttl is 10s"), "{}", failure.said);
        assert!(failure.said.contains("--grace of 5s"), "{}", failure.said);
    }
}
