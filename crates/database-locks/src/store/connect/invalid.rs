//! Decoding the parts of a URL, and its errors.

use percent_encoding::percent_decode_str;

use crate::error::Error;

/// The accepted forms.
pub(crate) const FORMS: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE, mysql://…, mariadb://…, \
                     sqlite:///absolute/path, sqlite:relative/path, memory: or memory:NAME";

/// An error about the URL. It does not contain the URL.
pub(crate) fn invalid<T>(got: impl Into<String>, allowed: &str) -> Result<T, Error> {
    Err(Error::config("url", got, allowed))
}

/// Decode a percent-encoded part of a URL.
pub(crate) fn decode(text: &str, what: &str) -> Result<String, Error> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
        _ => invalid(
            format!("has a {what} that is not UTF-8 without NUL"),
            "percent-encode it as UTF-8",
        ),
    }
}
