//! Batching: requests that arrive while a statement is under way go out together in the next one.
//!
//! A single caller is sent at once and pays no batching delay. Concurrent callers share commits, as
//! in the group commit of databases
//! (<https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-COMMIT-DELAY>).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::store::{
    api::{Reply, StoreError},
    measured::Measured,
};
use protocol::{AcquireCommand, Kind, Outcome, REQUEST_TIMEOUT, ReleaseCommand, Released, Slot};

/// The longest that a request waits for the statement before its own. After it the request is sent
/// in a statement of its own batch, so that a statement that hangs does not block requests for
/// other rows.
const MAX_QUEUE_WAIT: Duration = Duration::from_millis(100);
/// The largest batch, which bounds the duration of one statement.
const MAX_BATCH: usize = 1_000;
/// The largest number of permits and shared grants in a batch. Some of them need a statement each,
/// and all have to be answered before the request times out.
const MAX_OTHERS: usize = 100;

/// A kind of request that the store carries out in batches.
pub(crate) trait Operation: fmt::Debug + Send + Sync + 'static {
    type Answer: fmt::Debug + Send + 'static;

    /// Whether it is about a permit or a shared grant.
    fn is_other(&self) -> bool;

    /// The answers, in the order of the requests.
    fn carry_out<'a>(asked: &'a [Self], store: &'a Measured) -> Reply<'a, Vec<Self::Answer>>
    where
        Self: Sized;
}

impl Operation for AcquireCommand {
    type Answer = Outcome;

    fn is_other(&self) -> bool {
        self.kind != Kind::Exclusive
    }

    fn carry_out<'a>(asked: &'a [Self], store: &'a Measured) -> Reply<'a, Vec<Outcome>> {
        Box::pin(store.acquire(asked, REQUEST_TIMEOUT))
    }
}

impl Operation for ReleaseCommand {
    type Answer = Released;

    fn is_other(&self) -> bool {
        self.slot != Slot::Lock
    }

    fn carry_out<'a>(asked: &'a [Self], store: &'a Measured) -> Reply<'a, Vec<Released>> {
        Box::pin(store.release(asked, REQUEST_TIMEOUT))
    }
}

/// The queue for one kind of request.
#[derive(Debug)]
pub(crate) struct Batch<Q: Operation>(Arc<Shared<Q>>);

#[derive(Debug)]
struct Shared<Q: Operation> {
    store: Measured,
    state: Mutex<State<Q>>,
}

#[derive(Debug)]
struct State<Q: Operation> {
    under_way: bool,
    waiting: Vec<Waiting<Q>>,
}

#[derive(Debug)]
struct Waiting<Q: Operation> {
    asked: Q,
    reply: oneshot::Sender<Result<Q::Answer, StoreError>>,
    /// Closes when the batch is answered, or the request is not sent.
    under_way: Option<oneshot::Sender<()>>,
}

type Answer<Q> = oneshot::Receiver<Result<<Q as Operation>::Answer, StoreError>>;

impl<Q: Operation> Batch<Q> {
    pub(crate) fn new(store: Measured) -> Self {
        let state = Mutex::new(State {
            under_way: false,
            waiting: Vec::new(),
        });
        Self(Arc::new(Shared { store, state }))
    }

    /// Send a request, alone or in a batch. A future that is dropped before its batch is sent
    /// cancels the request.
    ///
    /// # Errors
    ///
    /// Errors of the store. If one request of a batch fails, the others are retried one by one and
    /// do not fail with it.
    pub(crate) async fn ask(&self, asked: Q) -> Result<Q::Answer, StoreError> {
        self.ask_with(asked, None).await
    }

    /// [`ask`](Self::ask); `under_way` is dropped as soon as the request cannot be executed any more.
    /// A batch of several statements goes on when the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub(crate) async fn ask_with(
        &self,
        asked: Q,
        mut under_way: Option<oneshot::Sender<()>>,
    ) -> Result<Q::Answer, StoreError> {
        let mut answer = match self.0.join(asked, &mut under_way) {
            Ok(answer) => answer,
            Err(asked) => {
                let _send_next = SendNext(&self.0);
                return self.0.send_alone(&asked).await;
            }
        };
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            () = tokio::time::sleep(MAX_QUEUE_WAIT) => {
                tokio::spawn(Arc::clone(&self.0).send_batch_now());
                answer.await
            }
        };
        // The task that carried the batch out has ended, with the runtime or by a panic.
        answered.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(
                "the request was not answered".into(),
            ))
        })
    }
}

/// Sends the waiting requests when dropped, whether the current statement was answered, cancelled or
/// ended by a panic.
struct SendNext<'a, Q: Operation>(&'a Arc<Shared<Q>>);

impl<Q: Operation> Drop for SendNext<'_, Q> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.waiting.is_empty() {
            state.under_way = false;
        } else {
            drop(state);
            tokio::spawn(Arc::clone(self.0).send_batches());
        }
    }
}

impl<Q: Operation> Shared<Q> {
    fn state(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Join the queue behind the statement under way. If none is, `Err` returns the request, and
    /// the caller sends it itself.
    fn join(&self, asked: Q, under_way: &mut Option<oneshot::Sender<()>>) -> Result<Answer<Q>, Q> {
        let mut state = self.state();
        if !state.under_way {
            state.under_way = true;
            return Err(asked);
        }
        let (reply, answer) = oneshot::channel();
        state.waiting.push(Waiting {
            asked,
            reply,
            under_way: under_way.take(),
        });
        Ok(answer)
    }

    /// Send the waiting requests, batch after batch, until the queue is empty.
    async fn send_batches(self: Arc<Self>) {
        // Also if a batch panics, for example in a log subscriber.
        let _send_next = SendNext(&self);
        loop {
            let batch = self.state().next_batch();
            if batch.is_empty() {
                return;
            }
            self.send(batch).await;
        }
    }

    /// Send the waiting requests without waiting for the statement under way.
    async fn send_batch_now(self: Arc<Self>) {
        let batch = self.state().next_batch();
        if !batch.is_empty() {
            self.send(batch).await;
        }
    }

    async fn send(&self, batch: Vec<Waiting<Q>>) {
        let (asked, reply): (Vec<Q>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.asked, (waiting.reply, waiting.under_way)))
            .unzip();
        let answers = match Q::carry_out(&asked, &self.store).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(failure) if !failure.is_answer() => {
                asked.iter().map(|_| Err(failure.duplicate())).collect()
            }
            Err(_) => self.send_one_by_one(&asked).await,
        };
        for ((reply, _under_way), answer) in reply.into_iter().zip(answers) {
            // The caller may have stopped waiting. An acquire then gives back what it was granted.
            let _ = reply.send(answer);
        }
    }

    /// Send each request alone, to find the one that made the batch fail.
    async fn send_one_by_one(&self, asked: &[Q]) -> Vec<Result<Q::Answer, StoreError>> {
        let mut answers = Vec::with_capacity(asked.len());
        for one in asked {
            answers.push(self.send_alone(one).await);
        }
        answers
    }

    async fn send_alone(&self, asked: &Q) -> Result<Q::Answer, StoreError> {
        let asked = std::slice::from_ref(asked);
        single_answer(Q::carry_out(asked, &self.store).await)
    }
}

/// The answer to the only request.
pub(crate) fn single_answer<T>(answers: Result<Vec<T>, StoreError>) -> Result<T, StoreError> {
    let none = || StoreError::Unavailable("the store returned no answer".into());
    answers?.pop().ok_or_else(none)
}

impl<Q: Operation> State<Q> {
    /// Remove the next batch from the queue, in order, and drop cancelled requests.
    fn next_batch(&mut self) -> Vec<Waiting<Q>> {
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        let mut others = (self.waiting.iter().enumerate())
            .filter_map(|(at, waiting)| waiting.asked.is_other().then_some(at));
        let end = others.nth(MAX_OTHERS).unwrap_or(self.waiting.len());
        let rest = self.waiting.split_off(end.min(MAX_BATCH));
        std::mem::replace(&mut self.waiting, rest)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::store::{self, connect::table::Table};

    /// Records the numbers of each statement.
    #[derive(Debug, Default)]
    struct World {
        statements: Mutex<Vec<Vec<u8>>>,
        go: Notify,
    }

    impl World {
        fn statements(&self) -> Vec<Vec<u8>> {
            self.statements.lock().unwrap().clone()
        }
    }

    /// A request that is answered with its own number. A statement with 0 waits for `go`; one with
    /// 13 is rejected, one with 66 panics. 100 stands for a permit.
    #[derive(Clone, Debug)]
    struct Number(u8, Arc<World>);

    impl Operation for Number {
        type Answer = u8;

        fn is_other(&self) -> bool {
            self.0 == 100
        }

        fn carry_out<'a>(asked: &'a [Self], _: &'a Measured) -> Reply<'a, Vec<u8>> {
            Box::pin(async move {
                let numbers: Vec<u8> = asked.iter().map(|number| number.0).collect();
                let world = &asked[0].1;
                world.statements.lock().unwrap().push(numbers.clone());
                if numbers.contains(&0) {
                    world.go.notified().await;
                }
                assert!(!numbers.contains(&66), "a log subscriber panics");
                match numbers.contains(&13) {
                    true => Err(StoreError::rejected("thirteen", None)),
                    false => Ok(numbers),
                }
            })
        }
    }

    fn batch() -> (Arc<World>, Arc<Batch<Number>>) {
        let store = store::open("memory:", &Table::default()).unwrap();
        let batch = Batch::new(Measured::new(store, "memory:"));
        (Arc::default(), Arc::new(batch))
    }

    /// Time passes only while the test waits: no statement hangs by accident.
    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build();
        runtime.unwrap().block_on(test);
    }

    type Asked = tokio::task::JoinHandle<Result<u8, StoreError>>;

    async fn ask(batch: &Arc<Batch<Number>>, world: &Arc<World>, numbers: &[u8]) -> Vec<Asked> {
        let mut asked = Vec::new();
        for number in numbers {
            let (batch, number) = (Arc::clone(batch), Number(*number, Arc::clone(world)));
            asked.push(tokio::spawn(async move { batch.ask(number).await }));
            tokio::task::yield_now().await;
        }
        asked
    }

    #[test]
    fn requests_that_arrive_while_a_statement_is_under_way_go_out_in_one_batch_after_it() {
        run(async {
            let (world, batch) = batch();
            let asked = ask(&batch, &world, &[0, 1, 2, 3]).await;
            assert_eq!(world.statements(), [[0]]);
            world.go.notify_one();
            for (number, asked) in (0..).zip(asked) {
                assert_eq!(asked.await.unwrap().unwrap(), number);
            }
            assert_eq!(world.statements(), [vec![0], vec![1, 2, 3]]);
            // With the queue empty, a request is sent alone again.
            for asked in ask(&batch, &world, &[4, 5]).await {
                asked.await.unwrap().unwrap();
            }
            assert_eq!(world.statements()[2..], [[4], [5]]);
        });
    }

    #[test]
    fn a_batch_has_a_bounded_number_of_permits() {
        run(async {
            let (world, batch) = batch();
            let mut numbers = vec![0, 1];
            numbers.extend([100; MAX_OTHERS + 20]);
            numbers.extend([2; 50]);
            let asked = ask(&batch, &world, &numbers).await;
            world.go.notify_one();
            for asked in asked {
                asked.await.unwrap().unwrap();
            }
            let sizes = world.statements().iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(sizes, [1, 1 + MAX_OTHERS, 70]);
        });
    }

    #[test]
    fn a_request_that_fails_fails_no_other_of_its_batch() {
        run(async {
            let (world, batch) = batch();
            let asked = ask(&batch, &world, &[0, 12, 13, 14]).await;
            world.go.notify_one();
            let mut answers = Vec::new();
            for asked in asked {
                answers.push(asked.await.unwrap().ok());
            }
            assert_eq!(answers, [Some(0), Some(12), None, Some(14)]);
        });
    }

    #[test]
    fn a_statement_that_hangs_does_not_block_the_requests_behind_it() {
        run(async {
            let (world, batch) = batch();
            let mut asked = ask(&batch, &world, &[0, 1, 2]).await;
            for asked in asked.drain(1..) {
                asked.await.unwrap().unwrap();
            }
            assert_eq!(world.statements(), [vec![0], vec![1, 2]]);
            assert!(!asked[0].is_finished());
        });
    }

    #[test]
    fn a_request_cancelled_in_the_queue_is_not_sent_and_one_cancelled_under_way_blocks_no_other() {
        run(async {
            let (world, batch) = batch();
            let mut asked = ask(&batch, &world, &[0, 1, 2]).await;
            asked[1].abort();
            asked[0].abort();
            assert_eq!(asked.pop().unwrap().await.unwrap().unwrap(), 2);
            assert_eq!(world.statements(), [[0], [2]]);
        });
    }

    #[test]
    fn after_a_batch_that_panics_the_next_request_is_sent_at_once() {
        run(async {
            let (world, batch) = batch();
            let mut asked = ask(&batch, &world, &[0, 66]).await;
            world.go.notify_one();
            assert_eq!(asked.remove(0).await.unwrap().unwrap(), 0);
            let panicked = asked.remove(0).await.unwrap();
            assert!(panicked.is_err(), "{panicked:?}");
            batch.ask(Number(1, Arc::clone(&world))).await.unwrap();
            assert!(!batch.0.state().under_way);
        });
    }
}
