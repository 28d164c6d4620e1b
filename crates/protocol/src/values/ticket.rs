//! Tickets: text that continues a held lock in another program.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::values::grant::{GrantId, Token};
use crate::values::invalid::InvalidSetting;
use crate::values::{name::LockName, text::Short};

/// What a name is left as it is in: letters, digits and `-_.~`, which no shell and no URL minds.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Continues a held lock in another task, process, machine or language.
///
/// `LockGuard::into_ticket` makes one, `Locks::resume` turns it into a guard. The lock is not
/// renewed in between: resume it before its lease ends. **Every program that reads a ticket can
/// release the lock**, so share it only with those that do the work. `Debug` does not show the
/// grant id.
///
/// `Display` and `FromStr` use `TOKEN.GRANT.NAME`, the name percent-encoded:
///
/// ```
/// use database_locks::Ticket;
///
/// let text = "1795424892119.0f3a9c5e7b2d46818f0a1c3e5d7b9f24.nightly%20report";
/// let ticket: Ticket = text.parse()?;
/// assert_eq!(ticket.name().as_str(), "nightly report");
/// assert_eq!(ticket.to_string(), text);
/// # Ok::<(), database_locks::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    #[doc(hidden)]
    pub name: LockName,
    #[doc(hidden)]
    pub token: Token,
    #[doc(hidden)]
    pub grant: GrantId,
}

impl Ticket {
    /// The name of the lock.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The fencing token, the same before and after the hand-over.
    pub fn token(&self) -> Token {
        self.token
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = utf8_percent_encode(self.name.as_str(), ENCODED);
        write!(f, "{}.{}.{name}", self.token, self.grant)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("name", &Short(self.name.as_str()))
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl FromStr for Ticket {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let read = || {
            let (token, rest) = text.trim().split_once('.')?;
            let (grant, name) = rest.split_once('.')?;
            let name = percent_decode_str(name).decode_utf8().ok()?;
            Some(Self {
                name: LockName::new(name).ok()?,
                token: Token::from_db(token.parse().ok().filter(|token| *token > 0)?),
                grant: GrantId::parse(grant)?,
            })
        };
        read().ok_or_else(|| {
            let allowed = "TOKEN.GRANT.NAME, as `dblock acquire` or DBLOCK_TICKET gives it";
            // Not repeated: it may be a good one with a typing error.
            InvalidSetting::new("ticket", "of another form", allowed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(name: &str) -> Ticket {
        Ticket {
            name: LockName::new(name).unwrap(),
            token: Token::from_db(17),
            grant: GrantId::of([7; 16]),
        }
    }

    #[test]
    fn any_name_survives_the_way_through_a_shell() {
        for name in [
            "a",
            "a.b.c",
            "a b",
            "ä🔒",
            "%41",
            "'; rm -rf / #",
            "\n",
            "-n",
        ] {
            let before = ticket(name);
            let text = before.to_string();
            assert!(
                text.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.~%".contains(&b))
            );
            assert_eq!(text.parse::<Ticket>().unwrap(), before, "{name}");
        }
    }

    #[test]
    fn a_bad_ticket_is_refused_and_not_repeated() {
        let good = ticket("job").to_string();
        for bad in [
            "",
            "1",
            "1.2.3",
            &good[1..good.len() - 4],
            "x.y.z",
            &good.replace("17.", "-17."),
        ] {
            let said = bad.parse::<Ticket>().unwrap_err().to_string();
            assert!(said.contains("TOKEN.GRANT.NAME"), "{said}");
        }
        assert!(!format!("{:?}", ticket("job")).contains(ticket("job").grant.as_str()));
    }
}
