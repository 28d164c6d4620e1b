//! The sources of libpq for missing parts of a URL: services, environment variables, and the
//! password file.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::dialect::{Key, POSTGRES};
use super::environment::{Environment, with_source};
use super::partial::PartialServer;
use super::server::{Address, Server};
use crate::error::Error;

/// Without `PGTARGETSESSIONATTRS`, since locks are always written.
const VARIABLES: [(&str, Key); 12] = [
    ("PGHOST", Key::Host),
    ("PGPORT", Key::Port),
    ("PGUSER", Key::User),
    ("PGPASSWORD", Key::Password),
    ("PGDATABASE", Key::Database),
    ("PGAPPNAME", Key::Application),
    ("PGCHANNELBINDING", Key::Binding),
    ("PGSSLMODE", Key::TlsMode),
    ("PGSSLROOTCERT", Key::Roots),
    ("PGSSLCERT", Key::Certificate),
    ("PGSSLKEY", Key::PrivateKeyFile),
    ("PGPASSFILE", Key::Passfile),
];

/// The environment, for the missing settings.
pub(crate) fn environment(
    so_far: &PartialServer,
    environment: &Environment<'_>,
) -> Result<PartialServer, Error> {
    let mut partial = PartialServer::default();
    for (variable, key) in VARIABLES {
        if let Some(value) = environment.variable(variable).filter(|_| !so_far.has(key)) {
            with_source(variable, partial.take(key, "value", value))?;
        }
    }
    let timeout = environment.variable("PGCONNECT_TIMEOUT");
    if let Some(seconds) = timeout.filter(|_| !so_far.has(Key::ConnectTimeout)) {
        with_source("PGCONNECT_TIMEOUT", partial.libpq_timeout(&seconds))?;
    }
    if let Some(options) = environment.variable("PGOPTIONS") {
        // It may contain other options, for other programs.
        partial.server.settings.allowed_options(&options);
    }
    Ok(partial)
}

const SERVICE: &str = "service";

/// Options of a service that do not affect locks, or that the deadline of each request replaces.
const WITHOUT_EFFECT: [&str; 15] = [
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "sslcompression",
    "sslnegotiation",
    "sslsni",
    "tcp_user_timeout",
    "target_session_attrs",
];

/// The settings of a service, from the user's file, or else from the system's.
pub(crate) fn service(name: &str, environment: &Environment<'_>) -> Result<PartialServer, Error> {
    let file = environment.variable("PGSERVICEFILE").map(PathBuf::from);
    let own = file.or_else(|| environment.at_home(".pg_service.conf"));
    let folders = match environment.variable("PGSYSCONFDIR") {
        Some(folder) => vec![folder],
        None => vec!["/etc/postgresql-common".into(), "/etc".into()],
    };
    let system = folders
        .iter()
        .map(|folder| Path::new(folder).join("pg_service.conf"));
    let files: Vec<_> = own.into_iter().chain(system).collect();
    for path in &files {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // As libpq, go on with the next one.
            Err(error) => {
                tracing::debug!("service file {} is skipped: {error}", path.display());
                continue;
            }
        };
        if let Some(partial) = service_in(&text, name, path)? {
            return Ok(partial);
        }
    }
    let shown: Vec<_> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let got = format!("has no definition of `{}`", name.escape_debug());
    let hint = format!("define it in {}", shown.join(" or "));
    Err(Error::config(SERVICE, got, hint))
}

/// As in libpq, there are no blanks around `=`, and the first value of an option counts.
fn service_in(text: &str, name: &str, path: &Path) -> Result<Option<PartialServer>, Error> {
    let (mut partial, mut within, mut found) = (PartialServer::default(), false, false);
    let mut seen = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found {
                break;
            }
            within = section.strip_suffix(']') == Some(name);
            found |= within;
            continue;
        }
        if !within {
            continue;
        }
        let (option, value) = line.split_once('=').unwrap_or((line, ""));
        if WITHOUT_EFFECT.contains(&option) || seen.contains(&option) {
            continue;
        }
        seen.push(option);
        let known = POSTGRES.key(option);
        match known.filter(|key| *key != Key::Service) {
            Some(_) if option == "connect_timeout" => {
                with_source(SERVICE, partial.libpq_timeout(value))?
            }
            Some(key) => with_source(SERVICE, partial.take(key, option, value.to_owned()))?,
            None => {
                let option: String = option.chars().take(40).collect();
                let got = format!(
                    "has the option `{}`, which locks do not know, in {}",
                    option.escape_debug(),
                    path.display()
                );
                let allowed = "make a service without it for them";
                return Err(Error::config(SERVICE, got, allowed));
            }
        }
    }
    Ok(found.then_some(partial))
}

/// Look up missing passwords in libpq's password file, for each host.
pub(crate) fn passwords(server: &mut Server, environment: &Environment<'_>) {
    if server.password.is_some() {
        return;
    }
    let at_home = environment.at_home(".pgpass");
    let usual = || at_home.filter(|_| environment.is_enabled());
    let Some(path) = server.passfile.clone().or_else(usual) else {
        return;
    };
    let Some(text) = read_private_file(&path) else {
        return;
    };
    let user = server.user.clone().unwrap_or_default();
    let database = server.database.clone().unwrap_or_else(|| user.clone());
    let found = server.addresses.iter().map(|address| {
        let (hosts, port) = names_in_file(address);
        let mut lines = text.split(|byte| *byte == b'\n');
        let matching = |line| {
            let password = |host: &String| password_of_line(line, [host, &port, &database, &user]);
            hosts.iter().find_map(password)
        };
        lines.find_map(matching)
    });
    server.passwords_by_host = found.collect();
    server.password_of_file = server.passwords_by_host.iter().any(Option::is_some);
}

/// Read a private file. As in libpq, one that others can read is skipped with a warning.
fn read_private_file(path: &Path) -> Option<Vec<u8>> {
    let found = std::fs::metadata(path).ok()?;
    let shown = path.display();
    if !found.is_file() {
        tracing::warn!("password file {shown} is skipped: it is no plain file");
        return None;
    }
    if found.mode() & 0o077 != 0 {
        tracing::warn!("password file {shown} is skipped: group or others can use it; chmod 600");
        return None;
    }
    let read = std::fs::read(path);
    read.inspect_err(|error| tracing::warn!("password file {shown} cannot be read: {error}"))
        .ok()
}

/// The default folders of sockets, for which the file has `localhost`.
const USUAL_SOCKETS: [&str; 3] = ["/var/run/postgresql", "/run/postgresql", "/tmp"];

/// The names of a host in the file, and its port.
fn names_in_file(address: &Address) -> (Vec<String>, String) {
    match address {
        Address::Tcp(host, port) => (vec![host.clone()], port.to_string()),
        Address::Unix(file) => {
            let folder = file.parent().unwrap_or(file).to_string_lossy().into_owned();
            let port = file.extension().unwrap_or_default().to_string_lossy();
            let usual = USUAL_SOCKETS
                .contains(&&*folder)
                .then(|| "localhost".to_owned());
            (
                usual.into_iter().chain([folder]).collect(),
                port.into_owned(),
            )
        }
    }
}

/// The password of a matching line `host:port:database:user:password`. `*` matches everything, and
/// `\` escapes the next character.
fn password_of_line(line: &[u8], options: [&str; 4]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line.chars();
    for value in options {
        let (mut field, mut plain) = (String::new(), true);
        loop {
            match rest.next()? {
                ':' => break,
                '\\' => {
                    plain = false;
                    field.push(rest.next()?);
                }
                c => field.push(c),
            }
        }
        if field != value && !(plain && field == "*") {
            return None;
        }
    }
    let mut password = String::new();
    while let Some(c) = rest.next() {
        password.push(if c == '\\' {
            rest.next().unwrap_or(c)
        } else {
            c
        });
    }
    Some(password)
}
