//! The faults that a proxy injects, and its counts.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What has passed through a proxy since it was made or
/// `reset_counts` was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted, those refused not among them.
    pub connections: u64,
    /// Bytes the clients sent.
    pub bytes_up: u64,
    /// Bytes the server sent.
    pub bytes_down: u64,
    /// Reads that these came in: with a client that waits for every answer, its requests.
    pub chunks_up: u64,
    /// Reads that the server's bytes came in.
    pub chunks_down: u64,
}

/// The open directions, and the connections to be closed.
#[derive(Clone, Debug)]
pub(super) struct Control {
    pub(super) up: bool,
    pub(super) down: bool,
    pub(super) refuse: bool,
    /// Connections up to this number are cut.
    pub(super) cut: u64,
    pub(super) end: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) control: watch::Sender<Control>,
    pub(super) tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    pub(super) patterns: HashMap<Vec<u8>, u64>,
    pub(super) scheduled: Option<(Vec<u8>, Loss)>,
    pub(super) faults_hit: u64,
    /// Connections by number, from 1.
    pub(super) last: u64,
    pub(super) open: HashSet<u64>,
    /// The port of 127.0.0.1 of a second server, and the last connection before it was added.
    pub(super) second: Option<(u16, u64)>,
}

/// The part of an exchange that a scheduled fault loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Request,
    Reply,
}

impl State {
    pub(super) fn new() -> Self {
        let control = Control {
            up: true,
            down: true,
            refuse: false,
            cut: 0,
            end: false,
        };
        Self {
            control: watch::Sender::new(control),
            tally: Mutex::new(Tally::default()),
        }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    /// Counts a new connection; its number, and the second server if it goes to that.
    pub(super) fn connect(&mut self) -> (u64, Option<(String, u16)>) {
        self.counts.connections += 1;
        self.last += 1;
        self.open.insert(self.last);
        let second = self
            .second
            .filter(|(_, before)| (self.last - before).is_multiple_of(2));
        (
            self.last,
            second.map(|(port, _)| ("127.0.0.1".to_owned(), port)),
        )
    }

    /// Counts a chunk of a client; whether the scheduled loss is due to it.
    pub(super) fn request(&mut self, chunk: &[u8]) -> Option<Loss> {
        self.counts.chunks_up += 1;
        self.counts.bytes_up += chunk.len() as u64;
        for (pattern, count) in &mut self.patterns {
            *count += u64::from(contains(chunk, pattern));
        }
        let (_, loss) = self
            .scheduled
            .take_if(|(pattern, _)| contains(chunk, pattern))?;
        if loss == Loss::Request {
            self.faults_hit += 1;
        }
        Some(loss)
    }

    pub(super) fn reply(&mut self, length: usize) {
        self.counts.chunks_down += 1;
        self.counts.bytes_down += length as u64;
    }
}

fn contains(chunk: &[u8], pattern: &[u8]) -> bool {
    pattern.is_empty() || chunk.windows(pattern.len()).any(|window| window == pattern)
}
