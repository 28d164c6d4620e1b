//! Where a ticket comes from.

use std::fmt;
use std::os::fd::AsFd;

use database_locks::{Error, LockName, Ticket};

use crate::exit::Failure;

/// What CMD of `dblock run` finds its ticket in.
pub(crate) const VARIABLE: &str = "DBLOCK_TICKET";

/// Of a ticket a name takes up most: 255 characters of 12 bytes.
const LONGEST: usize = 4096;

/// Where a ticket comes from.
pub(crate) enum TicketFrom {
    /// The command line, which all users of the machine can read.
    Words(String),
    /// The first line of standard input.
    Stdin,
    /// The environment.
    Variable,
}

/// Without the ticket: a process that reads it can release the lock.
impl fmt::Debug for TicketFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Words(_) => "Words",
            Self::Stdin => "Stdin",
            Self::Variable => "Variable",
        })
    }
}

impl TicketFrom {
    /// What is meant by the argument of `--ticket`.
    pub(crate) fn words(text: String) -> Self {
        match text.as_str() {
            "-" => Self::Stdin,
            _ => Self::Words(text),
        }
    }

    /// Read it. It must be one for that lock: with two locks at hand it is easily mixed up.
    pub(crate) fn read(&self, name: &LockName) -> Result<Ticket, Failure> {
        let text = match self {
            Self::Words(text) => text.clone(),
            Self::Stdin => first_line(std::io::stdin()).map_err(|error| {
                Failure::usage(format!(
                    "cannot read the ticket from standard input: {error}"
                ))
            })?,
            Self::Variable => std::env::var(VARIABLE).unwrap_or_default(),
        };
        if text.trim().is_empty() {
            let where_from = match self {
                Self::Words(_) => "the ticket is empty",
                Self::Stdin => "there is no ticket on standard input",
                Self::Variable => {
                    let said = format!("which ticket? Give it with --ticket, or in {VARIABLE}");
                    return Err(Failure::usage(said));
                }
            };
            return Err(Failure::usage(format!(
                "{where_from}: did the `dblock acquire` fail that was to print it?"
            )));
        }
        let ticket: Ticket = text.parse().map_err(Error::from)?;
        if ticket.name() != name {
            let its = ticket.name();
            return Err(Failure::usage(format!(
                "that ticket is one for lock `{its}`, not for `{name}`: give the name that belongs \
                 to it"
            )));
        }
        Ok(ticket)
    }
}

/// The first line, and not a byte more: the rest of standard input is for CMD.
fn first_line(input: impl AsFd) -> rustix::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LONGEST {
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
