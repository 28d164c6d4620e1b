//! Real processes that take locks, and are killed and frozen.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use testkit::cleanup::ScratchDir;
use testkit::time::{now, sleep};
use testkit::{ChildProcess, TestDb, db_tests, promise};

const TEST_HOLDER: &str = env!("CARGO_BIN_EXE_test-holder");
/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(60);

fn holder(url: &str, name: &str, ttl: Duration) -> ChildProcess {
    let holder_process = ChildProcess::spawn(
        TEST_HOLDER,
        ["hold", url, name, &ttl.as_millis().to_string()],
    );
    let message = holder_process.expect_line(TIMEOUT);
    assert!(message.starts_with("held "), "{message}");
    holder_process
}

fn ask(holder_process: &mut ChildProcess) -> String {
    holder_process.send_line("ask").expect("it listens");
    holder_process.expect_line(TIMEOUT)
}

/// The number in the file after so many processes have added to it so many times each. `meanwhile`
/// runs once they have begun.
fn counted(
    db: &TestDb,
    processes: usize,
    rounds: &str,
    how: &str,
    meanwhile: impl FnOnce(),
) -> u32 {
    let folder = ScratchDir::new("count");
    let file = folder.join("number");
    fs::write(&file, "0").expect("writable");
    let file_name = file.to_string_lossy();
    let args = ["count", &db.url, "number", rounds, &file_name, how];
    let mut takers: Vec<_> = (0..processes)
        .map(|_| ChildProcess::spawn(TEST_HOLDER, args))
        .collect();
    for holder_process in &takers {
        assert_eq!(holder_process.expect_line(TIMEOUT), "ready");
    }
    for holder_process in &mut takers {
        holder_process.send_line("go").expect("it listens");
    }
    meanwhile();
    for holder_process in &takers {
        let message = holder_process.expect_line(Duration::from_secs(180));
        assert_eq!(message, "done");
    }
    fs::read_to_string(&file)
        .expect("readable")
        .parse()
        .expect("a number")
}

async fn twelve_processes_lose_no_count(db: &TestDb) {
    db.locks().await;
    assert_eq!(counted(db, 12, "20", "locked", || ()), 240);
    promise("P1", db.engine);
    promise("P15", db.engine);
}

/// The control: the test above must be able to fail.
async fn without_the_lock_counts_are_lost(db: &TestDb) {
    db.locks().await;
    assert!(counted(db, 12, "20", "unlocked", || ()) < 240);
}

/// Another writer has the file locked for five seconds: all processes wait, and none fails.
async fn sixteen_processes_outlast_a_busy_file(db: &TestDb) {
    db.locks().await;
    let hold = db.lock_row("number");
    let total = counted(db, 16, "5", "locked", || {
        sleep(Duration::from_secs(5));
        hold.rollback();
    });
    assert_eq!(total, 80);
    promise("P12", db.engine);
    promise("P15", db.engine);
}

async fn a_killed_holder_is_succeeded_when_its_ttl_ends(db: &TestDb) {
    let locks = db.locks().await;
    let ttl = Duration::from_secs(6);
    let mut holder_process = holder(&db.url, "job", ttl);
    // It has been renewed once.
    sleep(Duration::from_secs(3));
    holder_process.kill9();
    let began = now();
    assert!(
        locks.lock("job").try_acquire().await.unwrap().is_none(),
        "not before its ttl"
    );
    let next = locks.lock("job").wait(TIMEOUT).acquire().await.unwrap();
    let took = began.elapsed();
    assert!(took < ttl + Duration::from_secs(5), "{took:?}");
    assert!(next.is_held());
    promise("P7", db.engine);
    promise("P12", db.engine);
}

async fn a_frozen_holder_gets_the_loss_before_it_goes_on(db: &TestDb) {
    let locks = db.locks().await;
    let mut holder_process = holder(&db.url, "job", Duration::from_secs(4));
    assert_eq!(ask(&mut holder_process), "is_held true");
    holder_process.freeze();
    let next = locks
        .lock("job")
        .wait(TIMEOUT)
        .acquire()
        .await
        .expect("the frozen one's ttl ends");
    let before = locks.show("job").await.unwrap().expect("a row");
    // The first thing that it does when it is thawed is to ask; then it renews, and releases.
    holder_process.send_line("ask").expect("it listens");
    holder_process.send_line("release").expect("it listens");
    holder_process.thaw();
    let mut message: Vec<String> = (0..3)
        .map(|_| holder_process.expect_line(TIMEOUT))
        .collect();
    let lost = message
        .iter()
        .position(|line| line.starts_with("lost "))
        .expect("the loss comes");
    message.remove(lost);
    assert_eq!(message[0], "is_held false");
    assert!(
        message[1].starts_with("not released: lock `job` lost"),
        "{}",
        message[1]
    );
    holder_process.close_input();
    assert!(
        holder_process
            .wait(TIMEOUT)
            .is_some_and(|status| status.success())
    );

    next.check().await.expect("the successor was not touched");
    let after = locks.show("job").await.unwrap().expect("a row");
    assert_eq!((after.token, after.grant), (before.token, before.grant));
    promise("P3", db.engine);
    promise("P4", db.engine);
}

fn set_holder(url: &str, names: &str, ttl: &str) -> ChildProcess {
    let holder_process = ChildProcess::spawn(TEST_HOLDER, ["hold-all", url, names, ttl]);
    let message = holder_process.expect_line(TIMEOUT);
    assert!(message.starts_with("held "), "{message}");
    holder_process
}

async fn the_locks_of_a_killed_set_are_free_together_when_its_ttl_ends(db: &TestDb) {
    let locks = db.locks().await;
    let mut holder_process = set_holder(&db.url, "a,b,c", "6000");
    sleep(Duration::from_secs(3));
    holder_process.kill9();
    let began = now();
    assert!(
        locks.all(["c", "d"]).try_acquire().await.unwrap().is_none(),
        "not before its ttl"
    );
    let next = locks.all(["d", "c", "b", "a"]).wait(TIMEOUT).acquire();
    let next = next.await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(11), "{took:?}");
    next.check().await.unwrap();
    promise("P7", db.engine);
    promise("P12", db.engine);
}

/// Another client has one of the locks meanwhile: the set is lost, and changes nothing of that one.
async fn a_frozen_holder_of_a_set_loses_all_of_it(db: &TestDb) {
    let locks = db.locks().await;
    let mut holder_process = set_holder(&db.url, "a,b", "4000");
    assert_eq!(ask(&mut holder_process), "is_held true");
    holder_process.freeze();
    let next = locks.lock("b").wait(TIMEOUT).acquire().await;
    let next = next.expect("the frozen one's ttl ends");
    holder_process.send_line("ask").expect("it listens");
    holder_process.send_line("release").expect("it listens");
    holder_process.thaw();
    let mut message: Vec<String> = (0..3)
        .map(|_| holder_process.expect_line(TIMEOUT))
        .collect();
    let lost = message.iter().position(|line| line.starts_with("lost "));
    message.remove(lost.expect("the loss comes"));
    assert_eq!(message[0], "is_held false");
    assert!(
        message[1].starts_with("not released: lock `"),
        "{message:?}"
    );
    holder_process.close_input();
    assert!(holder_process.wait(TIMEOUT).is_some());
    next.check().await.expect("the successor was not touched");
    let both = locks.all(["a", "c"]).wait(TIMEOUT).acquire().await;
    both.expect("the other one is free")
        .release()
        .await
        .unwrap();
    promise("P3", db.engine);
    promise("P4", db.engine);
}

async fn a_leaked_guard_ends_with_its_process(db: &TestDb) {
    let locks = db.locks().await;
    let mut holder_process =
        ChildProcess::spawn(TEST_HOLDER, ["hold", &db.url, "job", "4000", "leak"]);
    assert!(holder_process.expect_line(TIMEOUT).starts_with("held "));
    sleep(Duration::from_secs(6));
    assert!(
        locks.lock("job").try_acquire().await.unwrap().is_none(),
        "it is renewed"
    );
    holder_process.close_input();
    assert!(
        holder_process
            .wait(TIMEOUT)
            .is_some_and(|status| status.success())
    );
    locks
        .lock("job")
        .wait(TIMEOUT)
        .acquire()
        .await
        .expect("free when the ttl has ended")
        .release()
        .await
        .unwrap();
    promise("P7", db.engine);
}

/// A process that comes with the `locked_by` of another one has its lock at once, and the other
/// learns it; within each of them it would have to wait.
async fn the_same_holder_in_another_process_takes_over(db: &TestDb) {
    let locks = db.locks().await;
    let start = || {
        let holder_process = ChildProcess::spawn(
            TEST_HOLDER,
            ["hold", &db.url, "job", "9000", "as", "node 7"],
        );
        let message = holder_process.expect_line(TIMEOUT);
        let token: i64 = message
            .strip_prefix("held ")
            .expect("it has it")
            .parse()
            .unwrap();
        (holder_process, token)
    };
    let (mut old, first) = start();
    let (mut new, second) = start();
    assert!(second > first);
    assert!(
        locks.lock("job").try_acquire().await.unwrap().is_none(),
        "never free"
    );
    assert_eq!(old.expect_line(TIMEOUT), "lost Preempted");
    assert_eq!(ask(&mut old), "is_held false");
    old.send_line("release").expect("it listens");
    let message = old.expect_line(TIMEOUT);
    assert!(message.contains("preempted"), "{message}");
    assert_eq!(ask(&mut new), "is_held true");
    let row = locks.show("job").await.unwrap().expect("a row");
    assert_eq!(
        (row.token.get(), row.holder.as_deref()),
        (second, Some("node 7"))
    );
    new.kill9();
    let (_third, token) = start();
    assert!(token > second, "a restart does not wait for the ttl");
    promise("P2", db.engine);
    promise("P3", db.engine);
}

/// A forked child is another process.
async fn a_forked_child_takes_over_as_another_process(db: &TestDb) {
    db.locks().await;
    let mut holder_process =
        ChildProcess::spawn(TEST_HOLDER, ["fork-as", &db.url, "job", "node 7"]);
    let message: Vec<String> = (0..3)
        .map(|_| holder_process.expect_line(TIMEOUT))
        .collect();
    assert!(
        holder_process
            .wait(TIMEOUT)
            .is_some_and(|status| status.success())
    );
    assert_eq!(
        message[..2],
        ["parent: excludes true", "child: greater true"]
    );
    assert!(message[2].contains("preempted"), "{}", message[2]);
    promise("P13", db.engine);
}

/// A holder keeps its locks on an SQLite file when another program has opened and closed it.
async fn a_holder_keeps_its_lock_when_another_program_closes_the_file(db: &TestDb) {
    let path = db.url.trim_start_matches("sqlite://").to_owned();
    let mut maker = holder(&db.url, "job", Duration::from_secs(4));
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                  c.execute('SELECT count(*) FROM database_locks_lock').fetchall(); c.close()";
    let reader = Command::new("python3").args(["-c", script, &path]).status();
    assert!(reader.is_ok_and(|status| status.success()));
    sleep(Duration::from_secs(5));
    assert_eq!(ask(&mut maker), "is_held true");
    let locks = db.locks().await;
    assert!(locks.lock("job").try_acquire().await.unwrap().is_none());
    promise("P1", db.engine);
}

/// A child that goes on without exec neither trusts, renews nor releases what its parent holds, and
/// takes locks of its own.
async fn a_forked_child_touches_nothing_of_its_parents(db: &TestDb) {
    db.locks().await;
    let mut holder_process = ChildProcess::spawn(TEST_HOLDER, ["fork", &db.url, "job"]);
    let mut message: Vec<String> = (0..6)
        .map(|_| holder_process.expect_line(TIMEOUT))
        .collect();
    assert!(
        holder_process
            .wait(TIMEOUT)
            .is_some_and(|status| status.success()),
        "{message:?}"
    );
    // SQLite that was open before the fork cannot be used after it, and the error says so.
    if db.engine == "sqlite" {
        for line in message.drain(2..4) {
            assert!(line.contains("when this process was forked"), "{line}");
        }
    } else {
        let own: Vec<String> = message.drain(2..4).collect();
        assert_eq!(own, ["child: got it false", "child: held true"]);
    }
    let lost = "child: lock `job` lost: held by the process that forked this one";
    assert_eq!(
        message,
        [
            "child: is_held false",
            lost,
            "parent: is_held true",
            "parent: released"
        ]
    );
    promise("P13", db.engine);
}

#[test]
fn a_forked_child_draws_its_own_grant_ids_and_names_its_own_pid() {
    let mut holder_process = ChildProcess::spawn(TEST_HOLDER, ["fork-ids"]);
    let message: Vec<String> = (0..3)
        .map(|_| holder_process.expect_line(TIMEOUT))
        .collect();
    assert!(
        holder_process
            .wait(TIMEOUT)
            .is_some_and(|status| status.success())
    );
    let (mut ids, mut pids) = (BTreeSet::new(), Vec::new());
    for line in &message {
        let mut words = line.split(' ');
        let pid = words.next();
        assert_eq!(words.next(), pid, "the pid that its locks name");
        pids.push(pid);
        ids.extend(words);
    }
    assert_eq!(ids.len(), 300);
    assert_eq!(pids[0], pids[2]);
    assert_ne!(pids[0], pids[1]);
}

/// A client whose wall clock is an hour off takes nothing early and gives nothing away late.
async fn clocks_of_clients_do_not_matter(db: &TestDb) {
    testkit::faketime::remove_leftovers();
    let locks = db.locks().await;
    for shift in ["+1h", "-1h"] {
        let mut command = Command::new("faketime");
        command.args(["-f", shift, TEST_HOLDER, "hold", &db.url, "job", "4000"]);
        let mut holder_process = ChildProcess::spawn_command(&command);
        assert!(holder_process.expect_line(TIMEOUT).starts_with("held "));
        sleep(Duration::from_secs(6));
        assert!(
            locks.lock("job").try_acquire().await.unwrap().is_none(),
            "{shift}: still held"
        );
        assert_eq!(ask(&mut holder_process), "is_held true");
        holder_process.kill9();
        let next = locks
            .lock("job")
            .wait(TIMEOUT)
            .acquire()
            .await
            .expect("its ttl ends");

        let waiting = ChildProcess::spawn_command(&command);
        assert_eq!(
            waiting.line(Duration::from_secs(2)),
            None,
            "{shift}: not given away"
        );
        next.release().await.unwrap();
        assert!(waiting.expect_line(TIMEOUT).starts_with("held "));
        drop(waiting);
        locks.force_release("job").await.unwrap();
    }
    promise("P5", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            twelve_processes_lose_no_count,
            without_the_lock_counts_are_lost,
            a_killed_holder_is_succeeded_when_its_ttl_ends,
            a_frozen_holder_gets_the_loss_before_it_goes_on,
            the_locks_of_a_killed_set_are_free_together_when_its_ttl_ends,
            a_frozen_holder_of_a_set_loses_all_of_it,
            a_leaked_guard_ends_with_its_process,
            a_forked_child_touches_nothing_of_its_parents,
            the_same_holder_in_another_process_takes_over,
        );
    )* };
}
on!(sqlite, postgres, mariadb, mysql);

mod forked {
    use super::a_forked_child_takes_over_as_another_process;
    testkit::db_tests!(postgres: a_forked_child_takes_over_as_another_process);
    testkit::db_tests!(mariadb: a_forked_child_takes_over_as_another_process);
    testkit::db_tests!(mysql: a_forked_child_takes_over_as_another_process);
}

mod clocks {
    use super::clocks_of_clients_do_not_matter;
    testkit::db_tests!(postgres: clocks_of_clients_do_not_matter);
    testkit::db_tests!(mariadb: clocks_of_clients_do_not_matter);
    testkit::db_tests!(mysql: clocks_of_clients_do_not_matter);
}

mod busy {
    use super::{
        a_holder_keeps_its_lock_when_another_program_closes_the_file,
        sixteen_processes_outlast_a_busy_file,
    };
    testkit::db_tests!(sqlite:
        sixteen_processes_outlast_a_busy_file,
        a_holder_keeps_its_lock_when_another_program_closes_the_file,
    );
}
