//! What was answered last is forgotten: this is what the holders learn, and what they do not.

use std::time::Duration;

use database_locks::{Error, LockState, LostReason};
use testkit::{Commits, promise};
use tokio_postgres::NoTls;

use super::{ENGINE, block_in_place, check, client, held, in_time, ms, pair, release, row, until};

const TTL: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_holder_whose_grant_the_standby_lacks_gets_the_loss() {
    let Some((mut pair, url)) = pair(None, Commits::Asynchronous).await else {
        return;
    };
    let (locks, other) = (client(&url).await, client(&url).await);
    // Rows from before, so that the tokens go on from the same number on either side.
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
    // Not renewed for long, so that it trusts on: the next renewal is what tells it.
    let lock = locks
        .lock("doubled")
        .ttl(long)
        .renew_every(Duration::from_secs(20));
    let doubled = in_time(lock.acquire()).await.unwrap();
    let taken_since = held(&locks, "taken since").await;
    let row_gone = held(&locks, "new").await;
    until("the standby's state of it has run out", || {
        row(pair.standby(), &url, "run out").starts_with("f\t")
    })
    .await;
    assert!(short.is_held());

    block_in_place(|| pair.primary_mut().kill());
    block_in_place(|| pair.promote());
    // Two more grants of it, the first of the same number, before its holder has been there.
    for _ in 0..2 {
        block_in_place(|| {
            pair.standby().query(
                &url,
                "UPDATE database_locks_lock SET token = token + 1, locked_by = 'somebody' \
                  WHERE name = 'taken since'",
            )
        })
        .unwrap();
    }
    // What cannot be helped: the new server knows nothing of the first holder, who trusts on.
    let second = held(&other, "doubled").await;
    assert!(doubled.is_held() && second.is_held(), "two holders");
    // The clock goes into each token, so the later grant has the greater one all the same.
    assert!(second.token() > doubled.token());
    assert_ne!(doubled.grant_id(), second.grant_id());

    // But the fence refuses what the first one would write where the second one holds it.
    let (mut session, connection) = tokio_postgres::connect(&pair.standby().url_of(&url), NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut tx = session.transaction().await.unwrap();
    let refused = in_time(doubled.fence(&mut tx)).await.map(drop).unwrap_err();
    let failover = |error: &Error| {
        matches!(
            error,
            Error::Lost {
                reason: LostReason::Failover,
                ..
            }
        )
    };
    assert!(failover(&refused), "{}", refused.chain());
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

    for guard in [&doubled, &taken_since, &row_gone, &short] {
        assert_eq!(
            in_time(guard.lost()).await.reason(),
            LostReason::Failover,
            "{}",
            guard.name()
        );
        assert!(!guard.is_held());
        let error = check(guard).await.unwrap_err();
        assert!(failover(&error), "{}", error.chain());
    }
    assert_eq!(LostReason::Failover.as_str(), "failover");
    // Of this one an older state was there, which is a lease of its own: it goes on.
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

/// It was frozen with a request in its hand, and answers when another one serves us: too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_late_answer_of_the_old_primary_confirms_nothing() {
    let Some((mut pair, url)) = pair(None, Commits::Asynchronous).await else {
        return;
    };
    let locks = client(&url).await;
    release(held(&locks, "late").await).await;
    // It is this one's renewals that find the new one.
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
    until("it is renewed by the new one", || latest() != at_first).await;
    block_in_place(|| pair.primary_mut().thaw());
    let now = || row(pair.standby(), &url, "late");
    match in_time(late).await.unwrap() {
        Err(Error::Unavailable { .. }) => assert_eq!(now(), before),
        // The direct connection's answer was late, so the background asked again: the new one.
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
