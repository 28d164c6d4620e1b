//! Waiting for several futures.

use std::future::poll_fn;
use std::task::Poll;

/// Wait for all of these futures at once. The results are in their order.
///
/// Dropping it drops those that are not done.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut under_way: Vec<_> = futures.into_iter().map(Box::pin).map(Some).collect();
    let mut done: Vec<Option<F::Output>> = under_way.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, done) in under_way.iter_mut().zip(&mut done) {
            let Some(polled) = future else { continue };
            match polled.as_mut().poll(context) {
                Poll::Ready(output) => (*future, *done) = (None, Some(output)),
                Poll::Pending => pending = true,
            }
        }
        if pending {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Wait for the first of these futures, and drop the others. Never resolves if there is none.
pub(crate) async fn first_of<F: Future>(futures: impl IntoIterator<Item = F>) -> F::Output {
    let mut under_way: Vec<_> = futures.into_iter().map(Box::pin).collect();
    poll_fn(|context| {
        let mut polled = under_way.iter_mut().map(|one| one.as_mut().poll(context));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_are_waited_for_at_once_and_answered_in_order() {
        let one = |n: u64| async move {
            tokio::time::sleep(Duration::from_secs(n)).await;
            n
        };
        // One after another they would take six seconds.
        let all = tokio::time::timeout(Duration::from_secs(4), join_all([3, 1, 2].map(one)));
        assert_eq!(all.await.unwrap(), [3, 1, 2]);
        assert_eq!(first_of([3, 1, 2].map(one)).await, 1);
        let none: [std::future::Pending<u8>; 0] = [];
        assert!(join_all(none).await.is_empty());
    }
}
