//! The signals that `dblock` forwards to CMD.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use nix::sys::signal::{SigSet, Signal, raise};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Signals that end a process by default.
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
/// Signals that do not end a process by default. They are ignored until CMD runs.
const NOT_ENDING: &[Signal] = &[Signal::SIGWINCH, Signal::SIGCONT, Signal::SIGTSTP];

/// Every signal that is forwarded to CMD.
pub(super) fn forwarded() -> impl Iterator<Item = Signal> {
    ENDING.iter().chain(NOT_ENDING).copied()
}

/// The signals that were ignored when `dblock` was started.
///
/// They stay ignored in `dblock` and in CMD: `nohup dblock run …` must outlive its terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ignored(u64);

impl Ignored {
    /// Reads the state of this process. Call it before any handler is set.
    ///
    /// Without `/proc` (on other systems than Linux) no signal counts as ignored.
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
        self.0 & bit(signal) != 0
    }
}

/// The bit of a signal in a set, as the kernel writes it.
fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// The signals that `dblock` receives.
#[derive(Debug)]
pub(crate) struct Signals {
    ignored: Ignored,
    streams: Vec<(Signal, Stream)>,
    /// The signals that have been received, as a set of bits.
    received: u64,
}

impl Signals {
    /// Listens for the signals that would end `dblock`.
    pub(crate) fn listen(ignored: Ignored) -> io::Result<Self> {
        let mut signals = Self {
            ignored,
            streams: Vec::new(),
            received: 0,
        };
        signals.add(ENDING)?;
        Ok(signals)
    }

    /// Listens for the other signals too. Call it when there is a CMD to forward them to.
    pub(crate) fn listen_to_all(&mut self) -> io::Result<()> {
        self.add(NOT_ENDING)
    }

    fn add(&mut self, signals: &[Signal]) -> io::Result<()> {
        for &one in signals.iter().filter(|one| !self.ignored.contains(**one)) {
            if self.streams.iter().any(|(known, _)| *known == one) {
                continue;
            }
            self.streams
                .push((one, signal(SignalKind::from_raw(one as i32))?));
        }
        Ok(())
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Signal {
        let signal = poll_fn(|cx| {
            for (signal, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await;
        self.received |= bit(signal);
        signal
    }

    /// Waits for the next signal that ends a process by default, while there is no CMD. The other
    /// signals have their default effect.
    pub(crate) async fn next_ending(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if ENDING.contains(&signal) {
                return signal;
            }
            if signal == Signal::SIGTSTP {
                // SIGTSTP itself has a handler once there was a CMD.
                let _ = raise(Signal::SIGSTOP);
            }
        }
    }

    /// Whether this signal has been received since the start.
    pub(crate) fn has_received(&self, signal: Signal) -> bool {
        self.received & bit(signal) != 0
    }
}

/// Blocks on this thread the forwarded signals and SIGTTOU, and returns the mask from before.
pub(super) fn block_forwarded() -> io::Result<SigSet> {
    let before = SigSet::thread_get_mask()?;
    let blocked: SigSet = forwarded().chain([Signal::SIGTTOU]).collect();
    blocked.thread_block()?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask_of_the_kernel() {
        let ignored = Ignored::in_status("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\tff\n");
        assert!(ignored.contains(Signal::SIGHUP));
        assert!(ignored.contains(Signal::SIGPIPE));
        assert!(!ignored.contains(Signal::SIGINT));
        assert!(!Ignored::in_status("").contains(Signal::SIGHUP));
    }
}
