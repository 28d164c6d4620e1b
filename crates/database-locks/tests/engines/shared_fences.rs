//! Fenced writes under a shared lock, and legacy clients beside one.

use std::time::Duration;

use database_locks::{Error, LostReason};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};

use crate::fence_user::User;

const TIMEOUT: Duration = Duration::from_secs(20);

/// The lease of the reader has ended long before its transaction does.
async fn an_open_fence_of_a_dead_reader_keeps_a_writer_out(db: &TestDb) {
    let (a, b, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    let lock = a.lock("list").shared().ttl(ms(4000)).auto_renew(false);
    let reader = lock.acquire().await.unwrap();
    let waiting = b.lock("list").wait(TIMEOUT);
    let waiter = tokio::spawn(async move { waiting.acquire().await.map(|guard| (now(), guard)) });
    let committed = user.under(&reader, None, async |_| {
        let until = now() + ms(6000);
        while now() < until {
            assert!(b.lock("list").try_acquire().await.unwrap().is_none());
            assert!(!waiter.is_finished(), "beside an open fence");
            tokio::time::sleep(ms(50)).await;
        }
        now()
    });
    let committed = committed.await.unwrap();
    let (got, writer) = waiter.await.unwrap().unwrap();
    assert!(got >= committed && writer.token() > reader.token());
    let refused = user.under(&reader, None, async |_| ()).await.unwrap_err();
    assert!(matches!(refused, Error::Lost { .. }), "{}", refused.chain());
    drop(writer);
    promise("P9", db.engine);
}

/// The same for the lease of a writer, whose lock was shared before.
async fn an_open_fence_of_a_dead_writer_keeps_readers_out(db: &TestDb) {
    let (a, b, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    a.lock("list")
        .shared()
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let lock = a.lock("list").ttl(ms(4000)).auto_renew(false).wait(TIMEOUT);
    let writer = lock.acquire().await.unwrap();
    let waiting = b.lock("list").shared().wait(TIMEOUT);
    let waiter = tokio::spawn(async move { waiting.acquire().await.map(|guard| (now(), guard)) });
    let committed = user.under(&writer, None, async |_| {
        let until = now() + ms(6000);
        while now() < until {
            let tried = b.lock("list").shared().try_acquire().await;
            assert!(!matches!(tried, Ok(Some(_))), "beside an open fence");
            assert!(!waiter.is_finished(), "beside an open fence");
            tokio::time::sleep(ms(50)).await;
        }
        now()
    });
    let committed = committed.await.unwrap();
    let (got, reader) = waiter.await.unwrap().unwrap();
    assert!(got >= committed && reader.token() > writer.token());
    let refused = user.under(&writer, None, async |_| ()).await.unwrap_err();
    assert!(matches!(refused, Error::Lost { .. }), "{}", refused.chain());
    promise("P9", db.engine);
}

/// The writer has released its lock, or become a reader, and its transaction goes on.
async fn an_open_fence_of_a_writer_that_released_keeps_readers_out(db: &TestDb) {
    let (a, b, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    let reader = a.lock("list").shared().acquire().await.unwrap();
    reader.release().await.unwrap();
    let mut writer = a.lock("list").wait(TIMEOUT).acquire().await.unwrap();
    let ticket = writer.ticket();
    let releases = a.clone();
    let under = user.under(&writer, None, async |_| {
        tokio::spawn(async move { releases.release(&ticket).await });
        let until = now() + ms(1000);
        while now() < until {
            let tried = b.lock("list").shared().try_acquire().await;
            assert!(!matches!(tried, Ok(Some(_))), "beside an open fence");
            tokio::time::sleep(ms(20)).await;
        }
    });
    under.await.unwrap();
    let next = b
        .lock("list")
        .shared()
        .wait(TIMEOUT)
        .acquire()
        .await
        .unwrap();
    next.release().await.unwrap();
    drop(writer);
    writer = a.lock("list").wait(TIMEOUT).acquire().await.unwrap();
    let mut other = User::of(db).await;
    let open = other.under(&writer, None, async |_| {
        let mut again = a.lock("other").acquire().await.unwrap();
        again.downgrade().await.unwrap();
    });
    open.await.unwrap();
    writer.downgrade().await.unwrap();
    promise("P9", db.engine);
}

/// No reader has ever shared the lock, whose row is marked as shared by the first one.
async fn an_open_fence_keeps_the_first_reader_out_after_the_release(db: &TestDb) {
    let (a, b, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    let writer = a.lock("list").acquire().await.unwrap();
    let (ticket, releases) = (writer.ticket(), a.clone());
    let under = user.under(&writer, None, async |_| {
        tokio::spawn(async move { releases.release(&ticket).await });
        let until = now() + ms(1000);
        while now() < until {
            let tried = b.lock("list").shared().try_acquire().await;
            assert!(!matches!(tried, Ok(Some(_))), "beside an open fence");
            tokio::time::sleep(ms(20)).await;
        }
    });
    under.await.unwrap();
    let reader = b.lock("list").shared().wait(TIMEOUT).acquire().await;
    reader.unwrap().release().await.unwrap();
    promise("P9", db.engine);
}

/// Readers fence side by side, each its own row, and their leases are renewed meanwhile or suspended.
async fn readers_fence_side_by_side(db: &TestDb) {
    let locks = db.locks().await;
    let lock = locks.lock("list").shared().wait(TIMEOUT);
    let readers = [lock.acquire().await.unwrap(), lock.acquire().await.unwrap()];
    let (mut one, mut two) = (User::of(db).await, User::of(db).await);
    let both = one.under(&readers[0], None, async |_| {
        let inner = two.under(&readers[1], None, async |_| ());
        tokio::time::timeout(TIMEOUT, inner)
            .await
            .expect("at once")
            .unwrap();
    });
    both.await.unwrap();
    for reader in readers {
        reader.release().await.unwrap();
    }
    let writer = locks.lock("list").wait(TIMEOUT).acquire().await;
    writer.unwrap().release().await.unwrap();
    promise("P9", db.engine);
}

/// Of django-database-locks 0.5, which knows four columns: a lock that it holds is not shared, however
/// long the caller would wait.
async fn a_lock_that_a_legacy_client_holds_is_not_shared(db: &TestDb) {
    let locks = db.locks().await;
    let now = match db.engine {
        "postgres" => "now() + interval '1 hour'",
        "sqlite" => "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+1 hour')",
        _ => "UTC_TIMESTAMP(6) + INTERVAL 1 HOUR",
    };
    locks
        .lock("list")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    db.sql(&format!(
        "UPDATE database_locks_lock SET locked_by = 'old', expires_at = {now} WHERE name = 'list'"
    ));
    let shared = locks.lock("list").shared();
    for lock in [shared.clone(), shared.clone().wait(Duration::ZERO)] {
        let error = lock.acquire().await.unwrap_err();
        assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
        let words = error.chain().to_string();
        assert!(
            words.contains("django-database-locks 0.5") && words.contains("upgrade"),
            "{words}"
        );
    }
    db.sql(
        "UPDATE database_locks_lock SET locked_by = NULL, expires_at = NULL WHERE name = 'list'",
    );
    // Nothing shows any more that it was there.
    let reader = shared.acquire().await.unwrap();
    // A legacy client does not see the reader; a writer of this library still waits for it.
    db.sql(&format!(
        "UPDATE database_locks_lock SET locked_by = 'old', expires_at = {now} WHERE name = 'list'"
    ));
    assert!(locks.lock("list").try_acquire().await.unwrap().is_none());
    reader.check().await.unwrap();
}

/// A reader whose lease ended while it was away is told so, whoever came after it.
async fn a_late_reader_changes_nothing(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let lock = a.lock("list").shared().ttl(ms(500)).auto_renew(false);
    let late = lock.acquire().await.unwrap();
    let ticket = late.ticket();
    let writer = b.lock("list").wait(TIMEOUT).acquire().await.unwrap();
    let Err(Error::Lost { reason, .. }) = late.check().await else {
        panic!("its lease has ended")
    };
    assert_eq!(reason, LostReason::Expired);
    for refused in [
        a.renew(&ticket, TIMEOUT).await,
        a.release(&ticket).await,
        a.resume(&ticket).await.map(drop),
    ] {
        assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    }
    assert!(late.release().await.is_err());
    writer.check().await.unwrap();
    promise("P3", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            an_open_fence_of_a_dead_reader_keeps_a_writer_out,
            an_open_fence_of_a_dead_writer_keeps_readers_out,
            an_open_fence_of_a_writer_that_released_keeps_readers_out,
            an_open_fence_keeps_the_first_reader_out_after_the_release,
            readers_fence_side_by_side,
            a_late_reader_changes_nothing,
        );
    )* };
}
on!(memory, sqlite, postgres, pgbouncer, mariadb, mysql);

mod legacy {
    use super::*;

    db_tests!(sqlite: a_lock_that_a_legacy_client_holds_is_not_shared);
    db_tests!(postgres: a_lock_that_a_legacy_client_holds_is_not_shared);
    db_tests!(mariadb: a_lock_that_a_legacy_client_holds_is_not_shared);
    db_tests!(mysql: a_lock_that_a_legacy_client_holds_is_not_shared);
}
