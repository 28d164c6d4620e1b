//! Who holds a lock, for people to read; never what decides who holds it.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::runtime::fork::PerProcess;
use protocol::GrantId;

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
    // ASCII only: no caller has chosen this name, and the database's encoding may lack more.
    let host = host().replace(|c: char| !c.is_ascii_graphic(), "-");
    format!("{host}.{}.{:08x}", std::process::id(), fastrand::u32(..))
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

/// A process as its metadata shows it. A host that is renamed later keeps its old name there.
struct Process {
    program: String,
    host: String,
    pid: u32,
}

/// What the holder says of itself: program, host, pid and version, the grant that it was handed if
/// there was one, and the caller's own keys under `meta`. Of the command line only the program's name:
/// arguments may hold passwords.
///
/// It is ASCII, whatever the encoding of the database can hold. What does not fit beside the caller's
/// own keys is cut or left out: only those can be too long.
///
/// `may_add`: [`over`] may have something to add.
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
    let reserved = if may_add { OVER } else { 0 };
    let length = ascii(&all).len() + reserved;
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
        add(&mut all, key, value, MAX_METADATA_BYTES - reserved);
    }
    let text = ascii(&all);
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

/// Add one of our own fields: what fits of it.
fn add(all: &mut Map<String, Value>, key: &str, value: Value, most: usize) {
    all.insert(key.to_owned(), value);
    while ascii(all).len() > most {
        let shorter = match all.get(key) {
            Some(Value::String(text)) if text.chars().count() > 1 => {
                let half = text.chars().count() / 2;
                text.chars().take(half).collect::<String>()
            }
            _ => {
                all.remove(key);
                return;
            }
        };
        all.insert(key.to_owned(), shorter.into());
    }
}

/// As JSON, with `\u` escapes for everything that is not ASCII.
fn ascii(all: &Map<String, Value>) -> String {
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

/// The same of a holder who takes the lock over from itself: which grant thereby ended. That is how
/// the one that had it learns what happened, even when this one has been released since.
pub(crate) fn over(metadata: &str, ended: GrantId) -> String {
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
    fn metadata_keeps_the_callers_keys_apart_from_ours() {
        let own = Map::from_iter([("program".to_owned(), json!("theirs"))]);
        let all: Value = serde_json::from_str(&metadata(&own, None, false).unwrap()).unwrap();
        assert_eq!(all["meta"]["program"], "theirs");
        assert_eq!(all["pid"], std::process::id());

        let (ended, before) = (random_grant_id().unwrap(), all.to_string());
        let after: Value = serde_json::from_str(&over(&before, ended)).unwrap();
        assert_eq!(after["over"], ended.as_str());
        assert_eq!(after["meta"], all["meta"]);
        assert_eq!(over(&before, ended).len(), before.len() + OVER);
    }

    #[test]
    fn what_a_database_of_another_encoding_lacks_is_escaped_and_read_back_as_it_was() {
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
        let refused = |why: String| {
            let own = Map::from_iter([("why".to_owned(), json!(why))]);
            metadata(&own, None, false).unwrap_err().to_string()
        };
        assert!(refused("x".repeat(5000)).contains("4096"));
        // Each takes six bytes of ASCII.
        assert!(refused("日".repeat(700)).contains("4096"));
        let nul = refused("\0".to_owned());
        assert!(nul.contains("NUL"), "{nul}");
    }

    #[test]
    fn our_own_part_is_cut_before_anything_is_refused() {
        let from = random_grant_id().unwrap();
        let bare = r#"{"from":"","meta":{"why":""}}"#.len() + 32 + OVER;
        for left in [0, 1, 5, 20, 100, 1000] {
            let why = "x".repeat(MAX_METADATA_BYTES - bare - left);
            let own = Map::from_iter([("why".to_owned(), json!(why))]);
            let program = "仕".repeat(100);
            let text = describe(&own, Some(from), true, &process(&program, "host")).unwrap();
            assert!(
                text.len() + OVER <= MAX_METADATA_BYTES,
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
