//! The fencing token and the grant id, which identify one grant of a lock.

use std::fmt;

/// The fencing token of one grant: greater than that of every earlier grant of the same name.
///
/// Store it beside the data that the lock protects, or send it along with each write, and refuse a
/// write whose token is smaller than the one stored. Then a holder that was frozen past the end of
/// its lease cannot overwrite the work of its successor.
///
/// ```
/// # fn accept(last_seen: database_locks::Token, token: database_locks::Token) -> bool {
/// token >= last_seen
/// # }
/// ```
///
/// A token is an `i64` greater than 0: pass `i64::from(token)` as the parameter of a statement.
/// Tokens of the same name can be compared; tokens of different names are unrelated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(i64);

impl Token {
    /// The token that the column `token` holds.
    #[doc(hidden)]
    pub const fn from_db(value: i64) -> Self {
        Self(value)
    }

    /// The number, as in the column `token`.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl From<Token> for i64 {
    fn from(token: Token) -> Self {
        token.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The random id of one grant: 128 bits, written as 32 hexadecimal digits.
///
/// A token alone does not identify a grant: after a failover that lost commits, two grants may have
/// the same token. The client draws the id *before* it sends the request, so that the database
/// recognizes a request that is sent again because its reply was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId([u8; 32]);

impl GrantId {
    /// The grant id of 16 random bytes.
    #[doc(hidden)]
    pub fn of(bytes: [u8; 16]) -> Self {
        let mut digits = [0_u8; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair[0] = b"0123456789abcdef"[usize::from(byte / 16)];
            pair[1] = b"0123456789abcdef"[usize::from(byte % 16)];
        }
        Self(digits)
    }

    /// The grant id of 32 lowercase hexadecimal digits; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let digits: [u8; 32] = text.as_bytes().try_into().ok()?;
        digits.iter().all(|b| hex(*b)).then_some(Self(digits))
    }

    /// The 32 digits, as in the column `grant_id`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_and_passed_on_as_its_number() {
        let token = Token::from_db(1_795_424_892_119);
        assert_eq!(
            (token.get(), i64::from(token)),
            (1_795_424_892_119, 1_795_424_892_119)
        );
        assert_eq!(format!("{token} {token:?}"), "1795424892119 1795424892119");
    }

    #[test]
    fn a_grant_id_is_shown_as_the_hexadecimal_digits_of_its_bytes() {
        let mut bytes = [0_u8; 16];
        (bytes[0], bytes[1], bytes[15]) = (0x0f, 0xa9, 0x80);
        let id = GrantId::of(bytes);
        let digits = "0fa90000000000000000000000000080";
        assert_eq!(id.as_str(), digits);
        assert_eq!(format!("{id} {id:?}"), format!("{digits} {digits}"));
        assert_eq!(GrantId::parse(digits), Some(id));
    }

    #[test]
    fn only_32_lowercase_hexadecimal_digits_are_a_grant_id() {
        let good = "0123456789abcdef0123456789abcdef";
        assert!(GrantId::parse(good).is_some());
        for bad in [
            "",
            &good[1..],
            &good.to_uppercase(),
            &good.replace('f', "g"),
            &good.replace('a', "`"),
            &good.replace('0', "/"),
            &good.replace('9', ":"),
        ] {
            assert_eq!(GrantId::parse(bad), None, "{bad}");
        }
    }
}
