//! How long a writer waits for a lock that many readers share without a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use testkit::time;
use tokio::task::JoinSet;

use crate::child::since;
use crate::console::progress;
use crate::drive::multi_thread;
use crate::report::{Section, digits};
use crate::servers::Engine;
use crate::stats::spread;
use crate::subject;

/// The readers: so many clients with connections of their own, and tasks of each.
const CLIENTS: usize = 4;
const TASKS: usize = 10;
/// How long a reader reads.
const READS: Duration = Duration::from_millis(10);
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(50);
/// The least number of writes, however short the run is.
const LEAST: usize = 3;

pub(super) fn run(engines: &[Engine], length: Duration, section: &mut Section) {
    let runtime = multi_thread();
    let slice = length.div_f64(engines.len() as f64);
    progress(&format!("kinds: a writer, {} ms each", slice.as_millis()));
    section.paragraph(format!(
        "{} tasks of {CLIENTS} clients share a lock, read for {} ms each time, and ask for it again at once. A \
         writer asks for it {} ms after each of its releases, for {} ms in all. Its wait in milliseconds.",
        CLIENTS * TASKS,
        READS.as_millis(),
        PAUSE.as_millis(),
        slice.as_millis()
    ));
    let mut rows = Vec::new();
    for engine in engines {
        let reads = Arc::new(AtomicU64::new(0));
        let mut readers = JoinSet::new();
        for _ in 0..CLIENTS {
            let locks = subject::connected(&runtime, &engine.url);
            for _ in 0..TASKS {
                let (lock, reads) = (locks.lock("list").shared(), Arc::clone(&reads));
                let reader = async move {
                    loop {
                        let guard = lock.acquire().await.expect("acquires");
                        tokio::time::sleep(READS).await;
                        guard.release().await.expect("releases");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                };
                readers.spawn_on(reader, runtime.handle());
            }
        }
        let writer = subject::connected(&runtime, &engine.url).lock("list");
        let (mut waits, began) = (Vec::new(), time::now());
        runtime.block_on(async {
            while began.elapsed() < slice || waits.len() < LEAST {
                tokio::time::sleep(PAUSE).await;
                let asked = time::now();
                let guard = writer.acquire().await.expect("acquires");
                waits.push(since(asked));
                guard.release().await.expect("releases");
            }
            readers.shutdown().await;
        });
        let rate = reads.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        let mut row = vec![engine.name.to_owned(), waits.len().to_string()];
        if let Some(of) = spread(&waits) {
            row.extend([of.p50, of.p90, of.max].map(digits));
        }
        row.push(digits(rate));
        rows.push(row);
    }
    let head = ["", "writes", "median", "90 %", "longest", "reads a second"];
    section.table(&head, &rows);
}
