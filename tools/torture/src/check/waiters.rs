//! Finds waiters that were forgotten: a lock was free, and they waited on.

use std::collections::HashMap;

use crate::check::evidence::{Evidence, Outage};
use crate::check::grants::Grant;
use crate::check::violation::{Kind, Violation};
use crate::history::What;

/// How long a lock may be free while a process waits for it that no fault delays: many times the
/// longest poll interval, because the machine is busy.
pub const PATIENCE: u64 = 6_000_000;

/// How long a process may take to recover from an outage: it reconnects at most once a second.
const RECOVERY: u64 = 4_000_000;

/// A span of time, in microseconds.
type Span = (u64, u64);

/// A request by a process, and the time for which it waited.
struct Wait<'a> {
    process: &'a str,
    from: u64,
    until: u64,
}

/// Adds a violation for each time that a process waited too long for a free lock.
pub(super) fn waiters(
    lock: &str,
    grants: &[&Grant],
    evidence: &Evidence,
    found: &mut Vec<Violation>,
) {
    let mut held: Vec<Span> = grants
        .iter()
        .map(|grant| (grant.asked, end_of(grant, evidence)))
        .collect();
    for wait in waits(lock, evidence, &mut held) {
        let mut accounted = held.clone();
        let outages = evidence
            .outages
            .iter()
            .filter(|outage| outage.concerns(wait.process));
        accounted.extend(outages.map(|outage| (outage.from, outage.until + RECOVERY)));
        // Its own request is no reason to wait.
        accounted.retain(|(begin, _)| *begin != wait.from);
        accounted.sort_unstable();
        accounted.push((wait.until, wait.until));
        let mut at = wait.from;
        for (begin, end) in accounted {
            let begin = begin.min(wait.until);
            if begin > at && begin - at > PATIENCE {
                let ms = (begin - at) / 1000;
                found.push(Violation {
                    kind: Kind::ForgottenWaiter,
                    lock: lock.to_owned(),
                    at,
                    text: format!("{} waited {ms} ms for a free lock", wait.process),
                });
            }
            at = at.max(end);
        }
    }
}

/// The latest moment at which a grant may have held its lock.
fn end_of(grant: &Grant, evidence: &Evidence) -> u64 {
    grant.released.unwrap_or_else(|| {
        // Without a release it lasts until its lease ends, which a frozen holder renews once more
        // when it goes on.
        let ttl = evidence.ttl;
        let thawed = evidence.outages.iter().filter(|outage| {
            outage.process.as_ref() == Some(&grant.process)
                && outage.until > grant.granted
                && outage.from < grant.trusted_until.max(grant.granted) + ttl
        });
        let known = [Some(grant.trusted_until), Some(grant.granted), grant.lost];
        let known = known.into_iter().flatten().max().unwrap_or_default();
        thawed.map(|outage| outage.until).fold(known, u64::max) + ttl
    })
}

/// The waits for a lock. A request that ended without an answer, or that was given up, may have
/// been granted: `held` gets the length of a lease from its end on.
fn waits<'a>(lock: &str, evidence: &'a Evidence, held: &mut Vec<Span>) -> Vec<Wait<'a>> {
    let ttl = evidence.ttl;
    let mut open: HashMap<(&str, u64), u64> = HashMap::new();
    let mut waits = Vec::new();
    for event in &evidence.events {
        let process = event.process.as_str();
        match &event.what {
            What::Asked {
                request, lock: of, ..
            } if of == lock => {
                open.insert((process, *request), event.at);
            }
            What::Granted { request, .. } | What::GaveUp { request, .. } => {
                if let Some(from) = open.remove(&(process, *request)) {
                    let until = event.at;
                    waits.push(Wait {
                        process,
                        from,
                        until,
                    });
                    if matches!(event.what, What::GaveUp { .. }) {
                        held.push((until, until + ttl));
                    }
                }
            }
            _ => {}
        }
    }
    let ended = evidence.events.last().map_or(0, |event| event.at);
    for ((process, _), from) in open {
        let mine = |outage: &&Outage| outage.killed && outage.process.as_deref() == Some(process);
        let killed = evidence.outages.iter().find(mine).map(|outage| outage.from);
        let until = killed.unwrap_or(ended);
        waits.push(Wait {
            process,
            from,
            until,
        });
        held.push((until, until + ttl));
    }
    waits
}
