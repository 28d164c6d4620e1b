//! The checker: finds violations in the histories, the counters and the rows of a run.
//!
//! It does not depend on how a lock works: it knows when processes trusted their locks, what they
//! wrote, and in which order the database committed the writes.

use std::collections::{BTreeMap, HashMap, HashSet};

mod evidence;
mod grants;
mod numbers;
#[cfg(test)]
mod tests;
mod violation;
mod waiters;

use waiters::waiters;

pub use evidence::{Evidence, Outage, Row};
pub use grants::{End, Grant, Write, grants, writes};
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
        two_holders(lock, &of_lock, &mut found);
        handed_out_lost(lock, &of_lock, &mut found);
        tokens(lock, &of_lock, &mut found);
        waiters(lock, &of_lock, evidence, &mut found);
    }
    stale_writes(evidence, &grants, &writes, &mut found);
    increments(evidence, &writes, &mut found);
    found.sort_by_key(|violation| violation.at);
    found
}

fn two_holders(lock: &str, grants: &[&Grant], found: &mut Vec<Violation>) {
    let mut bodies: Vec<(u64, u64, &Grant)> = grants
        .iter()
        .filter_map(|grant| grant.body().map(|(from, until)| (from, until, *grant)))
        .collect();
    bodies.sort_by_key(|(from, ..)| *from);
    let mut last: Option<(u64, &Grant)> = None;
    for (from, until, grant) in bodies {
        if let Some((end, other)) = last.filter(|(end, _)| from < *end) {
            found.push(Violation {
                kind: Kind::TwoHolders,
                lock: lock.to_owned(),
                at: from,
                text: format!(
                    "{} (token {}) and {} (token {}) for {} ms",
                    other.process,
                    other.token,
                    grant.process,
                    grant.token,
                    (end.min(until) - from) / 1000
                ),
            });
        }
        if last.is_none_or(|(end, _)| until > end) {
            last = Some((until, grant));
        }
    }
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
        if let Some(other) = seen.insert(grant.token, grant) {
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
        let newer = grants
            .iter()
            .find(|other| other.token > grant.token && other.granted < grant.last_check);
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
    let mut greatest: HashMap<&str, i64> = HashMap::new();
    for row in rows.into_iter().filter(|row| row.token != 0) {
        let write = writes.get(&row.id);
        let at = write.and_then(|w| w.committing).unwrap_or_default();
        let mut why = None;
        let before = greatest.entry(&row.lock).or_default();
        if row.token < *before {
            why = Some(format!(
                "a write with token {before} was committed before it"
            ));
        }
        *before = (*before).max(row.token);
        let newer = |grant: &&Grant| {
            grant.lock == row.lock && grant.token > row.token && grant.granted < at
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

fn increments(evidence: &Evidence, writes: &BTreeMap<String, Write>, found: &mut Vec<Violation>) {
    for (lock, counter) in &evidence.counters {
        let rows = evidence.rows.iter().filter(|row| row.lock == *lock).count() as i64;
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
