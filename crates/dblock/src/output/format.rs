//! A lock in words.

use std::time::{Duration, SystemTime};

use database_locks::{LockInfo, LockState, Ttl};
use jiff::Timestamp;
use serde_json::Value;

/// How long a lease lasts, by the clock of the database.
pub(crate) fn lasts(row: Option<&LockInfo>) -> String {
    match row.map(|row| row.state) {
        Some(LockState::Held { free_in: None }) => "without end".to_owned(),
        Some(LockState::Held {
            free_in: Some(left),
        }) => {
            // What passed since it was asked for is not to be seen: 10m, and not 9m 59s.
            let left = human(left + Duration::from_millis(500).min(left / 100));
            match row.and_then(|row| row.expires_at).and_then(time) {
                Some(end) => format!("until {end} ({left})"),
                None => format!("for {left}"),
            }
        }
        _ => "until its ttl ends".to_owned(),
    }
}

pub(super) fn free_in_words(info: &LockInfo) -> String {
    match info.state {
        LockState::Held {
            free_in: Some(left),
        } => human(left),
        LockState::Held { free_in: None } => "never".to_owned(),
        LockState::Expired { .. } => "now".to_owned(),
        _ => String::new(),
    }
}

pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// As people say it: `30s`, `2m 5s`, `10m`.
pub(crate) fn human(length: Duration) -> String {
    let said = Ttl::from(length).to_string();
    match said.rsplit_once(" 0") {
        Some((round, "s" | "m" | "h")) => round.to_owned(),
        _ => said,
    }
}

pub(super) fn time(at: SystemTime) -> Option<String> {
    Some(format!("{:.0}", Timestamp::try_from(at).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_length_is_said_without_its_noughts() {
        assert_eq!(human(Duration::from_secs(600)), "10m");
        assert_eq!(human(Duration::from_secs(605)), "10m 5s");
        assert_eq!(human(Duration::from_secs(30 * 86_400)), "30d");
        assert_eq!(human(Duration::from_secs(10)), "10s");
    }
}
