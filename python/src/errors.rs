//! Errors of the core as Python exceptions.

use database_locks::{Error, Loss, Token};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use crate::credentials;

/// The exception for an error of the core; if it cannot be made, the exception of that failure.
pub(crate) fn raise(py: Python<'_>, error: impl Into<Error>) -> PyErr {
    exception(py, error.into()).unwrap_or_else(|failed| failed)
}

fn exception(py: Python<'_>, error: Error) -> PyResult<PyErr> {
    let words = PyDict::new(py);
    let (class, message) = match &error {
        Error::TimedOut {
            name,
            waited,
            holder,
            held_for,
            rests_for,
            permits,
            shared_by,
            row_locker,
            ..
        } => {
            words.set_item("timeout", waited.as_secs_f64())?;
            words.set_item("name", name.as_str())?;
            words.set_item("holder", holder)?;
            words.set_item("held_for", held_for.map(|age| age.as_secs_f64()))?;
            words.set_item("rests_for", rests_for.map(|left| left.as_secs_f64()))?;
            words.set_item("permits", permits)?;
            words.set_item("shared_by", shared_by)?;
            words.set_item("row_locker", row_locker.as_deref())?;
            let what = if permits.is_some() {
                "a permit"
            } else {
                "lock"
            };
            (
                "LockTimeout",
                format!("failed to acquire {what} within timeout"),
            )
        }
        Error::AlreadyRan {
            name,
            once_per,
            ago,
            holder,
            ..
        } => {
            words.set_item("name", name.as_str())?;
            words.set_item("holder", holder)?;
            words.set_item("ago", ago.as_secs_f64())?;
            words.set_item("once_per", once_per.as_secs_f64())?;
            ("LockAlreadyRan", "lock not acquired".into())
        }
        Error::Lost { name, loss, .. } => {
            words.set_item("name", name.as_str())?;
            words.update(loss_fields(py, loss)?.as_mapping())?;
            let what = loss
                .slot()
                .map_or("lock".to_owned(), |slot| format!("permit {slot}"));
            ("LockLost", format!("lost {what}, terminating"))
        }
        Error::Config {
            setting,
            got,
            allowed,
            ..
        } => (
            "LockConfigError",
            match got.starts_with("has ") {
                true => format!("`{}` {got}; {allowed}", parameter(setting)),
                false => format!("`{}` is {got}, must be {allowed}", parameter(setting)),
            },
        ),
        _ => ("LockUnavailable", error.chain()),
    };
    let cause = match error {
        Error::Unavailable { .. } | Error::Rejected { .. } => credentials::cause(py, &message),
        _ => None,
    };
    let made = class_of(py, class)?.call((message,), Some(&words))?;
    if let Some(cause) = cause {
        made.setattr("__cause__", cause)?;
    }
    Ok(PyErr::from_value(made))
}

/// The error of an acquire while the process ends.
pub(crate) fn ending(py: Python<'_>) -> PyErr {
    let message = "could not acquire a lock: this process is ending and has released all its locks";
    let made = class_of(py, "LockUnavailable").and_then(|class| class.call1((message,)));
    made.map_or_else(|failed| failed, PyErr::from_value)
}

/// The name in Python of a setting of the core.
fn parameter(setting: &str) -> &str {
    match setting {
        "name" => "lock_name",
        "holder" => "locked_by",
        "ttl" => "lock_ttl",
        "wait" => "timeout",
        "poll" => "retry",
        "renew_every" => "lock_ttl_renew",
        "metadata" => "meta",
        other => other,
    }
}

/// The arguments of `LockLost` for a loss: `Loss` of `_typing.py`.
pub(crate) fn loss_fields<'py>(py: Python<'py>, loss: &Loss) -> PyResult<Bound<'py, PyDict>> {
    let (words, now) = (PyDict::new(py), loss.now_held_by());
    words.set_item("slot", loss.slot())?;
    words.set_item("reason", loss.reason().as_str())?;
    words.set_item("detail", loss.to_string())?;
    words.set_item("last_answer", loss.last_answer())?;
    words.set_item("held_for", loss.held_for().map(|age| age.as_secs_f64()))?;
    words.set_item("holder", now.and_then(|now| now.holder.as_deref()))?;
    let token = now.and_then(|now| now.token);
    words.set_item("holder_token", token.map(Token::get))?;
    Ok(words)
}

fn class_of<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || {
        PyModule::import(py, "database_locks.exceptions").map(Bound::unbind)
    })?;
    Ok(module.bind(py).getattr(name)?.cast_into()?)
}
