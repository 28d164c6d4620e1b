//! The locks of this library, as contenders.

use std::time::Duration;

use database_locks::{Locks, blocking};
use testkit::time;
use tokio::runtime::Runtime;

use crate::contender::{Contender, Times, repeat, since};
use crate::floors::{self, runtime};
use crate::servers::Engine;

/// Connected, with the table made.
pub(crate) fn connected(runtime: &Runtime, url: &str) -> Locks {
    runtime.block_on(async {
        let locks = Locks::connect(url).await.expect("connects");
        locks.migrate().await.expect("makes the table");
        locks
    })
}

/// From async code.
pub(crate) fn cycles(key: &str, name: &str, url: &str, auto_renew: bool) -> Contender {
    let runtime = runtime();
    let lock = connected(&runtime, url).lock(key).auto_renew(auto_renew);
    Contender::new(key, name, move |slice| {
        repeat(slice, |times| {
            let t0 = time::now();
            let guard = runtime.block_on(lock.acquire()).expect("acquires");
            let t1 = time::now();
            times.acquire.push(since(t0));
            runtime.block_on(guard.release()).expect("releases");
            times.release.push(since(t1));
        })
    })
}

/// From a task of tokio's default runtime, as most services have it.
pub(crate) fn spawned(key: &str, name: &str, url: &str) -> Contender {
    let runtime = floors::default_runtime();
    let lock = connected(&runtime, url).lock(key);
    Contender::new(key, name, move |slice| {
        let lock = lock.clone();
        let task = runtime.spawn(async move {
            let (began, mut times) = (time::now(), Times::default());
            while began.elapsed() < slice || times.acquire.len() < 3 {
                let t0 = time::now();
                let guard = lock.acquire().await.expect("acquires");
                let t1 = time::now();
                times.acquire.push(since(t0));
                guard.release().await.expect("releases");
                times.release.push(since(t1));
            }
            times
        });
        runtime.block_on(task).expect("the task ends")
    })
}

/// From code that blocks.
pub(crate) fn blocking(key: &str, name: &str, url: &str) -> Contender {
    let locks = blocking::Locks::connect(url).expect("connects");
    locks.migrate().expect("makes the table");
    let lock = locks.lock(key);
    Contender::new(key, name, move |slice| {
        repeat(slice, |times| {
            let t0 = time::now();
            let guard = lock.acquire().expect("acquires");
            let t1 = time::now();
            times.acquire.push(since(t0));
            guard.release().expect("releases");
            times.release.push(since(t1));
        })
    })
}

/// A name that nobody has used before, each time.
pub(crate) fn first_use(key: &str, name: &str, url: &str) -> Contender {
    let runtime = runtime();
    let locks = connected(&runtime, url);
    let (prefix, mut number) = (key.to_owned(), 0);
    Contender::new(key, name, move |slice| {
        repeat(slice, |times| {
            number += 1;
            let lock = locks.lock(format!("{prefix} {number}"));
            let t0 = time::now();
            let guard = runtime.block_on(lock.acquire()).expect("acquires");
            let t1 = time::now();
            times.acquire.push(since(t0));
            runtime.block_on(guard.release()).expect("releases");
            times.release.push(since(t1));
        })
    })
}

/// A try that finds the lock held.
pub(crate) fn losing(key: &str, name: &str, url: &str) -> Contender {
    let runtime = runtime();
    let guard = runtime
        .block_on(connected(&runtime, url).lock(key).acquire())
        .expect("acquires");
    let lock = connected(&runtime, url).lock(key);
    Contender::new(key, name, move |slice| {
        assert!(guard.is_held());
        repeat(slice, |times| {
            let t0 = time::now();
            let got = runtime.block_on(lock.try_acquire()).expect("answers");
            times.acquire.push(since(t0));
            assert!(got.is_none());
        })
    })
}

/// All rows of one engine; their keys begin with that of the engine.
pub(crate) fn of(engine: &Engine) -> Vec<Contender> {
    let (url, key) = (&engine.url, |what: &str| format!("{}{what}", engine.key));
    let task = "Rust, async, in a task of `#[tokio::main]`";
    let first = "Rust, async: first use of a name";
    vec![
        cycles(&key(""), "**Rust, async**", url, true),
        spawned(&key("-task"), task, url),
        cycles(&key("-off"), "Rust, async, auto-renew off", url, false),
        blocking(&key("-blocking"), "Rust, blocking", url),
        first_use(&key("-first"), first, url),
        losing(&key("-losing"), "Rust, async: a losing try", url),
    ]
}

/// How long a lock is held by whoever only wants to see how it changes hands.
pub(crate) const SHORT: Duration = Duration::from_millis(1);
