//! What arrives while a statement is under way goes out together, as one statement after it.
//!
//! A lone caller pays nothing: it asks the store itself, at once. In a crowd each commit is shared by
//! all who came during the one before, as databases themselves do with their log ("group commit",
//! <https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-COMMIT-DELAY>).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::store::{
    api::{Reply, StoreError},
    measured::Observed,
};
use protocol::{AcquireCommand, Outcome, ReleaseCommand, Released};

/// How long a request waits for the statement before its own. One that hangs must not hold up those
/// that may not hang, such as those of another row.
const OVERTIME: Duration = Duration::from_millis(100);
/// How many go together at most: a statement should not take longer than a waiter minds.
const MOST: usize = 1_000;

/// Ask the store for several of a kind.
pub(crate) trait Operation: fmt::Debug + Send + Sync + 'static {
    type Answer: Send + 'static;

    /// The answers, in the order of what is asked.
    fn carry_out<'a>(
        asked: &'a [Self],
        store: &'a Observed,
        within: Duration,
    ) -> Reply<'a, Vec<Self::Answer>>
    where
        Self: Sized;
}

impl Operation for AcquireCommand {
    type Answer = Outcome;

    fn carry_out<'a>(
        asked: &'a [Self],
        store: &'a Observed,
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        Box::pin(store.acquire(asked, within))
    }
}

impl Operation for ReleaseCommand {
    type Answer = Released;

    fn carry_out<'a>(
        asked: &'a [Self],
        store: &'a Observed,
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        Box::pin(store.release(asked, within))
    }
}

/// Those who ask for one kind of thing.
#[derive(Debug)]
pub(crate) struct Batch<Q: Operation>(Arc<Shared<Q>>);

#[derive(Debug)]
struct Shared<Q: Operation> {
    store: Observed,
    within: Duration,
    state: Mutex<State<Q>>,
}

struct State<Q: Operation> {
    under_way: bool,
    waiting: Vec<Waiting<Q>>,
}

struct Waiting<Q: Operation> {
    asked: Q,
    tell: oneshot::Sender<Result<Q::Answer, StoreError>>,
}

type Answer<Q> = oneshot::Receiver<Result<<Q as Operation>::Answer, StoreError>>;

impl<Q: Operation> fmt::Debug for State<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("under_way", &self.under_way)
            .field("waiting", &self.waiting.len())
            .finish()
    }
}

impl<Q: Operation> Batch<Q> {
    /// `within`: how long each statement may take.
    pub(crate) fn new(store: Observed, within: Duration) -> Self {
        let state = Mutex::new(State {
            under_way: false,
            waiting: Vec::new(),
        });
        Self(Arc::new(Shared {
            store,
            within,
            state,
        }))
    }

    /// Ask, alone or together with others. Dropped while it waits for others, it was never asked.
    ///
    /// # Errors
    ///
    /// Those of the store. What fails one of several fails none of the others.
    pub(crate) async fn ask(&self, asked: Q) -> Result<Q::Answer, StoreError> {
        let mut answer = match self.0.stand_behind(asked) {
            Ok(answer) => answer,
            Err(asked) => {
                let _next = Next(&self.0);
                return self.0.alone(&asked).await;
            }
        };
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            () = tokio::time::sleep(OVERTIME) => {
                tokio::spawn(Arc::clone(&self.0).overtake());
                answer.await
            }
        };
        // The task that took it along has stopped, with the runtime.
        answered.unwrap_or_else(|_| Err(StoreError::Unavailable("it was not asked".into())))
    }
}

/// What waits goes out when this is dropped: the first request has its answer, or was dropped.
struct Next<'a, Q: Operation>(&'a Arc<Shared<Q>>);

impl<Q: Operation> Drop for Next<'_, Q> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.waiting.is_empty() {
            state.under_way = false;
        } else {
            drop(state);
            tokio::spawn(Arc::clone(self.0).go_on());
        }
    }
}

impl<Q: Operation> Shared<Q> {
    fn state(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for what is under way; `Err` where nothing is, and this is it.
    fn stand_behind(&self, asked: Q) -> Result<Answer<Q>, Q> {
        let mut state = self.state();
        if !state.under_way {
            state.under_way = true;
            return Err(asked);
        }
        let (tell, answer) = oneshot::channel();
        state.waiting.push(Waiting { asked, tell });
        Ok(answer)
    }

    /// Carry out what waits, batch by batch, until nobody waits any more.
    async fn go_on(self: Arc<Self>) {
        loop {
            let batch = {
                let mut state = self.state();
                let batch = state.take();
                state.under_way = !batch.is_empty();
                batch
            };
            if batch.is_empty() {
                return;
            }
            self.together(batch).await;
        }
    }

    /// Carry out what waits behind something that takes long.
    async fn overtake(self: Arc<Self>) {
        let batch = self.state().take();
        if !batch.is_empty() {
            self.together(batch).await;
        }
    }

    async fn together(&self, batch: Vec<Waiting<Q>>) {
        let (asked, tell): (Vec<Q>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.asked, waiting.tell))
            .unzip();
        let answers = match Q::carry_out(&asked, &self.store, self.within).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(failure) if !failure.is_answer() => {
                asked.iter().map(|_| Err(failure.again())).collect()
            }
            Err(_) => self.one_by_one(&asked).await,
        };
        for (tell, answer) in tell.into_iter().zip(answers) {
            // The caller may have gone, and gives back what this has granted.
            let _ = tell.send(answer);
        }
    }

    /// One of them was the cause that all of them failed.
    async fn one_by_one(&self, asked: &[Q]) -> Vec<Result<Q::Answer, StoreError>> {
        let mut answers = Vec::with_capacity(asked.len());
        for one in asked {
            answers.push(self.alone(one).await);
        }
        answers
    }

    async fn alone(&self, asked: &Q) -> Result<Q::Answer, StoreError> {
        let asked = std::slice::from_ref(asked);
        let mut answers = Q::carry_out(asked, &self.store, self.within).await?;
        let none = || StoreError::Unavailable("the store gave no answer".into());
        answers.pop().ok_or_else(none)
    }
}

impl<Q: Operation> State<Q> {
    /// The first of those who still want it, in their order.
    fn take(&mut self) -> Vec<Waiting<Q>> {
        self.waiting.retain(|waiting| !waiting.tell.is_closed());
        let rest = self.waiting.split_off(self.waiting.len().min(MOST));
        std::mem::replace(&mut self.waiting, rest)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::store::{self, connect::table::Table};

    /// One statement at a time, and what each asked for; those of the same `world`.
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

    /// Answers itself; 0 waits until it may go on, 13 is refused and so is what goes with it.
    #[derive(Clone, Debug)]
    struct Number(u8, Arc<World>);

    impl Operation for Number {
        type Answer = u8;

        fn carry_out<'a>(asked: &'a [Self], _: &'a Observed, _: Duration) -> Reply<'a, Vec<u8>> {
            Box::pin(async move {
                let numbers: Vec<u8> = asked.iter().map(|number| number.0).collect();
                let world = &asked[0].1;
                world.statements.lock().unwrap().push(numbers.clone());
                if numbers.contains(&0) {
                    world.go.notified().await;
                }
                match numbers.contains(&13) {
                    true => Err(StoreError::rejected("thirteen", None)),
                    false => Ok(numbers),
                }
            })
        }
    }

    fn batch() -> (Arc<World>, Arc<Batch<Number>>) {
        let store = store::open("memory:", &Table::default()).unwrap();
        let batch = Batch::new(Observed::new(store, "memory:"), Duration::from_secs(5));
        (Arc::default(), Arc::new(batch))
    }

    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(test);
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
    fn what_arrives_while_a_statement_is_under_way_goes_out_together_after_it() {
        run(async {
            let (world, batch) = batch();
            let asked = ask(&batch, &world, &[0, 1, 2, 3]).await;
            assert_eq!(world.statements(), [[0]]);
            world.go.notify_one();
            for (number, asked) in (0..).zip(asked) {
                assert_eq!(asked.await.unwrap().unwrap(), number);
            }
            assert_eq!(world.statements(), [vec![0], vec![1, 2, 3]]);
            // And who comes then is alone again.
            for asked in ask(&batch, &world, &[4, 5]).await {
                asked.await.unwrap().unwrap();
            }
            assert_eq!(world.statements()[2..], [[4], [5]]);
        });
    }

    #[test]
    fn what_fails_one_of_them_fails_no_other() {
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
    fn a_statement_that_hangs_does_not_hold_up_those_behind_it() {
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
    fn who_goes_away_before_his_turn_was_never_asked_and_who_goes_away_in_it_stops_nobody() {
        run(async {
            let (world, batch) = batch();
            let mut asked = ask(&batch, &world, &[0, 1, 2]).await;
            asked[1].abort();
            asked[0].abort();
            assert_eq!(asked.pop().unwrap().await.unwrap().unwrap(), 2);
            assert_eq!(world.statements(), [[0], [2]]);
        });
    }
}
