//! The life of one lease, from its grant to its loss.
//!
//! A lease is *trusted* from its grant until `trusted_until`, and lost for good after that. A
//! renewal that the database confirms extends trust, counted from **before the request was sent**,
//! less a margin. Whenever the database executed the request, its lease began later than that, and
//! so ends later than the trust. Between confirmations trust only shrinks. A renewal that failed,
//! timed out or found its row locked changes only when the next one is tried.
//!
//! On some engines an open fence blocks renewals. There, renewals are held back until the fence is
//! closed. An open fence does not extend trust, but no other client is granted the lock under it
//! either. So if trust ends under an open fence, the lease is *suspended*, neither held nor lost,
//! until the fence is closed and the next renewal decides.

use std::time::Duration;

use crate::lost::LostReason;
use crate::values::time::BootInstant;
use crate::values::timing::{MAX_FIRST_GRANT, Timing};
use crate::values::ttl::Ttl;

/// The first pause after a renewal that failed. It doubles with each further failure.
const FIRST_RETRY: Duration = Duration::from_millis(20);
/// The longest pause. In the last seconds of a lease, a renewal has to be tried soon after the
/// database is available again.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// The shortest timeout of a renewal, after which its connection is closed. A short lease needs a
/// second try, on a new connection, before it ends.
pub const MIN_RENEWAL_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest timeout of a renewal.
const MAX_RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The time that is added to the timeout for each full statement of renewals that is sent before:
/// ten times the usual duration of such a statement.
const FULL_STATEMENT_TIME: Duration = Duration::from_millis(500);
/// The length that a renewal requests if it only checks whether the grant still holds the lock.
const CHECK: Ttl = Ttl::Finite(Duration::from_millis(1));

/// The next step for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send a renewal.
    Renew,
    /// Wait until that instant.
    Wait(BootInstant),
    /// The lease is lost: trust has ended.
    Lost(LostReason),
}

/// The outcome of a renewal that did not lose the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The lease lasts for another ttl.
    Renewed,
    /// The grant holds the lock, but another transaction has its row locked.
    Busy,
    /// No answer, or none about the lease.
    Unknown,
    /// An error from a database that can be reached.
    Refused,
}

impl Answer {
    /// Why the lease is lost if trust ends after this answer.
    pub fn lost_reason(self) -> LostReason {
        match self {
            Self::Renewed | Self::Busy => LostReason::Expired,
            Self::Unknown => LostReason::Unreachable,
            Self::Refused => LostReason::Refused,
        }
    }
}

/// A lease: until when it is trusted, and when it is renewed.
#[derive(Debug)]
pub struct Lease {
    timing: Timing,
    trusted_until: BootInstant,
    /// When the next renewal is due; `None`: never.
    renew_at: Option<BootInstant>,
    /// The ttl that the renewal under way requests.
    under_way: Option<Ttl>,
    /// The ttl that the database has confirmed.
    confirmed: Option<Ttl>,
    /// How many renewals failed since the last one that succeeded.
    failures: u32,
    /// Why the lease is lost if trust ends now, if the latest renewal failed.
    failure_reason: Option<LostReason>,
    /// Whether to renew once more after the renewal under way.
    check: bool,
    /// The number of open fences that block renewals.
    fences: u32,
    /// Set when a fence that held renewals back is closed. Until this instant an answer counts even
    /// if trust has ended.
    undecided_until: Option<BootInstant>,
    /// The length that the next renewal requests if that is more than the ttl.
    cover: Option<Duration>,
}

/// When trust ends for a lease of `length` whose request was sent at `sent`.
fn trust(timing: &Timing, sent: BootInstant, length: Duration) -> BootInstant {
    sent + length.saturating_sub(timing.margin_of(length))
}

impl Lease {
    /// The lease of a grant of `length` whose request was sent at `sent`.
    pub fn granted(timing: Timing, sent: BootInstant, length: Duration) -> Self {
        // A length other than the ttl has to be confirmed by a renewal at once. It is either the
        // beginning of a long lease, or the rest of a grant of an earlier request. The latter was
        // only read, and a primary that was replaced can show a grant that it could not commit.
        let is_whole = timing.ttl() == Ttl::Finite(length);
        Self {
            trusted_until: trust(&timing, sent, length),
            renew_at: if is_whole {
                timing.renew_every().map(|every| sent + every)
            } else {
                Some(sent)
            },
            under_way: None,
            confirmed: is_whole.then_some(timing.ttl()),
            failures: 0,
            failure_reason: None,
            check: false,
            fences: 0,
            undecided_until: None,
            cover: None,
            timing,
        }
    }

    /// The next step at `now`.
    pub fn next(&self, now: BootInstant) -> Next {
        if self.fences > 0 {
            return Next::Wait(BootInstant::MAX);
        }
        let undecided = self.undecided_until.unwrap_or(self.trusted_until);
        let until = undecided.max(self.trusted_until);
        if now >= until {
            let reason = match self.failure_reason {
                Some(LostReason::Refused) => LostReason::Refused,
                // A renewal without an answer by now counts as failed.
                _ if self.under_way.is_some() => LostReason::Unreachable,
                failure_reason => failure_reason.unwrap_or(LostReason::Expired),
            };
            return Next::Lost(reason);
        }
        match self.renew_at {
            _ if self.under_way.is_some() => Next::Wait(until),
            Some(at) if at <= now => Next::Renew,
            Some(at) => Next::Wait(at.min(until)),
            None => Next::Wait(until),
        }
    }

    /// Whether the lease is not lost when trust ends: a fence is open, or the renewal after it has
    /// not decided yet.
    pub fn outlives_trust(&self) -> bool {
        self.fences > 0 || self.undecided_until.is_some()
    }

    /// Record that a fence that blocks renewals is about to be opened. `false`: trust has ended,
    /// and the fence must not be opened.
    pub fn fence_opened(&mut self, now: BootInstant) -> bool {
        let trusted = now < self.trusted_until;
        self.fences += u32::from(trusted);
        trusted
    }

    /// Record that the transaction of such a fence has ended.
    pub fn fence_closed(&mut self, now: BootInstant) {
        self.fences = self.fences.saturating_sub(1);
        if self.fences > 0 {
            return;
        }
        let is_held_back = self.renew_at.is_some_and(|at| at <= now);
        let is_suspended = now >= self.trusted_until;
        if is_held_back {
            // The lease in the database ends within this time, even if the fence itself renewed it.
            let most = match self.longest() {
                Ttl::Finite(length) => length,
                Ttl::Infinite => MAX_FIRST_GRANT,
            };
            self.undecided_until = Some(now + most);
        }
        if is_suspended {
            self.renew_at = self.renew_at.map(|_| now);
            self.failures = 0;
        }
    }

    /// Renew at once, to this length if it is more than the ttl. Later renewals request the ttl
    /// again.
    pub fn cover(&mut self, length: Duration, now: BootInstant) {
        self.cover = self.cover.max(Some(length));
        self.confirmed = None;
        self.renew_at = Some(now);
    }

    /// The length that the next renewal requests.
    fn longest(&self) -> Ttl {
        match (self.timing.ttl(), self.cover) {
            (Ttl::Finite(ttl), Some(cover)) => Ttl::Finite(ttl.max(cover)),
            (ttl, _) => ttl,
        }
    }

    /// Whether a round of renewals that is sent at `now` may renew this lease early. Leases that
    /// were acquired one after another are then renewed by one statement.
    pub fn may_renew_early(&self, now: BootInstant) -> bool {
        let Some(at) = self.renew_at else {
            return false;
        };
        let early = self.timing.renew_every().unwrap_or_default() / 2;
        self.under_way.is_none()
            && self.fences == 0
            && self.failures == 0
            && at <= now + early
            && now < self.trusted_until
    }

    /// Renew at once, to check whether the grant still holds the lock.
    pub fn check(&mut self, now: BootInstant) {
        self.check = true;
        if self.under_way.is_none() {
            self.renew_at = Some(now);
        }
    }

    /// Record that a renewal is about to be sent. Returns the length that it has to request.
    pub fn renewing(&mut self) -> Ttl {
        self.check = false;
        // A check does not extend a lease that is never renewed.
        let only_checks = self.timing.renew_every().is_none() && self.confirmed.is_some();
        let requested = if only_checks { CHECK } else { self.longest() };
        *self.under_way.insert(requested)
    }

    /// Record the outcome, known at `now`, of the renewal that was sent at `sent`.
    pub fn answered(&mut self, sent: BootInstant, answer: Answer, now: BootInstant) {
        let Some(requested) = self.under_way.take() else {
            return;
        };
        if now >= self.trusted_until && !self.outlives_trust() {
            // Callers may have read already that the lock is lost: it must stay lost.
            return;
        }
        match answer {
            Answer::Renewed => self.renewed(requested, sent, now),
            Answer::Busy | Answer::Unknown | Answer::Refused => self.retry(answer, now),
        }
    }

    /// Record that the database confirmed the length that was requested at `sent`.
    fn renewed(&mut self, requested: Ttl, sent: BootInstant, now: BootInstant) {
        let until = match requested {
            Ttl::Finite(length) => trust(&self.timing, sent, length),
            Ttl::Infinite => BootInstant::MAX,
        };
        self.trusted_until = self.trusted_until.max(until);
        if now < self.trusted_until {
            self.undecided_until = None;
        }
        (self.failures, self.failure_reason) = (0, None);
        if requested == CHECK {
            self.renew_at = None;
        } else if requested == self.longest() {
            self.cover = None;
            self.confirmed = Some(self.timing.ttl());
            let every = self.timing.renew_every();
            self.renew_at = every.map(|every| sent + every);
        } else {
            // A longer lease was requested since then: the next renewal confirms it.
            self.renew_at = Some(now);
        }
        if self.check {
            self.renew_at = Some(now);
        }
    }

    /// Record that the renewal failed. It is sent again after a pause.
    fn retry(&mut self, answer: Answer, now: BootInstant) {
        self.failure_reason = Some(answer.lost_reason());
        let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(10));
        let longest = self.timing.renew_every().unwrap_or(LONGEST_RETRY) / 2;
        self.failures = self.failures.saturating_add(1);
        let pause = pause.min(LONGEST_RETRY).min(longest.max(FIRST_RETRY));
        self.renew_at = Some(now + pause);
    }

    /// Renew by this timing from now on, the first time at once.
    pub fn extend(&mut self, timing: Timing, now: BootInstant) {
        self.timing = timing;
        self.confirmed = None;
        self.renew_at = Some(now);
    }

    /// When trust ends.
    pub fn trusted_until(&self) -> BootInstant {
        self.trusted_until
    }

    /// The ttl that the database has confirmed; `None` if it has confirmed only a shorter one.
    pub fn confirmed(&self) -> Option<Ttl> {
        self.confirmed
    }

    /// The present timing.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Whether the latest renewal failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// The timeout of a renewal that is sent after this many full statements of renewals.
    ///
    /// A slow answer after large statements is no sign of a dead connection. But there has to be
    /// time for a second try.
    pub fn renewal_timeout(&self, behind: u32) -> Duration {
        let every = self.timing.renew_every().unwrap_or(MAX_RENEWAL_TIMEOUT);
        let alone = every.clamp(MIN_RENEWAL_TIMEOUT, MAX_RENEWAL_TIMEOUT);
        let longer = alone.saturating_add(FULL_STATEMENT_TIME.saturating_mul(behind));
        longer.min(every.max(alone))
    }
}

#[cfg(test)]
mod tests;
