//! The lock or the locks that a command acquires.

use std::time::Duration;

use database_locks::{AllLocks, Error, Lock, LockGuard, Locks};

use crate::cli::AcquireArgs;

/// The lock or the locks that a command acquires, with their settings.
pub(super) enum Wanted {
    One(Lock),
    All(AllLocks),
}

/// Changes a setting, whichever it is.
macro_rules! set {
    ($wanted:expr, $lock:ident => $changed:expr) => {
        match $wanted {
            Wanted::One($lock) => Wanted::One($changed),
            Wanted::All($lock) => Wanted::All($changed),
        }
    };
}

/// Settings of a command, besides its options.
pub(super) struct Settings {
    /// What the lock is for: in its metadata.
    pub(super) command: Option<String>,
    pub(super) margin: Option<Duration>,
    /// For one lock only.
    pub(super) at_least: Duration,
    pub(super) once_per: Option<Duration>,
}

impl Wanted {
    pub(super) fn new(locks: &Locks, args: &AcquireArgs, settings: Settings) -> Self {
        let mut wanted = match &*args.others {
            [] => {
                let lock = match args.limit {
                    Some(permits) => locks.semaphore(args.name.as_str(), permits),
                    None if args.shared => locks.lock(args.name.as_str()).shared(),
                    None => locks.lock(args.name.as_str()),
                };
                let lock = lock.at_least(settings.at_least);
                Self::One(match settings.once_per {
                    Some(period) => lock.once_per(period),
                    None => lock,
                })
            }
            _ => Self::All(locks.all(args.names().map(|name| name.as_str()))),
        };
        wanted = set!(wanted, lock => lock.ttl(args.ttl));
        if let Some(command) = settings.command {
            wanted = set!(wanted, lock => lock.metadata("command", command));
        }
        if let Some(margin) = settings.margin {
            wanted = set!(wanted, lock => lock.margin(margin));
        }
        for (key, value) in &args.meta {
            wanted = set!(wanted, lock => lock.metadata(key.as_str(), value.as_str()));
        }
        if let Some(holder) = &args.holder {
            wanted = set!(wanted, lock => lock.holder(holder.as_str()));
        }
        match args.wait {
            Some(limit) => set!(wanted, lock => lock.wait(limit)),
            None => wanted,
        }
    }

    /// The guards, in the order in which the names were given.
    pub(super) async fn acquire(&self, args: &AcquireArgs) -> Result<Vec<LockGuard>, Error> {
        let mut guards = match self {
            Self::One(lock) => vec![lock.acquire().await?],
            Self::All(locks) => locks.acquire().await?.into_guards(),
        };
        guards.sort_by_key(|guard| args.names().position(|name| name == guard.name()));
        Ok(guards)
    }
}
