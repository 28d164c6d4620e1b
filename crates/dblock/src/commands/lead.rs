//! `dblock lead NAME -- CMD…`

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::acquire_lock::{acquire_on, cannot_listen, until_signal};
use super::pgoptions;
use super::run::{Done, check_program, margin, run_command, settings};
use crate::cli::RunArgs;
use crate::exit::{self, Failure};
use crate::notices::Notices;
use crate::output;
use crate::process::{Ignored, Signals};
use crate::target::Target;
use crate::time::{human, now};

/// The signals that end `dblock lead` when CMD has ended. Others, such as the HUP that lets a
/// server read its configuration, are only forwarded.
const STOPPING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// Campaigns, runs CMD while leading, and campaigns again, until a signal ends it.
pub(crate) async fn lead(target: &Target, args: RunArgs, notices: &Notices) -> Result<u8, Failure> {
    if args.pgoptions {
        pgoptions::check(target)?;
    }
    let ignored = Ignored::at_start();
    let mut signals = Signals::listen(ignored).map_err(cannot_listen)?;
    let margin = margin(args.lock.ttl, args.grace())?;
    check_program(&args)?;
    let locks = target.connect_lazy()?;
    let mut pause = Pause::default();
    loop {
        let settings = settings(&args, margin);
        let guards = acquire_on(&locks, &args.lock, None, &mut signals, notices, settings).await?;
        for guard in &guards {
            output::notice(&format!(
                "leading `{}`, term {}",
                guard.name(),
                guard.token()
            ));
        }
        let began = now();
        let done = match run_command(&args, &locks, guards, notices, &mut signals, ignored).await {
            Ok(done) => done,
            // Lost before CMD was started.
            Err(failure) if failure.code == exit::LOST => {
                output::error(&failure.message);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        if let Some(signal) = stopping_signal(&signals, &done) {
            return Ok(exit::of_signal(signal));
        }
        if done.is_lost {
            continue;
        }
        let ran = began.elapsed();
        let pause = pause.after(ran);
        output::notice(&format!(
            "CMD ended with {} after {}; `{}` is free for other candidates, campaigning again in {}",
            done.code,
            human(ran),
            args.lock.name,
            human(pause)
        ));
        until_signal(&mut signals, sleep(pause)).await?;
    }
}

/// The signal that ends `dblock`, now that CMD has ended: one that it has received, or that CMD got
/// from the terminal.
fn stopping_signal(signals: &Signals, done: &Done) -> Option<i32> {
    let received = STOPPING.into_iter().find(|one| signals.has_received(*one));
    let received = received.map(|signal| signal as i32);
    let forwarded = done.by_signal.filter(|signal| {
        Signal::try_from(*signal).is_ok_and(|signal| signals.has_received(signal))
    });
    received.or(forwarded).or(done.at_terminal)
}

/// The pause after the end of CMD, in which other candidates can get the lock. It grows while CMD
/// ends soon after its start.
#[derive(Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(Self::SHORTEST)
    }
}

impl Pause {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);
    /// A CMD that ran for longer did not fail at its start.
    const LONG_RUN: Duration = Duration::from_secs(10);

    fn after(&mut self, ran: Duration) -> Duration {
        if ran >= Self::LONG_RUN {
            self.0 = Self::SHORTEST;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_while_cmd_ends_at_once_and_begins_anew_after_a_long_run() {
        let (mut pause, secs) = (Pause::default(), Duration::from_secs);
        let pauses: Vec<_> = (0..8).map(|_| pause.after(secs(0)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause.after(secs(10)), secs(1));
        assert_eq!(pause.after(secs(9)), secs(2));
    }
}
