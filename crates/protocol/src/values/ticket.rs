//! Tickets, with which another process can continue to hold a lock.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::values::grant::{GrantId, Token};
use crate::values::invalid::InvalidSetting;
use crate::values::slot::Slot;
use crate::values::{name::LockName, text::Short};

/// All but letters, digits and `-_.~`, which need no quoting in a shell and no encoding in a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A held lock as text, with which another task, process or machine can continue to hold it.
///
/// `LockGuard::into_ticket` makes a ticket, `Locks::resume` turns it into a guard. The lock is not
/// renewed in between: resume it before its ttl ends. **Every program that can read a ticket can
/// release the lock**, so pass it only to programs that share the work. Its `Debug` omits the grant
/// id.
///
/// It is written as `TOKEN.GRANT.NAME`, the name percent-encoded. A permit of a semaphore has its
/// number behind the token, `TOKEN-SLOT.GRANT.NAME`, and a shared grant that of its row, which is
/// negative, `TOKEN--SLOT.GRANT.NAME`.
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
    /// The name of the lock.
    #[doc(hidden)]
    pub name: LockName,
    /// The row that has the grant.
    #[doc(hidden)]
    pub slot: Slot,
    /// The fencing token of the grant.
    #[doc(hidden)]
    pub token: Token,
    /// The random id of the grant.
    #[doc(hidden)]
    pub grant: GrantId,
}

impl Ticket {
    /// The name of the lock.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The number of the permit, if this is the ticket of one of a semaphore; `None` for a lock.
    pub fn slot(&self) -> Option<u16> {
        self.slot.number()
    }

    /// The fencing token. It stays the same when the lock is resumed.
    pub fn token(&self) -> Token {
        self.token
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = utf8_percent_encode(self.name.as_str(), ENCODED);
        let token = self.token;
        match self.slot.column() {
            None => write!(f, "{token}.{}.{name}", self.grant),
            Some(slot) => write!(f, "{token}-{slot}.{}.{name}", self.grant),
        }
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
            let (token, slot) = match token.split_once('-') {
                None => (token, Slot::Lock),
                Some((token, slot)) => (token, Slot::from_db(slot.parse().ok()?)?),
            };
            Some(Self {
                name: LockName::new(name).ok()?,
                slot,
                token: Token::from_db(token.parse().ok().filter(|token| *token > 0)?),
                grant: GrantId::parse(grant)?,
            })
        };
        read().ok_or_else(|| {
            let allowed = "TOKEN.GRANT.NAME, as `dblock acquire` or DBLOCK_TICKET gives it";
            // The text is not repeated: it may be a secret, a good ticket with a typing error.
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
            slot: Slot::Lock,
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
    fn a_ticket_of_a_permit_or_of_a_shared_grant_tells_its_row() {
        for (slot, text) in [(Slot::Permit(3), "17-3."), (Slot::Shared(-2), "17--2.")] {
            let before = Ticket {
                slot,
                ..ticket("job")
            };
            assert!(before.to_string().starts_with(text), "{before}");
            assert_eq!(before.to_string().parse::<Ticket>().unwrap(), before);
        }
    }

    #[test]
    fn a_ticket_tells_its_name_its_token_and_its_permit() {
        let of_lock = ticket("job");
        let told = (of_lock.name().as_str(), of_lock.token().get());
        assert_eq!((told, of_lock.slot()), (("job", 17), None));
        let of_permit = Ticket {
            slot: Slot::Permit(2),
            ..of_lock
        };
        assert_eq!(of_permit.slot(), Some(2));
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
            &good.replace("17.", "0."),
            &good.replace("17.", "17--1."),
            &good.replace("17.", "17-65536."),
        ] {
            let message = bad.parse::<Ticket>().unwrap_err().to_string();
            assert_eq!(
                message,
                "`ticket` is of another form, must be TOKEN.GRANT.NAME, \
                 as `dblock acquire` or DBLOCK_TICKET gives it"
            );
        }
    }

    #[test]
    fn the_debug_output_of_a_ticket_omits_its_grant_id() {
        let shown = format!("{:?}", ticket("job"));
        assert_eq!(shown, r#"Ticket { name: "job", token: 17, .. }"#);
    }
}
