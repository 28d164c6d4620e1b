//! The tables, and the effect of each request on them.

use std::collections::{BTreeMap, BTreeSet};

use super::row::{Row, ends, least_token};
use crate::runtime::clock;
use crate::store::connect::table::Rows;
use protocol::{
    AcquireCommand, AllOutcome, Grant, GrantId, Kind, LockName, LockRow, Outcome, Permits,
    ReleaseCommand, Released, Renewal, ResumeCommand, Sharing, Slot, TakeOverCommand, Token, Ttl,
    failed_renewal_outcome, failed_resume_outcome, no_permit_free,
};

/// The rows of both tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// An operator's limit is in the row with [`Slot::AnyPermit`].
    pub(super) all: BTreeMap<(LockName, Slot), Row>,
}

impl Tables {
    /// The row of a grant.
    pub(super) fn of(&mut self, name: &LockName, slot: Slot, grant: GrantId) -> Option<&mut Row> {
        if slot != Slot::AnyPermit {
            return self.all.get_mut(&(name.clone(), slot));
        }
        let mut permits = self.permits_of(name);
        let of = permits.find(|(_, row)| row.grant.as_deref() == Some(grant.as_str()));
        of.map(|(_, row)| row)
    }

    /// The permits of a semaphore.
    fn permits_of(&mut self, name: &LockName) -> impl Iterator<Item = (Slot, &mut Row)> {
        let slots = [0, u16::MAX].map(|slot| (name.clone(), Slot::Permit(slot)));
        let [first, last] = slots;
        let rows = self.all.range_mut(first..=last);
        rows.map(|((_, slot), row)| (*slot, row))
    }

    /// The operator's limit of a semaphore.
    pub(super) fn limit(&self, name: &LockName) -> Option<u32> {
        let row = self.all.get(&(name.clone(), Slot::AnyPermit))?;
        u32::try_from(row.permits?).ok()
    }

    /// The rows of a table that match, as a plain read returns them.
    pub(super) fn seen(
        &self,
        of: Rows,
        matches: impl Fn(&LockName, &Row) -> bool,
    ) -> impl Iterator<Item = LockRow> {
        let now = clock::now();
        let rows = self.all.iter();
        let matching =
            rows.filter(move |((name, slot), row)| Rows::of(*slot) == of && matches(name, row));
        matching.map(move |((name, slot), row)| row.seen(name, *slot, now))
    }

    /// Delete the dead shared grants of a lock; those that are left. One that was released by force
    /// does not count: its row tells the holder.
    pub(super) fn readers(&mut self, name: &LockName) -> Vec<LockRow> {
        let now = clock::now();
        self.all.retain(|(of, slot), row| {
            let dead = row.expires.is_some() && row.is_free(now) && row.fences == 0;
            of != name || !slot.is_shared() || !dead
        });
        let left = self.seen(Rows::Permits, |of, row| of == name && row.expires.is_some());
        left.filter(|row| row.slot.is_shared()).collect()
    }
}

pub(super) fn acquire(tables: &mut Tables, command: &AcquireCommand) -> Outcome {
    match command.kind {
        Kind::Exclusive => {}
        Kind::Permit { limit, .. } => return acquire_permit(tables, command, limit),
        Kind::Shared { beside } => return acquire_shared(tables, command, beside),
    }
    let now = clock::now();
    let row = tables.all.entry((command.name.clone(), Slot::Lock));
    let row = row.or_default();
    let seen = row.seen(&command.name, Slot::Lock, now);
    match seen.failed_acquire_outcome(command) {
        // Free.
        Outcome::Busy if row.fences == 0 => row.grant(command, Slot::Lock, now),
        refused => refused,
    }
}

fn acquire_permit(tables: &mut Tables, command: &AcquireCommand, callers: u32) -> Outcome {
    let (now, name) = (clock::now(), &command.name);
    let limit = tables.limit(name).unwrap_or(callers);
    let mut held: Vec<LockRow> = Vec::new();
    let mut taken = BTreeSet::new();
    for (slot, row) in tables.permits_of(name) {
        if !row.is_free(now) {
            let seen = row.seen(name, slot, now);
            if seen.is_granted(command.grant.as_str()) {
                return seen.failed_acquire_outcome(command);
            }
            held.push(seen);
        }
        if !row.is_free(now) || row.fences > 0 {
            taken.insert(slot);
        }
    }
    let below = (0..=u16::MAX).take(limit as usize);
    let free = below.map(Slot::Permit).filter(|slot| !taken.contains(slot));
    let Some(slot) = fastrand::choice(free.collect::<Vec<_>>()) else {
        let permits = Permits {
            limit,
            held: u32::try_from(held.len()).unwrap_or(u32::MAX),
            observed: Vec::new(),
        };
        // A lease without end ends last.
        let first = held
            .iter()
            .min_by_key(|row| row.expires_in.unwrap_or(i64::MAX));
        return no_permit_free(permits, first);
    };
    let row = tables.all.entry((name.clone(), slot)).or_default();
    row.permits = Some(callers.into());
    row.grant(command, slot, now)
}

/// Grant the lock to one more shared holder. `beside`: the exclusive grant that it replaces.
fn acquire_shared(
    tables: &mut Tables,
    command: &AcquireCommand,
    beside: Option<GrantId>,
) -> Outcome {
    let (now, name) = (clock::now(), &command.name);
    let lock = tables.all.entry((name.clone(), Slot::Lock));
    let lock = lock.or_insert_with(|| Row {
        token: least_token(now),
        ..Row::default()
    });
    match lock.seen(name, Slot::Lock, now).sharing(beside, None) {
        Sharing::Held(holder) => return Outcome::Held(holder),
        // That of the grant that is replaced does no harm.
        _ if beside.is_none() && lock.fences > 0 => return Outcome::Busy,
        Sharing::Ended => (lock.expires, lock.renewed) = (None, Some(now)),
        Sharing::NotMarked | Sharing::Open => {}
    }
    lock.shared = true;
    let (token, slot) = (lock.token + 1, Slot::of_shared(command.grant));
    let row = tables.all.entry((name.clone(), slot)).or_default();
    let seen = row.seen(name, slot, now);
    if seen.is_granted(command.grant.as_str()) {
        return seen.failed_acquire_outcome(command);
    }
    row.grant(command, slot, now);
    row.token = token;
    Outcome::granted(slot, Token::from_db(token), command.length)
}

/// Grant all of them or none.
pub(super) fn acquire_all(tables: &mut Tables, commands: &[AcquireCommand]) -> AllOutcome {
    let now = clock::now();
    let present: Vec<(&Row, LockRow)> = commands
        .iter()
        .filter_map(|command| {
            let row = tables.all.get(&(command.name.clone(), Slot::Lock))?;
            Some((row, row.seen(&command.name, Slot::Lock, now)))
        })
        .collect();
    let blocked = (present.iter()).any(|(row, _)| !row.is_free(now) || row.fences > 0);
    if blocked {
        let present: Vec<LockRow> = present.into_iter().map(|(_, seen)| seen).collect();
        return AllOutcome::of_rows(commands, &present);
    }
    let granted = commands.iter().map(|command| {
        let row = tables.all.entry((command.name.clone(), Slot::Lock));
        let row = row.or_default();
        row.grant(command, Slot::Lock, now);
        (Token::from_db(row.token), row.shared)
    });
    AllOutcome::granted(commands, granted)
}

pub(super) fn take_over(tables: &mut Tables, command: &TakeOverCommand) -> Outcome {
    let (now, to) = (clock::now(), &command.to);
    let Some(row) = tables.all.get_mut(&(to.name.clone(), Slot::Lock)) else {
        return Outcome::Busy;
    };
    let as_seen = row.token == command.token.get()
        && row.grant == command.grant
        && row.holder.as_deref() == Some(&*to.holder);
    // A row without a grant id rests.
    if as_seen && row.grant.is_some() && !row.is_free(now) && row.fences == 0 {
        row.grant(to, Slot::Lock, now)
    } else {
        row.seen(&to.name, Slot::Lock, now)
            .failed_take_over_outcome(command)
    }
}

pub(super) fn renew(tables: &mut Tables, grant: &Grant, ttl: Ttl) -> Renewal {
    let now = clock::now();
    match tables.of(&grant.name, grant.slot, grant.id) {
        Some(row) if row.is_of(&grant.name, grant) && !row.is_free(now) => {
            row.expires = row.expires.max(Some(ends(now, ttl)));
            row.renewed = Some(now);
            Renewal::Renewed { confirmed_by: None }
        }
        row => failed_renewal_outcome(
            grant,
            row.map(|row| row.seen(&grant.name, grant.slot, now))
                .as_ref(),
        ),
    }
}

pub(super) fn resume(tables: &mut Tables, command: &ResumeCommand) -> Renewal {
    let (now, to) = (clock::now(), &command.to);
    let known = [command.from.as_str(), to.grant.as_str()];
    let ours = |row: &Row| {
        row.token == command.token.get()
            && row.grant.as_deref().is_some_and(|id| known.contains(&id))
            && !row.is_free(now)
            && row.fences == 0
    };
    let row = match tables.of(&to.name, command.slot, command.from) {
        Some(row) if ours(row) => row,
        row => {
            return failed_resume_outcome(
                command,
                row.map(|row| row.seen(&to.name, command.slot, now))
                    .as_ref(),
            );
        }
    };
    row.holder = Some(to.holder.to_string());
    row.grant = Some(to.grant.to_string());
    row.expires = row.expires.max(Some(ends(now, Ttl::Finite(to.length))));
    row.renewed = Some(now);
    row.metadata = Some(to.metadata.to_string());
    Renewal::Renewed { confirmed_by: None }
}

pub(super) fn release(tables: &mut Tables, command: &ReleaseCommand) -> Released {
    if command.slot.is_shared() {
        return release_shared(tables, command);
    }
    match tables.of(&command.name, command.slot, command.grant) {
        Some(row)
            if row.expires.is_some()
                && row.grant.as_deref() == Some(command.grant.as_str())
                && row.holder.as_deref() == Some(&*command.holder)
                && command.token.is_none_or(|token| token.get() == row.token) =>
        {
            row.release(command.rest, clock::now());
            Released::Freed
        }
        _ => Released::NotHeld,
    }
}

fn release_shared(tables: &mut Tables, command: &ReleaseCommand) -> Released {
    let now = clock::now();
    match tables.of(&command.name, command.slot, command.grant) {
        Some(row) if row.fences > 0 => Released::Busy,
        Some(row)
            if row
                .seen(&command.name, command.slot, now)
                .contains_grant_of(command) =>
        {
            tables.all.remove(&(command.name.clone(), command.slot));
            Released::Freed
        }
        _ => Released::NotHeld,
    }
}
