//! A session of the database that is in the way of a statement.

use std::fmt;
use std::time::Duration;

use protocol::Human;

/// What the server tells of it.
#[derive(Debug, Default)]
pub(crate) struct BlockingSession {
    /// `pid 4711`, `id 42`: as the server's own commands name it.
    pub(crate) id: String,
    pub(crate) user: Option<String>,
    pub(crate) program: Option<String>,
    pub(crate) host: Option<String>,
    /// How long its transaction has been open.
    pub(crate) open: Option<Duration>,
}

impl fmt::Display for BlockingSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let about: Vec<String> = [
            text(&self.user).map(|user| format!("user {user}")),
            text(&self.program),
            text(&self.host).map(|host| format!("from {host}")),
            (self.open).map(|open| format!("in a transaction for {}", Human(open))),
        ]
        .into_iter()
        .flatten()
        .collect();
        write!(f, "the session of {}", self.id)?;
        match about.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", about.join(", ")),
        }
    }
}
