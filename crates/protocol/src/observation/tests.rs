use proptest::prelude::*;

use super::*;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const BEGAN: BootInstant = BootInstant::from_boot(secs(1000));

fn observation() -> Observation<u32> {
    Observation::new(1, secs(30), false, BEGAN)
}

#[test]
fn a_lease_may_be_taken_when_one_version_was_seen_for_its_whole_length() {
    let mut observation = observation();
    let end = BEGAN + secs(30);
    assert_eq!(observation.ended(end - Duration::from_nanos(1)), None);
    assert_eq!(observation.left(BEGAN + secs(10)), secs(20));
    observation.record(1, secs(30), true, BEGAN + secs(29));
    assert_eq!(observation.ended(end), Some(&1));
    assert_eq!(observation.left(end), Duration::ZERO);
}

#[test]
fn another_version_begins_the_observation_anew() {
    let mut observation = observation();
    observation.record(2, secs(20), false, BEGAN + secs(29));
    assert_eq!(observation.ended(BEGAN + secs(48)), None);
    assert_eq!(observation.ended(BEGAN + secs(49)), Some(&2));
    // An earlier version, too: a late reply to another waiter.
    observation.record(1, secs(30), false, BEGAN + secs(60));
    assert_eq!(observation.ended(BEGAN + secs(89)), None);
}

#[test]
fn all_waiters_share_one_observation() {
    let observations = Observations::<&str, u32>::default();
    let saw = |version, at| observations.record(&"job", &version, secs(30), false, at);
    assert_eq!(saw(1, BEGAN), secs(30));
    assert_eq!(saw(1, BEGAN + secs(12)), secs(18));
    assert_eq!(observations.ended(&"job", BEGAN + secs(29)), None);
    assert_eq!(observations.ended(&"job", BEGAN + secs(30)), Some(1));
    assert_eq!(observations.ended(&"other", BEGAN + secs(30)), None);
    assert_eq!(saw(2, BEGAN + secs(31)), secs(30));
    observations.forget(&"job");
    assert_eq!(saw(2, BEGAN + secs(70)), secs(30));
}

#[test]
fn the_observed_rows_of_a_lock_are_found_among_those_of_others() {
    let observations = Observations::<&str, u32>::default();
    for name in ["job 1", "other", "job 2"] {
        observations.record(&name, &1, secs(30), false, BEGAN);
    }
    let mut found = observations.matching(|name| name.starts_with("job"));
    found.sort_unstable();
    assert_eq!(found, ["job 1", "job 2"]);
}

#[test]
fn an_observation_tells_how_long_ago_it_ended() {
    let observations = Observations::<&str, u32>::default();
    observations.record(&"job", &1, secs(30), false, BEGAN);
    assert_eq!(observations.ended_for(&"job", BEGAN + secs(29)), None);
    assert_eq!(
        observations.ended_for(&"job", BEGAN + secs(30)),
        Some(secs(0))
    );
    assert_eq!(
        observations.ended_for(&"job", BEGAN + secs(42)),
        Some(secs(12))
    );
    assert_eq!(observations.ended_for(&"other", BEGAN + secs(42)), None);
}

#[test]
fn a_wait_is_extended_for_one_version_and_while_its_holder_looks_dead() {
    let observations = Observations::<&str, u32>::default();
    let saw = |version, overdue, at| {
        observations.record(&"job", &version, secs(30), overdue, at);
    };
    let until = |extension: &mut WaitExtension<u32>, at| extension.until(&observations, &"job", at);
    let end = BEGAN + secs(30) + ACQUIRE_TIME;
    assert_eq!(
        until(&mut WaitExtension::default(), BEGAN),
        None,
        "never seen"
    );
    saw(1, false, BEGAN);
    assert_eq!(until(&mut WaitExtension::default(), BEGAN + secs(1)), None);
    saw(1, true, BEGAN + secs(1));
    let mut extension = WaitExtension::default();
    assert_eq!(until(&mut extension, BEGAN + secs(1)), Some(end));
    assert_eq!(until(&mut extension, end), None, "it could not be taken");
    saw(1, false, BEGAN + secs(2));
    assert_eq!(
        until(&mut extension, BEGAN + secs(2)),
        None,
        "it looks alive"
    );
    saw(2, true, BEGAN + secs(3));
    assert_eq!(until(&mut extension, BEGAN + secs(3)), None, "renewed");
    assert!(until(&mut WaitExtension::default(), BEGAN + secs(3)).is_some());
}

/// As many observations as the map can hold without growing.
fn full(observations: &Observations<usize, u32>) -> usize {
    let mut count = 0;
    while count < CLEAN_UP_FROM || count < observations.all().capacity() {
        observations.record(&count, &1, secs(30), false, BEGAN);
        count += 1;
    }
    count
}

#[test]
fn an_observation_that_no_reply_confirms_is_dropped_after_ten_minutes() {
    let kept_until = BEGAN + secs(30) + KEPT_FOR;
    for (now, dropped) in [(kept_until, false), (kept_until + secs(1), true)] {
        let observations = Observations::default();
        let count = full(&observations);
        observations.record(&0, &1, secs(30), false, BEGAN + secs(2));
        observations.record(&count, &1, secs(30), false, now);
        let left = observations.all().len();
        assert_eq!(left, if dropped { 2 } else { count + 1 });
        assert!(
            observations.ended(&0, now).is_some(),
            "it was confirmed later"
        );
    }
}

#[test]
fn few_observations_are_never_dropped() {
    let observations = Observations::<usize, u32>::default();
    for name in 0..CLEAN_UP_FROM {
        observations.record(&name, &1, secs(30), false, BEGAN + secs(3600) * name as u32);
    }
    assert_eq!(observations.all().len(), CLEAN_UP_FROM);
}

#[test]
fn the_number_of_observations_is_bounded() {
    let observations = Observations::<u64, u32>::default();
    for name in 0..10_000 {
        observations.record(&name, &1, secs(30), false, BEGAN + secs(name));
    }
    let kept = observations.all().len();
    assert!(kept < 4_000, "{kept} are kept");
    assert!(observations.ended(&9_999, BEGAN + secs(20_000)).is_some());
}

/// The renewals of a holder on one machine, seen from another through slow replies.
#[derive(Clone, Debug)]
struct History {
    /// For each renewal: when it was sent, and how much later it was executed, in ms.
    renewals: Vec<(u64, u64)>,
    /// For each read of a waiter: when it was executed, and how much later its reply arrived.
    reads: Vec<(u64, u64)>,
    /// How much later than it was sent the statement is executed that takes the lease.
    taking: u64,
    length: u64,
}

fn history() -> impl Strategy<Value = History> {
    let step = 1_u64..8_000;
    let renewals = prop::collection::vec((step.clone(), 0_u64..3_000), 1..8);
    let reads = prop::collection::vec((step, 0_u64..5_000), 1..40);
    (renewals, reads, 0_u64..5_000, 100_u64..30_000).prop_map(
        |(renewals, reads, taking, length)| {
            // From steps to points in time. Each renewal is sent after the one before was executed.
            let mut at = 0;
            let renewals = renewals.into_iter().map(|(step, slow)| {
                let sent = at + step;
                at = sent + slow;
                (sent, slow)
            });
            let renewals = renewals.collect();
            let mut at = 0;
            let reads = reads.into_iter().map(|(step, slow)| {
                let done = at + step;
                at = done + slow;
                (done, slow)
            });
            History {
                renewals,
                reads: reads.collect(),
                taking,
                length,
            }
        },
    )
}

proptest! {
    /// A waiter takes a lease after its holder has stopped trusting it, and not much later than it
    /// may.
    #[test]
    fn no_waiter_takes_a_trusted_lease(history in history()) {
        let ms = Duration::from_millis;
        let at = |ms: u64| BootInstant::from_boot(Duration::from_millis(ms));
        // The version at some point in time: how many renewals were executed by then.
        let version = |at: u64| {
            history.renewals.iter().filter(|(sent, slow)| sent + slow <= at).count()
        };
        let length = ms(history.length);
        let mut observation: Option<Observation<usize>> = None;
        let mut first_seen = 0;
        for (done, slow) in &history.reads {
            let (seen, now) = (version(*done), done + slow);
            match &mut observation {
                Some(observation) => {
                    if observation.version != seen {
                        first_seen = now;
                    }
                    observation.record(seen, length, false, at(now));
                }
                none => {
                    first_seen = now;
                    *none = Some(Observation::new(seen, length, false, at(now)));
                }
            }
            let observation = observation.as_ref().unwrap();
            let may = observation.ended(at(now)).is_some();
            prop_assert_eq!(may, now - first_seen >= history.length);
            prop_assert_eq!(may, observation.left(at(now)).is_zero());
            let executed = now + history.taking;
            // The statement asks for the version.
            if may && version(executed) == seen && seen > 0 {
                let (sent, _) = history.renewals[seen - 1];
                prop_assert!(now >= sent + history.length, "{now} {sent}");
            }
        }
    }
}
