//! Finds waiters that were forgotten: a lock or a permit was free, and they waited on.

use std::collections::HashMap;

use crate::check::evidence::{Evidence, Outage};
use crate::check::grants::Grant;
use crate::check::limits::Limits;
use crate::check::violation::{Kind, Violation};
use crate::history::{Event, What};
use crate::target::Mode;

/// How long a lock may be free while a process waits for it that no fault delays: many times the
/// longest poll interval, because the machine is busy.
pub const PATIENCE: u64 = 6_000_000;

/// How long a process may take to recover from an outage: it reconnects at most once a second.
const RECOVERY: u64 = 4_000_000;

/// A time in which a request may have held the lock.
struct Held {
    mode: Mode,
    /// When it was requested.
    from: u64,
    until: u64,
}

/// A request by a process, and the time for which it waited.
struct Wait<'a> {
    process: &'a str,
    mode: Mode,
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
    let mut held: Vec<Held> = grants
        .iter()
        .map(|grant| Held {
            mode: grant.mode,
            from: grant.asked,
            until: end_of(grant, evidence),
        })
        .collect();
    let limits = Limits::of(lock, evidence);
    for wait in waits(lock, evidence, &mut held) {
        for (from, until) in unaccounted(&wait, &held, &limits, evidence) {
            found.push(Violation {
                kind: Kind::ForgottenWaiter,
                lock: lock.to_owned(),
                at: from,
                text: format!(
                    "{} waited {} ms for a free lock",
                    wait.process,
                    (until - from) / 1000
                ),
            });
        }
    }
}

/// The stretches of a wait, longer than [`PATIENCE`], in which neither holders nor an outage were
/// a reason to wait.
fn unaccounted(
    wait: &Wait<'_>,
    held: &[Held],
    limits: &Limits<'_>,
    evidence: &Evidence,
) -> Vec<(u64, u64)> {
    let meets = |from: u64, until: u64| from < wait.until && until > wait.from;
    let outages: Vec<(u64, u64)> = evidence
        .outages
        .iter()
        .filter(|outage| outage.concerns(wait.process))
        .map(|outage| (outage.from, outage.until + RECOVERY))
        .filter(|(from, until)| meets(*from, *until))
        .collect();
    let held: Vec<&Held> = held
        .iter()
        // Its own request is no reason to wait.
        .filter(|one| one.from != wait.from && one.mode.conflicts(wait.mode))
        .filter(|one| meets(one.from, one.until))
        .collect();
    let mut bounds: Vec<u64> = held.iter().flat_map(|one| [one.from, one.until]).collect();
    bounds.extend(outages.iter().flat_map(|(from, until)| [*from, *until]));
    bounds.extend(limits.bounds());
    bounds.retain(|at| (wait.from..wait.until).contains(at));
    bounds.extend([wait.from, wait.until]);
    bounds.sort_unstable();
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    for pair in bounds.windows(2) {
        let (from, until) = (pair[0], pair[1]);
        let room = match wait.mode {
            Mode::Permit(limit) => limits.least(limit, from, until),
            Mode::Exclusive | Mode::Shared => 1,
        };
        let within = |a: u64, b: u64| a <= from && b >= until;
        let inside = held.iter().filter(|one| within(one.from, one.until));
        let delayed = outages.iter().any(|(a, b)| within(*a, *b));
        if from == until || delayed || inside.count() >= room as usize {
            continue;
        }
        match stretches.last_mut().filter(|last| last.1 == from) {
            Some(last) => last.1 = until,
            None => stretches.push((from, until)),
        }
    }
    stretches.retain(|(from, until)| until - from > PATIENCE);
    stretches
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
/// been granted: `held` gets the length of a lease from its end on. A writer keeps new readers out
/// while it waits for those that are in, so its whole request counts.
fn waits<'a>(lock: &str, evidence: &'a Evidence, held: &mut Vec<Held>) -> Vec<Wait<'a>> {
    let mut open: HashMap<(&str, u64), (u64, Mode)> = HashMap::new();
    let mut waits = Vec::new();
    let asks_to_share = |event: &Event| matches!(&event.what, What::Asked { lock: of, mode: Mode::Shared, .. } if of == lock);
    let shared = evidence.events.iter().any(asks_to_share);
    let mut given_up = |wait: &Wait<'_>| {
        let writer = shared && wait.mode == Mode::Exclusive;
        held.push(Held {
            mode: wait.mode,
            from: if writer { wait.from } else { wait.until },
            until: wait.until + evidence.ttl,
        });
    };
    for event in &evidence.events {
        let process = event.process.as_str();
        match &event.what {
            What::Asked {
                request,
                lock: of,
                mode,
                ..
            } if of == lock => {
                open.insert((process, *request), (event.at, *mode));
            }
            What::Granted { request, .. } | What::GaveUp { request, .. } => {
                if let Some((from, mode)) = open.remove(&(process, *request)) {
                    let wait = Wait {
                        process,
                        mode,
                        from,
                        until: event.at,
                    };
                    if matches!(event.what, What::GaveUp { .. }) {
                        given_up(&wait);
                    }
                    waits.push(wait);
                }
            }
            _ => {}
        }
    }
    let ended = evidence.events.last().map_or(0, |event| event.at);
    for ((process, _), (from, mode)) in open {
        let mine = |outage: &&Outage| outage.killed && outage.process.as_deref() == Some(process);
        let killed = evidence.outages.iter().find(mine).map(|outage| outage.from);
        let wait = Wait {
            process,
            mode,
            from,
            until: killed.unwrap_or(ended),
        };
        given_up(&wait);
        waits.push(wait);
    }
    waits
}
