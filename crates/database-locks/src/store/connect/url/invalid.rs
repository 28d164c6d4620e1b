//! Decoding the parts of a URL, and refusing it.

use percent_encoding::percent_decode_str;

use crate::error::Error;

/// What is accepted.
pub(super) const FORMS: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE, mysql://…, mariadb://…, \
                     sqlite:///absolute/path, sqlite:relative/path, memory: or memory:NAME";

/// A complaint about the URL, which is not repeated.
pub(super) fn invalid<T>(got: impl Into<String>, allowed: &str) -> Result<T, Error> {
    Err(Error::config("url", got, allowed))
}

/// A percent-encoded part of a URL.
pub(super) fn decode(text: &str, what: &str) -> Result<String, Error> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
        _ => invalid(
            format!("has a {what} that is not UTF-8 without NUL"),
            "percent-encode it as UTF-8",
        ),
    }
}
