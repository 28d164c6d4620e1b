//! `--pgoptions`: CMD shows its grants to guarded tables, by the variable from which every program on
//! libpq takes options of its session.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::exit::Failure;
use crate::target::Target;

/// The variable of libpq.
pub(super) const VARIABLE: &str = "PGOPTIONS";

/// Refuses the option for another database, before the lock is acquired.
pub(super) fn check(target: &Target) -> Result<(), Failure> {
    let locks = target.connect_lazy()?;
    match locks.engine() {
        "postgres" => Ok(()),
        engine => Err(Failure::usage(format!(
            "--pgoptions is for locks in PostgreSQL, and these are in {engine}: leave it out; on MySQL and \
             MariaDB the program shows the grant by SET @database_locks_ticket, from DBLOCK_TICKET"
        ))),
    }
}

/// The value for CMD: what was there, and the grants of this run and of the outer ones.
///
/// The server splits it at blanks, and takes the last of several settings of one name. Grants have
/// neither blanks nor backslashes.
pub(super) fn value(before: Option<&OsStr>, grants: &str) -> OsString {
    let mut value = before.map_or(Vec::new(), |before| before.as_bytes().to_vec());
    // A backslash at the end, which means nothing there, would take the blank along.
    let backslashes = value
        .iter()
        .rev()
        .take_while(|byte| **byte == b'\\')
        .count();
    if backslashes % 2 == 1 {
        value.pop();
    }
    if !value.is_empty() {
        value.push(b' ');
    }
    value.extend(format!("-c database_locks.ticket={grants}").into_bytes());
    OsString::from_vec(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_that_were_there_are_kept() {
        let of = |before: Option<&str>| value(before.map(OsStr::new), "a1,b2");
        assert_eq!(of(None), "-c database_locks.ticket=a1,b2");
        assert_eq!(of(Some("")), "-c database_locks.ticket=a1,b2");
        assert_eq!(
            of(Some("-c search_path=a\\ b -c work_mem=1MB")),
            "-c search_path=a\\ b -c work_mem=1MB -c database_locks.ticket=a1,b2"
        );
        assert_eq!(of(Some("-c x=\\")), "-c x= -c database_locks.ticket=a1,b2");
        assert_eq!(
            of(Some("-c x=\\\\")),
            "-c x=\\\\ -c database_locks.ticket=a1,b2"
        );
        let no_text = OsStr::from_bytes(b"-c x=\xff");
        let value = value(Some(no_text), "a1");
        assert_eq!(value.as_bytes(), b"-c x=\xff -c database_locks.ticket=a1");
    }
}
