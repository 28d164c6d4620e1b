//! Everything that `dblock` prints. No other module writes to stdout or stderr.
//!
//! Text from the table was written by other clients: it is escaped, so that it neither controls the
//! terminal nor starts a line.

mod columns;
mod format;
mod json;
mod limits;
mod sanitize;
mod stream;
mod table;

pub(crate) use self::format::lease_end;
pub(crate) use self::json::{guards_json, lock_json, locks_json, report_json, ticket_json};
pub(crate) use self::limits::Limits;
pub(crate) use self::sanitize::without_secrets;
pub(crate) use self::stream::{
    error, help, help_on_stderr, notice, print, print_all, result, set_quiet, stderr_has_colours,
    stdout_has_colours, stdout_is_closed,
};
pub(crate) use self::table::{
    guards_table, lock_details, locks_table, report_lines, semaphore_details, shared_details,
};
