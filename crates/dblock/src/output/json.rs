//! JSON: times in RFC 3339 UTC, durations in seconds, null for a value that does not apply.

use database_locks::__listing::limit_to_json;
use database_locks::doctor::Report;
use database_locks::{LockInfo, Semaphore, TableGuard, Ticket};
use serde_json::{Value, json};

use super::limits::Limits;

/// One array, a line for each lock and permit, and those of semaphores that [`Limits::own_lines`]
/// has. Permits and semaphores have the key `limit`.
pub(crate) fn locks_json(locks: &[LockInfo], limits: &Limits, all: bool) -> String {
    let of_lock = |lock: &LockInfo| match lock.slot {
        None => lock.to_json(),
        Some(_) => with(
            &lock.to_json(),
            "limit",
            &json!(limits.of(lock)).to_string(),
        ),
    };
    let mut objects: Vec<String> = locks.iter().map(of_lock).collect();
    let own_lines = limits.own_lines(locks, all);
    objects.extend(own_lines.map(|(name, limit)| limit_to_json(name, limit)));
    array(&objects)
}

/// The lock; with a key `shared_by`, if holders share it, and a key `semaphore`, if there is one of
/// this name. Without a lock, the semaphore alone.
pub(crate) fn lock_json(
    lock: Option<&LockInfo>,
    semaphore: Option<&Semaphore>,
    shared: &[LockInfo],
) -> String {
    let lock = lock.map(|lock| match shared {
        [] => lock.to_json(),
        shared => {
            let rows: Vec<String> = shared.iter().map(LockInfo::to_json).collect();
            with(
                &lock.to_json(),
                "shared_by",
                &format!("[{}]", rows.join(",")),
            )
        }
    });
    let text = match (lock, semaphore) {
        (Some(lock), None) => lock,
        (Some(lock), Some(semaphore)) => with(&lock, "semaphore", &semaphore.to_json()),
        (None, semaphore) => semaphore.map(Semaphore::to_json).unwrap_or_default(),
    };
    format!("{text}\n")
}

/// The object with one more field.
fn with(object: &str, field: &str, value: &str) -> String {
    let object = object.strip_suffix('}').unwrap_or(object);
    format!("{object},\"{field}\":{value}}}")
}

/// One array, a line for each guarded table.
pub(crate) fn guards_json(guards: &[TableGuard]) -> String {
    let of_guard = |guard: &TableGuard| {
        object([
            ("table", json!(guard.table)),
            ("lock", json!(guard.lock.as_str())),
            ("intact", json!(guard.gaps.is_empty())),
            ("gaps", json!(guard.gaps)),
            ("bypasses", json!(guard.bypasses)),
        ])
    };
    array(&guards.iter().map(of_guard).collect::<Vec<_>>())
}

pub(crate) fn report_json(report: &Report) -> String {
    format!("{}\n", report.to_json())
}

/// The ticket and its grant. `lock` is the row, if it could be read.
pub(crate) fn ticket_json(ticket: &Ticket, holder: &str, lock: Option<&LockInfo>) -> String {
    let text = ticket.to_string();
    let lock: Value = lock
        .and_then(|lock| serde_json::from_str(&lock.to_json()).ok())
        .unwrap_or_default();
    let ticket = object([
        ("ticket", json!(text)),
        ("name", json!(ticket.name().as_str())),
        ("token", json!(ticket.token().get())),
        ("grant", json!(text.split('.').nth(1))),
        ("holder", json!(holder)),
        ("expires_at", lock["expires_at"].clone()),
        ("free_in", lock["free_in"].clone()),
    ]);
    format!("{ticket}\n")
}

/// Written by hand, since the maps of serde_json sort their keys.
fn object<const N: usize>(fields: [(&str, Value); N]) -> String {
    let fields = fields.map(|(name, value)| format!("{}:{value}", json!(name)));
    format!("{{{}}}", fields.join(","))
}

/// A line for each object.
fn array(objects: &[String]) -> String {
    match objects {
        [] => "[]\n".to_owned(),
        _ => format!("[\n{}\n]\n", objects.join(",\n")),
    }
}
