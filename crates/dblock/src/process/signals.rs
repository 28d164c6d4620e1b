//! The signals that go on to CMD.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What ends a process unless it does something about it.
const ENDING: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
];
/// What does not; of no use before there is a CMD.
const HARMLESS: &[Signal] = &[Signal::SIGWINCH, Signal::SIGCONT, Signal::SIGTSTP];

/// Every signal that goes on to CMD.
pub(crate) fn passed_on() -> impl Iterator<Item = Signal> {
    ENDING.iter().chain(HARMLESS).copied()
}

/// Which signals were ignored when we were started.
///
/// They stay so, and CMD inherits that: `nohup dblock run …` must outlive its terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ignored(u64);

impl Ignored {
    /// To be asked before any handler is set.
    ///
    /// Where there is no `/proc` (elsewhere than on Linux) none counts as ignored.
    pub(crate) fn at_start() -> Self {
        Self::in_status(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn in_status(status: &str) -> Self {
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(
            line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
                .unwrap_or_default(),
        )
    }

    pub(crate) fn contains(self, signal: Signal) -> bool {
        self.0 & (1 << (signal as i32 - 1)) != 0
    }
}

/// The signals that were sent to us.
#[derive(Debug)]
pub(crate) struct Signals {
    ignored: Ignored,
    streams: Vec<(Signal, Stream)>,
}

impl Signals {
    /// Listen for those that would end us.
    pub(crate) fn listen(ignored: Ignored) -> io::Result<Self> {
        let mut signals = Self {
            ignored,
            streams: Vec::new(),
        };
        signals.add(ENDING)?;
        Ok(signals)
    }

    /// Listen for the others too, now that there is a CMD to pass them on to.
    pub(crate) fn listen_to_all(&mut self) -> io::Result<()> {
        self.add(HARMLESS)
    }

    fn add(&mut self, signals: &[Signal]) -> io::Result<()> {
        for &one in signals.iter().filter(|one| !self.ignored.contains(**one)) {
            self.streams
                .push((one, signal(SignalKind::from_raw(one as i32))?));
        }
        Ok(())
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|cx| {
            for (signal, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Hold back on this thread what is passed on, and what the terminal sends to those in the
/// background; answers with what was held back before.
pub(crate) fn hold_back() -> io::Result<SigSet> {
    let before = SigSet::thread_get_mask()?;
    let all: SigSet = passed_on().chain([Signal::SIGTTOU]).collect();
    all.thread_block()?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ignored_is_read_from_the_kernels_mask() {
        let ignored = Ignored::in_status("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\tff\n");
        assert!(ignored.contains(Signal::SIGHUP));
        assert!(ignored.contains(Signal::SIGPIPE));
        assert!(!ignored.contains(Signal::SIGINT));
        assert!(!Ignored::in_status("").contains(Signal::SIGHUP));
    }
}
