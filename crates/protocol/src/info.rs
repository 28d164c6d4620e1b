//! A lock for people and as JSON, and the selection of locks to list or prune.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use jiff::civil::DateTime;
use serde_json::{Value, json};

use crate::lost::{HeldBy, UNNAMED_HOLDER};
use crate::observation::ObservedExpiry;
use crate::values::grant::Token;
use crate::values::name::LockName;
use crate::values::slot::Slot;
use crate::values::text::{Holding, Resting};

/// One lock as its row was when it was read.
///
/// All durations are measured by the database's clock. The three points in time are for display
/// only: never compare them with a local clock.
///
/// A cluster with several primaries has several clocks, and none of them decides whether a lease
/// has ended: its expiry is observed. Until this process has seen the same version of the row for
/// the whole length of the lease, the lock is `Held`, and `free_in` is the rest of that length.
/// After that it is `Expired`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// The name of the lock.
    pub name: LockName,
    /// Whether the lock is free, held, resting, or expired because its holder did not renew it.
    pub state: LockState,
    /// The name of the present or latest holder.
    pub holder: Option<String>,
    /// The fencing token of the latest grant; 0 if this library never granted the lock.
    pub token: Token,
    /// The id of the present grant; `None` if the lock is free or rests.
    pub grant: Option<String>,
    /// For how long the lock has been held; `None` if it is free or rests, or if its holder is
    /// legacy (django-database-locks 0.5), which does not record it.
    pub held_for: Option<Duration>,
    /// When the present or latest grant was made.
    pub acquired_at: Option<SystemTime>,
    /// When the lock was last renewed or released.
    pub renewed_at: Option<SystemTime>,
    /// When the lease or the rest ends; `None` if the lock is free or its lease is infinite.
    pub expires_at: Option<SystemTime>,
    /// The metadata of the holder, as JSON.
    pub metadata: Option<String>,
    /// The number of the permit, if this is one of a semaphore; `None` for a lock.
    pub slot: Option<u16>,
    /// The number of permits that the holder of this permit allowed; `None` for a lock.
    pub permits: Option<u32>,
    /// How many shared holders this exclusive holder still waits for, before it is in; `None` if it
    /// is in.
    pub waits_for: Option<u32>,
    /// Whether the lock was ever shared.
    #[doc(hidden)]
    pub was_shared: bool,
    /// The row of a shared grant; `None` for another row.
    #[doc(hidden)]
    pub shared_slot: Option<i32>,
    /// How the expiry of the lease is observed; `None` if the database's clock decides.
    #[doc(hidden)]
    pub observed_expiry: Option<ObservedExpiry>,
}

/// A semaphore as its rows were when they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Semaphore {
    /// The name of the semaphore.
    pub name: LockName,
    /// The limit that an operator has set, which takes precedence over those of the callers; 0:
    /// paused. `None`: each caller's own limit applies.
    pub limit: Option<u32>,
    /// The permits that were granted once, in order of their numbers. Those that are free are
    /// among them.
    pub permits: Vec<LockInfo>,
}

impl Semaphore {
    /// The number of permits that are held.
    pub fn held(&self) -> usize {
        self.permits
            .iter()
            .filter(|permit| permit.is_held())
            .count()
    }

    /// The semaphore as one JSON object, on one line: `name`, `limit` (the operator's), `of` (see
    /// [`Semaphore::effective_limit`]), `held`, and `permits`, each as [`LockInfo::to_json`] has it.
    pub fn to_json(&self) -> String {
        let fields = [
            ("name", json!(self.name.as_str()).to_string()),
            ("limit", json!(self.limit).to_string()),
            ("of", json!(self.effective_limit()).to_string()),
            ("held", json!(self.held()).to_string()),
            (
                "permits",
                format!(
                    "[{}]",
                    self.permits
                        .iter()
                        .map(LockInfo::to_json)
                        .collect::<Vec<_>>()
                        .join(",")
                ),
            ),
        ];
        let fields = fields.map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", fields.join(","))
    }

    /// The operator's limit; without one, the greatest that a present holder has given, or else the
    /// latest holders.
    pub fn effective_limit(&self) -> Option<u32> {
        let of = |held: bool| {
            let permits = self.permits.iter().filter(move |it| it.is_held() || !held);
            permits.filter_map(|permit| permit.permits).max()
        };
        self.limit.or_else(|| of(true)).or_else(|| of(false))
    }
}

/// Which locks `Locks::list_filtered` reads: by default all.
///
/// ```
/// use database_locks::ListFilter;
///
/// let filter = ListFilter::new().not_free().prefix("report-");
/// assert_ne!(filter, ListFilter::default());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Whether free locks are left out.
    #[doc(hidden)]
    pub not_free: bool,
    /// The beginning of the name.
    #[doc(hidden)]
    pub prefix: String,
}

impl ListFilter {
    /// All locks that have a row.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only locks that are held, resting or expired.
    #[must_use]
    pub fn not_free(mut self) -> Self {
        self.not_free = true;
        self
    }

    /// Only locks whose name begins with this text, compared byte for byte.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether the filter selects a lock.
    #[doc(hidden)]
    pub fn matches(&self, name: &str, is_free: bool) -> bool {
        !(self.not_free && is_free) && name.starts_with(&self.prefix)
    }
}

/// Which rows `Locks::prune` deletes.
///
/// ```
/// use std::time::Duration;
/// use database_locks::Prune;
///
/// let month = Duration::from_secs(30 * 86_400);
/// assert_ne!(Prune::older_than(month), Prune::older_than(month).include_legacy());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it deletes nothing by itself"]
pub struct Prune {
    /// For how long a lock has to be unused.
    #[doc(hidden)]
    pub idle: Duration,
    /// Whether free legacy rows are deleted too.
    #[doc(hidden)]
    pub legacy: bool,
}

impl Prune {
    /// The rows of locks that were released, or whose leases ended, at least this long ago by the
    /// database's clock.
    pub fn older_than(idle: Duration) -> Self {
        Self {
            idle,
            legacy: false,
        }
    }

    /// Also the free rows that a legacy client (django-database-locks 0.5) wrote last. They do not
    /// show for how long they have been free.
    pub fn include_legacy(mut self) -> Self {
        self.legacy = true;
        self
    }
}

/// Whether a lock is free, held, resting or expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockState {
    /// The lock is free.
    Free,
    /// A client holds the lock.
    Held {
        /// How long the lease lasts unless it is renewed; `None` if it is infinite.
        free_in: Option<Duration>,
    },
    /// The latest holder has released the lock before its `Lock::at_least` had passed. No client
    /// holds it, and none can acquire it before the rest has ended.
    Resting {
        /// How long it still rests.
        free_in: Duration,
    },
    /// The lease has ended. The next caller acquires the lock.
    Expired {
        /// For how long.
        since: Duration,
    },
}

impl LockState {
    /// The state as one word: `free`, `held`, `resting` or `expired`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held { .. } => "held",
            Self::Resting { .. } => "resting",
            Self::Expired { .. } => "expired",
        }
    }

    /// What is left of the lease or the rest; `None` if there is none, or the lease is infinite.
    pub(crate) fn free_in(&self) -> Option<Duration> {
        match self {
            Self::Free => None,
            Self::Held { free_in } => *free_in,
            Self::Resting { free_in } => Some(*free_in),
            Self::Expired { .. } => Some(Duration::ZERO),
        }
    }
}

impl LockInfo {
    /// Whether no client can acquire the lock: a grant holds it, or it rests.
    #[doc(hidden)]
    pub fn is_taken(&self) -> bool {
        self.is_held() || matches!(self.state, LockState::Resting { .. })
    }

    /// Whether this is a shared grant of the lock, beside which there may be others.
    pub fn is_shared(&self) -> bool {
        self.shared_slot.is_some()
    }

    /// The row that this was read from.
    #[doc(hidden)]
    pub fn row_slot(&self) -> Slot {
        match (self.slot, self.shared_slot) {
            (Some(permit), _) => Slot::Permit(permit),
            (None, Some(shared)) => Slot::Shared(shared),
            (None, None) => Slot::Lock,
        }
    }

    /// Whether the lock was held when the row was read: its state is [`LockState::Held`]. A lock
    /// that [rests](LockState::Resting) has no holder, although no client can acquire it.
    pub fn is_held(&self) -> bool {
        matches!(self.state, LockState::Held { .. })
    }

    /// The metadata of the holder, parsed: `program`, `host`, `pid`, `version`, and the keys of the
    /// caller under `meta`. Null if there is none, a string if it is not JSON.
    pub fn parsed_metadata(&self) -> Value {
        self.metadata.as_ref().map_or(Value::Null, |text| {
            serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
        })
    }

    /// The purpose of the lock in a few words, for a list: the keys of the caller, `command` first;
    /// if there are none, the program. Empty if nothing is known.
    ///
    /// The holder wrote it: escape control characters before you show it.
    ///
    /// # Example
    ///
    /// ```
    /// # use database_locks::Locks;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").metadata("ticket", "OPS-1").acquire().await?;
    /// let info = locks.show("report").await?.expect("it is held");
    /// assert_eq!(info.description(), "ticket=OPS-1");
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn description(&self) -> String {
        let all = self.parsed_metadata();
        let Some(own) = all["meta"].as_object() else {
            return match &all {
                Value::Object(all) => all.get("program").map(plain).unwrap_or_default(),
                other => plain(other),
            };
        };
        let mut words = own.get("command").map(plain).unwrap_or_default();
        for (key, value) in own.iter().filter(|(key, _)| *key != "command") {
            let blank = if words.is_empty() { "" } else { " " };
            let _ = write!(words, "{blank}{key}={}", plain(value));
        }
        words
    }

    /// The holder, as the message of a timeout shows it: `held by web-2.17.ab for 4s`, or `resting
    /// for another 40s after web-2.17.ab`, or `free`.
    ///
    /// # Example
    ///
    /// ```
    /// # use database_locks::Locks;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").holder("web-2").acquire().await?;
    /// let info = locks.show("report").await?.expect("it is there");
    /// assert!(info.holder_summary().starts_with("held by web-2 for "));
    /// guard.release().await?;
    /// let info = locks.show("report").await?.expect("it is there");
    /// assert_eq!(info.holder_summary(), "free");
    /// # Ok(()) }
    /// ```
    pub fn holder_summary(&self) -> String {
        let holder = self.holder.as_deref().unwrap_or(UNNAMED_HOLDER);
        match self.state {
            LockState::Held { .. } => Holding(holder, self.held_for).to_string(),
            LockState::Resting { free_in } => Resting(holder, free_in).to_string(),
            LockState::Free | LockState::Expired { .. } => "free".to_owned(),
        }
    }

    /// The holder; `None` if the lock is free, resting or expired.
    #[doc(hidden)]
    pub fn held_by(&self) -> Option<HeldBy> {
        self.is_held().then(|| HeldBy {
            holder: self.holder.clone(),
            // In a legacy row, which shows no grant, the token is that of an earlier grant.
            token: self.grant.is_some().then_some(self.token),
            held_for: self.held_for,
        })
    }

    /// The lock as one JSON object, on one line.
    ///
    /// | key                                       | value                             |
    /// |-------------------------------------------|-----------------------------------|
    /// | `name`, `holder`, `token`, `grant`        | the fields of this struct         |
    /// | `state`                                   | [`LockState::as_str`]             |
    /// | `held_for`, `free_in`                     | seconds                           |
    /// | `acquired_at`, `renewed_at`, `expires_at` | RFC 3339 in UTC, database's clock |
    /// | `metadata`                                | [`LockInfo::parsed_metadata`]     |
    /// | `slot`, `permits`                         | of a permit only                  |
    /// | `shared`                                  | true, of a shared holder only     |
    /// | `waits_for`                               | the field, if it has a value      |
    ///
    /// A value that is missing or infinite is null.
    pub fn to_json(&self) -> String {
        let seconds = |length: Duration| length.as_millis() as f64 / 1000.0;
        let fields = [
            ("name", json!(self.name.as_str())),
            ("state", json!(self.state.as_str())),
            ("holder", json!(self.holder)),
            ("token", json!(self.token.get())),
            ("grant", json!(self.grant)),
            ("held_for", json!(self.held_for.map(seconds))),
            ("free_in", json!(self.state.free_in().map(seconds))),
            ("acquired_at", json!(self.acquired_at.and_then(rfc3339))),
            ("renewed_at", json!(self.renewed_at.and_then(rfc3339))),
            ("expires_at", json!(self.expires_at.and_then(rfc3339))),
            ("metadata", self.parsed_metadata()),
            ("slot", json!(self.slot)),
            ("permits", json!(self.permits)),
            ("shared", json!(true)),
            ("waits_for", json!(self.waits_for)),
        ];
        let applies = |name: &str| match name {
            "slot" | "permits" => self.slot.is_some(),
            "shared" => self.is_shared(),
            "waits_for" => self.waits_for.is_some(),
            _ => true,
        };
        // A map of serde_json would sort the keys.
        let fields = fields
            .iter()
            .filter(|(name, _)| applies(name))
            .map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

/// A semaphore in a list of locks, as JSON with the keys of a permit and `limit`, the operator's. Its
/// state is `paused` or `free`.
#[doc(hidden)]
pub fn limit_to_json(name: &LockName, limit: u32) -> String {
    let fields = [
        ("name", json!(name.as_str())),
        ("state", json!(limit_state(limit))),
        ("holder", Value::Null),
        ("token", Value::Null),
        ("grant", Value::Null),
        ("held_for", Value::Null),
        ("free_in", Value::Null),
        ("acquired_at", Value::Null),
        ("renewed_at", Value::Null),
        ("expires_at", Value::Null),
        ("metadata", Value::Null),
        ("slot", Value::Null),
        ("permits", Value::Null),
        ("limit", json!(limit)),
    ];
    let fields = fields.map(|(name, value)| format!("\"{name}\":{value}"));
    format!("{{{}}}", fields.join(","))
}

/// The state of a semaphore with this operator's limit, in a list of locks.
#[doc(hidden)]
pub fn limit_state(limit: u32) -> &'static str {
    match limit {
        0 => "paused",
        _ => "free",
    }
}

/// A JSON value as text. A string is written without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `2026-11-24T20:15:36.042Z`; `None` before 1970 and after 9999, where no lease of this library
/// ends.
fn rfc3339(at: SystemTime) -> Option<String> {
    const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    // Not a `Timestamp`, which ends a day before the year 9999 does.
    let at = EPOCH.checked_add(since).ok()?;
    Some(format!("{at:.3}Z"))
}

#[cfg(test)]
mod tests;
