//! JSON: times in RFC 3339 UTC, durations in seconds, null for a value that does not apply.

use database_locks::doctor::Report;
use database_locks::{LockInfo, Semaphore, TableGuard, Ticket};
use serde_json::{Value, json};

/// One array, a line for each lock.
pub(crate) fn locks_json(locks: &[LockInfo]) -> String {
    let objects: Vec<String> = locks.iter().map(LockInfo::to_json).collect();
    match objects.is_empty() {
        true => "[]\n".to_owned(),
        false => format!("[\n{}\n]\n", objects.join(",\n")),
    }
}

/// The lock; with a key `semaphore`, if there is one of this name. Without a lock, the semaphore
/// alone.
pub(crate) fn lock_json(lock: Option<&LockInfo>, semaphore: Option<&Semaphore>) -> String {
    let text = match (lock, semaphore) {
        (Some(lock), None) => lock.to_json(),
        (Some(lock), Some(semaphore)) => {
            let lock = lock.to_json();
            let lock = lock.strip_suffix('}').unwrap_or(&lock);
            format!("{lock},\"semaphore\":{}}}", semaphore.to_json())
        }
        (None, semaphore) => semaphore.map(Semaphore::to_json).unwrap_or_default(),
    };
    format!("{text}\n")
}

/// One array, a line for each guarded table.
pub(crate) fn guards_json(guards: &[TableGuard]) -> String {
    let objects: Vec<String> = guards
        .iter()
        .map(|guard| {
            let fields = [
                ("table", json!(guard.table)),
                ("lock", json!(guard.lock.as_str())),
                ("intact", json!(guard.gaps.is_empty())),
                ("gaps", json!(guard.gaps)),
                ("bypasses", json!(guard.bypasses)),
            ];
            let fields = fields.map(|(name, value)| format!("{}:{value}", json!(name)));
            format!("{{{}}}", fields.join(","))
        })
        .collect();
    match objects.is_empty() {
        true => "[]\n".to_owned(),
        false => format!("[\n{}\n]\n", objects.join(",\n")),
    }
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
    let fields = [
        ("ticket", json!(text)),
        ("name", json!(ticket.name().as_str())),
        ("token", json!(ticket.token().get())),
        ("grant", json!(text.split('.').nth(1))),
        ("holder", json!(holder)),
        ("expires_at", lock["expires_at"].clone()),
        ("free_in", lock["free_in"].clone()),
    ];
    // Written by hand, since the maps of serde_json sort their keys.
    let fields = fields.map(|(name, value)| format!("{}:{value}", json!(name)));
    format!("{{{}}}\n", fields.join(","))
}
