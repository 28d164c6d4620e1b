//! Tables of locks, guards and findings.

use database_locks::__listing::limit_state;
use database_locks::doctor::{Check, Finding, Report};
use database_locks::{LockInfo, LockState, Semaphore, TableGuard};
use serde_json::Value;

use super::columns::{aligned, drop_columns, terminal_width};
use super::format::{free_in, json_value, time};
use super::limits::{Limits, permits_of};
use super::sanitize::on_one_line;
use super::stream::stdout_has_colours;
use crate::time::human;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";

/// The heads of what [`cells`] has.
const COLUMNS: [&str; 8] = [
    "NAME", "STATE", "HOLDER", "TOKEN", "SINCE", "HELD FOR", "FREE IN", "WHAT FOR",
];

/// A table with a line for each lock. In a terminal it has colours and is cut to the width.
///
/// If there is no lock, a terminal gets a sentence and a pipe gets nothing.
pub(crate) fn locks_table(locks: &[LockInfo], limits: &Limits, all: bool) -> String {
    let columns = terminal_width();
    let (mut lines, states) = lines(locks, limits, all);
    if states.is_empty() {
        let sentence = match (columns, all) {
            (None, _) => "",
            (Some(_), true) => "there are no locks in the table\n",
            (Some(_), false) => "no lock is held (--all: the free ones too)\n",
        };
        return sentence.to_owned();
    }
    if let Some(width) = columns {
        drop_columns(&mut lines, width);
    }
    let mut colours = vec![BOLD];
    colours.extend(states);
    let colours = Some(&*colours).filter(|_| stdout_has_colours());
    aligned(&lines, columns, colours)
}

/// The lines of a table of locks and permits, and the colour of each but the first. If there are
/// semaphores, one more column has the number of each permit, and how many are held of how many.
fn lines(locks: &[LockInfo], limits: &Limits, all: bool) -> (Vec<Vec<String>>, Vec<&'static str>) {
    let mut head = COLUMNS.map(str::to_owned).to_vec();
    head.insert(2, "PERMIT".to_owned());
    let mut lines = vec![head];
    let mut colours = Vec::new();
    for lock in locks {
        let mut line = cells(lock);
        line.insert(2, permit(lock, locks, limits));
        lines.push(line);
        colours.push(colour(lock.state));
    }
    for (name, limit) in limits.own_lines(locks, all) {
        let mut line = vec!["-".to_owned(); lines[0].len()];
        line[0] = on_one_line(&quoted(name.as_str()));
        line[1] = limit_state(limit).to_owned();
        let held = permits_of(name, locks).filter(|it| it.is_held()).count();
        line[2] = format!("- {}", counts(held, Some(limit), None));
        lines.push(line);
        colours.push(if limit == 0 { YELLOW } else { DIM });
    }
    if lines.iter().skip(1).all(|line| line[2] == "-") {
        for line in &mut lines {
            line.remove(2);
        }
    }
    (lines, colours)
}

/// A table with a line for each guarded table.
pub(crate) fn guards_table(guards: &[TableGuard]) -> String {
    let columns = terminal_width();
    if guards.is_empty() {
        let sentence = columns.map_or("", |_| "no table is guarded, as far as this user can see\n");
        return sentence.to_owned();
    }
    let mut lines = vec![["TABLE", "GUARD", "LOCK", "PROBLEM"].map(str::to_owned)];
    lines.extend(guards.iter().map(|guard| {
        let state = match (guard.gaps.is_empty(), guard.bypasses.is_empty()) {
            (true, true) => "intact",
            (true, false) => "bypassed",
            (false, _) => "incomplete",
        };
        let problems = [&*guard.gaps, &*guard.bypasses].concat().join("; ");
        let cells = [&*guard.table, state, guard.lock.as_str(), &*problems];
        cells.map(|cell| match cell {
            "" => "-".to_owned(),
            cell => on_one_line(cell),
        })
    }));
    aligned(&lines, columns, None)
}

/// `0 (2 of 3)`: its number, and how many are held.
fn permit(lock: &LockInfo, locks: &[LockInfo], limits: &Limits) -> String {
    let Some(slot) = lock.slot else {
        return "-".to_owned();
    };
    let all = || permits_of(&lock.name, locks);
    let held = all().filter(|it| it.is_held()).count();
    let callers = all().filter_map(|it| it.permits).max();
    let text = format!("{slot} {}", counts(held, limits.of(lock), callers));
    text.trim_end().to_owned()
}

/// How many permits are held of how many: by the operator's limit, or else by that of the callers.
fn counts(held: usize, operators: Option<u32>, callers: Option<u32>) -> String {
    match (operators, callers) {
        (Some(0), _) => format!("({held} held, paused)"),
        (Some(limit), _) => format!("({held} of limit {limit})"),
        (None, Some(permits)) => format!("({held} of {permits})"),
        (None, None) => String::new(),
    }
}

/// A semaphore: how many permits are held of how many, and by whom.
pub(crate) fn semaphore_details(semaphore: &Semaphore) -> String {
    let held = semaphore.held();
    let permits = match (semaphore.limit, semaphore.effective_limit()) {
        (Some(0), _) => format!("{held} held, paused by an operator (limit 0)"),
        (Some(limit), _) => format!("{held} of {limit} held (limit of an operator)"),
        (None, Some(limit)) => format!("{held} of {limit} held"),
        (None, None) => format!("{held} held"),
    };
    let name = on_one_line(semaphore.name.as_str());
    let head = [["name".to_owned(), name], ["permits".to_owned(), permits]];
    let slot = |_, permit: &LockInfo| permit.slot.map_or("-".to_owned(), |slot| slot.to_string());
    aligned(&head, None, None) + &holders_table("SLOT", &semaphore.permits, slot)
}

/// Who shares a lock, a line for each; nothing if no one does.
pub(crate) fn shared_details(shared: &[LockInfo]) -> String {
    holders_table("SHARED BY", shared, |n, _| (n + 1).to_string())
}

/// A line for each holder; the first column has what tells them apart. Nothing if there is none.
fn holders_table(
    title: &str,
    holders: &[LockInfo],
    number: impl Fn(usize, &LockInfo) -> String,
) -> String {
    if holders.is_empty() {
        return String::new();
    }
    let mut lines = vec![COLUMNS.map(str::to_owned).to_vec()];
    lines[0][0] = title.to_owned();
    for (n, holder) in holders.iter().enumerate() {
        let mut line = cells(holder);
        line[0] = number(n, holder);
        lines.push(line);
    }
    aligned(&lines, None, None)
}

/// The state of a lock, of one that is shared, or of one whose holder waits for shared ones.
fn state(lock: &LockInfo) -> &'static str {
    match lock.waits_for {
        Some(_) => "waiting",
        None if lock.is_shared() && lock.is_held() => "shared",
        None => lock.state.as_str(),
    }
}

/// What it is for, and how many shared holders it waits for.
fn purpose(lock: &LockInfo) -> String {
    let purpose = lock.description();
    let waits = match lock.waits_for {
        None => return purpose,
        Some(1) => "waiting for 1 reader".to_owned(),
        Some(readers) => format!("waiting for {readers} readers"),
    };
    match purpose.is_empty() {
        true => waits,
        false => format!("{waits}; {purpose}"),
    }
}

fn cells(lock: &LockInfo) -> Vec<String> {
    let cells = [
        quoted(lock.name.as_str()),
        state(lock).to_owned(),
        lock.holder.clone().unwrap_or_default(),
        lock.token.to_string(),
        lock.acquired_at.and_then(time).unwrap_or_default(),
        lock.held_for.map(human).unwrap_or_default(),
        free_in(lock),
        purpose(lock),
    ];
    let cells = cells.map(|cell| match cell.is_empty() {
        true => "-".to_owned(),
        false => on_one_line(&cell),
    });
    cells.to_vec()
}

/// Everything about one lock, a line for each field.
pub(crate) fn lock_details(lock: &LockInfo) -> String {
    let free = lock.state == LockState::Free;
    let released = free || matches!(lock.state, LockState::Resting { .. });
    let label = |held, when_released| if released { when_released } else { held };
    let mut fields = vec![
        ("name", Some(quoted(lock.name.as_str()))),
        ("state", Some(state(lock).to_owned())),
        (
            "waits for",
            lock.waits_for.map(|readers| match readers {
                1 => "1 shared holder".to_owned(),
                _ => format!("{readers} shared holders"),
            }),
        ),
        (label("holder", "last holder"), lock.holder.clone()),
        ("token", Some(lock.token.to_string())),
        ("grant", lock.grant.clone()),
        (
            label("acquired", "last acquired"),
            lock.acquired_at.and_then(time),
        ),
        ("held for", lock.held_for.map(human)),
        (label("renewed", "released"), lock.renewed_at.and_then(time)),
        (
            if released { "rests until" } else { "expires" },
            lock.expires_at.and_then(time),
        ),
        ("free in", Some(free_in(lock)).filter(|_| !free)),
    ];
    let metadata = lock.parsed_metadata();
    match &metadata {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::Object(own) if key == "meta" => fields.extend(
                        own.iter()
                            .map(|(key, value)| (&**key, Some(json_value(value)))),
                    ),
                    value => fields.push((key, Some(json_value(value)))),
                }
            }
        }
        other => fields.push(("metadata", Some(json_value(other)))),
    }
    let lines: Vec<[String; 2]> = fields
        .into_iter()
        .filter_map(|(label, text)| Some((label, text.filter(|text| !text.is_empty())?)))
        .map(|(label, text)| [on_one_line(label), on_one_line(&text)])
        .collect();
    aligned(&lines, None, None)
}

/// The checks, then the findings. A finding that counts has a second line, which says how to fix
/// it.
pub(crate) fn report_lines(report: &Report, ignored: &[Finding]) -> String {
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
        let severity = found.severity.to_string();
        lines.push(line([&severity, found.id, &found.message]));
        lines.push(line(["fix", found.id, &found.fix]));
    }
    aligned(&lines, None, None)
}

fn colour(state: LockState) -> &'static str {
    match state {
        // Without end: it is free only when it is released.
        LockState::Held { free_in: None } => BOLD,
        LockState::Held { .. } => GREEN,
        LockState::Expired { .. } | LockState::Resting { .. } => YELLOW,
        _ => DIM,
    }
}

/// The name, in quotes if it begins or ends with a space.
fn quoted(name: &str) -> String {
    match name.trim() == name {
        true => name.to_owned(),
        false => format!("'{name}'"),
    }
}
