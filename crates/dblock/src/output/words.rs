//! A lock in words.

use std::fmt::Write as _;
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

pub(super) fn state(info: &LockInfo) -> &'static str {
    match info.state {
        LockState::Held { .. } => "held",
        LockState::Expired { .. } => "expired",
        _ => "free",
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

/// What the holder says of itself; a text where it is no JSON.
pub(super) fn metadata(info: &LockInfo) -> Value {
    info.metadata.as_ref().map_or(Value::Null, |text| {
        serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
    })
}

/// What it was taken for: the caller's own words, else the program.
pub(super) fn purpose(metadata: Option<&str>) -> String {
    let Some(text) = metadata else {
        return String::new();
    };
    let Ok(all) = serde_json::from_str::<Value>(text) else {
        return text.to_owned();
    };
    let Some(own) = all["meta"].as_object() else {
        return plain(&all["program"]);
    };
    let command = own.get("command").map(plain).unwrap_or_default();
    let others = own.iter().filter(|(key, _)| *key != "command");
    let mut words = command;
    for (key, value) in others {
        let blank = if words.is_empty() { "" } else { " " };
        let _ = write!(words, "{blank}{key}={}", plain(value));
    }
    words
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

    #[test]
    fn the_purpose_is_the_callers_words_before_the_program() {
        let of = |text: &str| purpose(Some(text));
        assert_eq!(of(r#"{"program":"worker","pid":1}"#), "worker");
        let own = r#"{"program":"dblock","meta":{"ticket":"OPS-1","command":"report.sh"}}"#;
        assert_eq!(of(own), "report.sh ticket=OPS-1");
        assert_eq!(of("by hand"), "by hand");
        assert_eq!(purpose(None), "");
    }
}
