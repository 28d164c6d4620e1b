//! One value of an option, read; what is refused is told by its rule.

use std::time::Duration;

use database_locks::doctor::KINDS;
use database_locks::{InvalidSetting, LockName, Ttl, parse_duration};

pub(super) fn lock_name(text: &str) -> Result<LockName, String> {
    LockName::new(text).map_err(said)
}

pub(super) fn ttl(text: &str) -> Result<Ttl, String> {
    match or_inf(text)? {
        Ttl::Finite(length) if !(Ttl::MIN..=Ttl::MAX).contains(&length) => {
            Err("must be 100ms to 10 years, or inf".to_owned())
        }
        ttl => Ok(ttl),
    }
}

/// Infinite: as long as it takes.
pub(super) fn wait(text: &str) -> Result<Ttl, String> {
    match or_inf(text)? {
        Ttl::Finite(limit) if limit > Ttl::MAX => {
            Err("must be at most 10 years, or inf: as long as it takes".to_owned())
        }
        wait => Ok(wait),
    }
}

fn or_inf(text: &str) -> Result<Ttl, String> {
    text.parse()
        .map_err(|error| format!("{}, or inf", said(error)))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text).map_err(said)? {
        length if length > Ttl::MAX => Err("must be at most 10 years".to_owned()),
        length => Ok(length),
    }
}

pub(super) fn exit_code(text: &str) -> Result<u8, String> {
    text.parse()
        .map_err(|_| "must be a number from 0 to 255".to_owned())
}

/// Only the rule: clap says what was given, and where.
fn said(invalid: InvalidSetting) -> String {
    format!("must be {}", invalid.allowed)
}

/// The id of something that `doctor` can find.
pub(super) fn finding(text: &str) -> Result<&'static str, String> {
    let mut ids = KINDS.iter().map(|kind| kind.id);
    ids.find(|id| *id == text).ok_or_else(|| {
        let all: Vec<&str> = KINDS.iter().map(|kind| kind.id).collect();
        format!("must be one of {}", all.join(", "))
    })
}

pub(super) fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}
