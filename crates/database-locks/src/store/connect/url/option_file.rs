//! `~/.my.cnf`, the option file of the clients of MySQL and MariaDB.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::dialect::Key;
use super::environment::{Environment, with_source};
use super::partial::PartialServer;
use crate::error::Error;

/// Its name in errors.
const FILE: &str = "~/.my.cnf";

/// Later groups take precedence.
const GROUPS: [&str; 2] = ["client", "dblock"];

/// The limit for files that include each other.
const DEPTH: usize = 8;

/// The settings of the file, and `MYSQL_PWD` if it has no password.
pub(crate) fn options(
    so_far: &PartialServer,
    environment: &Environment<'_>,
) -> Result<PartialServer, Error> {
    let mut partial = PartialServer::default();
    if !environment.is_enabled() {
        return Ok(partial);
    }
    if let Some(path) = environment.at_home(".my.cnf") {
        let mut found = OptionFile::default();
        found.read(&path, DEPTH);
        with_source(FILE, take(&mut partial, so_far, &found))?;
        partial = partial.of_file();
    }
    if partial.server.password.is_none() {
        partial.server.password = environment.variable("MYSQL_PWD");
    }
    Ok(partial)
}

fn take(
    partial: &mut PartialServer,
    so_far: &PartialServer,
    found: &OptionFile,
) -> Result<(), Error> {
    let options = [
        ("user", Key::User),
        ("password", Key::Password),
        ("database", Key::Database),
        ("port", Key::Port),
        ("ssl-ca", Key::Roots),
        ("ssl-cert", Key::Certificate),
        ("ssl-key", Key::PrivateKeyFile),
    ];
    for (name, key) in options {
        let value = found.get(name).filter(|value| !value.is_empty());
        if let Some(value) = value.filter(|_| !so_far.has(key)) {
            partial.take(key, name, value.to_owned())?;
        }
    }
    // For the clients `localhost` means the socket.
    let host = found.get("host").filter(|host| !host.is_empty());
    match (host, found.get("socket")) {
        _ if so_far.has(Key::Host) => {}
        (None | Some("localhost"), Some(socket)) if !socket.is_empty() => {
            partial.take(Key::Socket, "socket", socket.to_owned())?;
        }
        (Some(host), _) => partial.take(Key::Host, "host", host.to_owned())?,
        (None, _) => {}
    }
    let mode = match found.get("ssl-mode") {
        Some(mode) => Some(mode),
        None if found.is_off("ssl") || found.is_on("skip-ssl") => Some("disable"),
        None if found.is_on("ssl-verify-server-cert") => Some("verify-full"),
        None if found.is_on("ssl") && found.get("ssl-ca").is_none() => Some("require"),
        None => None,
    };
    if let Some(mode) = mode.filter(|_| !so_far.has(Key::TlsMode)) {
        partial.take(Key::TlsMode, "ssl-mode", mode.to_owned())?;
    }
    Ok(())
}

/// The options of each group. Later ones replace earlier ones.
#[derive(Default)]
struct OptionFile([Vec<(String, Option<String>)>; GROUPS.len()]);

impl OptionFile {
    /// The value of an option; empty if it has none.
    fn get(&self, name: &str) -> Option<&str> {
        let of = |group: &'_ Vec<(String, Option<String>)>| {
            group.iter().rposition(|(known, _)| known == name)
        };
        let group = self.0.iter().rev().find(|group| of(group).is_some())?;
        Some(group[of(group)?].1.as_deref().unwrap_or_default())
    }

    /// Whether an option is on. One without a value is on.
    fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some() && !self.is_off(name)
    }

    fn is_off(&self, name: &str) -> bool {
        let off = ["0", "off", "false", "no", "disable", "disabled"];
        self.get(name)
            .is_some_and(|value| off.contains(&&*value.to_ascii_lowercase()))
    }

    /// Read a file, if it exists and is trustworthy.
    fn read(&mut self, path: &Path, depth: usize) {
        // As the clients do, a file that does not exist or cannot be read is skipped, and so is one
        // that every user can write.
        let read = std::fs::metadata(path).and_then(|found| Ok((found, std::fs::read(path)?)));
        let bytes = match read {
            Ok((found, _)) if found.mode() & 0o002 != 0 => {
                tracing::warn!(
                    "option file {} is skipped: every user can write it; chmod 600",
                    path.display()
                );
                return;
            }
            Ok((_, bytes)) => bytes,
            Err(error) => {
                tracing::debug!("option file {} is skipped: {error}", path.display());
                return;
            }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut group = None;
        for line in bytes.split(|byte| *byte == b'\n') {
            // A line that is not UTF-8 belongs to other programs or is unknown.
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                let name = name.split(']').next().unwrap_or_default().trim();
                group = GROUPS.iter().position(|known| *known == name);
            } else if line.starts_with('!') {
                self.include(line, folder, depth);
            } else if let Some(group) = group {
                let (name, value) = match line.split_once('=') {
                    Some((name, value)) => (name, Some(plain(value.trim()))),
                    None => (line, None),
                };
                let name = name.split('#').next().unwrap_or_default().trim();
                let name = name.to_ascii_lowercase().replace('_', "-");
                let name = name.strip_prefix("loose-").unwrap_or(&name).to_owned();
                self.0[group].push((name, value));
            }
        }
    }

    fn include(&mut self, line: &str, folder: &Path, depth: usize) {
        let (word, path) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let path = folder.join(path.trim());
        let mut files = match word {
            _ if depth == 0 => return,
            "!include" => vec![path],
            "!includedir" => {
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
                let files = entries.map(|entry| entry.path());
                let files = files.filter(|file| file.extension().is_some_and(|e| e == "cnf"));
                files.collect::<Vec<PathBuf>>()
            }
            _ => return,
        };
        files.sort();
        for file in &files {
            self.read(file, depth - 1);
        }
    }
}

/// A value without its quotes, its comment and its escapes.
fn plain(text: &str) -> String {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let (mut value, mut before) = (String::new(), ' ');
    let mut rest = text.chars().skip(usize::from(quote.is_some()));
    while let Some(c) = rest.next() {
        match c {
            _ if Some(c) == quote => return value,
            // A comment begins behind a blank: a password may hold the sign.
            '#' if quote.is_none() && before.is_whitespace() => break,
            '\\' => match rest.next() {
                Some('b') => value.push('\u{8}'),
                Some('t') => value.push('\t'),
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('s') => value.push(' '),
                Some(c @ ('\\' | '"' | '\'')) => value.push(c),
                Some(c) => value.extend(['\\', c]),
                None => value.push('\\'),
            },
            c => value.push(c),
        }
        before = c;
    }
    match quote {
        Some(_) => value,
        None => value.trim_end().to_owned(),
    }
}
