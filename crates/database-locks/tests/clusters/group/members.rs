//! Members that have left the group or lost the others, and a group with one primary.

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks};
use testkit::time::now;
use testkit::{Group, promise};

use super::{TIMEOUT, client, database, held, ms, secs};

/// Twice as long as it takes, on a busy machine, until the others go on without a node and a
/// renewal that hung was tried again there.
const TTL: Duration = Duration::from_secs(60);

/// The guard is good, by the database's word, and stays so for longer than it takes to renew it.
async fn goes_on(guard: &LockGuard) {
    let began = now();
    while began.elapsed() < TTL {
        assert!(guard.is_held());
        if guard.check().await.is_ok() {
            return;
        }
        tokio::time::sleep(ms(100)).await;
    }
    panic!("the database reports the lock as free");
}

/// Neither a held nor a free lock is granted there, and the error says why.
async fn grants_nothing(there: &Locks, why: &str) {
    for name in ["kept", "never used"] {
        let began = now();
        let tried = there.lock(name).try_acquire().await;
        let Err(error @ Error::Unavailable { .. }) = tried else {
            panic!("{name}: {tried:?}")
        };
        let message = error.chain();
        assert!(message.contains(why), "{message}");
        assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
        assert!(
            !message.contains("p@ss") && !message.contains("p%40ss"),
            "{message}"
        );
    }
}

/// A server that was started and has not joined accepts writes, which no other member gets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_member_that_has_not_joined_grants_nothing() {
    let Some(mut group) = Group::shared_alone() else {
        return;
    };
    let url = database(&group).await;
    let guard = held(&client(&group, &[0], &url), "kept", TTL).await;
    group.catch_up(2);
    group.kill(2);
    group.start_outside(2);
    let there = Locks::builder(group.locker_url(&[2], &url))
        .connect_lazy()
        .unwrap();
    // The first user may not read the state, the second may.
    grants_nothing(&client(&group, &[2], &url), "not ready: offline").await;
    let grant = "SET sql_log_bin = 0; GRANT SELECT ON performance_schema.replication_group_members \
                 TO locker@'127.0.0.1'";
    group.query(2, "mysql", grant).unwrap();
    grants_nothing(&there, "not ready: offline").await;

    let elsewhere = client(&group, &[2, 1], &url);
    assert!(
        elsewhere
            .lock("kept")
            .try_acquire()
            .await
            .unwrap()
            .is_none()
    );
    held(&elsewhere, "used", TTL).await.release().await.unwrap();
    goes_on(&guard).await;
    for id in ["P1", "P14"] {
        promise(id, Group::ENGINE);
    }
}

/// A member without a connection to the others calls itself online.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_member_without_a_majority_grants_nothing() {
    let Some(mut group) = Group::shared_alone() else {
        return;
    };
    let url = database(&group).await;
    let ttl = secs(15);
    let guard = held(&client(&group, &[0, 1], &url), "kept", ttl).await;
    group.freeze(1);
    group.freeze(2);
    let frozen = now();
    tokio::task::block_in_place(|| group.wait_until_cut_off(0));
    grants_nothing(&client(&group, &[0], &url), "not ready").await;
    // No renewal succeeds there: the holder gets its loss before the lease has ended.
    let asked = now();
    let _ = guard.is_held();
    // A request would hang for five seconds.
    assert!(asked.elapsed() < secs(3), "the question waits");
    tokio::time::timeout(TIMEOUT, guard.lost())
        .await
        .expect("the loss comes");
    assert!(frozen.elapsed() < ttl + TIMEOUT, "{:?}", frozen.elapsed());
    tokio::task::block_in_place(|| group.mend());
    drop(held(&client(&group, &[0, 1], &url), "never used", TTL).await);
    for id in ["P4", "P8"] {
        promise(id, Group::ENGINE);
    }
}

/// A holder keeps its lock, and a waiter gets it, at the next primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_killed_single_primary_loses_no_grant() {
    let Some(mut group) = Group::shared_alone() else {
        return;
    };
    let url = database(&group).await;
    tokio::task::block_in_place(|| group.have_one_primary(0));
    let all = client(&group, &[0, 1, 2], &url);
    let guard = held(&all, "job", TTL).await;
    let token = guard.token();
    let other = client(&group, &[2, 1, 0], &url);
    let lock = other.lock("job").ttl(TTL).wait(secs(180));
    let waiting = tokio::spawn(async move { lock.acquire().await });
    let secondary = client(&group, &[1], &url).lock("job").try_acquire().await;
    assert!(
        secondary.is_err_and(|error| error.chain().contains("read-only")),
        "a secondary is passed over"
    );
    group.kill(0);
    goes_on(&guard).await;
    assert!(!waiting.is_finished(), "given away");
    guard.release().await.unwrap();
    let next = tokio::time::timeout(TTL, waiting).await;
    let next = next.unwrap().unwrap().unwrap();
    assert!(next.token() > token);
    next.release().await.unwrap();
    for id in ["P2", "P6", "P12"] {
        promise(id, Group::ENGINE);
    }
}

/// A user without the privilege to read the members cannot notice that a member has left the group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
#[allow(
    clippy::await_holding_lock,
    reason = "the group is kept as it is until the test ends"
)]
async fn a_group_whose_state_the_user_may_not_read_is_a_finding() {
    let Some(group) = Group::shared() else {
        return;
    };
    let url = database(&group).await;
    let unseen = async |locks: Locks| {
        let report = locks.doctor().await.unwrap();
        let mut found = report.findings.iter();
        found.any(|found| found.id == "cluster-unseen")
    };
    let locker = Locks::builder(group.locker_url(&[1], &url))
        .connect_lazy()
        .unwrap();
    assert!(unseen(locker).await);
    assert!(!unseen(client(&group, &[1], &url)).await);
}
