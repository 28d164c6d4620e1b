use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(20);

/// The thread that carries out background work.
async fn background_thread() -> thread::ThreadId {
    run(async { Ok::<_, RuntimeError>(thread::current().id()) })
        .await
        .unwrap()
}

#[test]
fn a_wait_leaves_the_shared_runtime_when_it_no_longer_needs_it() {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let long = thread::spawn(move || block_on(receiver).unwrap());
    // Another thread can drive the runtime while that one waits.
    let sleeps = || async {
        let mut sleep = pin!(tokio::time::sleep(Duration::from_millis(1)));
        poll_fn(|context| {
            mark_runtime_needed();
            sleep.as_mut().poll(context)
        })
        .await;
        caller_runtime().is_some_and(|(_, blocking)| blocking)
    };
    for _ in 0..3 {
        assert!(block_on(sleeps()).unwrap());
    }
    sender.send(()).unwrap();
    long.join().unwrap().unwrap();
}

#[test]
fn a_task_of_the_shared_runtime_continues_while_other_threads_block_and_after_them() {
    let (sender, receiver) = mpsc::channel();
    let ticks = async move {
        for tick in 0..100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            sender.send(tick).unwrap();
        }
    };
    drop(spawn(ticks).unwrap());
    for _ in 0..20 {
        block_on(async { run(async { Ok::<_, RuntimeError>(()) }).await.unwrap() }).unwrap();
    }
    for tick in 0..100 {
        assert_eq!(receiver.recv_timeout(LONG), Ok(tick));
    }
}

#[test]
fn many_threads_that_block_and_tasks_that_do_not_all_get_their_answers() {
    let rounds = || async {
        for _ in 0..200 {
            run(async {
                tokio::task::yield_now().await;
                Ok::<_, RuntimeError>(())
            })
            .await
            .unwrap();
        }
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..200).for_each(|_| {
                    block_on(run(async { Ok::<_, RuntimeError>(()) }))
                        .unwrap()
                        .unwrap()
                })
            });
            scope.spawn(|| pollster::block_on(rounds()));
            scope.spawn(|| block_on(rounds()).unwrap());
        }
    });
}

#[test]
fn a_wait_that_timed_out_can_be_continued_by_any_thread() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut waiting = Box::pin(run(async {
        Ok::<_, RuntimeError>(receiver.await.unwrap())
    }));
    for _ in 0..3 {
        let waited = block_on_for(waiting.as_mut(), Duration::from_millis(5));
        assert!(waited.unwrap().is_none());
    }
    let waiting = thread::spawn(move || block_on_for(waiting.as_mut(), LONG));
    sender.send("news").unwrap();
    let waited = waiting.join().unwrap().unwrap();
    assert_eq!(waited.unwrap().unwrap(), "news");
}

#[test]
fn a_thread_that_blocks_within_another_runtime_gets_its_result() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let by = runtime
        .unwrap()
        .block_on(async { block_on(background_thread()).unwrap() });
    assert_ne!(by, thread::current().id());
}

#[test]
fn the_background_thread_is_refused_a_wait_for_itself() {
    fn refused(why: Result<(), RuntimeError>) {
        let message = crate::Error::from(why.unwrap_err()).to_string();
        assert!(
            message.contains("must be made on another thread"),
            "{message}"
        );
    }
    let nested = || async {
        refused(block_on(async {}));
        refused(block_on_for(pin!(async {}), LONG).map(drop));
    };
    block_on(spawn(nested()).unwrap()).unwrap().unwrap();
    block_on(async {}).unwrap();
}

#[test]
fn a_wait_that_panics_leaves_it_to_others_to_go_on() {
    let done = AtomicBool::new(false);
    let panics = std::panic::catch_unwind(|| block_on(async { panic!("of its own") }));
    assert!(panics.is_err());
    block_on(async {
        run(async { Ok::<_, RuntimeError>(()) }).await.unwrap();
        done.store(true, Ordering::Relaxed);
    })
    .unwrap();
    assert!(done.into_inner());
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "it stands for work that takes a while"
)]
fn a_child_never_sees_the_background_in_the_middle_of_something() {
    static HALVES: AtomicU8 = AtomicU8::new(0);
    let (begun, has_begun) = mpsc::channel();
    let work = async move {
        HALVES.fetch_add(1, Ordering::SeqCst);
        begun.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        HALVES.fetch_add(1, Ordering::SeqCst);
    };
    let work = spawn(work).unwrap();
    has_begun.recv().unwrap();
    assert_eq!(fork::as_forked(|| HALVES.load(Ordering::SeqCst)), 2);
    block_on(work).unwrap().unwrap();
}
