//! The rows, and the effect of each request on them.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::runtime::clock;
use crate::store::api::micros;
use protocol::{
    AcquireCommand, AllOutcome, BootInstant, Grant, LockName, LockRow, Outcome, ReleaseCommand,
    Released, Renewal, ResumeCommand, TakeOverCommand, Token, Ttl, failed_renewal_outcome,
    failed_resume_outcome,
};

#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) holder: Option<String>,
    pub(super) token: i64,
    pub(super) grant: Option<String>,
    pub(super) expires: Option<Ends>,
    pub(super) acquired: Option<BootInstant>,
    pub(super) renewed: Option<BootInstant>,
    pub(super) metadata: Option<String>,
    /// The number of open fences.
    pub(super) fences: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ends {
    At(BootInstant),
    Never,
}

fn ends(now: BootInstant, ttl: Ttl) -> Ends {
    match ttl {
        Ttl::Finite(length) => Ends::At(now + length),
        Ttl::Infinite => Ends::Never,
    }
}

/// This engine's clock in microseconds since 1970: the boot-time clock plus a constant.
#[allow(
    clippy::disallowed_methods,
    reason = "here it plays the database's clock, for display"
)]
fn stamp(at: BootInstant) -> i64 {
    static BOOT: OnceLock<i64> = OnceLock::new();
    let boot = BOOT.get_or_init(|| {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        micros(wall) - micros(clock::now().since_boot())
    });
    boot.saturating_add(micros(at.since_boot()))
}

/// This engine's clock in milliseconds since 1970, the least new token.
pub(super) fn least_token(now: BootInstant) -> i64 {
    stamp(now) / 1000
}

/// The token of the next grant: greater than all earlier ones, including those of a deleted row.
pub(super) fn next_token(token: i64, now: BootInstant) -> i64 {
    token.saturating_add(1).max(least_token(now))
}

impl Row {
    pub(super) fn is_free(&self, now: BootInstant) -> bool {
        match self.expires {
            None => true,
            Some(Ends::At(end)) => end <= now,
            Some(Ends::Never) => false,
        }
    }

    fn is_of(&self, name: &LockName, grant: &Grant) -> bool {
        debug_assert_eq!(*name, grant.name);
        self.token == grant.token.get()
            && self.grant.as_deref() == Some(grant.id.as_str())
            && self.holder.as_deref() == Some(&*grant.holder)
    }

    fn grant(&mut self, command: &AcquireCommand, now: BootInstant) -> Outcome {
        self.token = next_token(self.token, now);
        self.holder = Some(command.holder.to_string());
        self.grant = Some(command.grant.to_string());
        self.expires = Some(ends(now, Ttl::Finite(command.length)));
        (self.acquired, self.renewed) = (Some(now), Some(now));
        self.metadata = Some(command.metadata.to_string());
        Outcome::Granted {
            token: Token::from_db(self.token),
            length: command.length,
            confirmed_by: None,
        }
    }

    pub(super) fn free(&mut self, now: BootInstant) {
        (self.expires, self.grant, self.renewed) = (None, None, Some(now));
    }

    pub(super) fn seen(&self, name: &LockName, now: BootInstant) -> LockRow {
        LockRow {
            name: name.to_string(),
            holder: self.holder.clone(),
            token: self.token,
            grant: self.grant.clone(),
            expires_in: self.expires.map(|ends| match ends {
                Ends::At(end) => micros(end.since_boot()) - micros(now.since_boot()),
                Ends::Never => i64::MAX,
            }),
            is_infinite: self.expires == Some(Ends::Never),
            is_legacy: false,
            held_for: self.acquired.map(|at| micros(now - at)),
            acquired_at: self.acquired.map(stamp),
            renewed_at: self.renewed.map(stamp),
            expires_at: match self.expires {
                Some(Ends::At(end)) => Some(stamp(end)),
                _ => None,
            },
            metadata: self.metadata.clone(),
            ..LockRow::default()
        }
    }
}

pub(super) type Rows = BTreeMap<LockName, Row>;

pub(super) fn acquire(rows: &mut Rows, command: &AcquireCommand) -> Outcome {
    let now = clock::now();
    let row = rows.entry(command.name.clone()).or_default();
    if !row.is_free(now) {
        return row
            .seen(&command.name, now)
            .failed_acquire_outcome(command.grant.as_str());
    }
    if row.fences > 0 {
        return Outcome::Busy;
    }
    row.grant(command, now)
}

/// Grant all of them or none.
pub(super) fn acquire_all(rows: &mut Rows, commands: &[AcquireCommand]) -> AllOutcome {
    let now = clock::now();
    let present: Vec<(&Row, LockRow)> = commands
        .iter()
        .filter_map(|command| rows.get(&command.name).map(|row| (command, row)))
        .map(|(command, row)| (row, row.seen(&command.name, now)))
        .collect();
    let blocked = (present.iter()).any(|(row, _)| !row.is_free(now) || row.fences > 0);
    if blocked {
        let present: Vec<LockRow> = present.into_iter().map(|(_, seen)| seen).collect();
        return AllOutcome::of_rows(commands, &present);
    }
    let granted = commands.iter().map(|command| {
        let row = rows.entry(command.name.clone()).or_default();
        row.grant(command, now);
        Token::from_db(row.token)
    });
    AllOutcome::Granted {
        tokens: granted.collect(),
        length: commands
            .first()
            .map_or(Duration::ZERO, |command| command.length),
        confirmed_by: None,
    }
}

pub(super) fn take_over(rows: &mut Rows, command: &TakeOverCommand) -> Outcome {
    let (now, to) = (clock::now(), &command.to);
    let Some(row) = rows.get_mut(&to.name) else {
        return Outcome::Busy;
    };
    let as_seen = row.token == command.token.get()
        && row.grant == command.grant
        && row.holder.as_deref() == Some(&*to.holder);
    if as_seen && !row.is_free(now) && row.fences == 0 {
        row.grant(to, now)
    } else {
        row.seen(&to.name, now).failed_take_over_outcome(command)
    }
}

pub(super) fn renew(rows: &mut Rows, grant: &Grant, ttl: Ttl) -> Renewal {
    let now = clock::now();
    match rows.get_mut(&grant.name) {
        Some(row) if row.is_of(&grant.name, grant) && !row.is_free(now) => {
            row.expires = row.expires.max(Some(ends(now, ttl)));
            row.renewed = Some(now);
            Renewal::Renewed { confirmed_by: None }
        }
        row => failed_renewal_outcome(grant, row.map(|row| row.seen(&grant.name, now)).as_ref()),
    }
}

pub(super) fn resume(rows: &mut Rows, command: &ResumeCommand) -> Renewal {
    let (now, to) = (clock::now(), &command.to);
    let known = [command.from.as_str(), to.grant.as_str()];
    let ours = |row: &Row| {
        row.token == command.token.get()
            && row.grant.as_deref().is_some_and(|id| known.contains(&id))
            && !row.is_free(now)
            && row.fences == 0
    };
    let row = match rows.get_mut(&to.name) {
        Some(row) if ours(row) => row,
        row => {
            return failed_resume_outcome(command, row.map(|row| row.seen(&to.name, now)).as_ref());
        }
    };
    row.holder = Some(to.holder.to_string());
    row.grant = Some(to.grant.to_string());
    row.expires = row.expires.max(Some(ends(now, Ttl::Finite(to.length))));
    row.renewed = Some(now);
    row.metadata = Some(to.metadata.to_string());
    Renewal::Renewed { confirmed_by: None }
}

pub(super) fn release(rows: &mut Rows, command: &ReleaseCommand) -> Released {
    match rows.get_mut(&command.name) {
        Some(row)
            if row.grant.as_deref() == Some(command.grant.as_str())
                && row.holder.as_deref() == Some(&*command.holder)
                && command.token.is_none_or(|token| token.get() == row.token) =>
        {
            row.free(clock::now());
            Released::Freed
        }
        _ => Released::NotHeld,
    }
}
