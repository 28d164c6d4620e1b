//! The grants and the writes of a history.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Event, What};
use crate::target::{Mode, slot_name};

/// How much later than its last check of trust an acquire may return on a busy machine.
const LATENESS: u64 = 200_000;

/// A grant of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The process.
    pub process: String,
    /// The lock.
    pub lock: String,
    /// How it was requested.
    pub mode: Mode,
    /// The slot of a permit; `None` also for a permit of a client without slots.
    pub slot: Option<u16>,
    /// Its token.
    pub token: i64,
    /// When it was requested.
    pub asked: u64,
    /// When its reply came.
    pub granted: u64,
    /// When it was certainly trusted first; `None`: never.
    pub trusted_from: Option<u64>,
    /// Until when it was trusted.
    pub trusted_until: u64,
    /// When the holder was notified of its loss.
    pub lost: Option<u64>,
    /// When trust had ended then, if the holder knew.
    pub ended: Option<u64>,
    /// When the release began.
    pub releasing: Option<u64>,
    /// When it was released.
    pub released: Option<u64>,
    /// The latest check at which it was trusted.
    pub(super) last_check: u64,
}

impl Grant {
    /// What the grant is of: the lock, or one slot of a semaphore.
    pub fn resource(&self) -> String {
        match self.slot {
            Some(slot) => slot_name(&self.lock, slot),
            None => self.lock.clone(),
        }
    }

    /// Whether it is a permit of a client without slots.
    pub(super) fn is_without_slot(&self) -> bool {
        matches!(self.mode, Mode::Permit(_)) && self.slot.is_none()
    }

    /// Whether two grants of one resource must not be held at the same moment.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        self.mode.conflicts(other.mode)
    }

    /// The time in which it was certainly trusted.
    pub fn trusted(&self) -> Option<(u64, u64)> {
        let ends = [Some(self.trusted_until), self.releasing, self.lost];
        let until = ends.into_iter().flatten().min()?;
        let from = self.trusted_from?;
        (from < until).then_some((from, until))
    }

    /// Whether trust had ended before the acquire returned.
    pub(super) fn is_handed_out_lost(&self) -> bool {
        self.ended
            .is_some_and(|ended| ended + LATENESS < self.granted)
    }

    /// The time in which its body ran without a notification of loss: while it was trusted, or, if
    /// the acquire returned too late, until the first check.
    pub(super) fn body(&self) -> Option<(u64, u64)> {
        if !self.is_handed_out_lost() {
            return self.trusted();
        }
        let told = [self.lost, self.releasing].into_iter().flatten().min();
        told.map(|told| (self.granted, told))
    }
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The place of its grant among the [`grants`].
    pub grant: usize,
    /// When it began.
    pub begun: u64,
    /// When its COMMIT was about to be sent.
    pub committing: Option<u64>,
    /// When and how it ended.
    pub end: Option<(u64, End)>,
}

/// How a write ended, as its process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The COMMIT was answered.
    Committed,
    /// The fence refused it.
    Refused,
    /// It failed, before or in its COMMIT.
    Failed,
}

/// The grants of a history, in order of time.
pub fn grants(events: &[Event]) -> Vec<Grant> {
    let mut asked: HashMap<(&str, u64), (u64, &str, Mode)> = HashMap::new();
    let mut places: HashMap<(&str, u64), usize> = HashMap::new();
    let mut grants: Vec<Grant> = Vec::new();
    for event in events {
        let process = event.process.as_str();
        match &event.what {
            What::Asked {
                request,
                lock,
                mode,
                ..
            } => {
                asked.insert((process, *request), (event.at, lock, *mode));
            }
            What::Granted {
                request,
                token,
                slot,
            } => {
                let Some((at, lock, mode)) = asked.get(&(process, *request)) else {
                    continue;
                };
                places.insert((process, *request), grants.len());
                grants.push(Grant {
                    process: process.to_owned(),
                    lock: (*lock).to_owned(),
                    mode: *mode,
                    slot: *slot,
                    token: *token,
                    asked: *at,
                    granted: event.at,
                    trusted_from: None,
                    trusted_until: 0,
                    lost: None,
                    ended: None,
                    releasing: None,
                    released: None,
                    last_check: 0,
                });
            }
            What::Trusted { request, .. }
            | What::Lost { request, .. }
            | What::Releasing { request }
            | What::Released { request, .. } => {
                let Some(place) = places.get(&(process, *request)) else {
                    continue;
                };
                let grant = &mut grants[*place];
                match &event.what {
                    What::Trusted {
                        before, lasting, ..
                    } => {
                        grant.trusted_from.get_or_insert(event.at);
                        grant.trusted_until = grant.trusted_until.max(before + lasting);
                        grant.last_check = *before;
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

/// The place among the grants of each request that was granted.
pub(super) fn places<'a>(events: &'a [Event], grants: &[Grant]) -> HashMap<(&'a str, u64), usize> {
    let mut places: HashMap<(&str, u64), usize> = HashMap::new();
    for event in events {
        if let What::Granted { request, .. } = &event.what {
            let same = |grant: &Grant| grant.process == event.process && grant.granted == event.at;
            if let Some(place) = grants.iter().position(same) {
                places.insert((&event.process, *request), place);
            }
        }
    }
    places
}

/// The writes of a history by their ids, but for those to the guarded table.
pub fn writes(events: &[Event], grants: &[Grant]) -> BTreeMap<String, Write> {
    let places = places(events, grants);
    let mut writes: BTreeMap<String, Write> = BTreeMap::new();
    for event in events {
        let (id, end) = match &event.what {
            What::Write { request, id } => {
                let Some(place) = places.get(&(event.process.as_str(), *request)) else {
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
