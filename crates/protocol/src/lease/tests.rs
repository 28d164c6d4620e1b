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
    // A short lease gives up its connection no later than alone.
    assert_eq!(lease(secs(3)).patience(1_000), lease(secs(3)).patience(0));
}

#[test]
fn an_infinite_lease_may_have_a_period_of_any_length() {
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
fn a_lease_is_renewed_each_third_of_its_ttl() {
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
fn an_answer_after_the_end_of_trust_revives_nothing() {
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
fn a_check_renews_at_once_and_again_if_a_renewal_was_under_way() {
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
fn if_trust_ends_under_a_fence_the_renewal_after_it_decides() {
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

/// The margin of 3 s is for 300 s of a clock that is 1 % too fast, and not for longer.
#[test]
fn a_cover_longer_than_the_ttl_has_a_margin_of_its_own() {
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

/// Lengths of all sizes, often the shortest or the longest.
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
    /// No length overflows: it is refused, or the arithmetic saturates.
    #[test]
    fn no_length_overflows(
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

    /// The database executes each request between its sending and its answer or timeout, and its
    /// clock may run up to 1 % faster than that of the holder. While the holder trusts the lease, the
    /// database gives it to no other client. While a fence is open, no renewal is sent.
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
                    // Sent while trusted, executed while the row was not expired.
                    let executed = answer < 2 || (answer == 2 && late);
                    if executed && db(done) < expires {
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
