//! Who holds a lock, for people to read; never what decides who holds it.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::token::GrantId;

/// The most that the column `metadata` is given, so that a list of locks stays quick to read.
const MAX_METADATA_BYTES: usize = 4096;

/// What [`over`] adds to it.
const OVER: usize = r#""over":"","#.len() + 32;

/// The most that `locked_by` is given.
const MAX_HOLDER_CHARS: usize = 255;

fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// `host.pid.random`.
///
/// Host and pid alone are not enough: in two containers both may be the same, and a restarted
/// process would look like the one that died.
pub(crate) fn default_holder() -> String {
    format!(
        "{}.{}.{:08x}",
        host(),
        std::process::id(),
        fastrand::u32(..)
    )
}

pub(crate) fn check_holder(holder: &str) -> Result<(), Error> {
    let allowed = "1 to 255 characters without NUL";
    match holder.chars().count() {
        0 => Err(Error::config("holder", "empty", allowed)),
        n if n > MAX_HOLDER_CHARS => Err(Error::config(
            "holder",
            format!("{n} characters long"),
            allowed,
        )),
        _ if holder.contains('\0') => {
            Err(Error::config("holder", "a text with a NUL in it", allowed))
        }
        _ => Ok(()),
    }
}

static PROGRAM: OnceLock<String> = OnceLock::new();

fn program_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().chars().take(100).collect()
}

/// Say which program this is, where it is not the first of the arguments: a script, not its
/// interpreter. The first call counts, and only before the first lock is named.
pub fn set_program(path: &Path) {
    let _ = PROGRAM.set(program_name(path));
}

/// What the holder says of itself: program, host, pid and version, the grant that it was handed if
/// there was one, and the caller's own keys under `meta`. Of the command line only the program's name: arguments may hold passwords.
///
/// `may_add`: [`over`] may have something to add.
pub(crate) fn metadata(
    own: &Map<String, Value>,
    from: Option<GrantId>,
    may_add: bool,
) -> Result<String, Error> {
    let program = PROGRAM.get_or_init(|| {
        let first = std::env::args_os().next().unwrap_or_default();
        program_name(Path::new(&first))
    });
    let mut all = json!({
        "program": program,
        "host": host(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    if let Some(from) = from {
        all["from"] = from.as_str().into();
    }
    if !own.is_empty() {
        all["meta"] = Value::Object(own.clone());
    }
    let text = all.to_string();
    let length = text.len() + if may_add { OVER } else { 0 };
    if length > MAX_METADATA_BYTES {
        let got = format!("{length} bytes of JSON");
        return Err(Error::config(
            "metadata",
            got,
            "at most 4096 bytes, program and host included",
        ));
    }
    // JSON writes a NUL as \u0000, which a text column takes and a later cast to jsonb does not.
    if text.contains("\\u0000") {
        return Err(Error::config(
            "metadata",
            "a text with a NUL in it",
            "text without NUL",
        ));
    }
    Ok(text)
}

/// The same of a holder who takes the lock over from itself: which grant thereby ended. That is how
/// the one that had it learns what happened, even when this one has been released since.
pub(crate) fn over(metadata: &str, ended: GrantId) -> String {
    let rest = metadata.strip_prefix('{').unwrap_or(metadata);
    format!(r#"{{"over":"{ended}",{rest}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_holders_of_one_process_are_told_apart() {
        assert_ne!(default_holder(), default_holder());
    }

    #[test]
    fn metadata_keeps_the_callers_keys_apart_from_ours() {
        let own = Map::from_iter([("program".to_owned(), json!("theirs"))]);
        let all: Value = serde_json::from_str(&metadata(&own, None, false).unwrap()).unwrap();
        assert_eq!(all["meta"]["program"], "theirs");
        assert_eq!(all["pid"], std::process::id());

        let (ended, before) = (GrantId::random().unwrap(), all.to_string());
        let after: Value = serde_json::from_str(&over(&before, ended)).unwrap();
        assert_eq!(after["over"], ended.as_str());
        assert_eq!(after["meta"], all["meta"]);
        assert_eq!(over(&before, ended).len(), before.len() + OVER);
    }

    #[test]
    fn metadata_of_more_than_4_kib_is_refused() {
        let own = Map::from_iter([("why".to_owned(), json!("x".repeat(5000)))]);
        assert!(
            metadata(&own, None, false)
                .unwrap_err()
                .to_string()
                .contains("4096")
        );
    }
}
