//! What a run is made of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::check::Numbers;
use crate::engine::Engine;
use crate::plan;
use crate::target::{self, Target};
use crate::worker::Client;

/// A run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database.
    pub engine: Engine,
    /// The seed of all choices.
    pub seed: u64,
    /// How long faults are injected.
    pub length: Duration,
    /// The client of each process.
    pub clients: Vec<Client>,
    /// The locks and semaphores.
    pub targets: Vec<Target>,
    /// The program of a worker in Rust.
    pub worker: PathBuf,
    /// A Python that has the package, for [`Client::Python`].
    pub python: Option<PathBuf>,
    /// A Python that has legacy (django-database-locks 0.5), for [`Client::Legacy`].
    pub old_python: Option<PathBuf>,
    /// The faults; `None`: all that suit the client.
    pub kinds: Option<Vec<plan::Kind>>,
    /// Where the histories of failed runs are kept.
    pub folder: PathBuf,
}

impl Options {
    /// Whether the clients are a control: it has faults of its own, and must be caught.
    pub fn is_control(&self) -> bool {
        !matches!(self.clients.first(), Some(Client::Rust | Client::Python))
    }

    /// The faults that suit a client, the engine and the targets.
    pub(crate) fn suitable_kinds(&self, client: Client) -> Vec<plan::Kind> {
        let is_semaphore = |target: &Target| matches!(target.kind, target::Kind::Semaphore(_));
        let limited = self.targets.iter().any(is_semaphore);
        // A control takes a lock by one statement, and enters elsewhere by two.
        let locks = self.targets.iter().any(|t| t.kind == target::Kind::Lock);
        let guarded = self.has_guarded_table();
        let mut kinds = plan::kinds(client, self.engine);
        kinds.retain(|kind| match kind {
            plan::Kind::Limit => limited,
            plan::Kind::SlowClaim => !locks,
            plan::Kind::LateGrant => locks,
            kind => guarded || !kind.is_in_guarded(),
        });
        kinds
    }

    fn has_guarded_table(&self) -> bool {
        let mut targets = self.targets.iter();
        targets.any(|target| target.kind == target::Kind::Guarded)
    }

    /// What a run with a guarded table must have done and has not.
    pub(crate) fn unexercised(&self, numbers: &Numbers) -> Vec<String> {
        let guarded = numbers.guarded;
        if !self.has_guarded_table() || self.is_control() {
            return Vec::new();
        }
        let wanted = [
            (guarded.committed, "committed"),
            (guarded.late, "refused late"),
            (guarded.outdated, "refused with an outdated ticket"),
            (guarded.bare, "refused without a ticket"),
        ];
        let none = wanted.into_iter().filter(|(many, _)| *many == 0);
        let mut problems: Vec<String> = none
            .map(|(_, what)| format!("no write to the guarded table was {what}"))
            .collect();
        // Another node of a cluster may not know yet of the grant.
        if guarded.holders > 0 && self.engine != Engine::Galera {
            let many = guarded.holders;
            problems.push(format!("{many} writes of holders were refused"));
        }
        problems
    }

    pub(crate) fn program(&self, client: Client) -> Vec<String> {
        let script = |name: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
            folder.join(name).display().to_string()
        };
        let python = |python: &Option<PathBuf>| {
            let path = python.as_ref().expect("a run with Python has one");
            path.display().to_string()
        };
        match client {
            Client::Python => vec![python(&self.python), script("worker.py")],
            Client::Legacy => vec![python(&self.old_python), script("legacy_worker.py")],
            _ => vec![self.worker.display().to_string()],
        }
    }
}
