use proptest::prelude::*;

use super::*;

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
        let sent = BootInstant::from_boot(sent);
        let mut lease = Lease::granted(timing, sent, length);
        let mut now = sent;
        for (step, answer) in steps {
            now += step;
            lease.may_renew_early(now);
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
            lease.renewal_timeout(0);
            lease.next(now);
        }
    }

    /// The database executes each request between its sending and its answer or timeout, and its
    /// clock may run up to 1 % faster than that of the holder. While the holder trusts the lease,
    /// the database gives it to no other client. While a fence is open, no renewal is sent.
    #[test]
    fn trusted_means_not_expired_in_the_database(
        ttl_ms in 100_u64..600_000,
        first_ms in 0_u64..50,
        rounds in prop::collection::vec((0_u64..5_000, 0_u64..5_000, 0_u8..4, any::<bool>(), 0_u8..8), 1..40),
    ) {
        let db = |t: BootInstant| BootInstant::from_boot(t.since_boot().mul_f64(1.01));
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
