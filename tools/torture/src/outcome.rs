//! The result of a run.

use std::path::Path;

use crate::check::{self, Evidence, Kind, Numbers, Violation};
use crate::faults::Fault;
use crate::options::Options;
use crate::target;
use crate::worker::Client;

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run.
    pub options: Options,
    /// When it began, in microseconds.
    pub began: u64,
    /// When the last process had ended.
    pub ended: u64,
    /// What the processes left behind.
    pub evidence: Evidence,
    /// Its numbers.
    pub numbers: Numbers,
    /// The faults.
    pub faults: Vec<Fault>,
    /// The violations.
    pub violations: Vec<Violation>,
    /// Why the run proves nothing: faults that did not land, processes that failed.
    pub problems: Vec<String>,
}

impl Outcome {
    /// Of the faults that landed: how many hit a reader, and how many a writer of a shared lock or a process
    /// that waited for it.
    pub fn faults_of_readers_and_writers(&self) -> (usize, usize) {
        let is_shared = |name: &&String| {
            let mut targets = self.options.targets.iter();
            targets.any(|t| t.kind == target::Kind::Shared && t.name == **name)
        };
        let grants = check::grants(&self.evidence.events);
        let hit = self.faults.iter().filter(|fault| fault.missed.is_none());
        let hit = hit.filter(|fault| fault.lock.as_ref().filter(is_shared).is_some());
        let (readers, writers): (Vec<_>, Vec<_>) = hit.partition(|fault| {
            let of = |grant: &&check::Grant| {
                grant.process == fault.process && grant.token == fault.token
            };
            let grant = grants.iter().find(of);
            grant.is_some_and(|grant| grant.mode == target::Mode::Shared)
        });
        (readers.len(), writers.len())
    }

    /// Whether all faults landed without violations; a control must have some.
    pub fn is_good(&self) -> bool {
        let correct = self.options.clients[0] == Client::Correct || !self.options.is_control();
        let has = |kind| self.violations.iter().any(|one| one.kind == kind);
        let as_expected = match self.options.clients[0] {
            // Writes of clients without a ticket alone would show little.
            Client::Unguarded => has(Kind::LateGuardedWrite) && has(Kind::UnheldGuardedWrite),
            _ => self.violations.is_empty() == correct,
        };
        self.problems.is_empty() && as_expected
    }

    /// The command that repeats it, as far as the scheduling of the machine allows.
    pub fn command(&self) -> String {
        let Options {
            engine,
            seed,
            length,
            ..
        } = &self.options;
        format!(
            "make torture ENGINE={} SECONDS={} SEED={seed}",
            engine.as_str(),
            length.as_secs()
        )
    }

    pub(crate) fn keep(&self, folder: &Path) {
        let mut text = String::new();
        for problem in &self.problems {
            text.push_str(&format!("problem: {problem}\n"));
        }
        for violation in &self.violations {
            text.push_str(&format!("{violation}\n"));
        }
        for fault in &self.faults {
            text.push_str(&format!("{fault:?}\n"));
        }
        for row in &self.evidence.rows {
            text.push_str(&format!("{row:?}\n"));
        }
        for row in &self.evidence.guarded {
            text.push_str(&format!("{row:?}\n"));
        }
        let _ = std::fs::write(folder.join("findings.txt"), text);
    }
}
