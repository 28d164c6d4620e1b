//! The checker: finds violations in the histories, the counters and the rows of a run.
//!
//! It does not depend on how a lock works: it knows when processes trusted their locks, what they
//! wrote, and in which order the database committed the writes.

use std::collections::{BTreeMap, HashMap, HashSet};

mod evidence;
mod grants;
mod guarded;
mod holders;
mod limits;
mod numbers;
#[cfg(test)]
mod story;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_guarded;
#[cfg(test)]
mod tests_of_kinds;
mod violation;
mod waiters;

use crate::target::Mode;
use guarded::guarded_table;
use holders::{permits, two_holders};
use waiters::waiters;

pub use evidence::{Evidence, GuardedRow, LimitChange, Outage, Row};
pub use grants::{End, Grant, Write, grants, writes};
pub use guarded::{GuardedNumbers, GuardedWrite, guarded_writes};
pub use numbers::{Numbers, grants_per_process, numbers};
pub use violation::{KINDS, Kind, Violation};
pub use waiters::PATIENCE;

/// Finds all violations.
pub fn check(evidence: &Evidence) -> Vec<Violation> {
    let grants = grants(&evidence.events);
    let writes = writes(&evidence.events, &grants);
    let mut found = Vec::new();
    let locks: HashSet<&str> = grants.iter().map(|grant| grant.lock.as_str()).collect();
    for lock in locks {
        let of_lock: Vec<&Grant> = grants.iter().filter(|grant| grant.lock == lock).collect();
        permits(lock, &of_lock, evidence, &mut found);
        handed_out_lost(lock, &of_lock, &mut found);
        waiters(lock, &of_lock, evidence, &mut found);
    }
    let resources: HashSet<String> = grants.iter().map(Grant::resource).collect();
    for resource in resources {
        let same = |grant: &&Grant| grant.resource() == resource && !grant.is_without_slot();
        let of_resource: Vec<&Grant> = grants.iter().filter(same).collect();
        two_holders(&resource, &of_resource, &mut found);
        tokens(&resource, &of_resource, &mut found);
    }
    stale_writes(evidence, &grants, &writes, &mut found);
    increments(evidence, &grants, &writes, &mut found);
    guarded_table(evidence, &grants, &mut found);
    found.sort_by_key(|violation| (violation.at, violation.kind));
    found
}

fn handed_out_lost(lock: &str, grants: &[&Grant], found: &mut Vec<Violation>) {
    for grant in grants.iter().filter(|grant| grant.is_handed_out_lost()) {
        let late = grant.granted - grant.ended.unwrap_or(grant.granted);
        found.push(Violation {
            kind: Kind::HandedOutLost,
            lock: lock.to_owned(),
            at: grant.granted,
            text: format!(
                "{} (token {}), {} ms after the end of trust",
                grant.process,
                grant.token,
                late / 1000
            ),
        });
    }
}

/// The tokens of one resource. Readers that were in together share theirs.
fn tokens(lock: &str, grants: &[&Grant], found: &mut Vec<Violation>) {
    let mut report = |at, text| {
        found.push(Violation {
            kind: Kind::Token,
            lock: lock.to_owned(),
            at,
            text,
        });
    };
    let mut seen: HashMap<i64, &Grant> = HashMap::new();
    for grant in grants.iter().filter(|grant| grant.token != 0) {
        if let Some(other) = seen
            .insert(grant.token, grant)
            .filter(|other| other.conflicts(grant))
        {
            let text = format!(
                "{} of {} again for {}",
                grant.token, other.process, grant.process
            );
            report(grant.granted, text);
        }
        // Only grants that were known before this one was requested.
        let greatest = grants
            .iter()
            .filter(|other| other.granted < grant.asked)
            .max_by_key(|other| other.token);
        if let Some(other) = greatest.filter(|other| other.token > grant.token) {
            let (a, b) = (grant.token, other.token);
            report(
                grant.granted,
                format!("{a} for {} after {b} of {}", grant.process, other.process),
            );
        }
        // A writer that gave up leaves later readers a greater token than earlier ones, which are
        // in as well.
        let newer = grants.iter().find(|other| {
            other.token > grant.token && other.granted < grant.last_check && other.conflicts(grant)
        });
        if let Some(other) = newer {
            let (a, b) = (grant.token, other.token);
            report(
                grant.last_check,
                format!(
                    "{} trusts {a} although {} has {b}",
                    grant.process, other.process
                ),
            );
        }
    }
}

fn stale_writes(
    evidence: &Evidence,
    grants: &[Grant],
    writes: &BTreeMap<String, Write>,
    found: &mut Vec<Violation>,
) {
    let mut rows: Vec<&Row> = evidence.rows.iter().collect();
    rows.sort_by_key(|row| (&row.lock, row.place));
    let exclusive = |write: &Write| grants[write.grant].mode != Mode::Shared;
    // The greatest tokens of writers, and of all.
    let mut greatest: HashMap<&str, (i64, i64)> = HashMap::new();
    for row in rows.into_iter().filter(|row| row.token != 0) {
        let write = writes.get(&row.id);
        let alone = write.is_none_or(exclusive);
        let at = write.and_then(|w| w.committing).unwrap_or_default();
        let mut why = None;
        let (writers, all) = greatest.entry(&row.lock).or_default();
        let before = if alone { *all } else { *writers };
        if row.token < before {
            why = Some(format!(
                "a write with token {before} was committed before it"
            ));
        }
        *all = row.token.max(*all);
        if alone {
            *writers = row.token.max(*writers);
        }
        let newer = |grant: &&Grant| {
            grant.token > row.token
                && grant.granted < at
                && grant.resource() == row.lock
                && (alone || grant.mode != Mode::Shared)
        };
        if let Some(newer) = grants.iter().find(newer) {
            why.get_or_insert(format!(
                "{} had been granted {}",
                newer.process, newer.token
            ));
        }
        if let Some(why) = why {
            found.push(Violation {
                kind: Kind::StaleWrite,
                lock: row.lock.clone(),
                at,
                text: format!("{} with token {}: {why}", row.id, row.token),
            });
        }
    }
}

fn increments(
    evidence: &Evidence,
    grants: &[Grant],
    writes: &BTreeMap<String, Write>,
    found: &mut Vec<Violation>,
) {
    // Readers record that they were there, and change nothing.
    let increments = |row: &&Row| {
        let write = writes.get(&row.id);
        write.is_none_or(|write| grants[write.grant].mode != Mode::Shared)
    };
    for (lock, counter) in &evidence.counters {
        let of_lock = evidence.rows.iter().filter(|row| row.lock == *lock);
        let rows = of_lock.filter(increments).count() as i64;
        for number in 0..(rows - counter).max(0) {
            let text = format!("{} of {rows}: the counter is {counter}", number + 1);
            found.push(Violation {
                kind: Kind::LostIncrement,
                lock: lock.clone(),
                at: 0,
                text,
            });
        }
    }
    let there: HashSet<&str> = evidence.rows.iter().map(|row| row.id.as_str()).collect();
    for (id, write) in writes {
        if let Some((at, End::Committed)) = write.end
            && !there.contains(id.as_str())
        {
            found.push(Violation {
                kind: Kind::LostIncrement,
                lock: String::new(),
                at,
                text: format!("{id} was confirmed and is not there"),
            });
        }
    }
}
