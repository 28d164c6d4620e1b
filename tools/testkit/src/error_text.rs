//! Assertions on the texts of errors.

use database_locks::Error;

use crate::sql::{LOCKER_PASSWORD, percent_encode};

/// Asserts that the chain of an error contains all of these words, and no form of the error the
/// password of [`LOCKER_PASSWORD`].
///
/// # Panics
///
/// If a word is missing, or the password is shown.
#[track_caller]
pub fn assert_error_contains(error: &Error, words: &[&str]) {
    let chain = error.chain();
    for word in words {
        assert!(chain.contains(word), "`{word}` is not in: {chain}");
    }
    let encoded = percent_encode(LOCKER_PASSWORD);
    for shown in [chain, format!("{error:?}"), format!("{error:#?}")] {
        let secret = shown.contains(LOCKER_PASSWORD) || shown.contains(&encoded);
        assert!(!secret, "{shown}");
    }
}
