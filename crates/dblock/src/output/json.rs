//! For programs: times in RFC 3339 UTC, lengths in seconds, null for none or no end.

use std::io;
use std::time::{Duration, SystemTime};

use database_locks::doctor::Report;
use database_locks::{LockInfo, LockState, Ticket};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::stream::{checked, print};
use crate::exit::Failure;

/// One array, one line a lock.
pub(crate) fn rows_as_json(infos: &[LockInfo]) -> Result<(), Failure> {
    let objects: Vec<String> = infos.iter().map(LockInfo::to_json).collect();
    print(&match objects.is_empty() {
        true => "[]\n".to_owned(),
        false => format!("[\n{}\n]\n", objects.join(",\n")),
    })
}

/// One object.
pub(crate) fn row_as_json(info: &LockInfo) -> Result<(), Failure> {
    print(&format!("{}\n", info.to_json()))
}

/// One object, one line a check or finding.
pub(crate) fn report_as_json(report: &Report) -> Result<(), Failure> {
    print(&format!("{}\n", report.to_json()))
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

fn seconds(length: Duration) -> f64 {
    length.as_millis() as f64 / 1000.0
}

fn precise_time(at: SystemTime) -> Option<String> {
    Some(format!("{:.3}", Timestamp::try_from(at).ok()?))
}
