//! A program that ends in one of many ways while it holds a lock or just after. The lock must be
//! free then, or rest if the variable `AT_LEAST` has the seconds of a minimum hold.
//!
//! `exiting-holder URL NAME HOW` takes the lock. HOW is
//!
//! - `question-mark`: `?` in a `main` on several threads drops the guard;
//! - `current-thread`: the same on one thread;
//! - `exit`: the guard is dropped, then `std::process::exit` is called;
//! - `panic`: `main` panics;
//! - `task`: a task that never ends has the guard, and is dropped with the runtime;
//! - `shutdown`: the same with a runtime that does not wait for its tasks;
//! - `detached`: a thread that runs until the process ends has the guard;
//! - `exit-holding`: `std::process::exit` is called while the guard is alive;
//! - `leaked`: the guard is leaked;
//! - `thread`: a thread drops the guard, and `main` does not wait for that thread to end;
//! - `thread-local`: a thread-local value has the guard;
//! - `elsewhere`: another thread than `main` uses the library and goes on with the guard;
//! - `elsewhere-dropped`: the same, and that thread has dropped the guard;
//! - `exit-elsewhere`: that thread calls `std::process::exit` while it has the guard;
//! - `exit-beside`: such a thread calls it while the main thread has the guard;
//! - `dropped-acquire`: no lock is held, but a waiting acquire is dropped;
//! - `on-input`: prints `held`, and `main` ends when it is sent a line;
//! - `fork`: a forked child ends first, and must not wait for anything of its parent;
//! - `fork-direct`: during a call, such a child drops the runtime and the direct connection that
//!   its parent goes on using.
#![allow(clippy::print_stdout, reason = "the answers go to standard output")]

use std::cell::RefCell;
use std::error::Error;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use database_locks::seam::{Outcome, ReleaseCommand, Released, Table, open};
use database_locks::{Lock, LockGuard, Locks};
use rustix::process::Pid;
use testkit::contract::acquire_command;
use testkit::process::{fork, wait_for_child};
use tokio::runtime::{Builder, Runtime};

type Done = Result<(), Box<dyn Error>>;

fn main() -> Done {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, name, how] = args.as_slice() else {
        panic!("bad arguments: {args:?}");
    };
    match how.as_str() {
        "question-mark" => on(threads(), url, name, async |guard| fails(&guard)),
        "current-thread" => on(one_thread(), url, name, async |guard| fails(&guard)),
        "exit" => on(threads(), url, name, async |guard| {
            drop(guard);
            std::process::exit(3)
        }),
        "panic" => on(threads(), url, name, async |_guard| panic!("on purpose")),
        "task" => on(threads(), url, name, holding_task),
        "shutdown" => {
            let runtime = threads();
            let done = runtime.block_on(acquired(url, name, holding_task));
            runtime.shutdown_background();
            done
        }
        "detached" => on(one_thread(), url, name, async |guard| {
            std::thread::spawn(move || {
                let _guard = guard;
                loop {
                    std::thread::park();
                }
            });
            Ok(())
        }),
        "exit-holding" => on(threads(), url, name, async |_guard| std::process::exit(3)),
        "leaked" => on(threads(), url, name, async |guard| {
            std::mem::forget(guard);
            Ok(())
        }),
        "thread" => on(one_thread(), url, name, async |guard| {
            let (done, dropped) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                drop(guard);
                done.send(())
            });
            Ok(dropped.recv()?)
        }),
        "thread-local" => in_thread_local(url, name),
        "elsewhere" => elsewhere(url, name, Some),
        "elsewhere-dropped" => elsewhere(url, name, |guard| {
            drop(guard);
            None
        }),
        "exit-elsewhere" => elsewhere(url, name, |_guard| std::process::exit(3)),
        "exit-beside" => on(one_thread(), url, name, async |_guard| {
            std::thread::spawn(|| std::process::exit(3));
            std::future::pending().await
        }),
        "dropped-acquire" => threads().block_on(give_up(url, name)),
        "on-input" => on(threads(), url, name, async |_guard| {
            println!("held");
            std::io::stdin().read_line(&mut String::new())?;
            Ok(())
        }),
        "fork" => on(one_thread(), url, name, async |guard| {
            drop(guard);
            let Some(child) = fork() else {
                std::process::exit(0)
            };
            child_ends(child);
            Ok(())
        }),
        "fork-direct" => fork_direct(url, name),
        other => panic!("unknown: {other}"),
    }
}

fn in_thread_local(url: &str, name: &str) -> Done {
    thread_local!(static KEPT: RefCell<Option<LockGuard>> = const { RefCell::new(None) });
    // Before any thread-local value of the library, so that it is dropped after those.
    KEPT.with(|kept| *kept.borrow_mut() = None);
    on(one_thread(), url, name, async |guard| {
        KEPT.with(|kept| *kept.borrow_mut() = Some(guard));
        Ok(())
    })
}

async fn give_up(url: &str, name: &str) -> Done {
    let lock = lock(url, name).await?;
    let mut acquire = pin!(lock.acquire());
    let once = poll_fn(|cx| Poll::Ready(acquire.as_mut().poll(cx)));
    assert!(once.await.is_pending());
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..3000))).await;
    Ok(())
}

fn threads() -> Runtime {
    let runtime = Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime")
}

fn one_thread() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

async fn lock(url: &str, name: &str) -> Result<Lock, database_locks::Error> {
    let locks = Locks::connect(url).await?;
    // Long, so that the lock is not free because its lease has ended.
    let at_least = std::env::var("AT_LEAST").unwrap_or_default();
    let at_least = Duration::from_secs(at_least.parse().unwrap_or_default());
    let ttl = Duration::from_secs(600);
    Ok(locks.lock(name).ttl(ttl).at_least(at_least))
}

async fn acquired(url: &str, name: &str, then: impl AsyncFnOnce(LockGuard) -> Done) -> Done {
    let guard = lock(url, name).await?.acquire().await?;
    then(guard).await
}

fn on(runtime: Runtime, url: &str, name: &str, then: impl AsyncFnOnce(LockGuard) -> Done) -> Done {
    runtime.block_on(acquired(url, name, then))
}

fn fails(guard: &LockGuard) -> Done {
    assert!(guard.is_held());
    Err("as programs do")?
}

/// Acquires on another thread, which keeps the result of `then` until the process ends.
fn elsewhere(url: &str, name: &str, then: fn(LockGuard) -> Option<LockGuard>) -> Done {
    let (url, name) = (url.to_owned(), name.to_owned());
    let (begin, begun) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        on(one_thread(), &url, &name, async |guard| {
            let _kept = then(guard);
            begin.send(())?;
            loop {
                std::thread::park();
            }
        })
        .expect("it has the lock");
    });
    Ok(begun.recv()?)
}

async fn holding_task(guard: LockGuard) -> Done {
    let (begin, begun) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let _guard = guard;
        let _ = begin.send(());
        std::future::pending::<()>().await;
    });
    Ok(begun.await?)
}

fn child_ends(child: Pid) {
    wait_for_child(child);
    println!("the child has ended");
}

fn fork_direct(url: &str, name: &str) -> Done {
    let runtime = one_thread();
    let store = open(url, &Table::default())?;
    let direct = store.direct().ok_or("the engine has no direct")?;
    let acquire = |name: &str| {
        let (direct, command) = (
            Arc::clone(&direct),
            acquire_command(name, "me", Duration::from_secs(25)),
        );
        async move {
            let outcomes = direct.acquire(std::slice::from_ref(&command)).await;
            match outcomes.map_err(|error| error.to_string())?[..] {
                [Outcome::Granted { token, .. }] => Ok((command, token)),
                ref other => Err(format!("{other:?}")),
            }
        }
    };
    let (command, token) = runtime.block_on(acquire(name))?;
    let call = runtime.spawn(acquire("another"));
    // The request is sent.
    runtime.block_on(tokio::task::yield_now());
    let Some(child) = fork() else {
        drop((direct, store, runtime));
        std::process::exit(0);
    };
    child_ends(child);
    let what = ReleaseCommand {
        slot: Default::default(),
        rest: Duration::ZERO,
        name: command.name,
        token: Some(token),
        grant: command.grant,
        holder: command.holder,
        durable: false,
    };
    let goes_on = async {
        call.await??;
        let released = direct.release(&[what]).await;
        assert!(
            matches!(released.as_deref(), Ok([Released::Freed])),
            "{released:?}"
        );
        Ok(())
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), goes_on).await })?
}
