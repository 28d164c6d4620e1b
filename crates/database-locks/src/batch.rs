//! What arrives while a statement is under way goes out together, as one statement after it.
//!
//! A lone caller pays nothing: he asks the store himself, at once. In a crowd each commit is shared by
//! all who came during the one before, as databases themselves do with their log ("group commit",
//! <https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-COMMIT-DELAY>).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::fork::Gated;
use crate::store::{Reply, StoreError};

/// How long a request waits for the statement before its own. One that hangs must not hold up those
/// that may not hang, such as those of another row.
const OVERTIME: Duration = Duration::from_millis(100);
/// For how long an answer to many is waited for. A store keeps to its deadline before that, a lane has none.
const LONGEST: Duration = Duration::from_secs(10);
/// How many go together at most: a statement should not take longer than a waiter minds.
const MOST: usize = 1_000;

/// How several of a kind are sent. The answers come in the order of what is asked.
type SendAll<Q, A> = Box<dyn for<'a> Fn(&'a [Q]) -> Reply<'a, Vec<A>> + Send + Sync>;

/// Those who ask for one kind of thing.
pub(crate) struct Batch<Q, A>(Arc<Shared<Q, A>>);

struct Shared<Q, A> {
    send: SendAll<Q, A>,
    state: Mutex<State<Q, A>>,
}

/// The right to send: whoever has it also sends what waits when it is done, and it ends with them.
type Turn = Arc<()>;

struct State<Q, A> {
    turn: Weak<()>,
    waiting: Vec<Waiting<Q, A>>,
}

struct Waiting<Q, A> {
    asked: Q,
    tell: oneshot::Sender<Result<A, StoreError>>,
}

type Answer<A> = oneshot::Receiver<Result<A, StoreError>>;

impl<Q, A> fmt::Debug for Batch<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Batch")
    }
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Batch<Q, A> {
    /// `send` carries out one statement.
    pub(crate) fn new(
        send: impl for<'a> Fn(&'a [Q]) -> Reply<'a, Vec<A>> + Send + Sync + 'static,
    ) -> Self {
        let state = Mutex::new(State {
            turn: Weak::new(),
            waiting: Vec::new(),
        });
        let send = Box::new(send);
        Self(Arc::new(Shared { send, state }))
    }

    /// Ask, alone or together with others. Dropped while it waits for others, it was never asked.
    ///
    /// # Errors
    ///
    /// Those of the store. What fails one of several fails none of the others.
    pub(crate) async fn ask(&self, asked: Q) -> Result<A, StoreError> {
        let mut answer = match self.0.stand_behind(asked) {
            Ok(answer) => answer,
            Err((asked, turn)) => {
                let _next = Next(&self.0, turn);
                return self.0.alone(&asked).await;
            }
        };
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            () = tokio::time::sleep(OVERTIME) => {
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(Gated::new(Arc::clone(&self.0).overtake()));
                }
                answer.await
            }
        };
        // The runtime of those who took it along has ended.
        answered.unwrap_or_else(|_| Err(StoreError::Unavailable("its runtime has ended".into())))
    }
}

/// What waits goes out when this is dropped: the request before it has its answer, or was dropped.
struct Next<'a, Q: Send + Sync + 'static, A: Send + 'static>(&'a Arc<Shared<Q, A>>, Turn);

impl<Q: Send + Sync + 'static, A: Send + 'static> Drop for Next<'_, Q, A> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.waiting.is_empty() {
            state.turn = Weak::new();
            return;
        }
        drop(state);
        // A runtime that has ended drops it unpolled, and with it the turn.
        if let Ok(runtime) = Handle::try_current() {
            let turn = Arc::clone(&self.1);
            runtime.spawn(Gated::new(Arc::clone(self.0).go_on(turn)));
        }
    }
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Shared<Q, A> {
    fn state(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for what is under way; `Err` where nothing is, and this is it.
    fn stand_behind(&self, asked: Q) -> Result<Answer<A>, (Q, Turn)> {
        let mut state = self.state();
        if state.turn.strong_count() == 0 {
            let turn = Turn::default();
            state.turn = Arc::downgrade(&turn);
            return Err((asked, turn));
        }
        let (tell, answer) = oneshot::channel();
        state.waiting.push(Waiting { asked, tell });
        Ok(answer)
    }

    /// Carry out what waits, batch by batch, until nobody waits any more.
    async fn go_on(self: Arc<Self>, turn: Turn) {
        loop {
            let batch = {
                let mut state = self.state();
                let batch = state.take();
                if batch.is_empty() {
                    state.turn = Weak::new();
                    drop(turn);
                    return;
                }
                batch
            };
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

    async fn together(&self, batch: Vec<Waiting<Q, A>>) {
        let (asked, tell): (Vec<Q>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.asked, waiting.tell))
            .unzip();
        let sent = tokio::time::timeout(LONGEST, (self.send)(&asked)).await;
        let answers = match sent.unwrap_or_else(|_| Err(StoreError::late(LONGEST))) {
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
    async fn one_by_one(&self, asked: &[Q]) -> Vec<Result<A, StoreError>> {
        let mut answers = Vec::with_capacity(asked.len());
        for one in asked {
            answers.push(self.alone(one).await);
        }
        answers
    }

    async fn alone(&self, asked: &Q) -> Result<A, StoreError> {
        let asked = std::slice::from_ref(asked);
        let mut answers = (self.send)(asked).await?;
        let none = || StoreError::Unavailable("the store gave no answer".into());
        answers.pop().ok_or_else(none)
    }
}

impl<Q, A> State<Q, A> {
    /// The first of those who still want it, in their order.
    fn take(&mut self) -> Vec<Waiting<Q, A>> {
        self.waiting.retain(|waiting| !waiting.tell.is_closed());
        let rest = self.waiting.split_off(self.waiting.len().min(MOST));
        std::mem::replace(&mut self.waiting, rest)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

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

    fn carry_out(asked: &[Number]) -> Reply<'_, Vec<u8>> {
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

    fn batch() -> (Arc<World>, Arc<Batch<Number, u8>>) {
        (Arc::default(), Arc::new(Batch::new(carry_out)))
    }

    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(test);
    }

    type Asked = tokio::task::JoinHandle<Result<u8, StoreError>>;

    async fn ask(batch: &Arc<Batch<Number, u8>>, world: &Arc<World>, numbers: &[u8]) -> Vec<Asked> {
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
    fn a_runtime_that_ends_in_the_midst_leaves_the_next_request_alone() {
        for under_way in [vec![0, 1], vec![2, 0, 1]] {
            let (world, batch) = batch();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            // One alone with another behind it, and two together.
            runtime.block_on(async { drop(ask(&batch, &world, &under_way).await) });
            drop(runtime);
            let before = world.statements().len();
            run(async {
                let asked = ask(&batch, &world, &[3]).await;
                let sent = world.statements();
                assert!(
                    sent[before..].iter().any(|sent| sent.contains(&3)),
                    "{sent:?}"
                );
                drop(asked);
            });
        }
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
