//! One value of an option, read; what is refused is told by its rule.

use std::time::Duration;

use database_locks::{LockName, Ttl, parse_duration};

pub(super) fn lock_name(text: &str) -> Result<LockName, String> {
    LockName::new(text).map_err(said)
}

pub(super) fn ttl(text: &str) -> Result<Ttl, String> {
    text.parse()
        .map_err(|error| format!("{}, or inf", said(error)))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(said)
}

/// Only the rule: clap says what was given, and where.
fn said(error: database_locks::Error) -> String {
    match error {
        database_locks::Error::Config { allowed, .. } => format!("must be {allowed}"),
        other => other.chain(),
    }
}

pub(super) fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}
