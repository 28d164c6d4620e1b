//! A program that takes locks, which tests kill, freeze, fork and cut off.
//!
//! - `test-holder count URL NAME ROUNDS FILE locked|unlocked`: adds 1 to the number in FILE, ROUNDS
//!   times, each time under the lock, or without it.
//! - `test-holder hold URL NAME TTL_MS [leak]`: takes the lock, prints `held TOKEN`, and `lost
//!   REASON` once it is lost. The line `ask` on its standard input is answered with `is_held
//!   true|false`, the line `release` with the result of the release. Ends with its input; with
//!   `leak` it never drops the guard.
//! - `test-holder hold-all URL NAMES TTL_MS`: the same with several locks at once, whose names are
//!   separated by commas; the loss is printed as `lost NAME REASON`.
//! - `test-holder hold URL NAME TTL_MS as HOLDER`: the same as that holder, taking the lock over
//!   from another process of the same holder.
//! - `test-holder fork-as URL NAME HOLDER`: takes the lock as that holder and forks; the child
//!   acquires as the same holder.
//! - `test-holder loop URL NAME HOLD_MS THREADS`: so many threads take the lock, print `grant` and
//!   their number, hold it for so long, release it, and begin anew at once, until the process is
//!   killed.
//! - `test-holder fork URL NAME`: takes the lock and forks; the child prints what it may do with
//!   the lock, and the parent whether it still has it when the child has ended.
//! - `test-holder fork-ids`: acquires locks, forks, and acquires more in both processes; prints for
//!   each process its pid, the pid in the rows, and the grant ids.
#![allow(clippy::print_stdout, reason = "the answers go to standard output")]

use std::io::Write;
use std::time::Duration;

use database_locks::Error;
use database_locks::blocking::Locks;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match *args.as_slice() {
        ["count", url, name, rounds, file, how] => count(
            url,
            name,
            rounds.parse().expect("a number"),
            file,
            how == "locked",
        ),
        ["hold", url, name, ttl] => hold(url, name, ttl, None, false),
        ["hold-all", url, names, ttl] => hold_all(url, names, ttl),
        ["hold", url, name, ttl, "leak"] => hold(url, name, ttl, None, true),
        ["hold", url, name, ttl, "as", holder] => hold(url, name, ttl, Some(holder), false),
        ["loop", url, name, hold, threads] => {
            let [hold, threads] = [hold, threads].map(|text| text.parse().expect("a number"));
            repeat(url, name, Duration::from_millis(hold), threads)
        }
        ["fork-as", url, name, holder] => fork_as(url, name, holder),
        ["fork", url, name] => fork(url, name),
        ["fork-ids"] => fork_ids(),
        _ => panic!("bad arguments: {args:?}"),
    };
    if let Err(error) = done {
        say(&format!("error {}", error.chain()));
        std::process::exit(1);
    }
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().expect("the test reads");
}

fn count(url: &str, name: &str, rounds: u32, file: &str, locked: bool) -> Result<(), Error> {
    let locks = Locks::connect(url)?;
    say("ready");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a start");
    for _ in 0..rounds {
        let guard = if locked {
            Some(locks.lock(name).acquire()?)
        } else {
            None
        };
        let text = std::fs::read_to_string(file).expect("readable");
        let number: u32 = match text.parse() {
            Ok(number) => number,
            // Another process is writing just now, which the lock prevents.
            Err(_) if !locked => 0,
            Err(_) => panic!("a torn number: {text:?}"),
        };
        // Without the lock, another process comes in between.
        testkit::time::sleep(Duration::from_millis(1));
        std::fs::write(file, (number + 1).to_string()).expect("writable");
        guard.map_or(Ok(()), |guard| guard.release())?;
    }
    say("done");
    Ok(())
}

fn repeat(url: &str, name: &str, hold: Duration, threads: u64) -> Result<(), Error> {
    let locks = Locks::connect(url)?;
    say("ready");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a start");
    let again = |thread| -> Result<(), Error> {
        loop {
            let guard = locks.lock(name).acquire()?;
            say(&format!("grant {thread}"));
            testkit::time::sleep(hold);
            guard.release()?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || again(thread)))
            .collect();
        let mut ended = threads.into_iter().map(|thread| thread.join());
        ended.try_for_each(|ended| ended.expect("no panic"))
    })
}

fn hold(url: &str, name: &str, ttl: &str, holder: Option<&str>, leak: bool) -> Result<(), Error> {
    let locks = Locks::connect(url)?;
    let ttl = Duration::from_millis(ttl.parse().expect("a number"));
    let mut lock = locks.lock(name).ttl(ttl);
    if let Some(holder) = holder {
        lock = lock.holder(holder).preempt(true);
    }
    let guard = lock.acquire()?;
    say(&format!("held {}", guard.token()));
    let lost = guard.lost();
    tell_lost(async move { format!("{:?}", lost.await.reason()) });
    let left = obey(guard, |guard| guard.is_held(), |guard| guard.release());
    if leak {
        std::mem::forget(left);
    }
    Ok(())
}

fn hold_all(url: &str, names: &str, ttl: &str) -> Result<(), Error> {
    let ttl = Duration::from_millis(ttl.parse().expect("a number"));
    let locks = Locks::connect(url)?.all(names.split(',')).ttl(ttl);
    let set = locks.acquire()?;
    say(&format!("held {}", set.guards()[0].token()));
    let lost = set.lost();
    tell_lost(async move {
        let (name, loss) = lost.await;
        format!("{name} {:?}", loss.reason())
    });
    drop(obey(set, |set| set.is_held(), |set| set.release()));
    Ok(())
}

/// Says how the lock was lost, once it is.
fn tell_lost(lost: impl Future<Output = String> + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        say(&format!(
            "lost {}",
            runtime.expect("a runtime").block_on(lost)
        ));
    });
}

/// Does what standard input says until its end, and returns what is still held.
fn obey<G>(
    guard: G,
    is_held: impl Fn(&G) -> bool,
    release: impl Fn(G) -> Result<(), Error>,
) -> Option<G> {
    let mut guard = Some(guard);
    for line in std::io::stdin().lines() {
        match line.expect("text").as_str() {
            "ask" => say(&format!("is_held {}", guard.as_ref().is_some_and(&is_held))),
            "release" => match guard.take().map(&release) {
                Some(Ok(())) => say("released"),
                Some(Err(error)) => say(&format!("not released: {error}")),
                None => say("nothing to release"),
            },
            other => say(&format!("what is {other}?")),
        }
    }
    guard
}

fn fork(url: &str, name: &str) -> Result<(), Error> {
    let locks = Locks::connect(url)?;
    let ttl = Duration::from_secs(5);
    let guard = locks.lock(name).ttl(ttl).acquire()?;
    let Some(child) = testkit::process::fork() else {
        say(&format!("child: is_held {}", guard.is_held()));
        say(&format!(
            "child: {}",
            guard.check().expect_err("another process")
        ));
        // Longer than the ttl: were the child to renew or release it, the parent would notice.
        testkit::time::sleep(ttl);
        match locks.lock(name).try_acquire() {
            Ok(taken) => say(&format!("child: got it {}", taken.is_some())),
            Err(error) => say(&format!("child: {}", error.chain())),
        }
        match locks.lock("of its own").acquire() {
            Ok(own) => say(&format!("child: held {}", own.is_held())),
            Err(error) => say(&format!("child: {}", error.chain())),
        }
        drop(guard);
        drop(locks);
        std::process::exit(0);
    };
    testkit::process::wait_for_child(child);
    testkit::time::sleep(ttl);
    say(&format!("parent: is_held {}", guard.is_held()));
    guard.check()?;
    guard.release()?;
    say("parent: released");
    Ok(())
}

fn fork_as(url: &str, name: &str, holder: &str) -> Result<(), Error> {
    let locks = Locks::connect(url)?;
    let lock = locks.lock(name).holder(holder).preempt(true);
    let guard = lock.acquire()?;
    say(&format!(
        "parent: excludes {}",
        lock.try_acquire()?.is_none()
    ));
    let Some(child) = testkit::process::fork() else {
        match lock.try_acquire() {
            Ok(Some(taken)) => say(&format!("child: greater {}", taken.token() > guard.token())),
            Ok(None) => say("child: excluded"),
            Err(error) => say(&format!("child: {}", error.chain())),
        }
        std::process::exit(0);
    };
    testkit::process::wait_for_child(child);
    say(&format!(
        "parent: {:?}",
        guard.check().err().map(|e| e.to_string())
    ));
    Ok(())
}

fn fork_ids() -> Result<(), Error> {
    let locks = Locks::connect("memory:")?;
    let report = || -> Result<(), Error> {
        let (mut ids, mut named) = (Vec::new(), None);
        for _ in 0..100 {
            let guard = locks.lock("job").acquire()?;
            ids.push(guard.grant_id().to_owned());
            named = locks
                .show("job")?
                .map(|row| row.parsed_metadata()["pid"].clone());
        }
        let named = named.expect("a row");
        say(&format!("{} {named} {}", std::process::id(), ids.join(" ")));
        Ok(())
    };
    report()?;
    let Some(child) = testkit::process::fork() else {
        report()?;
        std::process::exit(0);
    };
    testkit::process::wait_for_child(child);
    report()
}
