//! Makes text safe to print: on one line, without control characters, without passwords.

use std::fmt::Write as _;

/// Escapes control characters, all line breaks, and invisible characters such as those that change
/// the direction of writing.
pub(super) fn on_one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => shown.extend(c.escape_unicode()),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// The login in messages that explain the form of a URL: it contains no password.
const PLACEHOLDER: &str = "USER:PASSWORD";

/// Masks the parts of a URL that may contain a password: everything before its last `@`, and the
/// option `password`.
pub(crate) fn without_secrets(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://").map(|at| at + 3) {
        shown.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c: char| c.is_whitespace() || "'\"`".contains(c));
        let end = end.unwrap_or(rest.len());
        let mut url = &rest[..end];
        if let Some(at) = url.rfind('@').filter(|at| &url[..*at] != PLACEHOLDER) {
            shown.push_str("***");
            url = &url[at..];
        }
        match url.split_once("password=") {
            Some((before, secret)) => {
                let others = secret.find('&').map_or("", |at| &secret[at..]);
                let _ = write!(shown, "{before}password=***{others}");
            }
            None => shown.push_str(url),
        }
        rest = &rest[end..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            on_one_line("nightly report, jöb ✓"),
            "nightly report, jöb ✓"
        );
        assert_eq!(on_one_line("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(
            on_one_line("\u{1b}[2J\u{9b}\u{7f}"),
            "\\u{1b}[2J\\u{9b}\\u{7f}"
        );
        assert_eq!(on_one_line("a\u{202e}b\u{2028}"), "a\\u{202e}b\\u{2028}");
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        for (url, shown) in [
            ("postgres://u:hunter2@h:1/d", "postgres://***@h:1/d"),
            ("postgres://u:hun@ter2@h/d", "postgres://***@h/d"),
            ("postgres://u:hun/ter2@h/d", "postgres://***@h/d"),
            (
                "at 'mysql://h/d?password=hunter2&x=1', no",
                "at 'mysql://h/d?password=***&x=1', no",
            ),
            (
                "mysql://h/d?user=u&password=hunter2",
                "mysql://h/d?user=u&password=***",
            ),
            ("a://u:hunter2@h b://u:hunter2@h", "a://***@h b://***@h"),
            ("sqlite:///a/b", "sqlite:///a/b"),
            ("a://USER:PASSWORD@HOST", "a://USER:PASSWORD@HOST"),
            ("no url: // @", "no url: // @"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
