//! Panics of the driver, as errors.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use crate::store::api::StoreError;

/// Run a future that may panic. The error is the message of the panic.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(move |context| {
        // It is not polled again after a panic.
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                Poll::Ready(Err(text.unwrap_or("for no reason that it gave").to_owned()))
            }
        }
    })
    .await
}

/// [`catch_panic`] for a request, which a panic of the driver fails.
pub(crate) async fn or_panicked<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let failure = |panic| format!("the MySQL driver panicked: {panic}").into();
    let done = catch_panic(work).await;
    done.unwrap_or_else(|panic: String| Err(StoreError::Unavailable(failure(panic))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let panics = async {
            tokio::task::yield_now().await;
            assert_eq!(1, 2, "of {}", "the driver");
        };
        let message = catch_panic(panics).await.expect_err("it panicked");
        assert!(message.contains("of the driver"), "{message}");
        assert_eq!(catch_panic(async { 7 }).await, Ok(7));
    }
}
