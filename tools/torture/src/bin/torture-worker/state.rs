//! The state of a worker: its settings, its history, its random choices.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use torture::clock;
use torture::control::{ControlClient, ControlGuard};
use torture::history::{Recorder, What};
use torture::sql::Sql;
use torture::target::{Kind, Mode, Target, slot_name};
use torture::worker::{Commands, Settings};

/// A worker process.
pub(crate) struct Worker {
    pub(crate) settings: Settings,
    pub(crate) locks: Option<Locks>,
    pub(crate) control: ControlClient,
    pub(crate) commands: Arc<Commands>,
    pub(crate) recorder: RefCell<Recorder>,
    pub(crate) random: RefCell<fastrand::Rng>,
    pub(crate) data: RefCell<Option<Sql>>,
    pub(crate) requests: Cell<u64>,
    pub(crate) writes: Cell<u64>,
    pub(crate) skew: Cell<i64>,
    /// The ticket of the latest grant of the guarded table's lock that has ended.
    pub(crate) outdated: RefCell<Option<Ticket>>,
}

/// A grant that was asked for.
pub(crate) struct Held<'a> {
    pub(crate) request: u64,
    pub(crate) target: &'a Target,
    pub(crate) mode: Mode,
    pub(crate) guard: &'a Guard,
}

impl Held<'_> {
    /// What has a counter of its own: the lock, or the slot; `None` for a permit without a slot.
    pub(crate) fn resource(&self) -> Option<String> {
        let name = &self.target.name;
        match (self.mode, self.guard.slot()) {
            (Mode::Permit(_), slot) => Some(slot_name(name, slot?)),
            _ => Some(name.clone()),
        }
    }
}

/// What a write to the guarded table shows.
pub(crate) struct Ticket {
    /// The request of its grant.
    pub(crate) request: u64,
    pub(crate) token: i64,
    pub(crate) text: String,
}

/// A held lock.
pub(crate) enum Guard {
    Library(LockGuard),
    Control(ControlGuard),
}

impl Guard {
    /// The slot of a permit.
    pub(crate) fn slot(&self) -> Option<u16> {
        match self {
            Self::Library(guard) => guard.slot(),
            Self::Control(held) => held.slot,
        }
    }

    pub(crate) fn token(&self) -> i64 {
        match self {
            Self::Library(guard) => guard.token().get(),
            Self::Control(held) => held.token,
        }
    }
}

impl Worker {
    pub(crate) fn record(&self, what: What) {
        self.recorder.borrow_mut().write(&what);
    }

    pub(crate) fn number(&self, from: u64, to: u64) -> u64 {
        self.random.borrow_mut().u64(from..to)
    }

    pub(crate) fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.number(from, to))
    }

    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.number(0, 100) < percent
    }

    /// Chooses what to ask for, and how.
    pub(crate) fn choose(&self) -> (&Target, Mode) {
        let targets = &self.settings.targets;
        let mut at = self.number(0, targets.iter().map(Target::weight).sum());
        let target = targets.iter().find(|target| {
            let chosen = at < target.weight();
            at = at.saturating_sub(target.weight());
            chosen
        });
        let mut target = target.unwrap_or(&targets[0]);
        if self.commands.wants_guarded_write() {
            let guarded = targets.iter().find(|target| target.kind == Kind::Guarded);
            target = guarded.unwrap_or(target);
        }
        let mode = match target.kind {
            Kind::Lock | Kind::Guarded => Mode::Exclusive,
            Kind::Semaphore(permits) => Mode::Permit(permits),
            // Writers would wait forever if there were always a reader in.
            Kind::Shared if self.chance(65) => Mode::Shared,
            Kind::Shared => Mode::Exclusive,
        };
        (target, mode)
    }

    /// Records a jump of the wall clock of this process.
    pub(crate) fn record_clock_jump(&self) {
        let skew = clock::skew();
        // The two clocks are read one after the other, so that their seconds may differ by one.
        if skew.abs_diff(self.skew.replace(skew)) > 1 {
            self.record(What::Clock { skew });
        }
    }
}
