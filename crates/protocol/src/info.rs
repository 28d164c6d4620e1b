//! Locks as rows of the table: what lists show.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::lost::HeldBy;
use crate::observation::ObservedExpiry;
use crate::values::grant::Token;
use crate::values::name::LockName;
use crate::values::text::Holding;

/// One lock as its row was when it was read.
///
/// All durations are measured by the database's clock. The three points in time are for display
/// only: never compare them with a clock of your own.
///
/// On a cluster with several primaries a lease ends when it has been observed unchanged for its
/// length. Until then it is `Held`, and `free_in` is the rest of the observation: the whole length
/// if this process sees the lease for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// Its name.
    pub name: LockName,
    /// Held, free, or expired: its holder did not renew it.
    pub state: LockState,
    /// The present or latest holder.
    pub holder: Option<String>,
    /// The fencing token of the latest grant; 0 if this library never granted the lock.
    pub token: Token,
    /// The id of the present grant; `None` if the lock is free.
    pub grant: Option<String>,
    /// How long the lock has been held; `None` if it is free or held by a legacy holder
    /// (django-database-locks 0.5).
    pub held_for: Option<Duration>,
    /// When the present or latest grant was made.
    pub acquired_at: Option<SystemTime>,
    /// When it was last renewed or released.
    pub renewed_at: Option<SystemTime>,
    /// When the lease ends; `None` if the lock is free or the lease infinite.
    pub expires_at: Option<SystemTime>,
    /// The holder's metadata, as JSON.
    pub metadata: Option<String>,
    /// How its lease ends, where that is by being watched.
    #[doc(hidden)]
    pub lapse: Option<ObservedExpiry>,
}

/// The locks that `Locks::list_filtered` reads: by default all.
///
/// ```
/// use database_locks::ListFilter;
///
/// let filter = ListFilter::new().not_free().prefix("report-");
/// assert_ne!(filter, ListFilter::default());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFilter {
    #[doc(hidden)]
    pub not_free: bool,
    #[doc(hidden)]
    pub prefix: String,
}

impl ListFilter {
    /// All locks of the table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only locks that are held or expired.
    #[must_use]
    pub fn not_free(mut self) -> Self {
        self.not_free = true;
        self
    }

    /// Only locks whose name begins with `prefix`, compared byte for byte.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether it selects a lock.
    #[doc(hidden)]
    pub fn matches(&self, name: &str, is_free: bool) -> bool {
        !(self.not_free && is_free) && name.starts_with(&self.prefix)
    }
}

/// The rows that `Locks::prune` deletes.
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
    #[doc(hidden)]
    pub idle: Duration,
    #[doc(hidden)]
    pub legacy: bool,
}

impl Prune {
    /// Locks that were released or expired at least this long ago, by the database's clock.
    pub fn older_than(idle: Duration) -> Self {
        Self {
            idle,
            legacy: false,
        }
    }

    /// Also free legacy rows (django-database-locks 0.5), which have no date of release.
    pub fn include_legacy(mut self) -> Self {
        self.legacy = true;
        self
    }
}

/// Whether a lock is free, held or expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockState {
    /// It is free.
    Free,
    /// A client holds it.
    Held {
        /// How long its lease lasts unless it is renewed; `None`: infinite.
        free_in: Option<Duration>,
    },
    /// Its lease has expired: the next caller acquires it.
    Expired {
        /// How long ago.
        since: Duration,
    },
}

impl LockState {
    /// `free`, `held` or `expired`, as in the output and JSON of `dblock list`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held { .. } => "held",
            Self::Expired { .. } => "expired",
        }
    }
}

impl LockInfo {
    /// Whether a holder had the lock when the row was read: its state is [`LockState::Held`].
    pub fn is_held(&self) -> bool {
        matches!(self.state, LockState::Held { .. })
    }

    /// The holder's metadata, parsed: `program`, `host`, `pid`, `version`, and the caller's keys
    /// under `meta`. Null if there is none, a string if it is no JSON.
    pub fn parsed_metadata(&self) -> Value {
        self.metadata.as_ref().map_or(Value::Null, |text| {
            serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
        })
    }

    /// What the lock is held for, in a few words: the caller's metadata, `command` first, else the
    /// holder's program. Empty if nothing is known.
    ///
    /// The holder wrote this text: escape control characters before you show it.
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

    /// The holder in the words of a timeout: `held by web-2.17.ab for 4s`, or `free`.
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
        match self.state {
            LockState::Free | LockState::Expired { .. } => "free".to_owned(),
            LockState::Held { .. } => {
                let who = self.holder.as_deref().unwrap_or("somebody");
                Holding(who, self.held_for).to_string()
            }
        }
    }

    /// The holder; none if it is free.
    #[doc(hidden)]
    pub fn held_by(&self) -> Option<HeldBy> {
        self.is_held().then(|| HeldBy {
            holder: self.holder.clone(),
            // That of an earlier grant, where 0.5 has it.
            token: self.grant.is_some().then_some(self.token),
            held_for: self.held_for,
        })
    }

    /// One JSON object on one line, as `dblock list --json` prints it.
    ///
    /// `name`, `state` (see [`LockState::as_str`]), `holder`, `token`, `grant`; `held_for` and
    /// `free_in` in seconds; `acquired_at`, `renewed_at` and `expires_at` in RFC 3339 UTC, by the
    /// database's clock; `metadata` as in [`LockInfo::parsed_metadata`]. A missing value is null,
    /// and so is an infinite end.
    pub fn to_json(&self) -> String {
        let free_in = match self.state {
            LockState::Held { free_in } => free_in,
            LockState::Expired { .. } => Some(Duration::ZERO),
            LockState::Free => None,
        };
        let seconds = |length: Duration| length.as_millis() as f64 / 1000.0;
        let fields = [
            ("name", json!(self.name.as_str())),
            ("state", json!(self.state.as_str())),
            ("holder", json!(self.holder)),
            ("token", json!(self.token.get())),
            ("grant", json!(self.grant)),
            ("held_for", json!(self.held_for.map(seconds))),
            ("free_in", json!(free_in.map(seconds))),
            ("acquired_at", json!(self.acquired_at.and_then(rfc3339))),
            ("renewed_at", json!(self.renewed_at.and_then(rfc3339))),
            ("expires_at", json!(self.expires_at.and_then(rfc3339))),
            ("metadata", self.parsed_metadata()),
        ];
        // In this order: serde_json's own map would sort them.
        let fields = fields.map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", fields.join(","))
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `2026-11-24T20:15:36.042Z`. None before 1970 and after 9999, which no lease of ours is.
fn rfc3339(at: SystemTime) -> Option<String> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Counted in years that begin in March, so that the odd day is the last of its year, and in
    // cycles of 400 years, which all have as many days.
    let days = days + 719_468;
    let (cycle, of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle = (of_cycle - of_cycle / 1460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_cycle + 400 * cycle + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day % 3600 / 60, of_day % 60);
    let ms = since.subsec_millis();
    (year <= 9999).then(|| {
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Option<String> {
        rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
    }

    #[test]
    fn times_are_told_by_the_calendar() {
        for (ms, told) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_210_096_042, "2024-02-29T12:34:56.042Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(at(ms).as_deref(), Some(told));
        }
        assert_eq!(at(253_402_300_800_000), None);
        assert_eq!(
            rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)),
            None
        );
        // Every day for two cycles of 400 years follows the one before.
        let mut last = at(0).unwrap();
        for day in 1..292_194_u64 {
            let next = at(day * 86_400_000).unwrap();
            let of_month = |told: &str| told[8..10].parse::<u32>().unwrap();
            let follows = of_month(&next) == 1 || of_month(&last) + 1 == of_month(&next);
            assert!(follows && next > last, "{next} after {last}");
            last = next;
        }
    }

    fn held(metadata: Option<&str>) -> LockInfo {
        LockInfo {
            name: LockName::new("a \"job\"").unwrap(),
            state: LockState::Held {
                free_in: Some(Duration::from_millis(1500)),
            },
            holder: Some("me".into()),
            token: Token::from_db(7),
            grant: Some("ab".into()),
            held_for: Some(Duration::from_micros(2_000_900)),
            acquired_at: Some(SystemTime::UNIX_EPOCH),
            renewed_at: None,
            expires_at: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)),
            metadata: metadata.map(str::to_owned),
            lapse: None,
        }
    }

    #[test]
    fn the_json_keeps_its_order_and_says_null_where_there_is_none() {
        assert_eq!(
            held(Some(r#"{"pid":1}"#)).to_json(),
            r#"{"name":"a \"job\"","state":"held","holder":"me","token":7,"grant":"ab","held_for":2.0,"free_in":1.5,"acquired_at":"1970-01-01T00:00:00.000Z","renewed_at":null,"expires_at":"1970-01-01T00:00:01.500Z","metadata":{"pid":1}}"#
        );
        let free_in = |state| {
            let info = LockInfo {
                state,
                ..held(None)
            };
            let all: Value = serde_json::from_str(&info.to_json()).unwrap();
            (all["state"].clone(), all["free_in"].clone())
        };
        let since = Duration::from_secs(5);
        assert_eq!(
            free_in(LockState::Expired { since }),
            (json!("expired"), json!(0.0))
        );
        assert_eq!(
            free_in(LockState::Held { free_in: None }),
            (json!("held"), json!(null))
        );
        assert_eq!(free_in(LockState::Free), (json!("free"), json!(null)));
    }

    #[test]
    fn the_purpose_is_the_callers_words_before_the_program() {
        let of = |text: &str| held(Some(text)).description();
        assert_eq!(of(r#"{"program":"worker","pid":1}"#), "worker");
        let own = r#"{"program":"dblock","meta":{"ticket":"OPS-1","command":"report.sh"}}"#;
        assert_eq!(of(own), "report.sh ticket=OPS-1");
        assert_eq!(of("by hand"), "by hand");
        assert_eq!(of("{}"), "");
        assert_eq!(held(None).description(), "");
    }
}
