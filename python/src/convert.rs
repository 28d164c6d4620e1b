//! Conversions between Python's numbers of seconds and the types of the core.

use std::time::Duration;

use database_locks::__python::config_error;
use database_locks::Ttl;
use pyo3::prelude::*;

use crate::errors::raise;

/// A length of time. Rust has no negative ones, so they are refused here.
pub(crate) fn seconds(py: Python<'_>, what: &'static str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        let got = format!("{seconds} seconds");
        let allowed = "a length of time that is not negative";
        raise(py, config_error(what, got, allowed))
    })
}

/// A lease; `None` is one without end.
pub(crate) fn ttl(py: Python<'_>, ttl: Option<f64>) -> PyResult<Ttl> {
    ttl.map_or(Ok(Ttl::Infinite), |ttl| {
        seconds(py, "lock_ttl", ttl).map(Ttl::Finite)
    })
}

/// Read `500ms`, `30s`, `5m`, `2h`, `1d`, or bare seconds.
#[pyfunction]
pub(crate) fn parse_duration(py: Python<'_>, text: &str) -> PyResult<f64> {
    let length = database_locks::parse_duration(text).map_err(|error| raise(py, error))?;
    Ok(length.as_secs_f64())
}

/// A length of time as text: `30s`, `2m 5s`, `10m`.
#[pyfunction]
pub(crate) fn human(py: Python<'_>, seconds: f64) -> PyResult<String> {
    let message = Ttl::Finite(self::seconds(py, "seconds", seconds)?).to_string();
    Ok(match message.rsplit_once(" 0") {
        Some((round, "s" | "m" | "h")) => round.to_owned(),
        _ => message,
    })
}
