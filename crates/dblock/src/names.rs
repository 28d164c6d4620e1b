//! Names of locks and permits in messages.

use database_locks::LockName;

/// What is held, for messages: ``lock `api` `` or ``permit 2 of `api` ``.
pub(crate) fn what(name: &LockName, slot: Option<u16>) -> String {
    match slot {
        None => format!("lock `{name}`"),
        Some(slot) => format!("permit {slot} of `{name}`"),
    }
}

/// Quotes a word for a shell, if that is needed.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:@%+,".contains(c);
    match !text.starts_with('-') && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_change_it() {
        assert_eq!(shell_word("nightly.report"), "nightly.report");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word("-n"), "'-n'");
    }
}
