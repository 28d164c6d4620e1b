//! The settings of a PostgreSQL session that a URL may contain: libpq's `options`, and
//! `search_path`.

use crate::error::Error;
use crate::store::connect::invalid::invalid;

/// Settings that the protocol does not depend on: the search path, the role, timeouts of the
/// server, and settings that many programs make for their own statements. A statement that a
/// timeout ends is tried again.
///
/// Not allowed are `client_encoding`, which the driver needs to be UTF-8; `idle_session_timeout`,
/// which would end the connection that renewals need; and `synchronous_commit`, which the
/// statements set.
const ALLOWED: [&str; 15] = [
    "search_path",
    "role",
    "datestyle",
    "default_transaction_isolation",
    "intervalstyle",
    "jit",
    "work_mem",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "tcp_user_timeout",
    "timezone",
];

/// Settings of the session, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings(Vec<(&'static str, String)>);

impl Settings {
    /// `-c name=value`, `-cname=value` or `--name=value`, any number of them; a blank or a
    /// backslash in a value stands behind a backslash.
    pub(crate) fn options(&mut self, text: &str) -> Result<(), Error> {
        for setting in settings_in(text) {
            let Some((name, value)) = setting else {
                return malformed();
            };
            self.set(&name, &value)?;
        }
        Ok(())
    }

    /// [`options`](Self::options), but words that are not allowed settings are skipped.
    pub(crate) fn allowed_options(&mut self, text: &str) {
        for (name, value) in settings_in(text).into_iter().flatten() {
            let _ = self.set(&name, &value);
        }
    }

    /// Set the settings that are not set yet.
    pub(crate) fn fill(&mut self, from: Self) {
        for (name, value) in from.0 {
            if self.0.iter().all(|(set, _)| *set != name) {
                self.0.push((name, value));
            }
        }
    }

    /// The last value counts, as on the server.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let known = ALLOWED
            .iter()
            .find(|known| known.eq_ignore_ascii_case(name));
        let Some(known) = known else {
            return not_allowed(name);
        };
        self.0.retain(|(set, _)| set != known);
        self.0.push((known, value.to_owned()));
        Ok(())
    }

    /// The value of a setting.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let set = self.0.iter().find(|(set, _)| *set == name);
        set.map(|(_, value)| value.as_str())
    }

    /// The server's start-up parameter; `None` if nothing is set.
    pub(crate) fn start_up(&self) -> Option<String> {
        let quoted = |value: &str| {
            let quote = |c: char| match c {
                '\\' => "\\\\".to_owned(),
                c if c.is_ascii_whitespace() => format!("\\{c}"),
                c => c.to_string(),
            };
            value.chars().map(quote).collect::<String>()
        };
        let set = self
            .0
            .iter()
            .map(|(name, value)| format!("-c {name}={}", quoted(value)));
        let all: Vec<String> = set.collect();
        (!all.is_empty()).then(|| all.join(" "))
    }
}

/// Name and value of each setting; `None` for a word that is not a setting.
fn settings_in(text: &str) -> Vec<Option<(String, String)>> {
    let (mut settings, mut words) = (Vec::new(), words(text).into_iter());
    while let Some(word) = words.next() {
        let pair = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (None, Some("")) => words.next(),
            (long, short) => long.or(short).map(str::to_owned),
        };
        // The name of a long option, as the server reads it.
        settings.push(pair.and_then(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.trim().replace('-', "_"), value.to_owned()))
        }));
    }
    settings
}

/// Split into words as the server does.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut chars) = (Vec::new(), None::<String>, text.chars());
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn malformed<T>() -> Result<T, Error> {
    invalid(
        "has `options` of another form than settings",
        "write -c NAME=VALUE or --NAME=VALUE, percent-encoded: options=-c%20search_path%3Dapp",
    )
}

fn not_allowed<T>(name: &str) -> Result<T, Error> {
    // It may be anything, where the text was cut in the wrong place.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let shown = match name.chars().all(plain) && name.len() <= 40 {
        true => format!("`{name}`"),
        false => "what is no setting".to_owned(),
    };
    let allowed = format!(
        "it could break what the locks count on, or is of no use to them; {} can be set",
        ALLOWED.join(", ")
    );
    invalid(format!("has `options` that set {shown}"), &allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        settings.options(text).map_err(|error| error.to_string())?;
        Ok(settings)
    }

    #[test]
    fn options_are_read_as_libpq_users_write_them() {
        for text in [
            "-c search_path=app,public",
            "-csearch_path=app,public",
            "--search_path=app,public",
            "--search-path=app,public",
            "  -c   SEARCH_PATH=app,public ",
            "-c search_path=other -c search_path=app,public",
        ] {
            let settings = of(text).unwrap_or_else(|message| panic!("{text}: {message}"));
            assert_eq!(settings.get("search_path"), Some("app,public"), "{text}");
            let sent = settings.start_up();
            assert_eq!(sent.as_deref(), Some("-c search_path=app,public"), "{text}");
        }
        let settings = of(r"-c search_path=a,\ b -c role=the\\one --statement-timeout=5s").unwrap();
        assert_eq!(settings.get("search_path"), Some("a, b"));
        let sent = settings.start_up().unwrap();
        assert_eq!(
            sent,
            r"-c search_path=a,\ b -c role=the\\one -c statement_timeout=5s"
        );
        assert_eq!(
            of(&sent).unwrap(),
            settings,
            "what is sent is what was read"
        );
        assert_eq!(of(" ").unwrap().start_up(), None);
    }

    #[test]
    fn what_could_break_the_protocol_is_refused_with_the_reason() {
        for (text, word) in [
            ("-c client_encoding=latin1", "`client_encoding`"),
            ("-c default_transaction_read_only=on", "read_only"),
            ("-c synchronous_commit=off", "`synchronous_commit`"),
            ("-c idle_session_timeout=1", "`idle_session_timeout`"),
            (
                "-c session_replication_role=replica",
                "`session_replication_role`",
            ),
            ("-c search_path", "another form"),
            ("-d 5", "another form"),
            ("search_path=app", "another form"),
            ("-c", "another form"),
            ("--search_path", "another form"),
            ("-c hunter2/secret=1", "what is no setting"),
        ] {
            let message = of(text).expect_err(text);
            assert!(message.contains(word), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
