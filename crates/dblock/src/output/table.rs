//! In columns, for people and for `awk`.

use std::io;

use database_locks::doctor::{Check, Finding, Report};
use database_locks::{LockInfo, LockState};
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::clean::on_one_line;
use super::stream::{on_stdout, print};
use super::words::{free_in_words, human, plain, time};
use crate::exit::Failure;

/// Bold, for heads.
const BOLD: &str = "\x1b[1m";

const DIM: &str = "\x1b[2m";

const GREEN: &str = "\x1b[32m";

const YELLOW: &str = "\x1b[33m";

const PLAIN: &str = "\x1b[0m";

/// Of the last column this much is shown even where the terminal is too narrow for it.
const LEAST_WIDTH: usize = 12;
/// What a terminal without room for all goes without, in this order, and where it stands by then.
const SPARED: [(usize, &str); 2] = [(3, "TOKEN"), (3, "SINCE")];

/// As a table, one line a lock; in a terminal with colours, and cut to its width. Where there is none,
/// a person is told so, and a pipe gets nothing.
pub(crate) fn rows(infos: &[LockInfo], all: bool) -> Result<(), Failure> {
    let columns = terminal_width();
    if infos.is_empty() {
        return match (columns, all) {
            (None, _) => Ok(()),
            (Some(_), true) => print("there are no locks in the table\n"),
            (Some(_), false) => print("no lock is held (--all: the free ones too)\n"),
        };
    }
    let head = [
        "NAME", "STATE", "HOLDER", "TOKEN", "SINCE", "HELD FOR", "FREE IN", "WHAT FOR",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(infos.iter().map(|info| {
        let cells = [
            name(info),
            info.state.as_str().to_owned(),
            info.holder.clone().unwrap_or_default(),
            info.token.to_string(),
            info.acquired_at.and_then(time).unwrap_or_default(),
            info.held_for.map(human).unwrap_or_default(),
            free_in_words(info),
            info.description(),
        ];
        let cells = cells.map(|cell| match cell.is_empty() {
            true => "-".to_owned(),
            false => on_one_line(&cell),
        });
        cells.to_vec()
    }));
    if let Some(room) = columns {
        fitting(&mut lines, room);
    }
    let mut colours = vec![BOLD];
    colours.extend(infos.iter().map(|info| colour(info.state)));
    print(&match on_stdout() {
        true => aligned(&lines, columns, Some(&colours)),
        false => aligned(&lines, columns, None),
    })
}

/// Everything about one lock, one line a fact.
pub(crate) fn row(info: &LockInfo) -> Result<(), Failure> {
    let mut lines: Vec<[String; 2]> = Vec::new();
    let mut fact = |what: &str, said: Option<String>| {
        if let Some(said) = said.filter(|said| !said.is_empty()) {
            lines.push([on_one_line(what), on_one_line(&said)]);
        }
    };
    let free = info.state == LockState::Free;
    fact("name", Some(name(info)));
    fact("state", Some(info.state.as_str().to_owned()));
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
    match info.parsed_metadata() {
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
    print(&aligned(&lines, None, None))
}

/// What was looked at, then what was found: one line each, and one that says what to do, but for
/// what is ignored.
pub(crate) fn report(report: &Report, ignored: &[Finding]) -> Result<(), Failure> {
    let line = |cells: [&str; 3]| cells.map(on_one_line);
    let seen = |check: &Check| if check.seen { "ok" } else { "unseen" };
    let checks = report.checks.iter();
    let mut lines: Vec<_> = checks
        .map(|check| line([seen(check), check.area, &check.message]))
        .collect();
    for found in ignored {
        lines.push(line(["ignored", found.id, &found.message]));
    }
    for found in &report.findings {
        lines.push(line([
            &found.severity.to_string(),
            found.id,
            &found.message,
        ]));
        lines.push(line(["fix", found.id, &found.fix]));
    }
    print(&aligned(&lines, None, None))
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

/// In quotes where its blanks would not be seen.
fn name(info: &LockInfo) -> String {
    let name = info.name.as_str();
    match name.trim() == name {
        true => name.to_owned(),
        false => format!("'{name}'"),
    }
}

/// None where it is no terminal, or one that does not say.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// How wide each column has to be.
fn widths(lines: &[impl AsRef<[String]>]) -> Vec<usize> {
    let columns = lines.iter().map(|line| line.as_ref().len()).max();
    let widest = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.as_ref().get(column));
        cells.map(|cell| cell.width()).max().unwrap_or_default()
    };
    (0..columns.unwrap_or_default()).map(widest).collect()
}

/// The lines without the columns that there is no room for.
fn fitting(lines: &mut [Vec<String>], room: usize) {
    for (column, name) in SPARED {
        let widths = widths(lines);
        let last = widths.len().saturating_sub(1);
        let least: usize = widths.iter().take(last).map(|width| width + 2).sum();
        if least + LEAST_WIDTH <= room {
            return;
        }
        debug_assert!(lines.iter().take(1).all(|head| head[column] == name));
        for line in lines.iter_mut() {
            line.remove(column);
        }
    }
}

/// In columns. Colours are one a line: of the whole head, and of the second cell below.
fn aligned(
    lines: &[impl AsRef<[String]>],
    columns: Option<usize>,
    colours: Option<&[&str]>,
) -> String {
    let widths = widths(lines);
    let last = widths.len().saturating_sub(1);
    let before: usize = widths.iter().take(last).map(|width| width + 2).sum();
    let left = columns.map_or(usize::MAX, |all| {
        all.saturating_sub(before).max(LEAST_WIDTH)
    });
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        let colour = colours.and_then(|colours| colours.get(n));
        let cells: Vec<String> = line
            .as_ref()
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == last {
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn in_a_narrow_terminal_token_and_since_are_left_out() {
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let head = "NAME STATE HOLDER TOKEN SINCE HELD FREE WHAT";
        let left = |room| {
            let mut lines = [
                line(head),
                line("job held db1.17.ab 1795551621401 2026 6ms 29s sh"),
            ];
            fitting(&mut lines, room);
            lines[0].join(" ")
        };
        assert_eq!(left(80), head);
        assert_eq!(left(66), "NAME STATE HOLDER SINCE HELD FREE WHAT");
        assert_eq!(left(10), "NAME STATE HOLDER HELD FREE WHAT");
    }

    #[test]
    fn in_a_terminal_the_last_column_is_cut_to_what_is_left() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("仕事仕事", 6), "仕事…");
    }
}
