use super::*;

#[test]
fn under_a_fence_nothing_is_renewed_and_trust_is_not_lengthened() {
    let mut lease = lease(secs(30));
    assert!(lease.fence_opened(START + secs(1)));
    assert_eq!(lease.next(START + secs(15)), Next::Wait(BootInstant::MAX));
    assert!(!lease.may_renew_early(START + secs(9)));
    assert_eq!(lease.trusted_until(), START + secs(27));
    lease.fence_closed(START + secs(15));
    assert_eq!(lease.next(START + secs(15)), Next::Renew);
}

#[test]
fn no_fence_is_opened_once_trust_has_ended() {
    let mut lease = lease(secs(30));
    assert!(!lease.fence_opened(START + secs(27)));
    assert!(!lease.outlives_trust());
    assert!(lease.fence_opened(START + secs(27) - Duration::from_nanos(1)));
}

#[test]
fn a_fence_that_held_no_renewal_back_changes_nothing() {
    let mut lease = lease(secs(30));
    assert!(lease.fence_opened(START + secs(1)));
    lease.fence_closed(START + secs(5));
    assert_eq!(lease.next(START + secs(5)), Next::Wait(START + secs(10)));
    assert!(!lease.outlives_trust());
}

/// A renewal was under way when both fences were opened, and failed between their ends.
#[test]
fn only_the_last_fence_to_close_leaves_the_lease_undecided() {
    let mut lease = lease(secs(30));
    let sent = START + secs(10);
    lease.renewing();
    assert!(lease.fence_opened(sent) && lease.fence_opened(sent));
    lease.fence_closed(START + secs(11));
    lease.answered(sent, Answer::Unknown, START + secs(12));
    lease.fence_closed(START + secs(12));
    assert!(!lease.outlives_trust(), "no renewal was held back by then");
}

#[test]
fn an_answer_that_comes_when_its_own_trust_ends_decides_nothing() {
    let mut lease = lease(secs(30));
    lease.fence_opened(START);
    let sent = START + secs(26);
    lease.fence_closed(sent);
    lease.renewing();
    lease.answered(sent, Answer::Renewed, sent + secs(27));
    assert_eq!(lease.trusted_until(), sent + secs(27));
    assert!(lease.outlives_trust());
}

#[test]
fn if_trust_ends_under_a_fence_the_renewal_after_it_decides() {
    let suspended = || {
        let mut lease = lease(secs(30));
        assert!(lease.fence_opened(START));
        assert!(lease.fence_opened(START + secs(5)));
        lease.fence_closed(START + secs(20));
        assert_eq!(lease.next(START + secs(40)), Next::Wait(BootInstant::MAX));
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
    assert_eq!(lease.next(START + secs(20)), Next::Wait(BootInstant::MAX));
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
