//! All that is printed; nothing else in this crate prints.
//!
//! What others wrote into the table is shown so that it neither drives a terminal nor begins a line.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, SystemTime};

use database_locks::doctor::{Check, Finding, Report};
use database_locks::{LockInfo, LockState, Ticket, Ttl};
use jiff::Timestamp;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

/// Bold, for heads.
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";
/// Of the last column this much is shown even where the terminal is too narrow for it.
const LEAST_WIDTH: usize = 12;

/// Whether what is printed may have colours.
pub(crate) fn on_stdout() -> bool {
    may_have_colours(io::stdout().is_terminal())
}

/// The same for what is said of errors.
pub(crate) fn on_stderr() -> bool {
    may_have_colours(io::stderr().is_terminal())
}

/// See <https://no-color.org>.
fn may_have_colours(terminal: bool) -> bool {
    let is = |name: &str, said: &dyn Fn(&std::ffi::OsStr) -> bool| {
        std::env::var_os(name).is_some_and(|value| said(&value))
    };
    terminal && !is("NO_COLOR", &|value| !value.is_empty()) && !is("TERM", &|term| term == "dumb")
}

/// One line on stdout.
pub(crate) fn say(line: &str) {
    print(&format!("{}\n", on_one_line(line)));
}

/// One line on stderr, in our name, without a password; nothing where there is nothing to say.
pub(crate) fn complain(said: &str) {
    if !said.is_empty() {
        // Nobody is left to be told that it could not be said.
        let line = on_one_line(&without_secrets(said));
        let _ = writeln!(io::stderr(), "dblock: {line}");
    }
}

/// Help, as it is.
pub(crate) fn help(text: &str, to_stderr: bool) {
    match to_stderr {
        true => drop(io::stderr().write_all(text.as_bytes())),
        false => print(&format!("{}\n", text.trim_end())),
    }
}

/// A text as it is.
pub(crate) fn text(text: &str) {
    print(text);
}

/// A ticket, alone on its line.
pub(crate) fn ticket(ticket: &Ticket) -> io::Result<()> {
    checked(&format!("{ticket}\n"))
}

/// One object: the ticket, and what else is known of the grant.
pub(crate) fn ticket_as_json(
    ticket: &Ticket,
    holder: &str,
    row: Option<&LockInfo>,
) -> io::Result<()> {
    let text = ticket.to_string();
    let fields = [
        ("ticket", json!(text)),
        ("name", json!(ticket.name().as_str())),
        ("token", json!(ticket.token().get())),
        ("grant", json!(text.split('.').nth(1))),
        ("holder", json!(holder)),
        ("expires_at", json!(row.and_then(expires_at))),
        ("free_in", json!(row.and_then(free_in).map(seconds))),
    ];
    checked(&format!("{}\n", json_object(fields)))
}

/// How long a lease lasts, by the clock of the database.
pub(crate) fn lasts(row: Option<&LockInfo>) -> String {
    match row.map(|row| row.state) {
        Some(LockState::Held { free_in: None }) => "without end".to_owned(),
        Some(LockState::Held {
            free_in: Some(left),
        }) => {
            // What passed since it was asked for is not to be seen: 10m, and not 9m 59s.
            let left = human(left + Duration::from_millis(500).min(left / 100));
            match row.and_then(|row| row.expires_at).and_then(time) {
                Some(end) => format!("until {end} ({left})"),
                None => format!("for {left}"),
            }
        }
        _ => "until its ttl ends".to_owned(),
    }
}

/// A word as a shell reads it.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:@%+,".contains(c);
    match !text.starts_with('-') && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Where it matters that it was printed.
fn checked(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) {
    let _ = checked(text);
}

/// As a table, one line a lock; in a terminal with colours, and cut to its width.
pub(crate) fn rows(infos: &[LockInfo]) {
    if infos.is_empty() {
        return;
    }
    let head = [
        "NAME", "STATE", "HOLDER", "TOKEN", "SINCE", "HELD FOR", "FREE IN", "WHAT FOR",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(infos.iter().map(|info| {
        let cells = [
            info.name.to_string(),
            state(info).to_owned(),
            info.holder.clone().unwrap_or_default(),
            info.token.to_string(),
            info.acquired_at.and_then(time).unwrap_or_default(),
            info.held_for.map(human).unwrap_or_default(),
            free_in_words(info),
            purpose(info.metadata.as_deref()),
        ];
        cells.map(|cell| match cell.is_empty() {
            true => "-".to_owned(),
            false => on_one_line(&cell),
        })
    }));
    let columns = terminal_width();
    let mut colours = vec![BOLD];
    colours.extend(infos.iter().map(|info| colour(info.state)));
    print(&match on_stdout() {
        true => aligned(&lines, columns, Some(&colours)),
        false => aligned(&lines, columns, None),
    });
}

/// None where it is no terminal, or one that does not say.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

fn colour(state: LockState) -> &'static str {
    match state {
        // Nothing but a person ends that.
        LockState::Held { free_in: None } => BOLD,
        LockState::Held { .. } => GREEN,
        LockState::Expired { .. } => YELLOW,
        _ => DIM,
    }
}

/// In columns. Colours are one a line: of the whole head, and of the second cell below.
fn aligned<const N: usize>(
    lines: &[[String; N]],
    columns: Option<usize>,
    colours: Option<&[&str]>,
) -> String {
    let mut widths = [0; N];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.width().max(*width);
        }
    }
    let before: usize = widths.iter().take(N - 1).map(|width| width + 2).sum();
    let left = columns.map_or(usize::MAX, |all| {
        all.saturating_sub(before).max(LEAST_WIDTH)
    });
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        let colour = colours.and_then(|colours| colours.get(n));
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == N - 1 {
                    return cut(cell, left);
                }
                let blanks = " ".repeat(width.saturating_sub(cell.width()));
                match colour {
                    Some(colour) if n > 0 && column == 1 => {
                        format!("{colour}{cell}{PLAIN}{blanks}")
                    }
                    _ => format!("{cell}{blanks}"),
                }
            })
            .collect();
        let line = cells.join("  ");
        match colour {
            Some(colour) if n == 0 => text.push_str(&format!("{colour}{}{PLAIN}", line.trim_end())),
            _ => text.push_str(line.trim_end()),
        }
        text.push('\n');
    }
    text
}

/// So much of it as fits.
fn cut(cell: &str, columns: usize) -> String {
    if cell.width() <= columns {
        return cell.to_owned();
    }
    let mut shown = String::new();
    for c in cell.chars() {
        shown.push(c);
        if shown.width() + 1 > columns {
            shown.pop();
            break;
        }
    }
    shown + "…"
}

/// Everything about one lock, one line a fact.
pub(crate) fn row(info: &LockInfo) {
    let mut lines: Vec<[String; 2]> = Vec::new();
    let mut fact = |what: &str, said: Option<String>| {
        if let Some(said) = said.filter(|said| !said.is_empty()) {
            lines.push([on_one_line(what), on_one_line(&said)]);
        }
    };
    let free = info.state == LockState::Free;
    fact("name", Some(info.name.to_string()));
    fact("state", Some(state(info).to_owned()));
    fact(
        if free { "last holder" } else { "holder" },
        info.holder.clone(),
    );
    fact("token", Some(info.token.to_string()));
    fact("grant", info.grant.clone());
    fact(
        if free { "last acquired" } else { "acquired" },
        info.acquired_at.and_then(time),
    );
    fact("held for", info.held_for.map(human));
    fact(
        if free { "released" } else { "renewed" },
        info.renewed_at.and_then(time),
    );
    fact("expires", info.expires_at.and_then(time));
    fact("free in", Some(free_in_words(info)).filter(|_| !free));
    match metadata(info) {
        Value::Object(all) => {
            for (key, value) in &all {
                match value {
                    Value::Object(own) if key == "meta" => {
                        own.iter()
                            .for_each(|(key, value)| fact(key, Some(plain(value))));
                    }
                    value => fact(key, Some(plain(value))),
                }
            }
        }
        Value::Null => {}
        other => fact("metadata", Some(plain(&other))),
    }
    print(&aligned(&lines, None, None));
}

/// One array, one line a lock.
pub(crate) fn rows_as_json(infos: &[LockInfo]) {
    let objects: Vec<String> = infos.iter().map(object).collect();
    print(&match objects.is_empty() {
        true => "[]\n".to_owned(),
        false => format!("[\n{}\n]\n", objects.join(",\n")),
    });
}

/// One object.
pub(crate) fn row_as_json(info: &LockInfo) {
    print(&format!("{}\n", object(info)));
}

fn object(info: &LockInfo) -> String {
    let fields = [
        ("name", json!(info.name.as_str())),
        ("state", json!(state(info))),
        ("holder", json!(info.holder)),
        ("token", json!(info.token.get())),
        ("grant", json!(info.grant)),
        ("held_for", json!(info.held_for.map(seconds))),
        ("free_in", json!(free_in(info).map(seconds))),
        (
            "acquired_at",
            json!(info.acquired_at.and_then(precise_time)),
        ),
        ("renewed_at", json!(info.renewed_at.and_then(precise_time))),
        ("expires_at", json!(expires_at(info))),
        ("metadata", metadata(info)),
    ];
    json_object(fields)
}

/// Written field by field: serde_json's own map would sort them.
fn json_object<const N: usize>(fields: [(&str, Value); N]) -> String {
    let fields = fields.map(|(name, value)| format!("{}:{value}", json!(name)));
    format!("{{{}}}", fields.join(","))
}

/// None: it is free, or there is no end.
fn free_in(info: &LockInfo) -> Option<Duration> {
    match info.state {
        LockState::Held { free_in } => free_in,
        LockState::Expired { .. } => Some(Duration::ZERO),
        _ => None,
    }
}

fn expires_at(info: &LockInfo) -> Option<String> {
    info.expires_at.and_then(precise_time)
}

/// What was looked at, then what was found: one line each, and one that says what to do.
pub(crate) fn report(report: &Report) {
    let line = |cells: [&str; 3]| cells.map(on_one_line);
    let seen = |check: &Check| if check.seen { "ok" } else { "unseen" };
    let checks = report.checks.iter();
    let mut lines: Vec<_> = checks
        .map(|check| line([seen(check), check.area, &check.said]))
        .collect();
    for found in &report.findings {
        lines.push(line([&found.severity.to_string(), found.id, &found.said]));
        lines.push(line(["do", found.id, &found.remedy]));
    }
    print(&aligned(&lines, None, None));
}

/// One object, one line a check or finding.
pub(crate) fn report_as_json(report: &Report) {
    let check = |check: &Check| {
        json!({ "area": check.area, "seen": check.seen, "said": check.said }).to_string()
    };
    let finding = |found: &Finding| {
        let severity = found.severity.to_string();
        json!({
            "id": found.id, "area": found.area, "severity": severity,
            "said": found.said, "remedy": found.remedy,
        })
        .to_string()
    };
    let list = |objects: Vec<String>| match objects.is_empty() {
        true => "[]".to_owned(),
        false => format!("[\n{}\n]", objects.join(",\n")),
    };
    let checks = list(report.checks.iter().map(check).collect());
    let findings = list(report.findings.iter().map(finding).collect());
    print(&format!(
        "{{\"checks\":{checks},\n\"findings\":{findings}}}\n"
    ));
}

fn state(info: &LockInfo) -> &'static str {
    match info.state {
        LockState::Held { .. } => "held",
        LockState::Expired { .. } => "expired",
        _ => "free",
    }
}

fn free_in_words(info: &LockInfo) -> String {
    match info.state {
        LockState::Held {
            free_in: Some(left),
        } => human(left),
        LockState::Held { free_in: None } => "never".to_owned(),
        LockState::Expired { .. } => "now".to_owned(),
        _ => String::new(),
    }
}

/// What the holder says of itself; a text where it is no JSON.
fn metadata(info: &LockInfo) -> Value {
    info.metadata.as_ref().map_or(Value::Null, |text| {
        serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
    })
}

/// What it was taken for: the caller's own words, else the program.
fn purpose(metadata: Option<&str>) -> String {
    let Some(text) = metadata else {
        return String::new();
    };
    let Ok(all) = serde_json::from_str::<Value>(text) else {
        return text.to_owned();
    };
    let Some(own) = all["meta"].as_object() else {
        return plain(&all["program"]);
    };
    let command = own.get("command").map(plain).unwrap_or_default();
    let others = own.iter().filter(|(key, _)| *key != "command");
    let mut words = command;
    for (key, value) in others {
        let blank = if words.is_empty() { "" } else { " " };
        let _ = write!(words, "{blank}{key}={}", plain(value));
    }
    words
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// As people say it: `30s`, `2m 5s`, `10m`.
pub(crate) fn human(length: Duration) -> String {
    let said = Ttl::from(length).to_string();
    match said.rsplit_once(" 0") {
        Some((round, "s" | "m" | "h")) => round.to_owned(),
        _ => said,
    }
}

fn seconds(length: Duration) -> f64 {
    length.as_millis() as f64 / 1000.0
}

fn time(at: SystemTime) -> Option<String> {
    Some(format!("{:.0}", Timestamp::try_from(at).ok()?))
}

fn precise_time(at: SystemTime) -> Option<String> {
    Some(format!("{:.3}", Timestamp::try_from(at).ok()?))
}

/// The text with everything escaped that is not seen as itself: control characters, other line
/// breaks, and what turns the direction of writing around.
fn on_one_line(text: &str) -> String {
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

/// What a message says where it explains the form of a URL.
const PLACEHOLDER: &str = "USER:PASSWORD";

/// The text with what may be a password in a URL taken out: the login before the last `@` of each,
/// and the option `password`.
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
    fn what_drives_a_terminal_is_escaped() {
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
    fn a_url_is_shown_without_its_secrets() {
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

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let line = |a: &str, b: &str, c: &str| [a.to_owned(), b.to_owned(), c.to_owned()];
        let lines = [
            line("NAME", "X", "LAST"),
            line("jöb", "longer", "1"),
            line("仕事", "-", "a longer one"),
        ];
        assert_eq!(
            aligned(&lines, None, None),
            "NAME  X       LAST\njöb   longer  1\n仕事  -       a longer one\n"
        );
        assert_eq!(
            aligned(&lines[..2], None, Some(&["<", ">"])),
            "<NAME  X       LAST\x1b[0m\njöb   >longer\x1b[0m  1\n"
        );
    }

    #[test]
    fn in_a_terminal_the_last_column_is_cut_to_what_is_left() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("仕事仕事", 6), "仕事…");
    }

    #[test]
    fn a_round_length_is_said_without_its_noughts() {
        assert_eq!(human(Duration::from_secs(600)), "10m");
        assert_eq!(human(Duration::from_secs(605)), "10m 5s");
        assert_eq!(human(Duration::from_secs(30 * 86_400)), "30d");
        assert_eq!(human(Duration::from_secs(10)), "10s");
    }

    #[test]
    fn a_shell_reads_a_name_as_it_is() {
        assert_eq!(shell_word("nightly.report"), "nightly.report");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word("-n"), "'-n'");
    }

    #[test]
    fn the_purpose_is_the_callers_words_before_the_program() {
        let of = |text: &str| purpose(Some(text));
        assert_eq!(of(r#"{"program":"worker","pid":1}"#), "worker");
        let own = r#"{"program":"dblock","meta":{"ticket":"OPS-1","command":"report.sh"}}"#;
        assert_eq!(of(own), "report.sh ticket=OPS-1");
        assert_eq!(of("by hand"), "by hand");
        assert_eq!(purpose(None), "");
    }
}
