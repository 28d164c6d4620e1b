//! What the feature `metrics` counts. One test, since the recorder is one for the process.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use database_locks::{Error, Locks, LostReason};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

type Labels = BTreeMap<String, String>;

/// All metrics so far: reading the recorder resets it.
struct Seen {
    recorder: Snapshotter,
    numbers: HashMap<(String, Labels), Vec<f64>>,
    described: HashSet<String>,
}

impl Seen {
    fn look(&mut self) {
        for (key, _unit, description, value) in self.recorder.snapshot().into_vec() {
            let key = key.key();
            let labels = key.labels().map(|l| (l.key().into(), l.value().into()));
            let numbers = self
                .numbers
                .entry((key.name().into(), labels.collect()))
                .or_default();
            match value {
                DebugValue::Counter(n) => numbers.push(n as f64),
                DebugValue::Gauge(n) => numbers.push(n.0),
                DebugValue::Histogram(all) => numbers.extend(all.iter().map(|n| n.0)),
            }
            if description.is_some() {
                self.described.insert(key.name().into());
            }
        }
    }

    fn find(&self, name: &str, label: &str, value: &str) -> Vec<f64> {
        let fits = |(n, labels): &(String, Labels)| {
            n == &format!("database_locks_{name}") && labels.get(label).is_some_and(|v| v == value)
        };
        let found = self.numbers.iter().filter(|(key, _)| fits(key));
        found.flat_map(|(_, numbers)| numbers.clone()).collect()
    }

    /// The value of a counter or gauge.
    fn total(&self, name: &str, label: &str, value: &str) -> f64 {
        self.find(name, label, value).iter().sum()
    }

    fn of(&self, name: &str) -> f64 {
        self.total(name, "engine", "memory")
    }
}

#[tokio::test]
async fn every_metric_of_the_guide_is_recorded() {
    let recorder = DebuggingRecorder::new();
    let mut seen = Seen {
        recorder: recorder.snapshotter(),
        numbers: HashMap::new(),
        described: HashSet::new(),
    };
    recorder.install().unwrap();
    let ms = Duration::from_millis;
    let locks = Locks::connect("memory:").await.unwrap();
    let quick = |name: &str| {
        locks
            .lock(name)
            .ttl(ms(6000))
            .renew_every(ms(300))
            .wait(ms(500))
    };

    // Acquired, contended, renewed.
    let guard = quick("a").acquire().await.unwrap();
    assert!(quick("a").try_acquire().await.unwrap().is_none());
    let late = quick("a").acquire().await.unwrap_err();
    assert!(matches!(late, Error::TimedOut { .. }));
    let patient = locks.lock("a");
    let given_up = tokio::time::timeout(ms(20), patient.acquire());
    assert!(given_up.await.is_err());
    while seen.total("renewals_total", "result", "renewed") < 1.0 {
        tokio::time::sleep(ms(10)).await;
        seen.look();
    }

    // Handed over and resumed.
    let guard = locks.resume(&guard.into_ticket().unwrap()).await.unwrap();
    seen.look();
    assert_eq!(seen.of("acquired_total"), 1.0);
    assert_eq!(seen.of("resumed_total"), 1.0);
    assert_eq!(seen.of("held"), 1.0);
    for reason in ["busy", "timed_out", "given_up"] {
        let n = seen.total("not_acquired_total", "reason", reason);
        assert_eq!(n, 1.0, "{reason}");
    }

    // Released, and taken by force.
    guard.release().await.unwrap();
    let guard = quick("a").acquire().await.unwrap();
    locks.force_release("a").await.unwrap();
    assert_eq!(guard.lost().await.reason(), LostReason::Forced);
    drop(guard);
    locks.drain().await;
    // The loss wakes the holder first and is counted after that.
    for _ in 0..1000 {
        seen.look();
        if seen.of("held") < 1.0 && seen.total("renewals_total", "result", "lost") > 0.0 {
            break;
        }
        tokio::time::sleep(ms(10)).await;
    }
    assert_eq!(seen.of("held"), 0.0);
    assert_eq!(seen.of("waiting"), 0.0);
    assert_eq!(seen.total("lost_total", "reason", "forced"), 1.0);
    assert_eq!(seen.total("renewals_total", "result", "lost"), 1.0);
    assert_eq!(seen.find("wait_seconds", "engine", "memory").len(), 2);
    let held = seen.find("held_seconds", "engine", "memory");
    assert_eq!(held.len(), 3, "handed over, released, lost");
    assert!(held.iter().all(|s| *s < 60.0), "in seconds: {held:?}");
    assert_eq!(
        seen.find("request_seconds", "operation", "release").len(),
        1
    );

    // Every metric is described and in the guide, and has no label but these.
    let guide = include_str!("../docs/rust.md");
    let known = ["engine", "operation", "reason", "result"];
    for (name, labels) in seen.numbers.keys() {
        assert!(guide.contains(&format!("`{name}`")), "{name} in the guide");
        assert!(seen.described.contains(name), "{name} described");
        let known = labels.keys().all(|label| known.contains(&label.as_str()));
        assert!(known, "{name}: {labels:?}");
    }
}
