use super::*;

const PERIODS: u64 = 20_000;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn the_window_is_the_period_less_a_tenth_or_a_minute() {
    for (period, window) in [
        (Duration::from_millis(100), Duration::from_millis(90)),
        (secs(10), secs(9)),
        (secs(600), secs(540)),
        (secs(3_600), secs(3_540)),
        (secs(86_400), secs(86_340)),
    ] {
        let once = OncePer::new(period).unwrap();
        assert_eq!((once.period(), once.window()), (period, window));
    }
}

#[test]
fn the_bounds_are_allowed_and_what_is_beyond_them_is_refused() {
    let nanosecond = Duration::from_nanos(1);
    assert!(OncePer::new(OncePer::MIN).is_ok() && OncePer::new(OncePer::MAX).is_ok());
    assert!(OncePer::new(OncePer::MAX + nanosecond).is_err());
    let refused = OncePer::new(Duration::ZERO).unwrap_err().to_string();
    assert_eq!(refused, "`once_per` is 0ms, must be 100ms to 10 years");
    assert!(checked_at_least(Duration::ZERO).is_ok() && checked_at_least(Ttl::MAX).is_ok());
    let refused = checked_at_least(Ttl::MAX + secs(86_400)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "`at_least` is 3653d 12h, must be 0 to 10 years"
    );
}

/// Pseudo-random numbers below `n`, the same in each run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Machines whose cron daemons start the same job at the beginning of each period.
struct Machines {
    period: Duration,
    /// How far the clock of each is ahead of the slowest, in milliseconds.
    ahead_ms: Vec<u64>,
    /// A start is late by up to this, in milliseconds.
    jitter_ms: u64,
    /// How far the clock of the database is behind the slowest, in milliseconds.
    database_behind_ms: u64,
}

/// How many periods had no run, and how many had two or more. `may_run` is the rule: it gets the
/// clock of the database now, and at the latest grant.
fn missed_and_doubled(
    machines: &Machines,
    may_run: impl Fn(Duration, Duration) -> bool,
) -> (u64, u64) {
    let mut random = Numbers(0x9E37_79B9_7F4A_7C15);
    let (mut latest, mut missed, mut doubled) = (None, 0, 0);
    for period in 1..=PERIODS {
        // An early clock starts its machine early.
        let starts = machines.ahead_ms.iter().map(|ahead| {
            let late = random.below(machines.jitter_ms + 1);
            let start = machines.period * u32::try_from(period).unwrap();
            start + Duration::from_millis(late)
                - Duration::from_millis(ahead + machines.database_behind_ms)
        });
        let mut starts: Vec<Duration> = starts.collect();
        starts.sort_unstable();
        let mut runs = 0;
        for now in starts {
            // Each run is so short that the lock is free again.
            if latest.is_none_or(|latest| may_run(now, latest)) {
                (latest, runs) = (Some(now), runs + 1);
            }
        }
        missed += u64::from(runs == 0);
        doubled += u64::from(runs > 1);
    }
    (missed, doubled)
}

fn all_machines() -> Vec<Machines> {
    let machines = |period, ahead_ms: &[u64], jitter_ms, database_behind_ms| Machines {
        period,
        ahead_ms: ahead_ms.to_vec(),
        jitter_ms,
        database_behind_ms,
    };
    vec![
        machines(secs(3_600), &[0], 20, 0),
        machines(secs(3_600), &[0, 3, 7, 11, 18], 20, 30),
        machines(secs(3_600), &[0, 1_000, 5_000], 10_000, 0),
        machines(secs(60), &[0], 2_000, 500),
        machines(secs(60), &[0, 400, 900, 1_500, 2_900], 2_000, 1_000),
        machines(secs(1), &[0, 10, 20], 20, 5),
    ]
}

#[test]
fn no_period_is_missed_and_none_has_two_runs() {
    for machines in all_machines() {
        let window = OncePer::new(machines.period).unwrap().window();
        let counts = missed_and_doubled(&machines, |now, latest| now - latest > window);
        assert_eq!(counts, (0, 0), "{:?}", machines.period);
    }
}

/// Two rules that look simpler, and the simulation in which each of them fails.
#[test]
fn neither_the_whole_period_nor_its_number_would_do() {
    let [one, five, ..] = &all_machines()[..] else {
        panic!("six of them");
    };
    let whole = |now: Duration, latest| now - latest >= one.period;
    let (missed, _) = missed_and_doubled(one, whole);
    assert!(missed > PERIODS / 10, "{missed}");
    let number = |at: Duration| at.as_nanos() / five.period.as_nanos();
    let numbered = |now, latest| number(now) != number(latest);
    let near_the_border = Machines {
        database_behind_ms: 10,
        ..all_machines().swap_remove(1)
    };
    let (_, doubled) = missed_and_doubled(&near_the_border, numbered);
    assert!(doubled > PERIODS / 10, "{doubled}");
}
