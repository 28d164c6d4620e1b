//! Handing a held lock over, and going on with it elsewhere.

use std::time::Duration;

use database_locks::{Error, LockState, LostReason, Ticket, Ttl};
use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

fn why(lost: Error) -> LostReason {
    match lost {
        Error::Lost { reason, .. } => reason,
        other => panic!("{}", other.chain()),
    }
}

async fn a_lock_is_resumed_by_another_client_under_the_same_token(db: &TestDb) {
    let (giver, receiver) = (db.locks().await, db.locks().await);
    let name = "a.b c/ä";
    let guard = giver
        .lock(name)
        .ttl(Duration::from_secs(60))
        .acquire()
        .await
        .unwrap();
    let token = guard.token();
    let text = guard.into_ticket().unwrap().to_string();

    let ticket: Ticket = text.parse().unwrap();
    let taken = receiver.resume(&ticket).await.unwrap();
    assert_eq!((taken.token(), taken.name().as_str()), (token, name));
    assert!(taken.is_held());
    assert!(
        giver.lock(name).try_acquire().await.unwrap().is_none(),
        "it was never free"
    );
    assert_eq!(
        why(giver.resume(&ticket).await.unwrap_err()),
        LostReason::Resumed
    );
    assert_eq!(
        why(giver.release(&ticket).await.unwrap_err()),
        LostReason::Resumed
    );
    assert_eq!(
        why(giver.renew(&ticket, TIMEOUT).await.unwrap_err()),
        LostReason::Resumed
    );
    taken.check().await.unwrap();
    taken.release().await.unwrap();
    assert_eq!(
        why(receiver.resume(&ticket).await.unwrap_err()),
        LostReason::Released
    );
    promise("P3", db.engine);
}

async fn a_ticket_can_be_renewed_and_released_without_resuming_it(db: &TestDb) {
    let (giver, other) = (db.locks().await, db.locks().await);
    let lock = giver.lock("job").ttl(Duration::from_millis(4000));
    let ticket = lock.acquire().await.unwrap().into_ticket().unwrap();
    other.renew(&ticket, Duration::from_secs(60)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(
        other.lock("job").try_acquire().await.unwrap().is_none(),
        "renewed"
    );
    other.release(&ticket).await.unwrap();
    assert_eq!(
        why(other.release(&ticket).await.unwrap_err()),
        LostReason::Released
    );
    assert!(other.lock("job").try_acquire().await.unwrap().is_some());
}

async fn a_lock_that_was_handed_over_is_no_longer_renewed(db: &TestDb) {
    let (giver, other) = (db.locks().await, db.locks().await);
    let lock = giver.lock("job").ttl(Duration::from_millis(3000));
    let ticket = lock.acquire().await.unwrap().into_ticket().unwrap();
    let next = other.lock("job").wait(TIMEOUT).acquire().await.unwrap();
    assert_eq!(
        why(giver.resume(&ticket).await.unwrap_err()),
        LostReason::Preempted
    );
    assert_eq!(
        why(giver.renew(&ticket, TIMEOUT).await.unwrap_err()),
        LostReason::Preempted
    );
    next.check().await.unwrap();
}

async fn a_guard_released_by_its_ticket_says_so(db: &TestDb) {
    let (holder, other) = (db.locks().await, db.locks().await);
    let guard = holder
        .lock("job")
        .ttl(Duration::from_millis(6000))
        .acquire()
        .await
        .unwrap();
    other.release(&guard.ticket()).await.unwrap();
    let lost = tokio::time::timeout(TIMEOUT, guard.lost())
        .await
        .expect("in time");
    assert_eq!(lost.reason(), LostReason::Released);
}

async fn a_resumed_guard_has_the_settings_of_its_lock(db: &TestDb) {
    let locks = db.locks().await;
    let ticket = locks
        .lock("job")
        .acquire()
        .await
        .unwrap()
        .into_ticket()
        .unwrap();
    let other = locks.lock("other").resume(&ticket).await.unwrap_err();
    assert!(
        matches!(
            other,
            Error::Config {
                setting: "ticket",
                ..
            }
        ),
        "{other}"
    );
    let lock = locks.lock("job").ttl(Ttl::Infinite).holder("the taker");
    let taken = lock.resume(&ticket).await.unwrap();
    assert_eq!(taken.trusted_for(), Duration::MAX);
    let row = locks.show("job").await.unwrap().expect("a row");
    assert_eq!(row.state, LockState::Held { free_in: None });
    assert_eq!(row.holder.as_deref(), Some("the taker"));
    taken.release().await.unwrap();
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_lock_is_resumed_by_another_client_under_the_same_token,
            a_ticket_can_be_renewed_and_released_without_resuming_it,
            a_lock_that_was_handed_over_is_no_longer_renewed,
            a_guard_released_by_its_ticket_says_so,
            a_resumed_guard_has_the_settings_of_its_lock,
        );
    )* };
}
on!(memory, sqlite, postgres, mariadb, mysql);
