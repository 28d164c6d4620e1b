mod fences;
mod properties;

use super::*;
use crate::values::timing::Renewing;

const START: BootInstant = BootInstant::from_boot(Duration::from_secs(1000));

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
    let of = |behind| thirty.renewal_timeout(behind);
    assert_eq!((of(0), of(4), of(1_000)), (secs(5), secs(7), secs(10)));
    // A short lease gives up its connection no later than alone.
    assert_eq!(
        lease(secs(3)).renewal_timeout(1_000),
        lease(secs(3)).renewal_timeout(0)
    );
}

#[test]
fn an_infinite_lease_may_have_a_period_of_any_length() {
    let never = Renewing::Every(Duration::MAX);
    let timing = Timing::new(Ttl::Infinite, never, None).unwrap();
    let mut lease = Lease::granted(timing, START, timing.first_grant());
    assert_eq!(lease.next(START), Next::Renew);
    assert_eq!(lease.renewing(), Ttl::Infinite);
    lease.answered(START, Answer::Renewed, START + secs(1));
    assert_eq!(lease.next(START + secs(1)), Next::Wait(BootInstant::MAX));
    assert!(!lease.may_renew_early(START + secs(1)));
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

/// The renewals of a lease whose answers are all the same, until `end` or its loss.
fn driven(
    lease: &mut Lease,
    answer: Answer,
    mut now: BootInstant,
    end: BootInstant,
) -> (Vec<BootInstant>, Option<(LostReason, BootInstant)>) {
    let mut renewals = Vec::new();
    for _ in 0..1000 {
        if now >= end {
            return (renewals, None);
        }
        match lease.next(now) {
            Next::Renew => {
                renewals.push(now);
                lease.renewing();
                lease.answered(now, answer, now);
            }
            Next::Wait(until) => now = until,
            Next::Lost(reason) => return (renewals, Some((reason, now))),
        }
    }
    panic!("time stands still at {now:?}");
}

#[test]
fn an_unknown_renewal_is_tried_again_until_trust_ends() {
    let mut lease = lease(secs(30));
    let (renewals, lost) = driven(&mut lease, Answer::Unknown, START, START + secs(100));
    assert_eq!(lost, Some((LostReason::Unreachable, START + secs(27))));
    assert!(renewals.len() > 15, "{renewals:?}");
}

#[test]
fn the_pause_after_a_failure_doubles_from_20_ms_to_a_second() {
    let (renewals, _) = driven(&mut lease(secs(30)), Answer::Busy, START, START + secs(16));
    let pauses: Vec<u128> = renewals
        .windows(2)
        .map(|at| (at[1] - at[0]).as_millis())
        .collect();
    assert_eq!(pauses[..8], [20, 40, 80, 160, 320, 640, 1000, 1000]);
}

#[test]
fn the_pause_of_a_short_lease_is_at_most_half_its_period() {
    for (ttl, longest) in [(600, 100), (100, 20)] {
        let ttl = Duration::from_millis(ttl);
        let (renewals, _) = driven(&mut lease(ttl), Answer::Busy, START, START + secs(1));
        let pauses = renewals.windows(2).map(|at| (at[1] - at[0]).as_millis());
        assert_eq!(pauses.max(), Some(longest));
    }
}

#[test]
fn a_lease_is_failing_from_a_failed_renewal_to_the_next_that_succeeds() {
    let mut lease = lease(secs(30));
    assert!(!lease.is_failing());
    for (answer, failing) in [
        (Answer::Unknown, true),
        (Answer::Refused, true),
        (Answer::Renewed, false),
    ] {
        lease.renewing();
        assert_eq!(
            lease.next(START),
            Next::Wait(lease.trusted_until()),
            "under way"
        );
        lease.answered(START, answer, START);
        assert_eq!(lease.is_failing(), failing, "{answer:?}");
    }
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
fn a_refusal_is_the_reason_even_if_a_later_renewal_has_no_answer() {
    let mut lease = lease(secs(30));
    lease.renewing();
    lease.answered(START + secs(10), Answer::Refused, START + secs(10));
    lease.renewing();
    let lost = lease.next(START + secs(27));
    assert_eq!(lost, Next::Lost(LostReason::Refused));
}

#[test]
fn a_refused_renewal_is_tried_again_soon_and_not_too_often() {
    let mut lease = lease(secs(30));
    let (from, end) = (START + secs(10), START + secs(20));
    let (renewals, lost) = driven(&mut lease, Answer::Refused, from, end);
    assert_eq!(lost, None);
    assert!((10..20).contains(&renewals.len()), "{renewals:?}");
}

#[test]
fn a_lease_may_be_renewed_early_by_half_its_period() {
    let mut lease = lease(secs(30));
    let early = START + secs(5);
    assert!(!lease.may_renew_early(early - Duration::from_nanos(1)));
    assert!(lease.may_renew_early(early));
    let end = START + secs(27);
    assert!(lease.may_renew_early(end - Duration::from_nanos(1)));
    assert!(!lease.may_renew_early(end), "trust has ended");
    lease.renewing();
    assert!(!lease.may_renew_early(early), "under way");
    lease.answered(early, Answer::Busy, early);
    assert!(!lease.may_renew_early(early), "it failed");
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
    assert!(!lease.may_renew_early(START + secs(8)));
}
