//! All that is printed; nothing else in this crate prints.
//!
//! What others wrote into the table is shown so that it neither drives a terminal nor begins a line.

mod clean;
mod json;
mod stream;
mod table;
mod words;

use std::io;

use database_locks::Ticket;

pub(crate) use self::clean::{shell_word, without_secrets};
pub(crate) use self::json::{report_as_json, row_as_json, rows_as_json, ticket_as_json};
pub(crate) use self::stream::{
    be_quiet, complain, help, notice, on_stderr, on_stdout, say, stdout_is_closed, text,
};
pub(crate) use self::table::{report, row, rows};
pub(crate) use self::words::{human, lasts};

/// A ticket, alone on its line. Unlike other output it must arrive: a closed pipe is an error too.
pub(crate) fn ticket(ticket: &Ticket) -> io::Result<()> {
    self::stream::checked(&format!("{ticket}\n"))
}
