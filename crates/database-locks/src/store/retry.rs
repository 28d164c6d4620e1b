//! Repeating a request after contention.

use std::time::Duration;

use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::REQUEST_TIMEOUT;

/// Repeat the work after contention, until `limit` has passed.
pub(crate) async fn while_contended<T, F: Future<Output = Result<T, StoreError>>>(
    limit: Duration,
    work: impl Fn() -> F,
) -> Result<T, StoreError> {
    let until = clock::now() + limit;
    loop {
        match work().await {
            Err(StoreError::Contention(_)) if clock::now() < until => {
                tokio::time::sleep(jitter()).await;
            }
            done => return done,
        }
    }
}

/// Repeat DDL after contention, until `limit` has passed. The work is given the time that it may
/// take: what is left, but no less than a request, since work that is cut short may be half done.
///
/// While DDL waits for a table, every later statement about the table waits behind it. Each pause
/// is twice as long as the attempt before it, so that others have the table for two thirds of the
/// time.
pub(crate) async fn ddl_while_contended<T, F: Future<Output = Result<T, StoreError>>>(
    limit: Duration,
    work: impl Fn(Duration) -> F,
) -> Result<T, StoreError> {
    let until = clock::now() + limit;
    loop {
        let began = clock::now();
        let done = work((until - began).max(REQUEST_TIMEOUT)).await;
        let pause = 2 * (clock::now() - began) + jitter();
        match done {
            Err(StoreError::Contention(_)) if clock::now() + pause < until => {
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
}

fn jitter() -> Duration {
    Duration::from_millis(fastrand::u64(5..=30))
}
