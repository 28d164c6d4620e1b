//! Fields of a lock as text.

use std::time::{Duration, SystemTime};

use database_locks::{LockInfo, LockState};
use jiff::Timestamp;
use serde_json::Value;

use crate::time::human;

/// How long a lease lasts, by the clock of the database, as the end of a sentence: `until …`.
pub(crate) fn lease_end(lock: Option<&LockInfo>) -> String {
    match lock.map(|lock| (lock.state, lock.expires_at.and_then(time))) {
        Some((LockState::Held { free_in: None }, _)) => "without end".to_owned(),
        Some((
            LockState::Held {
                free_in: Some(left),
            },
            end,
        )) => {
            // Some milliseconds have passed since the grant. They are added, to show 10m, not 9m
            // 59s.
            let left = human(left + Duration::from_millis(500).min(left / 100));
            match end {
                Some(end) => format!("until {end} ({left})"),
                None => format!("for {left}"),
            }
        }
        _ => "until its ttl ends".to_owned(),
    }
}

pub(super) fn free_in(lock: &LockInfo) -> String {
    match lock.state {
        LockState::Held {
            free_in: Some(left),
        } => human(left),
        LockState::Resting { free_in } => human(free_in),
        LockState::Held { free_in: None } => "never".to_owned(),
        LockState::Expired { .. } => "now".to_owned(),
        _ => String::new(),
    }
}

/// A value of the metadata.
pub(super) fn json_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn time(at: SystemTime) -> Option<String> {
    Some(format!("{:.0}", Timestamp::try_from(at).ok()?))
}
