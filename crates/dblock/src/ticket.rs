//! Reads a ticket from the command line, standard input or the environment.

use std::fmt;
use std::os::fd::AsFd;

use database_locks::{Error, LockName, Ticket};

use crate::exit::Failure;
use crate::names;

/// Set for CMD by `dblock run`.
pub(crate) const VARIABLE: &str = "DBLOCK_TICKET";

/// The longest ticket is mostly its name: 255 characters, each percent-encoded to 12 bytes at most.
pub(crate) const MAX_LENGTH: usize = 4096;

/// Where a ticket comes from.
pub(crate) enum TicketSource {
    /// The command line, which all users of the machine can read.
    Argument(String),
    /// The first line of standard input.
    Stdin,
    /// The variable `DBLOCK_TICKET`.
    Environment,
}

/// Does not show the ticket: a process that has it can release the lock.
impl fmt::Debug for TicketSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Argument(_) => "Argument",
            Self::Stdin => "Stdin",
            Self::Environment => "Environment",
        })
    }
}

impl TicketSource {
    /// The value of `--ticket`; `-` is standard input.
    pub(crate) fn from_option(value: String) -> Self {
        match value.as_str() {
            "-" => Self::Stdin,
            _ => Self::Argument(value),
        }
    }

    /// Reads the ticket. A ticket for another lock is refused.
    pub(crate) fn read(&self, name: &LockName) -> Result<Ticket, Failure> {
        let text = match self {
            Self::Argument(text) => text.clone(),
            Self::Stdin => first_line(std::io::stdin()).map_err(|error| {
                Failure::usage(format!(
                    "cannot read the ticket from standard input: {error}"
                ))
            })?,
            Self::Environment => std::env::var(VARIABLE).unwrap_or_default(),
        };
        if text.trim().is_empty() {
            let next = "check that the `dblock acquire` that was to print it succeeded";
            return Err(Failure::usage(match self {
                Self::Argument(_) => format!("the ticket is empty; {next}"),
                Self::Stdin => format!("there is no ticket on standard input; {next}"),
                Self::Environment => {
                    format!("no ticket was given: give it with --ticket, or in {VARIABLE}")
                }
            }));
        }
        let ticket: Ticket = text.parse().map_err(Error::from)?;
        if ticket.name() != name {
            return Err(Failure::usage(format!(
                "the ticket is for {}, not for `{name}`: give that name",
                names::what(ticket.name(), ticket.slot())
            )));
        }
        Ok(ticket)
    }
}

/// Reads the first line, byte by byte: the rest of standard input is for CMD.
fn first_line(input: impl AsFd) -> rustix::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_LENGTH {
        match rustix::io::read(&input, &mut byte) {
            Ok(0) => break,
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.extend(byte),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}
