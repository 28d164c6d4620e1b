//! The life of one lease: pure arithmetic on points in time that it is given.
//!
//! A lease is *trusted* from its grant until `trusted_until`, and lost for good after that. What a
//! confirmation by the database adds counts from **before the request was sent**, less a margin:
//! whenever the request was carried out, the database's lease began later than that, and so ends
//! later than our trust. Between confirmations trust only shrinks. A renewal that failed, timed out
//! or found its row locked changes nothing but when the next one is tried.
//!
//! Where no renewal gets past an open fence, renewals are held back until it is closed. It lengthens
//! no trust. But a fence keeps everybody else out as well, so where trust runs out under one the lease
//! is not lost: it is *suspended*, which is neither held nor lost, until the fence is closed and the
//! renewal that follows decides.

use std::time::Duration;

use crate::lost::LostReason;
use crate::values::time::Time;
use crate::values::timing::{MAX_FIRST_GRANT, Timing, Ttl};

/// The first pause after a renewal that failed; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(20);
/// The longest pause: in the last seconds of a lease a database that is back must be noticed.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// How long a renewal may take before its connection is given up. A short lease needs a second try
/// on a new connection before it ends.
pub const SHORTEST_PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// What a renewal of as many leases as go out in one statement may take of the time of those behind it: ten
/// times what it takes where the disk keeps up.
const LARGE_ROUND: Duration = Duration::from_millis(500);
/// What a renewal asks for that is only to say whether the lease is still there.
const CHECK: Ttl = Ttl::Finite(Duration::from_millis(1));

/// What is to be done about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send a renewal.
    Renew,
    /// Look again at that time.
    Wait(Time),
    /// Trust has ended.
    Lost(LostReason),
}

/// What came of a renewal that did not lose the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The database has it for another ttl.
    Renewed,
    /// The database says that it is ours, but could not renew it just now.
    Busy,
    /// No answer, or none that says anything of the lease.
    Unknown,
    /// An error from a database that can be reached.
    Refused,
}

impl Answer {
    /// Why the lease is lost if trust ends with this as the latest answer.
    pub fn lost_reason(self) -> LostReason {
        match self {
            Self::Renewed | Self::Busy => LostReason::Expired,
            Self::Unknown => LostReason::Unreachable,
            Self::Refused => LostReason::Refused,
        }
    }
}

/// The life of one lease, from the grant to its release or loss: what its holder does next.
#[derive(Debug)]
pub struct Lease {
    timing: Timing,
    trusted_until: Time,
    /// When the next renewal is due; none: never.
    renew_at: Option<Time>,
    /// The ttl of a renewal that is under way.
    under_way: Option<Ttl>,
    /// The ttl that the database has confirmed.
    confirmed: Option<Ttl>,
    failures: u32,
    /// What the latest renewal makes of the end of trust, if it failed.
    failed: Option<LostReason>,
    /// Whether to renew once more when the renewal that is under way has been answered.
    check: bool,
    /// How many fences are open that no renewal gets past.
    fences: u32,
    /// A fence held renewals back and is closed: what they say counts until then, trusted or not.
    undecided_until: Option<Time>,
    /// What the next renewal asks for if that is more than the ttl.
    cover: Option<Duration>,
}

/// When trust ends for a lease of `length` that was asked for at `sent`.
fn trust(timing: &Timing, sent: Time, length: Duration) -> Time {
    sent.saturating_add(length.saturating_sub(timing.margin_of(length)))
}

impl Lease {
    /// A grant of `length`, asked for at `sent`.
    pub fn granted(timing: Timing, sent: Time, length: Duration) -> Self {
        // What is left of a grant that was made before is not the whole either. That it is there was
        // read, and a primary which another one has replaced may say so of what it could not commit:
        // so that is confirmed by a renewal first.
        let whole = timing.ttl() == Ttl::Finite(length);
        Self {
            trusted_until: trust(&timing, sent, length),
            // What the acquire granted of a long lease is only its beginning.
            renew_at: if whole {
                timing.renew_every().map(|every| sent.saturating_add(every))
            } else {
                Some(sent)
            },
            under_way: None,
            confirmed: whole.then_some(timing.ttl()),
            failures: 0,
            failed: None,
            check: false,
            fences: 0,
            undecided_until: None,
            cover: None,
            timing,
        }
    }

    /// What to do at `now`.
    pub fn next(&self, now: Time) -> Next {
        if self.fences > 0 {
            return Next::Wait(Time::MAX);
        }
        let until = self.undecided_until.unwrap_or(Time::ZERO);
        let until = until.max(self.trusted_until);
        if now >= until {
            let reason = match self.failed {
                Some(LostReason::Refused) => LostReason::Refused,
                // A renewal without an answer by now is as good as one that failed.
                _ if self.under_way.is_some() => LostReason::Unreachable,
                failed => failed.unwrap_or(LostReason::Expired),
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

    /// Whether the end of trust does not lose it: a fence is open, or its closing is not settled yet.
    pub fn outlives_trust(&self) -> bool {
        self.fences > 0 || self.undecided_until.is_some()
    }

    /// A fence is about to be opened that no renewal gets past; not where trust has ended.
    pub fn fence_opened(&mut self, now: Time) -> bool {
        let trusted = now < self.trusted_until;
        self.fences += u32::from(trusted);
        trusted
    }

    /// The transaction of such a fence has ended.
    pub fn fence_closed(&mut self, now: Time) {
        self.fences = self.fences.saturating_sub(1);
        if self.fences > 0 {
            return;
        }
        let held_back = self.renew_at.is_some_and(|at| at <= now);
        let suspended = now >= self.trusted_until;
        if held_back {
            // What the database has of it ends within this time, the fence's own writing included.
            let most = match self.longest() {
                Ttl::Finite(length) => length,
                Ttl::Infinite => MAX_FIRST_GRANT,
            };
            self.undecided_until = Some(now.saturating_add(most));
        }
        if suspended {
            self.renew_at = self.renew_at.map(|_| now);
            self.failures = 0;
        }
    }

    /// Renew to so much at once, this one time, if that is more than the ttl.
    pub fn cover(&mut self, length: Duration, now: Time) {
        self.cover = self.cover.max(Some(length));
        self.confirmed = None;
        self.renew_at = Some(now);
    }

    /// What the next renewal asks for.
    fn longest(&self) -> Ttl {
        match (self.timing.ttl(), self.cover) {
            (Ttl::Finite(ttl), Some(cover)) => Ttl::Finite(ttl.max(cover)),
            (ttl, _) => ttl,
        }
    }

    /// Whether it had better come along with a round of renewals that goes out now.
    ///
    /// Leases that were taken one after another would otherwise each be renewed in a statement of
    /// its own for ever.
    pub fn may_come_along(&self, now: Time) -> bool {
        let Some(at) = self.renew_at else {
            return false;
        };
        let early = self.timing.renew_every().unwrap_or_default() / 2;
        self.under_way.is_none()
            && self.fences == 0
            && self.failures == 0
            && at <= now.saturating_add(early)
            && now < self.trusted_until
    }

    /// Renew it at once, whatever is due when, to learn whether it is still there.
    pub fn check(&mut self, now: Time) {
        self.check = true;
        if self.under_way.is_none() {
            self.renew_at = Some(now);
        }
    }

    /// A renewal goes out; this is what to ask for.
    pub fn renewing(&mut self) -> Ttl {
        self.check = false;
        // A lease that is never renewed is not lengthened by a check.
        let only_checks = self.timing.renew_every().is_none() && self.confirmed.is_some();
        let ask = if only_checks { CHECK } else { self.longest() };
        *self.under_way.insert(ask)
    }

    /// The renewal that was sent at `sent` came to this at `now`.
    pub fn answered(&mut self, sent: Time, answer: Answer, now: Time) {
        let Some(asked) = self.under_way.take() else {
            return;
        };
        if now >= self.trusted_until && !self.outlives_trust() {
            // Whoever asked meanwhile was told that it is not held, and that must stay so.
            return;
        }
        match answer {
            Answer::Renewed => {
                let until = match asked {
                    Ttl::Finite(length) => trust(&self.timing, sent, length),
                    Ttl::Infinite => Time::MAX,
                };
                self.trusted_until = self.trusted_until.max(until);
                if now < self.trusted_until {
                    self.undecided_until = None;
                }
                (self.failures, self.failed) = (0, None);
                if asked == CHECK {
                    self.renew_at = None;
                } else if asked == self.longest() {
                    self.cover = None;
                    self.confirmed = Some(self.timing.ttl());
                    let every = self.timing.renew_every();
                    self.renew_at = every.map(|every| sent.saturating_add(every));
                } else {
                    // What was asked for meanwhile is still to be confirmed.
                    self.renew_at = Some(now);
                }
                if self.check {
                    self.renew_at = Some(now);
                }
            }
            Answer::Busy | Answer::Unknown | Answer::Refused => {
                self.failed = Some(answer.lost_reason());
                let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(10));
                let longest = self.timing.renew_every().unwrap_or(LONGEST_RETRY) / 2;
                self.failures = self.failures.saturating_add(1);
                let pause = pause.min(LONGEST_RETRY).min(longest.max(FIRST_RETRY));
                self.renew_at = Some(now.saturating_add(pause));
            }
        }
    }

    /// From now on, renew to this; the first time at once.
    pub fn extend(&mut self, timing: Timing, now: Time) {
        self.timing = timing;
        self.confirmed = None;
        self.renew_at = Some(now);
    }

    /// When trust ends unless a renewal is confirmed before.
    pub fn trusted_until(&self) -> Time {
        self.trusted_until
    }

    /// The ttl that the database has confirmed; none while it knows a shorter one only.
    pub fn confirmed(&self) -> Option<Ttl> {
        self.confirmed
    }

    /// The settings that renewals follow.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Whether the latest renewal was not a success.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// How long to wait for the answer to a renewal that goes out behind so many large ones: their time
    /// is no sign that nobody answers. Never so long that a second try has no time left.
    pub fn patience(&self, behind: u32) -> Duration {
        let every = self.timing.renew_every().unwrap_or(LONGEST_PATIENCE);
        let alone = every.clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE);
        let longer = alone.saturating_add(LARGE_ROUND.saturating_mul(behind));
        longer.min(every.max(alone))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::values::timing::Renewing;

    const START: Time = Duration::from_secs(1000);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn timing(ttl: impl Into<Ttl>) -> Timing {
        Timing::new(ttl.into(), Renewing::ByDefault, None).unwrap()
    }

    fn lease(ttl: Duration) -> Lease {
        Lease::granted(timing(ttl), START, ttl)
    }

    #[test]
    fn a_renewal_behind_large_ones_waits_longer_and_leaves_time_for_a_second_try() {
        let thirty = lease(secs(30));
        let of = |behind| thirty.patience(behind);
        assert_eq!((of(0), of(4), of(1_000)), (secs(5), secs(7), secs(10)));
        // One that is short gives up its connection no later.
        assert_eq!(lease(secs(3)).patience(1_000), lease(secs(3)).patience(0));
    }

    #[test]
    fn a_lease_without_end_may_be_renewed_as_good_as_never() {
        let never = Renewing::Every(Duration::MAX);
        let timing = Timing::new(Ttl::Infinite, never, None).unwrap();
        let mut lease = Lease::granted(timing, START, timing.first_grant());
        assert_eq!(lease.next(START), Next::Renew);
        assert_eq!(lease.renewing(), Ttl::Infinite);
        lease.answered(START, Answer::Renewed, START + secs(1));
        assert_eq!(lease.next(START + secs(1)), Next::Wait(Time::MAX));
        assert!(!lease.may_come_along(START + secs(1)));
    }

    #[test]
    fn it_is_renewed_each_third_of_its_ttl() {
        let mut lease = lease(secs(30));
        assert_eq!(lease.next(START), Next::Wait(START + secs(10)));
        assert_eq!(lease.next(START + secs(10)), Next::Renew);
        lease.renewing();
        lease.answered(START + secs(10), Answer::Renewed, START + secs(11));
        assert_eq!(lease.next(START + secs(11)), Next::Wait(START + secs(20)));
    }

    #[test]
    fn a_slow_renewal_is_counted_from_when_it_was_sent() {
        let mut lease = lease(secs(30));
        let sent = START + secs(10);
        lease.renewing();
        lease.answered(sent, Answer::Renewed, sent + secs(8));
        assert_eq!(lease.trusted_until(), sent + secs(30 - 3));
    }

    #[test]
    fn a_call_that_hangs_does_not_delay_the_loss() {
        let mut lease = lease(secs(30));
        lease.renewing();
        assert_eq!(lease.next(START + secs(12)), Next::Wait(START + secs(27)));
        assert_eq!(
            lease.next(START + secs(27)),
            Next::Lost(LostReason::Unreachable)
        );
    }

    #[test]
    fn an_unknown_renewal_is_tried_again_until_trust_ends() {
        let mut lease = lease(secs(30));
        let (mut now, mut tries) = (START, 0);
        let reason = loop {
            match lease.next(now) {
                Next::Renew => {
                    tries += 1;
                    lease.renewing();
                    lease.answered(now, Answer::Unknown, now);
                }
                Next::Wait(until) => now = until,
                Next::Lost(reason) => break reason,
            }
        };
        assert_eq!((reason, now), (LostReason::Unreachable, START + secs(27)));
        assert!(tries > 15, "{tries}");
    }

    #[test]
    fn what_comes_after_the_end_of_trust_revives_nothing() {
        let mut lease = lease(secs(30));
        lease.renewing();
        lease.answered(START + secs(26), Answer::Renewed, START + secs(28));
        assert_eq!(
            lease.next(START + secs(28)),
            Next::Lost(LostReason::Expired)
        );
    }

    #[test]
    fn a_long_lease_begins_short_and_is_renewed_at_once() {
        for ttl in [Ttl::Finite(secs(3600)), Ttl::Infinite] {
            let mut lease = Lease::granted(timing(ttl), START, secs(30));
            assert_eq!(lease.confirmed(), None);
            assert!(lease.trusted_until() <= START + secs(30));
            assert_eq!(lease.next(START), Next::Renew);
            assert_eq!(lease.renewing(), ttl);
            lease.answered(START, Answer::Renewed, START);
            assert_eq!(lease.confirmed(), Some(ttl));
            assert!(lease.trusted_until() > START + secs(3000));
        }
    }

    #[test]
    fn an_extension_during_a_renewal_is_asked_for_next() {
        let mut lease = lease(secs(10));
        lease.renewing();
        lease.extend(timing(secs(60)), START + secs(1));
        lease.answered(START, Answer::Renewed, START + secs(2));
        assert_ne!(lease.confirmed(), Some(Ttl::Finite(secs(60))));
        assert_eq!(lease.next(START + secs(2)), Next::Renew);
    }

    #[test]
    fn the_latest_failure_says_why_the_lease_is_lost() {
        for (answer, reason) in [
            (Answer::Refused, LostReason::Refused),
            (Answer::Unknown, LostReason::Unreachable),
            (Answer::Busy, LostReason::Expired),
        ] {
            let mut lease = lease(secs(30));
            for (sent, answer) in [(10, Answer::Refused), (11, answer)] {
                lease.renewing();
                lease.answered(START + secs(sent), answer, START + secs(sent));
            }
            assert_eq!(lease.next(START + secs(27)), Next::Lost(reason));
        }
    }

    #[test]
    fn a_refused_renewal_is_tried_again_soon_and_not_too_often() {
        let mut lease = lease(secs(30));
        let (mut now, mut tries) = (START + secs(10), 0);
        while now < START + secs(20) {
            match lease.next(now) {
                Next::Renew => {
                    tries += 1;
                    lease.renewing();
                    lease.answered(now, Answer::Refused, now);
                }
                Next::Wait(until) => now = until,
                Next::Lost(_) => panic!("trusted"),
            }
        }
        assert!((10..20).contains(&tries), "{tries} in 10s");
    }

    #[test]
    fn a_check_renews_at_once_and_again_where_a_renewal_was_under_way() {
        let mut lease = lease(secs(30));
        lease.check(START + secs(1));
        assert_eq!(lease.next(START + secs(1)), Next::Renew);
        lease.renewing();
        lease.check(START + secs(2));
        lease.answered(START + secs(1), Answer::Renewed, START + secs(3));
        assert_eq!(lease.next(START + secs(3)), Next::Renew);
        lease.renewing();
        lease.answered(START + secs(3), Answer::Renewed, START + secs(4));
        assert_eq!(lease.next(START + secs(4)), Next::Wait(START + secs(13)));
    }

    #[test]
    fn a_check_does_not_lengthen_a_lease_that_is_never_renewed() {
        let timing = Timing::new(secs(30).into(), Renewing::Never, None).unwrap();
        let mut lease = Lease::granted(timing, START, secs(30));
        lease.check(START + secs(20));
        assert_eq!(lease.renewing(), CHECK);
        lease.answered(START + secs(20), Answer::Renewed, START + secs(20));
        assert_eq!(lease.trusted_until(), START + secs(27));
        assert_eq!(lease.next(START + secs(20)), Next::Wait(START + secs(27)));
    }

    #[test]
    fn a_lease_that_is_not_renewed_only_expires() {
        let timing = Timing::new(secs(10).into(), Renewing::Never, None).unwrap();
        let lease = Lease::granted(timing, START, secs(10));
        assert_eq!(lease.next(START), Next::Wait(START + secs(9)));
        assert!(!lease.may_come_along(START + secs(8)));
    }

    #[test]
    fn under_a_fence_nothing_is_renewed_and_trust_is_not_lengthened() {
        let mut lease = lease(secs(30));
        assert!(lease.fence_opened(START + secs(1)));
        assert_eq!(lease.next(START + secs(15)), Next::Wait(Time::MAX));
        assert!(!lease.may_come_along(START + secs(9)));
        assert_eq!(lease.trusted_until(), START + secs(27));
        lease.fence_closed(START + secs(15));
        assert_eq!(lease.next(START + secs(15)), Next::Renew);
    }

    #[test]
    fn where_trust_ends_under_a_fence_the_renewal_after_it_decides() {
        let suspended = || {
            let mut lease = lease(secs(30));
            assert!(lease.fence_opened(START));
            assert!(lease.fence_opened(START + secs(5)));
            lease.fence_closed(START + secs(20));
            assert_eq!(lease.next(START + secs(40)), Next::Wait(Time::MAX));
            assert!(lease.outlives_trust());
            assert!(!lease.fence_opened(START + secs(40)), "not held");
            lease.fence_closed(START + secs(50));
            assert_eq!(lease.next(START + secs(50)), Next::Renew);
            assert_eq!(lease.trusted_until(), START + secs(27));
            lease.renewing();
            lease
        };
        let sent = START + secs(50);

        let mut held = suspended();
        held.answered(sent, Answer::Renewed, sent + secs(1));
        assert_eq!(held.trusted_until(), sent + secs(27));
        assert!(!held.outlives_trust());
        assert_eq!(held.next(sent + secs(2)), Next::Wait(sent + secs(10)));

        let mut unknown = suspended();
        unknown.answered(sent, Answer::Unknown, sent + secs(1));
        assert!(matches!(unknown.next(sent + secs(1)), Next::Wait(_)));
        assert_eq!(unknown.next(sent + secs(5)), Next::Renew);
        let never = sent + secs(30);
        assert_eq!(unknown.next(never), Next::Lost(LostReason::Unreachable));
    }

    #[test]
    fn a_renewal_that_was_held_back_counts_although_trust_ends_meanwhile() {
        let mut lease = lease(secs(30));
        lease.fence_opened(START);
        let (sent, late) = (START + secs(26), START + secs(28));
        lease.fence_closed(sent);
        lease.renewing();
        assert_eq!(lease.next(late), Next::Wait(sent + secs(30)));
        lease.answered(sent, Answer::Renewed, late);
        assert_eq!(lease.trusted_until(), sent + secs(27));
    }

    #[test]
    fn without_renewals_a_suspended_lease_ends_with_its_fence() {
        let timing = Timing::new(secs(10).into(), Renewing::Never, None).unwrap();
        let mut lease = Lease::granted(timing, START, secs(10));
        lease.fence_opened(START);
        assert_eq!(lease.next(START + secs(20)), Next::Wait(Time::MAX));
        lease.fence_closed(START + secs(20));
        assert_eq!(
            lease.next(START + secs(20)),
            Next::Lost(LostReason::Expired)
        );
    }

    #[test]
    fn a_long_transaction_is_covered_by_one_renewal() {
        let mut lease = lease(secs(30));
        lease.cover(secs(300), START);
        assert_eq!(lease.confirmed(), None);
        assert_eq!(lease.next(START), Next::Renew);
        assert_eq!(lease.renewing(), Ttl::Finite(secs(300)));
        lease.answered(START, Answer::Renewed, START + secs(1));
        assert_eq!(lease.trusted_until(), START + secs(297));
        assert_eq!(lease.confirmed(), Some(Ttl::Finite(secs(30))));
        assert_eq!(lease.next(START + secs(1)), Next::Wait(START + secs(10)));
        assert_eq!(lease.renewing(), Ttl::Finite(secs(30)));
    }

    /// The margin of 3 s is for 300 s of a clock that is 1 % too fast, and not for more.
    #[test]
    fn what_is_longer_than_the_ttl_has_a_margin_of_its_own() {
        let mut lease = lease(secs(30));
        lease.cover(secs(1000), START);
        lease.renewing();
        lease.answered(START, Answer::Renewed, START);
        assert_eq!(lease.trusted_until(), START + secs(990));
        for trusted in [secs(40), secs(300), secs(5000)] {
            let length = lease.timing().length_for(trusted);
            let covered = length - lease.timing().margin_of(length);
            assert!(
                (trusted..trusted + secs(1)).contains(&covered),
                "{covered:?}"
            );
        }
    }

    /// Lengths of all sizes, the greatest and the least of them often.
    fn any_length() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            (0_u64..=100_000).prop_map(Duration::from_millis),
            (0_u64..=u64::MAX, 0_u32..1_000_000_000).prop_map(|(s, n)| Duration::new(s, n)),
        ]
    }

    fn any_ttl() -> impl Strategy<Value = Ttl> {
        prop_oneof![Just(Ttl::Infinite), any_length().prop_map(Ttl::Finite)]
    }

    proptest! {
        /// Whatever is asked for is refused or reckoned with.
        #[test]
        fn no_length_is_too_long_to_be_reckoned_with(
            ttl in any_ttl(),
            (every, renews) in (any_length(), any::<bool>()),
            margin in prop::option::of(any_length()),
            (sent, granted, later) in (any_length(), any_length(), any_ttl()),
            steps in prop::collection::vec((any_length(), 0_u8..4), 0..12),
        ) {
            let renewing = if renews { Renewing::Every(every) } else { Renewing::ByDefault };
            let Ok(timing) = Timing::new(ttl, renewing, margin) else { return Ok(()) };
            let length = if renews { timing.first_grant() } else { granted };
            let mut lease = Lease::granted(timing, sent, length);
            let mut now = sent;
            for (step, answer) in steps {
                now = now.saturating_add(step);
                lease.may_come_along(now);
                if lease.next(now) == Next::Renew {
                    lease.renewing();
                }
                match answer {
                    0 => lease.answered(sent, Answer::Renewed, now),
                    1 => lease.answered(now, Answer::Renewed, now),
                    2 => lease.answered(now, Answer::Unknown, now),
                    _ => if let Ok(timing) = timing.with_ttl(later) {
                        lease.extend(timing, now);
                    },
                }
                lease.patience(0);
                lease.next(now);
            }
        }

        /// The database carries out each request somewhere between its sending and its answer, or
        /// its timing out, and its clock may run up to 1 % faster than ours: as long as we trust the
        /// lease, the database would give it to nobody else. While a fence is open it renews nothing,
        /// and nothing is asked of it.
        #[test]
        fn trusted_means_not_expired_in_the_database(
            ttl_ms in 100_u64..600_000,
            first_ms in 0_u64..50,
            rounds in prop::collection::vec((0_u64..5_000, 0_u64..5_000, 0_u8..4, any::<bool>(), 0_u8..8), 1..40),
        ) {
            let db = |t: Time| t.mul_f64(1.01);
            let ms = Duration::from_millis;
            let ttl = ms(ttl_ms);
            let timing = timing(ttl);
            let length = timing.first_grant();
            let mut lease = Lease::granted(timing, START, length);
            let mut now = START + ms(first_ms);
            let mut expires = db(START) + length;
            let mut fences = 0;
            for (before, after, answer, late, fence) in rounds {
                match fence {
                    0 => fences += u32::from(lease.fence_opened(now)),
                    1 if fences > 0 => {
                        fences -= 1;
                        lease.fence_closed(now);
                    }
                    2 => lease.cover(ttl + ms(before), now),
                    _ => {}
                }
                match lease.next(now) {
                    Next::Lost(_) => break,
                    Next::Wait(until) => now = until.min(now + ms(before + after)),
                    Next::Renew => {
                        prop_assert_eq!(fences, 0);
                        let (sent, done) = (now, now + ms(before));
                        let asked = lease.renewing();
                        now = done + ms(after);
                        let Ttl::Finite(asked) = asked else { unreachable!() };
                        // Sent while trusted, carried out while the row was not expired.
                        let carried_out = answer < 2 || (answer == 2 && late);
                        if carried_out && db(done) < expires {
                            expires = expires.max(db(done) + asked);
                            let answer = if answer == 0 { Answer::Renewed } else { Answer::Unknown };
                            lease.answered(sent, answer, now);
                        } else {
                            lease.answered(sent, Answer::Busy, now);
                        }
                    }
                }
                prop_assert!(db(lease.trusted_until()) <= expires);
            }
        }
    }
}
