//! Finds writes that the guard of a table let pass and must not have.
//!
//! Two facts do not depend on the guard: when a later grant was known and when a COMMIT was sent,
//! by the clock of the histories; and how many writes of earlier grants a write saw, which must be
//! all that there are in the end.

use std::collections::BTreeMap;

use crate::check::evidence::{Evidence, GuardedRow};
use crate::check::grants::{End, Grant, places};
use crate::check::violation::{Kind, Violation};
use crate::history::{Event, Shown, What};

/// A write to the guarded table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedWrite {
    /// What it showed.
    pub shown: Shown,
    /// The place of the grant whose ticket it showed among the grants.
    pub grant: Option<usize>,
    /// When it began.
    pub begun: u64,
    /// When its COMMIT was about to be sent.
    pub committing: Option<u64>,
    /// When and how it ended.
    pub end: Option<(u64, End)>,
}

/// What became of the writes to the guarded table, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardedNumbers {
    /// Writes in the database.
    pub committed: usize,
    /// Writes that were refused when another client was known to have the lock.
    pub late: usize,
    /// Writes that were refused while their process trusted its lock.
    pub holders: usize,
    /// Refused writes that showed an outdated ticket.
    pub outdated: usize,
    /// Refused writes that showed no ticket.
    pub bare: usize,
    /// Writes that failed for another reason, before their COMMIT or in it, or ended with their
    /// process.
    pub failed: usize,
}

/// The writes of a history to the guarded table by their ids.
pub fn guarded_writes(events: &[Event], grants: &[Grant]) -> BTreeMap<String, GuardedWrite> {
    let places = places(events, grants);
    let mut writes: BTreeMap<String, GuardedWrite> = BTreeMap::new();
    for event in events {
        if let What::Guarded { request, id, shown } = &event.what {
            let grant = places.get(&(event.process.as_str(), *request));
            let write = GuardedWrite {
                shown: *shown,
                grant: grant.copied().filter(|_| *shown != Shown::Nothing),
                begun: event.at,
                committing: None,
                end: None,
            };
            writes.insert(id.clone(), write);
        }
        let (id, end) = match &event.what {
            What::Committing { id } => (id, None),
            What::Committed { id } => (id, Some(End::Committed)),
            What::Refused { id, .. } => (id, Some(End::Refused)),
            What::Failed { id, .. } => (id, Some(End::Failed)),
            _ => continue,
        };
        let Some(write) = writes.get_mut(id) else {
            continue;
        };
        match end {
            None => write.committing = Some(event.at),
            Some(end) => write.end = Some((event.at, end)),
        }
    }
    writes
}

/// A write under a grant that was known when the write began.
struct Held<'a> {
    row: &'a GuardedRow,
    write: &'a GuardedWrite,
    grant: &'a Grant,
}

/// Adds a violation for each write that the guard must not have let pass, and for each that was
/// confirmed and is not there.
pub(super) fn guarded_table(evidence: &Evidence, grants: &[Grant], found: &mut Vec<Violation>) {
    let writes = guarded_writes(&evidence.events, grants);
    let mut held: Vec<Held<'_>> = Vec::new();
    for row in &evidence.guarded {
        let write = writes.get(&row.id);
        let shown = write.filter(|write| write.shown == Shown::Held);
        let grant = shown.and_then(|write| grants.get(write.grant?));
        match (shown, grant.filter(|grant| grant.token == row.token)) {
            (Some(write), Some(grant)) => held.push(Held { row, write, grant }),
            _ => found.push(unheld(row, write, grants)),
        }
    }
    late(&held, grants, found);
    unseen(&mut held, found);
    for (id, write) in &writes {
        let Some((at, End::Committed)) = write.end else {
            continue;
        };
        if evidence.guarded.iter().all(|row| row.id != *id) {
            let text = format!("{id} to the guarded table was confirmed and is not there");
            found.push(violation(Kind::LostIncrement, "", at, text));
        }
    }
}

fn violation(kind: Kind, lock: &str, at: u64, text: String) -> Violation {
    Violation {
        kind,
        lock: lock.to_owned(),
        at,
        text,
    }
}

fn unheld(row: &GuardedRow, write: Option<&GuardedWrite>, grants: &[Grant]) -> Violation {
    let grant = write.and_then(|write| grants.get(write.grant?));
    let why = match (write.map(|write| write.shown), grant) {
        (None, _) => "is there, and no process has recorded it".to_owned(),
        (Some(Shown::Nothing), _) => "showed no ticket, and was committed".to_owned(),
        (Some(Shown::Outdated), Some(grant)) => {
            let until = grant.released.unwrap_or(grant.granted) / 1000;
            format!(
                "showed the ticket of the earlier grant {} (released or granted at {until} ms), and was committed",
                grant.token
            )
        }
        (Some(_), _) => "has the token of no grant of its process, and was committed".to_owned(),
    };
    let lock = grant.map_or("", |grant| grant.lock.as_str());
    let at = write.map_or(0, |write| write.committing.unwrap_or(write.begun));
    violation(
        Kind::UnheldGuardedWrite,
        lock,
        at,
        format!("{} {why}", row.id),
    )
}

/// Writes whose COMMIT was sent when a later grant was known.
fn late(held: &[Held<'_>], grants: &[Grant], found: &mut Vec<Violation>) {
    for Held { row, write, grant } in held {
        let Some(at) = write.committing else { continue };
        let later = |other: &&Grant| {
            other.lock == grant.lock && other.token > grant.token && other.granted < at
        };
        let Some(other) = grants.iter().find(later) else {
            continue;
        };
        let text = format!(
            "{} of {} (token {}) began {} ms before its COMMIT was sent and was committed, although {} \
             had been granted the lock {} ms before that (token {})",
            row.id,
            grant.process,
            row.token,
            (at - write.begun) / 1000,
            other.process,
            (at - other.granted) / 1000,
            other.token,
        );
        found.push(violation(Kind::LateGuardedWrite, &grant.lock, at, text));
    }
}

/// Writes of earlier grants that a write of a later one did not see: they were committed after it
/// had looked. One violation for each such later grant.
fn unseen(held: &mut [Held<'_>], found: &mut Vec<Violation>) {
    held.sort_by_key(|one| (one.row.token, one.write.committing));
    for group in held.chunk_by(|a, b| a.row.token == b.row.token) {
        let Some(first) = group.iter().min_by_key(|one| one.row.older) else {
            continue;
        };
        let token = first.row.token;
        let older = held.iter().filter(|one| one.row.token < token);
        let (there, saw) = (older.clone().count() as i64, first.row.older);
        let at = first.write.committing.unwrap_or(first.write.begun);
        let lock = &first.grant.lock;
        let who = format!("{} (token {token}) saw {saw} writes", first.row.id);
        if there > saw {
            let latest = older.max_by_key(|one| one.write.committing);
            let latest = latest.map_or(String::new(), |one| {
                format!("; the latest is {} (token {})", one.row.id, one.row.token)
            });
            let text = format!("{who} of earlier grants, and there are {there}{latest}");
            found.push(violation(Kind::LateGuardedWrite, lock, at, text));
        } else if there < saw {
            let text = format!("{who} of earlier grants, and there are {there}");
            found.push(violation(Kind::LostIncrement, lock, at, text));
        }
    }
}

/// The numbers of a run.
pub(super) fn guarded_numbers(evidence: &Evidence, grants: &[Grant]) -> GuardedNumbers {
    let mut numbers = GuardedNumbers {
        committed: evidence.guarded.len(),
        ..GuardedNumbers::default()
    };
    let there = |id: &String| evidence.guarded.iter().any(|row| row.id == *id);
    for (id, write) in &guarded_writes(&evidence.events, grants) {
        match (write.end, write.shown) {
            (Some((_, End::Committed)), _) => {}
            (Some((_, End::Refused)), Shown::Nothing) => numbers.bare += 1,
            (Some((_, End::Refused)), Shown::Outdated) => numbers.outdated += 1,
            (Some((at, End::Refused)), Shown::Held) => {
                let Some(grant) = write.grant.and_then(|place| grants.get(place)) else {
                    continue;
                };
                let later = |other: &Grant| {
                    other.lock == grant.lock && other.token > grant.token && other.granted < at
                };
                numbers.late += usize::from(grants.iter().any(later));
                let trusted = |(from, until)| from <= write.begun && at <= until;
                numbers.holders += usize::from(grant.trusted().is_some_and(trusted));
            }
            (Some((_, End::Failed)) | None, _) => numbers.failed += usize::from(!there(id)),
        }
    }
    numbers
}
