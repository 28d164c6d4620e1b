//! Every clause of the store contract, on every engine.

use testkit::contract::Bench;
use testkit::contract_tests;

/// A name that no other test of this process has.
fn fresh() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

contract_tests!(
    memory,
    Some(Bench::new("memory", format!("memory:contract-{}", fresh())))
);

contract_tests!(sqlite, {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}/locks.sqlite3", folder.path().display());
    // Kept until the process ends: the bench outlives this expression.
    std::mem::forget(folder);
    Some(Bench::new("sqlite", url))
});
