//! A call on the direct connection, from its start to its answer.

use std::future::Future;
use std::pin::Pin;
use std::slice::from_ref;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{CHECK_INTERVAL, Permit};
use crate::client::batch::single_answer;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::ForkSafeFuture;
use crate::store::api::StoreError;
use protocol::{AcquireCommand, BootInstant, Outcome, ReleaseCommand, Released};

impl Permit {
    /// Acquire on the direct connection. See [`call`](Self::call). `under_way` is dropped when the
    /// request is answered or late, or when the runtime ends.
    pub(crate) async fn acquire(
        self,
        command: AcquireCommand,
        wait: Option<Duration>,
        under_way: oneshot::Sender<()>,
    ) -> Option<Result<Outcome, StoreError>> {
        let (store, direct) = (self.client.store.clone(), Arc::clone(&self.client.direct));
        let reply = async move {
            let _under_way = under_way;
            single_answer(store.acquire_on(&*direct, from_ref(&command)).await)
        };
        self.call(reply, wait).await
    }

    /// Release on the direct connection. See [`call`](Self::call).
    pub(crate) async fn release(
        self,
        command: ReleaseCommand,
    ) -> Option<Result<Released, StoreError>> {
        let (store, direct) = (self.client.store.clone(), Arc::clone(&self.client.direct));
        let reply =
            async move { single_answer(store.release_on(&*direct, from_ref(&command)).await) };
        self.call(reply, None).await
    }

    /// Wait for a reply, for at most `wait` if that is given; `None` if none has arrived.
    ///
    /// # Cancel safety
    ///
    /// A request whose reply is dropped may still be carried out at any later time. So the owner's
    /// runtime completes a dropped call, and the direct connection is in use until then.
    async fn call<T: Send + 'static>(
        self,
        reply: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        wait: Option<Duration>,
    ) -> Option<Result<T, StoreError>> {
        if let Some(wait) = wait {
            if let Some(call) = self.client.state().call(self.number) {
                call.until = clock::now() + wait;
            }
            if wait < CHECK_INTERVAL {
                self.client.call_begun.notify_one();
            }
        }
        InFlight {
            reply: Some(ForkSafeFuture::of(Box::pin(reply))),
            permit: Some(self),
            abandoned: false,
        }
        .await
    }

    /// The state of an unanswered call. Registers the waker.
    fn state(&self, waker: &Waker) -> CallState {
        let mut state = self.client.state();
        let old_waker = match state.call(self.number) {
            None => return CallState::Late,
            Some(call) if call.until <= clock::now() => return CallState::Ended,
            Some(call) if call.waker.as_ref().is_some_and(|it| it.will_wake(waker)) => None,
            Some(call) => call.waker.replace(waker.clone()),
        };
        drop(state);
        drop(old_waker);
        CallState::Unanswered
    }

    /// Whether the direct connection was given up during the call. Blocking calls are answered in
    /// their first poll.
    fn is_late(&self) -> bool {
        !self.client.direct.blocks() && self.client.state().call(self.number).is_none()
    }

    /// End a call that was answered, or, if not `connected`, that could not be sent.
    fn answered(&self, connected: bool) {
        let mut state = self.client.state();
        let Some(ended) = state.take(self.number) else {
            return;
        };
        if !connected {
            state.disable();
        } else {
            state.backoff = Duration::ZERO;
            if let Some(owner) = &mut state.owner {
                owner.first = false;
            }
        }
        drop(state);
        drop(ended);
    }
}

enum CallState {
    Unanswered,
    /// The caller has stopped waiting.
    Ended,
    /// The connection did not answer in time and was given up.
    Late,
}

type ReplyFuture<T> = dyn Future<Output = Result<T, StoreError>> + Send;

/// One call on the direct connection.
struct InFlight<T: Send + 'static> {
    /// `None`: done.
    reply: Option<ForkSafeFuture<ReplyFuture<T>>>,
    permit: Option<Permit>,
    /// The caller has dropped the call.
    abandoned: bool,
}

impl<T: Send + 'static> Future for InFlight<T> {
    /// `None`: no answer in time.
    type Output = Option<Result<T, StoreError>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let call = &mut *self;
        // Removed first, so that it is not polled again after a panic.
        let (Some(mut reply), Some(permit)) = (call.reply.take(), &call.permit) else {
            return Poll::Pending;
        };
        if !reply.is_in_owner_process() {
            return Poll::Pending;
        }
        // A late call must send nothing more.
        if permit.is_late() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(answer) = Pin::new(&mut reply).poll(context) {
            let unsent = |failure: &StoreError| failure.is_undone() && !failure.is_answer();
            permit.answered(!answer.as_ref().is_err_and(unsent));
            return Poll::Ready(Some(answer));
        }
        match permit.state(context.waker()) {
            CallState::Late => Poll::Ready(None),
            CallState::Unanswered => {
                runtime::mark_runtime_needed();
                call.reply = Some(reply);
                Poll::Pending
            }
            CallState::Ended => {
                call.reply = Some(reply);
                Poll::Ready(None)
            }
        }
    }
}

impl<T: Send + 'static> Drop for InFlight<T> {
    fn drop(&mut self) {
        let (Some(reply), Some(permit)) = (self.reply.take(), self.permit.take()) else {
            return;
        };
        // In a forked child the reply is leaked. An abandoned call is dropped when its runtime
        // ends.
        if !reply.is_in_owner_process() || self.abandoned {
            return;
        }
        if let Some(call) = permit.client.state().call(permit.number) {
            call.until = BootInstant::MAX;
        }
        let owner = permit.owner.clone();
        let rest = InFlight {
            reply: Some(reply),
            permit: Some(permit),
            abandoned: true,
        };
        let rest = owner.spawn(ForkSafeFuture::new(async move { drop(rest.await) }));
        runtime::drive_until_done(&owner, rest);
    }
}
