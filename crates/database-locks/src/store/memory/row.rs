//! One row.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::runtime::clock;
use crate::store::api::micros;
use protocol::{
    AcquireCommand, BootInstant, Force, Grant, Holder, LockName, LockRow, Outcome, Slot, Token, Ttl,
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
    /// The number of permits that the holder allowed.
    pub(super) permits: Option<i64>,
    /// Whether the lock was ever shared.
    pub(super) shared: bool,
    /// The number of open fences.
    pub(super) fences: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ends {
    At(BootInstant),
    Never,
}

pub(super) fn ends(now: BootInstant, ttl: Ttl) -> Ends {
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

    pub(super) fn is_of(&self, name: &LockName, grant: &Grant) -> bool {
        debug_assert_eq!(*name, grant.name);
        self.token == grant.token.get()
            && self.grant.as_deref() == Some(grant.id.as_str())
            && self.holder.as_deref() == Some(&*grant.holder)
    }

    pub(super) fn grant(
        &mut self,
        command: &AcquireCommand,
        slot: Slot,
        now: BootInstant,
    ) -> Outcome {
        // The token of the shared grants is between the old one and the new one.
        self.token = next_token(self.token + i64::from(self.shared), now);
        self.holder = Some(command.holder.to_string());
        self.grant = Some(command.grant.to_string());
        self.expires = Some(ends(now, Ttl::Finite(command.length)));
        (self.acquired, self.renewed) = (Some(now), Some(now));
        self.metadata = Some(command.metadata.to_string());
        let token = Token::from_db(self.token);
        Outcome::granted(slot, token, command.length).of_shared(self.shared)
    }

    pub(super) fn free(&mut self, now: BootInstant) {
        (self.expires, self.grant, self.renewed) = (None, None, Some(now));
    }

    /// Release by force.
    pub(super) fn force(&mut self) -> Force {
        let now = clock::now();
        if self.is_free(now) {
            return Force::WasFree;
        } else if self.fences > 0 {
            return Force::Busy;
        }
        let holder = Holder {
            holder: self.holder.clone(),
            token: Some(Token::from_db(self.token)),
            held_for: self.acquired.map(|at| now - at),
            grant: self.grant.clone(),
            is_resting: self.grant.is_none(),
            ..Holder::default()
        };
        self.free(now);
        self.token = next_token(self.token, now);
        Force::Freed(holder)
    }

    /// Whether the row has been free for this long and may be deleted. That of a lock that was ever
    /// shared stays, since without its mark an exclusive grant would not look for shared ones.
    pub(super) fn is_idle(&self, idle: Duration, include_legacy: bool, now: BootInstant) -> bool {
        let last = match self.expires {
            Some(Ends::At(end)) => Some(end),
            Some(Ends::Never) => return false,
            None => self.renewed,
        };
        let is_old = last.map_or(include_legacy, |at| at + idle <= now);
        self.fences == 0
            && self.is_free(now)
            && is_old
            && !self.shared
            && self.token < least_token(now)
    }

    /// Release the lock, which rests for that long.
    pub(super) fn release(&mut self, rest: Duration, now: BootInstant) {
        self.free(now);
        self.expires = (!rest.is_zero()).then_some(Ends::At(now + rest));
    }

    pub(super) fn seen(&self, name: &LockName, slot: Slot, now: BootInstant) -> LockRow {
        LockRow {
            name: name.to_string(),
            slot,
            permits: self.permits,
            is_shared: self.shared,
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
