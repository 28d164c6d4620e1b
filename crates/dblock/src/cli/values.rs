//! Parsers of option values. An error states the rule; clap adds the option and the value.

use std::time::Duration;

use database_locks::doctor::KINDS;
use database_locks::{InvalidSetting, LockName, Ttl, parse_duration};

/// The greatest number of permits, as the library checks it.
const MAX_PERMITS: u32 = 65_536;

/// The operator's limit of a semaphore; `None` removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u32>);

pub(super) fn lock_name(text: &str) -> Result<LockName, String> {
    LockName::new(text).map_err(rule)
}

/// Checked here too, because `run` would report the grace before the library reports the ttl.
pub(super) fn ttl(text: &str) -> Result<Ttl, String> {
    match duration_or_inf(text)? {
        Ttl::Finite(length) if !(Ttl::MIN..=Ttl::MAX).contains(&length) => {
            Err("must be 100ms to 10 years, or inf".to_owned())
        }
        ttl => Ok(ttl),
    }
}

/// Of a leader: after the death of its machine another one has to lead.
pub(super) fn finite_ttl(text: &str) -> Result<Ttl, String> {
    match ttl(text) {
        Ok(Ttl::Finite(length)) => Ok(length.into()),
        _ => Err("must be 100ms to 10 years".to_owned()),
    }
}

/// `inf` waits without limit.
pub(super) fn wait(text: &str) -> Result<Ttl, String> {
    match duration_or_inf(text)? {
        Ttl::Finite(limit) if limit > Ttl::MAX => {
            Err("must be at most 10 years, or inf for no limit".to_owned())
        }
        wait => Ok(wait),
    }
}

fn duration_or_inf(text: &str) -> Result<Ttl, String> {
    text.parse()
        .map_err(|error| format!("{}, or inf", rule(error)))
}

/// A duration that is longer than the longest ttl is refused, as a typing error.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text).map_err(rule)? {
        length if length > Ttl::MAX => Err("must be at most 10 years".to_owned()),
        length => Ok(length),
    }
}

/// A period of `--once-per`.
pub(super) fn period(text: &str) -> Result<Duration, String> {
    match parse_duration(text).map_err(rule)? {
        length if (Ttl::MIN..=Ttl::MAX).contains(&length) => Ok(length),
        _ => Err("must be 100ms to 10 years".to_owned()),
    }
}

pub(super) fn exit_code(text: &str) -> Result<u8, String> {
    text.parse()
        .map_err(|_| "must be a number from 0 to 255".to_owned())
}

/// The number of permits of a semaphore.
pub(super) fn permits(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(permits @ 1..=MAX_PERMITS) => Ok(permits),
        _ => Err("must be a number from 1 to 65536".to_owned()),
    }
}

/// An operator's limit.
pub(super) fn limit(text: &str) -> Result<Limit, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(Limit(None)),
        (_, Ok(limit @ 0..=MAX_PERMITS)) => Ok(Limit(Some(limit))),
        _ => Err("must be a number from 0 to 65536, or none".to_owned()),
    }
}

/// The number of a permit.
pub(super) fn slot(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| "must be a number from 0 to 65535".to_owned())
}

/// The id of a finding of `doctor`.
pub(super) fn finding(text: &str) -> Result<&'static str, String> {
    let ids = || KINDS.iter().map(|kind| kind.id);
    ids().find(|id| *id == text).ok_or_else(|| {
        let all: Vec<&str> = ids().collect();
        format!("must be one of {}", all.join(", "))
    })
}

pub(super) fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

/// The allowed values of a setting, without the value that was given.
fn rule(invalid: InvalidSetting) -> String {
    format!("must be {}", invalid.allowed)
}
