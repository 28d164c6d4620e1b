//! Many of one process who want a lock, and others who want it too.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use testkit::lab::Lab;
use testkit::promise;

/// A hundred tasks of one process that ask again and again, and one of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_one_process_keeps_no_other_out() {
    for lab in [Lab::postgres(), Lab::mariadb(), Lab::mysql(), Lab::sqlite()] {
        let Some(lab) = lab else { continue };
        let (here, there) = (lab.locks().await, lab.locks().await);
        let crowd: Vec<_> = (0..100)
            .map(|_| {
                let lock = here.lock("wanted");
                tokio::spawn(async move {
                    loop {
                        lock.acquire().await.unwrap().release().await.unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            let wait = Duration::from_secs(20);
            let stranger = there.lock("wanted").wait(wait).acquire().await;
            let stranger = stranger.unwrap_or_else(|error| panic!("{}: {error}", lab.engine));
            stranger.release().await.unwrap();
        }
        crowd.iter().for_each(tokio::task::JoinHandle::abort);
        promise("P12", lab.engine);
    }
}
