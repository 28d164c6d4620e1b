//! How many requests the library makes of the database, by its own metrics. The recorder is one for
//! the process, and so there is one test that counts in each binary.

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

/// Counts from now on.
pub(crate) fn counted() -> Snapshotter {
    let recorder = DebuggingRecorder::new();
    let counted = recorder.snapshotter();
    recorder.install().expect("the only one");
    counted
}

/// How many of these kinds were made since the last time.
pub(crate) fn requests<const N: usize>(counted: &Snapshotter, operations: [&str; N]) -> [usize; N] {
    let seen = counted.snapshot().into_vec();
    operations.map(|operation| {
        let of = |key: &metrics_util::CompositeKey| {
            key.key().name() == "database_locks_request_seconds"
                && (key.key().labels()).any(|l| l.key() == "operation" && l.value() == operation)
        };
        let count = seen.iter().filter(|(key, ..)| of(key)).map(|(.., value)| {
            let DebugValue::Histogram(all) = value else {
                panic!("{value:?}")
            };
            all.len()
        });
        count.sum()
    })
}
