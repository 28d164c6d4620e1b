//! The tables of locks and permits, for Django's migrations.

use database_locks::{__python, LockName};
use pyo3::prelude::*;

use crate::errors::raise;

#[pyfunction]
pub(crate) fn schema(engine: &str) -> Option<&'static str> {
    __python::schema(engine)
}

#[pyfunction]
pub(crate) fn permit_schema(engine: &str) -> Option<&'static str> {
    __python::permit_schema(engine)
}

/// The statement that puts a table of PostgreSQL under the guard of a lock.
#[pyfunction]
pub(crate) fn guard_script(py: Python<'_>, table: &str, lock: &str) -> PyResult<String> {
    let lock = LockName::new(lock).map_err(|invalid| raise(py, invalid))?;
    Ok(__python::guard_script(table, lock.as_str()))
}

#[pyfunction]
pub(crate) fn unguard_script(table: &str) -> String {
    __python::unguard_script(table)
}

/// The statements that create the triggers of a guard on MySQL or MariaDB.
#[pyfunction]
pub(crate) fn guard_triggers(
    py: Python<'_>,
    table: &str,
    lock: &str,
    mariadb: bool,
    cluster: bool,
) -> PyResult<Vec<String>> {
    let lock = LockName::new(lock).map_err(|invalid| raise(py, invalid))?;
    Ok(__python::guard_triggers(
        table,
        lock.as_str(),
        mariadb,
        cluster,
    ))
}

/// The statements that drop them.
#[pyfunction]
pub(crate) fn unguard_triggers(table: &str) -> Vec<String> {
    __python::unguard_triggers(table)
}

/// Name and definition of each column, in the order of the statement that creates the table.
#[pyfunction]
pub(crate) fn columns(engine: &str) -> Vec<(&'static str, String)> {
    let statement = __python::schema(engine).unwrap_or_default();
    // The columns stand between the first parenthesis and the first line that defines none.
    let lines = statement
        .lines()
        .skip_while(|line| !line.ends_with('('))
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.starts_with("--"));
    lines
        .map_while(|line| {
            let name = line.split(' ').next()?;
            let is_column = name.starts_with(|c: char| c.is_ascii_lowercase());
            let words: Vec<&str> = line.trim_end_matches(',').split_whitespace().collect();
            is_column.then(|| (name, words.join(" ")))
        })
        .collect()
}
