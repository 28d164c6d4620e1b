//! The checker: what must not be in the histories, the counters and the rows of a run.
//!
//! It knows nothing of how a lock works. It is told when processes trusted their locks, what they wrote,
//! and in which order the database committed it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::history::{Event, What};

#[cfg(test)]
mod tests;

/// What somebody was promised and did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two holders trusted the same lock at the same moment, or were in their bodies without being told
    /// that trust had ended.
    TwoHolders,
    /// A lock was handed out although trust had ended.
    HandedOutLost,
    /// A token that was not greater than an earlier one, or that was trusted after a greater one was
    /// granted.
    Token,
    /// A write that was committed after one, or after a grant, with a greater token.
    StaleWrite,
    /// An increment of the counter that is not in it, or a confirmed write that is not there.
    LostIncrement,
    /// Somebody waited although the lock was free.
    ForgottenWaiter,
}

/// All kinds, as they stand in tables.
pub const KINDS: [Kind; 6] = [
    Kind::TwoHolders,
    Kind::HandedOutLost,
    Kind::Token,
    Kind::StaleWrite,
    Kind::LostIncrement,
    Kind::ForgottenWaiter,
];

impl Kind {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TwoHolders => "two holders",
            Self::HandedOutLost => "handed out when lost",
            Self::Token => "token goes back",
            Self::StaleWrite => "stale write",
            Self::LostIncrement => "lost increment",
            Self::ForgottenWaiter => "forgotten waiter",
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub kind: Kind,
    /// Of which lock.
    pub lock: String,
    /// When, in microseconds.
    pub at: u64,
    /// Who, and what.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            lock,
            at,
            text,
        } = self;
        write!(f, "{}: lock {lock}, at {at}: {text}", kind.as_str())
    }
}

/// One committed write, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Under which lock.
    pub lock: String,
    /// Its place in the order of commits under that lock.
    pub place: i64,
    /// The token of the holder that wrote it; 0 where there are none.
    pub token: i64,
    /// Which write.
    pub id: String,
}

/// A time in which somebody, or everybody, could not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Whom it befell; `None`: everybody.
    pub who: Option<String>,
    /// Its beginning.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// It ended the process.
    pub killed: bool,
}

/// All that a run left behind.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// What the processes wrote down, in order of time.
    pub events: Vec<Event>,
    /// What they committed.
    pub rows: Vec<Row>,
    /// The counters at the end, each of which began at 0.
    pub counters: BTreeMap<String, i64>,
    /// What was done to them.
    pub outages: Vec<Outage>,
    /// The length of a lease, in microseconds.
    pub ttl: u64,
}

/// One grant of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose.
    pub who: String,
    /// Which lock.
    pub lock: String,
    /// Its token.
    pub token: i64,
    /// When it was asked for.
    pub asked: u64,
    /// When it was told.
    pub granted: u64,
    /// From when on it was certainly trusted; `None`: never.
    pub trusted_from: Option<u64>,
    /// Until when.
    pub trusted_until: u64,
    /// Where it was lost.
    pub lost: Option<u64>,
    /// When trust had ended then, where its holder knew.
    pub ended: Option<u64>,
    /// When it began to be released.
    pub releasing: Option<u64>,
    /// When it was released.
    pub released: Option<u64>,
    /// The latest moment at which it was asked for trust and had it.
    last_look: u64,
}

impl Grant {
    /// The time for which it was trusted without a doubt.
    pub fn trusted(&self) -> Option<(u64, u64)> {
        let ends = [Some(self.trusted_until), self.releasing, self.lost];
        let until = ends.into_iter().flatten().min()?;
        let from = self.trusted_from?;
        (from < until).then_some((from, until))
    }

    /// Whether trust had ended before it was handed out.
    fn is_handed_out_lost(&self) -> bool {
        self.ended
            .is_some_and(|ended| ended + LATENESS < self.granted)
    }

    /// The time in which its body ran and was not told to stop: while it was trusted; or, where it was
    /// handed out too late for that, until its holder looked.
    fn body(&self) -> Option<(u64, u64)> {
        if !self.is_handed_out_lost() {
            return self.trusted();
        }
        let told = [self.lost, self.releasing].into_iter().flatten().min();
        told.map(|told| (self.granted, told))
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which grant, by its place among the [`grants`].
    pub grant: usize,
    /// When it began.
    pub begun: u64,
    /// When its COMMIT was about to be sent.
    pub committing: Option<u64>,
    /// How it ended, and when.
    pub end: Option<(u64, End)>,
}

/// How a write ended, as its writer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The COMMIT was answered.
    Committed,
    /// The fence refused it.
    Refused,
    /// It failed, before or in its COMMIT.
    Failed,
}

/// What a run did, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Grants.
    pub grants: usize,
    /// Losses that holders were told of.
    pub losses: usize,
    /// Writes in the database.
    pub writes: usize,
    /// Writes that the fence refused.
    pub refused: usize,
    /// COMMITs whose outcome their writers never learned.
    pub unknown: usize,
}

/// The grants of a history, in order of time.
pub fn grants(events: &[Event]) -> Vec<Grant> {
    let mut asked: HashMap<(&str, u64), (u64, &str)> = HashMap::new();
    let mut places: HashMap<(&str, u64), usize> = HashMap::new();
    let mut grants: Vec<Grant> = Vec::new();
    for event in events {
        let who = event.who.as_str();
        match &event.what {
            What::Asked { ask, lock, .. } => {
                asked.insert((who, *ask), (event.at, lock));
            }
            What::Granted { ask, token } => {
                let Some((at, lock)) = asked.get(&(who, *ask)) else {
                    continue;
                };
                places.insert((who, *ask), grants.len());
                grants.push(Grant {
                    who: who.to_owned(),
                    lock: (*lock).to_owned(),
                    token: *token,
                    asked: *at,
                    granted: event.at,
                    trusted_from: None,
                    trusted_until: 0,
                    lost: None,
                    ended: None,
                    releasing: None,
                    released: None,
                    last_look: 0,
                });
            }
            What::Trusted { ask, .. }
            | What::Lost { ask, .. }
            | What::Releasing { ask }
            | What::Released { ask, .. } => {
                let Some(place) = places.get(&(who, *ask)) else {
                    continue;
                };
                let grant = &mut grants[*place];
                match &event.what {
                    What::Trusted {
                        before, lasting, ..
                    } => {
                        grant.trusted_from.get_or_insert(event.at);
                        grant.trusted_until = grant.trusted_until.max(before + lasting);
                        grant.last_look = *before;
                    }
                    What::Lost { ended, .. } => {
                        grant.lost = grant.lost.or(Some(event.at));
                        grant.ended = grant.ended.or(*ended);
                    }
                    What::Releasing { .. } => grant.releasing = Some(event.at),
                    What::Released { ok: true, .. } => grant.released = Some(event.at),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    grants
}

/// The writes of a history by their ids.
pub fn writes(events: &[Event], grants: &[Grant]) -> BTreeMap<String, Write> {
    let mut places: HashMap<(&str, u64), usize> = HashMap::new();
    for event in events {
        if let What::Granted { ask, .. } = &event.what {
            let same = |grant: &Grant| grant.who == event.who && grant.granted == event.at;
            if let Some(place) = grants.iter().position(same) {
                places.insert((&event.who, *ask), place);
            }
        }
    }
    let mut writes: BTreeMap<String, Write> = BTreeMap::new();
    for event in events {
        let (id, end) = match &event.what {
            What::Write { ask, id } => {
                let Some(place) = places.get(&(event.who.as_str(), *ask)) else {
                    continue;
                };
                let write = Write {
                    grant: *place,
                    begun: event.at,
                    committing: None,
                    end: None,
                };
                writes.insert(id.clone(), write);
                continue;
            }
            What::Committing { id } => {
                if let Some(write) = writes.get_mut(id) {
                    write.committing = Some(event.at);
                }
                continue;
            }
            What::Committed { id } => (id, End::Committed),
            What::Refused { id, .. } => (id, End::Refused),
            What::Failed { id, .. } => (id, End::Failed),
            _ => continue,
        };
        if let Some(write) = writes.get_mut(id) {
            write.end = Some((event.at, end));
        }
    }
    writes
}

/// What the run did.
pub fn numbers(evidence: &Evidence) -> Numbers {
    let grants = grants(&evidence.events);
    let writes = writes(&evidence.events, &grants);
    let ended = |write: &&Write, wanted| matches!(write.end, Some((_, end)) if end == wanted);
    Numbers {
        grants: grants.len(),
        losses: grants.iter().filter(|grant| grant.lost.is_some()).count(),
        writes: evidence.rows.len(),
        refused: writes.values().filter(|w| ended(w, End::Refused)).count(),
        unknown: writes
            .values()
            .filter(|w| {
                w.committing.is_some() && !ended(w, End::Committed) && !ended(w, End::Refused)
            })
            .count(),
    }
}

/// Grants of each process; a process that was started again counts as one.
pub fn shares(evidence: &Evidence) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for event in &evidence.events {
        let (name, _) = event.who.split_once('.').unwrap_or((&event.who, ""));
        let share = shares.entry(name.to_owned()).or_default();
        *share += usize::from(matches!(event.what, What::Granted { .. }));
    }
    shares
}

/// Everything that must not be, and is.
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
                    other.who,
                    other.token,
                    grant.who,
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
                grant.who,
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
            let text = format!("{} of {} again for {}", grant.token, other.who, grant.who);
            report(grant.granted, text);
        }
        // Told before this one was asked for.
        let greatest = grants
            .iter()
            .filter(|other| other.granted < grant.asked)
            .max_by_key(|other| other.token);
        if let Some(other) = greatest.filter(|other| other.token > grant.token) {
            let (a, b) = (grant.token, other.token);
            report(
                grant.granted,
                format!("{a} for {} after {b} of {}", grant.who, other.who),
            );
        }
        let newer = grants
            .iter()
            .find(|other| other.token > grant.token && other.granted < grant.last_look);
        if let Some(other) = newer {
            let (a, b) = (grant.token, other.token);
            report(
                grant.last_look,
                format!("{} trusts {a} although {} has {b}", grant.who, other.who),
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
            why.get_or_insert(format!("{} had been granted {}", newer.who, newer.token));
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

/// How much later than its last look at trust an acquire may return on a busy machine.
const LATENESS: u64 = 200_000;

/// How long a lock may be free while somebody waits for it who is in no trouble: many times the longest
/// pause between two looks, since the machine is busy.
pub const PATIENCE: u64 = 6_000_000;

/// How long somebody may take to be back after an outage: a connection is made anew, at most once a
/// second.
const RECOVERY: u64 = 4_000_000;

fn waiters(lock: &str, grants: &[&Grant], evidence: &Evidence, found: &mut Vec<Violation>) {
    let ttl = evidence.ttl;
    let mut busy: Vec<(u64, u64)> = Vec::new();
    for grant in grants {
        let end = grant.released.unwrap_or_else(|| {
            // Nobody knows better than that it ends by itself.
            let thawed = evidence.outages.iter().filter(|outage| {
                outage.who.as_ref() == Some(&grant.who)
                    && outage.until > grant.granted
                    && outage.from < grant.trusted_until.max(grant.granted) + ttl
            });
            let known = [Some(grant.trusted_until), Some(grant.granted), grant.lost];
            let known = known.into_iter().flatten().max().unwrap_or_default();
            thawed.map(|outage| outage.until).fold(known, u64::max) + ttl
        });
        busy.push((grant.asked, end));
    }
    let mut open: HashMap<(&str, u64), u64> = HashMap::new();
    let mut waits: Vec<(&str, u64, u64)> = Vec::new();
    let ended = evidence.events.last().map_or(0, |event| event.at);
    for event in &evidence.events {
        match &event.what {
            What::Asked { ask, lock: of, .. } if of == lock => {
                open.insert((&event.who, *ask), event.at);
            }
            What::Granted { ask, .. } | What::GaveUp { ask, .. } => {
                if let Some(from) = open.remove(&(event.who.as_str(), *ask)) {
                    waits.push((&event.who, from, event.at));
                    if matches!(event.what, What::GaveUp { .. }) {
                        // It may have been granted, and be given back.
                        busy.push((event.at, event.at + ttl));
                    }
                }
            }
            _ => {}
        }
    }
    for ((who, _), from) in open {
        let mine = |outage: &&Outage| outage.killed && outage.who.as_deref() == Some(who);
        let killed = evidence.outages.iter().find(mine).map(|outage| outage.from);
        let until = killed.unwrap_or(ended);
        waits.push((who, from, until));
        busy.push((until, until + ttl));
    }
    for (who, from, until) in waits {
        let mut passed = busy.clone();
        passed.extend(
            evidence
                .outages
                .iter()
                .filter(|outage| outage.who.as_deref().is_none_or(|other| other == who))
                .map(|outage| (outage.from, outage.until + RECOVERY)),
        );
        // Somebody who was granted it was not forgotten up to then: its own asking is no reason.
        passed.retain(|(begin, _)| *begin != from);
        passed.sort_unstable();
        let mut at = from;
        passed.push((until, until));
        for (begin, end) in passed {
            let begin = begin.min(until);
            if begin > at && begin - at > PATIENCE {
                found.push(Violation {
                    kind: Kind::ForgottenWaiter,
                    lock: lock.to_owned(),
                    at,
                    text: format!("{who} waited {} ms for a free lock", (begin - at) / 1000),
                });
            }
            at = at.max(end);
        }
    }
}
