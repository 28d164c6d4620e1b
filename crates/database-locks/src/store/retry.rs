//! Repeating a request after contention.

use std::time::Duration;

use crate::runtime::clock;
use crate::store::api::StoreError;

/// Repeat the work after contention, until `limit` has passed.
pub(crate) async fn while_contended<T, F: Future<Output = Result<T, StoreError>>>(
    limit: Duration,
    work: impl Fn() -> F,
) -> Result<T, StoreError> {
    let until = clock::now() + limit;
    loop {
        match work().await {
            Err(StoreError::Contention(_)) if clock::now() < until => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(5..=30))).await;
            }
            done => return done,
        }
    }
}
