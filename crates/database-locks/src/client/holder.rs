//! Holder name and metadata: descriptions for people, never used to decide who holds a lock.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::runtime::fork::PerProcess;
use protocol::GrantId;

/// Maximum size of the column `metadata`, so that listing locks stays fast.
const MAX_METADATA_BYTES: usize = 4096;

/// The bytes that [`with_ended_grant`] adds.
const ENDED_GRANT_BYTES: usize = r#""over":"","#.len() + 32;

/// Maximum length of the column `locked_by`.
const MAX_HOLDER_CHARS: usize = 255;

fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The default holder name, `host.pid.random`.
///
/// The random part tells apart processes of two containers with equal host and pid, and a restarted
/// process from its predecessor.
pub(crate) fn default_holder() -> String {
    // ASCII only: the database's encoding may lack other characters, and the caller did not choose
    // this name.
    let host = host().replace(|c: char| !c.is_ascii_graphic(), "-");
    format!("{host}.{}.{:08x}", std::process::id(), fastrand::u32(..))
}

pub(crate) fn check_holder(holder: &str) -> Result<(), Error> {
    let got = match holder.chars().count() {
        0 => "empty".to_owned(),
        n if n > MAX_HOLDER_CHARS => format!("{n} characters long"),
        _ if holder.contains('\0') => "a text with a NUL in it".to_owned(),
        _ => return Ok(()),
    };
    let allowed = "1 to 255 characters without NUL";
    Err(Error::config("holder", got, allowed))
}

static PROGRAM: OnceLock<String> = OnceLock::new();

fn program_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().chars().take(100).collect()
}

/// Set the program name in the metadata, for programs whose first argument is an interpreter. Only
/// the first call counts, and only if no lock has been named before.
pub fn set_program(path: &Path) {
    let _ = PROGRAM.set(program_name(path));
}

/// This process as described in the metadata. The host name is read once.
struct Process {
    program: String,
    host: String,
    pid: u32,
}

/// Metadata of a grant: program, host, pid and version, the grant that was resumed if there was one
/// (`from`), and the caller's own keys under `meta`. Of the command line only the program's name is
/// included: arguments may contain passwords.
///
/// The JSON is ASCII, so that it fits every encoding of a database. If the caller's own keys are
/// too long, that is an error. The library's fields are shortened or left out where they do not
/// fit.
///
/// `may_add`: reserve the bytes that [`with_ended_grant`] adds.
pub(crate) fn metadata(
    own: &Map<String, Value>,
    from: Option<GrantId>,
    may_add: bool,
) -> Result<Arc<str>, Error> {
    static THIS: PerProcess<(Process, Arc<str>)> = PerProcess::new();
    let (process, plain) = THIS.get_or_try_init(|| {
        let process = this_process();
        let plain = describe(&Map::new(), None, true, &process)?;
        Ok::<_, Error>((process, plain.into()))
    })?;
    if own.is_empty() && from.is_none() {
        return Ok(Arc::clone(plain));
    }
    describe(own, from, may_add, process).map(Arc::from)
}

fn this_process() -> Process {
    let program = PROGRAM.get_or_init(|| {
        let first = std::env::args_os().next().unwrap_or_default();
        program_name(Path::new(&first))
    });
    Process {
        program: program.clone(),
        host: host(),
        pid: std::process::id(),
    }
}

fn describe(
    own: &Map<String, Value>,
    from: Option<GrantId>,
    may_add: bool,
    process: &Process,
) -> Result<String, Error> {
    let mut all = Map::new();
    if let Some(from) = from {
        all.insert("from".into(), from.as_str().into());
    }
    if !own.is_empty() {
        all.insert("meta".into(), Value::Object(own.clone()));
    }
    let reserved = if may_add { ENDED_GRANT_BYTES } else { 0 };
    let length = ascii_json(&all).len() + reserved;
    if length > MAX_METADATA_BYTES {
        let got = format!("{length} bytes of JSON in ASCII");
        return Err(Error::config("metadata", got, "at most 4096 bytes"));
    }
    for (key, value) in [
        ("pid", json!(process.pid)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("program", json!(process.program)),
        ("host", json!(process.host)),
    ] {
        add_field(&mut all, key, value, MAX_METADATA_BYTES - reserved);
    }
    let text = ascii_json(&all);
    // A text column accepts the escape \u0000, but a later cast to jsonb fails.
    if text.contains("\\u0000") {
        let got = "a text with a NUL in it";
        return Err(Error::config("metadata", got, "text without NUL"));
    }
    Ok(text)
}

/// Add a field of the library, shortened to fit into `most` bytes, or left out.
fn add_field(all: &mut Map<String, Value>, key: &str, value: Value, most: usize) {
    all.insert(key.to_owned(), value);
    while ascii_json(all).len() > most {
        let Some(Value::String(text)) = all.remove(key) else {
            return;
        };
        let half = text.chars().count() / 2;
        if half == 0 {
            return;
        }
        let shorter: String = text.chars().take(half).collect();
        all.insert(key.to_owned(), shorter.into());
    }
}

/// JSON with `\u` escapes for non-ASCII characters.
fn ascii_json(all: &Map<String, Value>) -> String {
    let text = serde_json::to_string(all).unwrap_or_default();
    if text.is_ascii() {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() * 2);
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// The metadata of a take-over by the same holder, with the id of the grant that it ended. The
/// previous guard finds its own grant id there and reports the reason of its loss, even if the new
/// grant has been released since.
pub(crate) fn with_ended_grant(metadata: &str, ended: GrantId) -> String {
    let rest = metadata.strip_prefix('{').unwrap_or(metadata);
    format!(r#"{{"over":"{ended}",{rest}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::grant_id::random_grant_id;

    fn process(program: &str, host: &str) -> Process {
        Process {
            program: program.to_owned(),
            host: host.to_owned(),
            pid: 4711,
        }
    }

    #[test]
    fn two_holders_of_one_process_are_told_apart() {
        assert_ne!(default_holder(), default_holder());
    }

    #[test]
    fn metadata_keeps_the_callers_keys_apart_from_the_librarys() {
        let own = Map::from_iter([("program".to_owned(), json!("the caller's"))]);
        let all: Value = serde_json::from_str(&metadata(&own, None, false).unwrap()).unwrap();
        assert_eq!(all["meta"]["program"], "the caller's");
        assert_eq!(all["pid"], std::process::id());

        let (ended, before) = (random_grant_id().unwrap(), all.to_string());
        let after: Value = serde_json::from_str(&with_ended_grant(&before, ended)).unwrap();
        assert_eq!(after["over"], ended.as_str());
        assert_eq!(after["meta"], all["meta"]);
        assert_eq!(
            with_ended_grant(&before, ended).len(),
            before.len() + ENDED_GRANT_BYTES
        );
    }

    #[test]
    fn non_ascii_metadata_is_escaped_and_read_back_unchanged() {
        let own = Map::from_iter([("why".to_owned(), json!("日本 ä 🔒 \"\\u0041\""))]);
        let text = describe(&own, None, false, &process("仕事", "høst")).unwrap();
        assert!(text.is_ascii(), "{text}");
        let all: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(all["meta"], Value::Object(own));
        assert_eq!(
            (&all["program"], &all["host"]),
            (&json!("仕事"), &json!("høst"))
        );
    }

    #[test]
    fn metadata_of_more_than_4_kib_is_refused() {
        let error_for = |why: String| {
            let own = Map::from_iter([("why".to_owned(), json!(why))]);
            metadata(&own, None, false).unwrap_err().to_string()
        };
        assert!(error_for("x".repeat(5000)).contains("4096"));
        // Each character takes six bytes as an escape.
        assert!(error_for("日".repeat(700)).contains("4096"));
        let nul = error_for("\0".to_owned());
        assert!(nul.contains("NUL"), "{nul}");
    }

    #[test]
    fn the_librarys_fields_are_shortened_before_metadata_is_refused() {
        let from = random_grant_id().unwrap();
        let bare = r#"{"from":"","meta":{"why":""}}"#.len() + 32 + ENDED_GRANT_BYTES;
        for left in [0, 1, 5, 20, 100, 1000] {
            let why = "x".repeat(MAX_METADATA_BYTES - bare - left);
            let own = Map::from_iter([("why".to_owned(), json!(why))]);
            let program = "仕".repeat(100);
            let text = describe(&own, Some(from), true, &process(&program, "host")).unwrap();
            assert!(
                text.len() + ENDED_GRANT_BYTES <= MAX_METADATA_BYTES,
                "{left}: {}",
                text.len()
            );
            let all: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(all["meta"]["why"], why);
            assert_eq!(all["from"], from.as_str());
            assert_eq!(all.get("pid").is_some(), left >= 20);
            assert_eq!(all["program"] == json!(program), left == 1000);
        }
        let longer = "x".repeat(MAX_METADATA_BYTES - bare + 1);
        let own = Map::from_iter([("why".to_owned(), json!(longer))]);
        describe(&own, Some(from), true, &process("", "")).unwrap_err();
    }
}
