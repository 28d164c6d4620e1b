//! Asynchronous replication: the standby lacks the latest grants. What their holders learn of it.

use std::time::Duration;

use database_locks::{Error, LockGuard, LockState, LostReason};
use testkit::{Commits, Postgres, promise};
use tokio_postgres::NoTls;

use super::{ENGINE, block_in_place, check, client, held, in_time, ms, pair, release, row, until};

const TTL: Duration = Duration::from_secs(30);

fn is_failover(error: &Error) -> bool {
    let reason = LostReason::Failover;
    matches!(error, Error::Lost { reason: r, .. } if *r == reason)
}

fn granted_twice(server: &Postgres, url: &str, name: &str) {
    let statement = format!(
        "UPDATE database_locks_lock SET token = token + 1, locked_by = 'another' \
          WHERE name = '{name}'"
    );
    for _ in 0..2 {
        server.query(url, &statement).unwrap();
    }
}

/// The fence at the new primary, where the second holder has the lock.
async fn only_the_second_may_write(url: &str, first: &LockGuard, second: &LockGuard) {
    let (mut session, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut tx = session.transaction().await.unwrap();
    let refused = in_time(first.fence(&mut tx)).await.map(drop).unwrap_err();
    assert!(is_failover(&refused), "{}", refused.chain());
    let message = refused.to_string();
    let now = format!("(now held by {} for ", second.holder());
    assert!(
        message.contains("the database forgot the grant (failover)"),
        "{message}"
    );
    assert!(message.contains(&now), "{message}");
    tx.rollback().await.unwrap();
    let mut tx = session.transaction().await.unwrap();
    let fence = in_time(second.fence(&mut tx)).await.unwrap();
    tx.commit().await.unwrap();
    drop(fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_holder_whose_grant_the_standby_lacks_gets_the_loss() {
    let Some((mut pair, url)) = pair(None, Commits::Asynchronous).await else {
        return;
    };
    let (locks, other) = (client(&url).await, client(&url).await);
    // Rows that both servers have, so that both continue from the same token.
    for name in ["doubled", "taken since"] {
        release(held(&locks, name).await).await;
    }
    let older = held(&locks, "older").await;
    let short = locks.lock("run out").ttl(ms(4000)).renew_every(ms(500));
    let short = in_time(short.acquire()).await.unwrap();
    block_in_place(|| pair.catch_up());

    block_in_place(|| pair.part());
    let long = Duration::from_secs(60);
    short.extend(long).await.unwrap();
    // Renewed rarely, so that its holder trusts it until the next renewal.
    let lock = locks
        .lock("doubled")
        .ttl(long)
        .renew_every(Duration::from_secs(20));
    let doubled = in_time(lock.acquire()).await.unwrap();
    let taken_since = held(&locks, "taken since").await;
    let row_gone = held(&locks, "new").await;
    until("the lease has ended on the standby", || {
        row(pair.standby(), &url, "run out").starts_with("f\t")
    })
    .await;
    assert!(short.is_held());

    block_in_place(|| pair.primary_mut().kill());
    block_in_place(|| pair.promote());
    // The first of them has the token of its holder, which has not connected there yet.
    block_in_place(|| granted_twice(pair.standby(), &url, "taken since"));
    // Unavoidable: the new server does not know the first holder, which still trusts its lease.
    let second = held(&other, "doubled").await;
    assert!(doubled.is_held() && second.is_held(), "two holders");
    // Each token is at least the clock, so the later grant has the greater one nevertheless.
    assert!(second.token() > doubled.token());
    assert_ne!(doubled.grant_id(), second.grant_id());

    only_the_second_may_write(&pair.standby().url_of(&url), &doubled, &second).await;

    for guard in [&doubled, &taken_since, &row_gone, &short] {
        assert_eq!(
            in_time(guard.lost()).await.reason(),
            LostReason::Failover,
            "{}",
            guard.name()
        );
        assert!(!guard.is_held());
        let error = check(guard).await.unwrap_err();
        assert!(is_failover(&error), "{}", error.chain());
    }
    assert_eq!(LostReason::Failover.as_str(), "failover");
    // The standby had an older state of this lease, so it is renewed there.
    check(&older).await.unwrap();
    assert!(older.is_held());
    let now = other.show("older").await.unwrap().unwrap();
    let LockState::Held {
        free_in: Some(left),
    } = now.state
    else {
        panic!("{now:?}");
    };
    assert!(
        left > TTL - Duration::from_secs(10),
        "renewed there: {left:?}"
    );
    check(&second).await.unwrap();
    release(older).await;
    promise("P6", ENGINE);
    promise("P9", ENGINE);
}

/// The old primary is frozen during a request, and answers after the client has left it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_late_answer_of_the_old_primary_confirms_nothing() {
    let Some((mut pair, url)) = pair(None, Commits::Asynchronous).await else {
        return;
    };
    let locks = client(&url).await;
    release(held(&locks, "late").await).await;
    // Its renewals find the new primary.
    let keeper = locks.lock("kept").ttl(TTL).renew_every(ms(300));
    let keeper = in_time(keeper.acquire()).await.unwrap();
    block_in_place(|| pair.catch_up());
    let before = row(pair.standby(), &url, "late");

    block_in_place(|| pair.primary_mut().freeze());
    let late = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("late").try_acquire().await })
    };
    block_in_place(|| pair.promote());
    let renewed = "SELECT renewed_at FROM database_locks_lock WHERE name = 'kept'";
    let latest = || block_in_place(|| pair.standby().query(&url, renewed)).unwrap();
    let at_first = latest();
    until("the new primary renews it", || latest() != at_first).await;
    block_in_place(|| pair.primary_mut().thaw());
    let now = || row(pair.standby(), &url, "late");
    match in_time(late).await.unwrap() {
        Err(Error::Unavailable { .. }) => assert_eq!(now(), before),
        // The answer on the direct connection was late, so the background asked the new primary.
        Ok(Some(guard)) => {
            assert_eq!(
                now(),
                format!("t\t{}", guard.token()),
                "granted by the old one"
            );
            check(&guard).await.unwrap();
        }
        Ok(None) => panic!("the lock is free"),
        Err(error) => panic!("{}", error.chain()),
    }
    check(&keeper).await.unwrap();
    promise("P1", ENGINE);
}
