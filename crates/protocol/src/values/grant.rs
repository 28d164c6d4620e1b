//! Token and grant id: what distinguishes one grant from every other.

use std::fmt;

/// The fencing number of one grant: greater than that of every earlier grant of the same name.
///
/// Store it beside the data that you write, or send it along with the request, and refuse a smaller
/// one: then a holder that was frozen past its lease cannot overwrite its successor's work.
///
/// ```
/// # fn accept(last_seen: database_locks::Token, token: database_locks::Token) -> bool {
/// token >= last_seen
/// # }
/// ```
///
/// It is an `i64` greater than 0; `i64::from(token)` gives a statement's parameter. Compare tokens
/// of the same name with `<` and `==`; those of different names are unrelated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(i64);

impl Token {
    /// The value of the column `token`.
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

/// 128 random bits made for each grant, as 32 hexadecimal digits.
///
/// A token alone is not enough: after a failover that lost commits two grants may bear the same
/// token, never the same grant id. It is made *before* the request is sent, so that a request whose
/// reply was lost can be recognised when it is sent again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId([u8; 32]);

impl GrantId {
    /// The grant id of 16 random bytes, which the caller draws.
    #[doc(hidden)]
    pub fn of(bytes: [u8; 16]) -> Self {
        let mut digits = [0_u8; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        Self(digits)
    }

    /// Read the 32 digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let digits: [u8; 32] = text.as_bytes().try_into().ok()?;
        digits.iter().all(|b| hex(*b)).then_some(Self(digits))
    }

    /// The 32 digits, as they stand in the column `grant_id`.
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
