//! How far apart the grants of a lock are: `at_least` and `once_per`, on every engine.

use std::time::Duration;

use database_locks::{Error, LockState, Locks, LostReason};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests};
use tokio::time::sleep;

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Long enough that a rest does not end while a test looks at it.
const LONG: Duration = Duration::from_secs(600);

async fn is_free(locks: &Locks, name: &str) -> bool {
    let tried = locks.lock(name).try_acquire().await.unwrap();
    tried.is_some()
}

async fn state(locks: &Locks, name: &str) -> LockState {
    locks.show(name).await.unwrap().expect("a row").state
}

async fn rests(locks: &Locks, name: &str) -> bool {
    matches!(state(locks, name).await, LockState::Resting { .. })
}

async fn a_released_lock_rests_for_what_is_left(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let (least, began) = (ms(6_000), now());
    let guard = a.lock("job").at_least(least).acquire().await.unwrap();
    let waiting = tokio::spawn(b.lock("job").wait(TIMEOUT).acquire());
    sleep(ms(400)).await;
    guard.release().await.unwrap();
    let info = a.show("job").await.unwrap().expect("a row");
    let LockState::Resting { free_in } = info.state else {
        panic!("{info:?}")
    };
    assert!(free_in <= least - ms(400) && !info.is_held(), "{free_in:?}");
    assert!(!is_free(&a, "job").await && !is_free(&b, "job").await);
    let next = waiting.await.unwrap().unwrap();
    // By the clock of the database, from the beginning of the request on.
    assert!(began.elapsed() >= least - ms(50), "{:?}", began.elapsed());
    assert!(began.elapsed() < least + TIMEOUT / 2);
    next.release().await.unwrap();
    assert!(is_free(&a, "job").await, "this one did not ask for a rest");
}

async fn a_guard_that_is_dropped_lets_the_lock_rest(db: &TestDb) {
    let locks = db.locks().await;
    // The rest lasts longer than any lease.
    let lock = locks.lock("job").ttl(ms(3_000)).at_least(LONG);
    drop(lock.acquire().await.unwrap());
    locks.drain().await;
    sleep(ms(3_300)).await;
    assert!(rests(&locks, "job").await);
    let refused = lock.clone().wait(ms(2_000)).acquire().await.unwrap_err();
    let Error::TimedOut {
        rests_for,
        held_for,
        ..
    } = &refused
    else {
        panic!("{refused:?}")
    };
    assert!(rests_for.is_some_and(|left| left > LONG / 2) && held_for.is_none());
    let once = lock.wait(Duration::ZERO).acquire().await.unwrap_err();
    assert!(
        once.to_string().contains("resting for another 9m"),
        "{once}"
    );
}

async fn work_that_lasts_longer_frees_the_lock_at_once(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").at_least(ms(100)).acquire().await.unwrap();
    sleep(ms(150)).await;
    guard.release().await.unwrap();
    assert_eq!(state(&locks, "job").await, LockState::Free);
}

async fn a_lost_lock_does_not_rest(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let guard = a.lock("job").at_least(LONG).acquire().await.unwrap();
    b.force_release("job").await.unwrap().expect("it was held");
    let lost = guard.check().await.unwrap_err();
    assert!(matches!(
        lost,
        Error::Lost {
            reason: LostReason::Forced,
            ..
        }
    ));
    drop(guard);
    a.drain().await;
    assert_eq!(state(&b, "job").await, LockState::Free);
    assert!(is_free(&b, "job").await);
}

async fn a_lock_whose_lease_has_expired_does_not_rest(db: &TestDb) {
    let locks = db.locks().await;
    let lock = locks
        .lock("job")
        .ttl(ms(300))
        .auto_renew(false)
        .at_least(LONG);
    let guard = lock.acquire().await.unwrap();
    assert_eq!(guard.lost().await.reason(), LostReason::Expired);
    drop(guard);
    locks.drain().await;
    assert_eq!(state(&locks, "job").await, LockState::Free);
}

async fn force_ends_a_rest_and_the_same_holder_does_not(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let lock = a.lock("job").holder("me").at_least(LONG);
    lock.run(async {}).await.unwrap();
    let same = b.lock("job").holder("me").preempt(true);
    assert!(same.try_acquire().await.unwrap().is_none());
    let limited = same.clone().wait(ms(2_000)).acquire().await;
    assert!(matches!(
        limited,
        Err(Error::TimedOut {
            rests_for: Some(_),
            ..
        })
    ));
    let waiting = tokio::spawn(b.lock("job").wait(TIMEOUT).acquire());
    sleep(ms(200)).await;
    let former = a.force_release("job").await.unwrap().expect("it rested");
    assert!(former.rested && former.held_for.is_none());
    assert_eq!(former.holder.as_deref(), Some("me"));
    waiting.await.unwrap().unwrap().release().await.unwrap();
}

async fn a_ticket_releases_at_once_and_a_guard_that_resumes_it_has_its_own_rest(db: &TestDb) {
    let locks = db.locks().await;
    let lock = locks.lock("job").at_least(LONG);
    let ticket = lock.acquire().await.unwrap().into_ticket().unwrap();
    locks.release(&ticket).await.unwrap();
    assert_eq!(state(&locks, "job").await, LockState::Free);
    let ticket = lock.acquire().await.unwrap().into_ticket().unwrap();
    let plain = locks.resume(&ticket).await.unwrap();
    plain.release().await.unwrap();
    assert_eq!(state(&locks, "job").await, LockState::Free);
    let ticket = lock.acquire().await.unwrap().into_ticket().unwrap();
    lock.resume(&ticket).await.unwrap().release().await.unwrap();
    assert!(rests(&locks, "job").await);
}

async fn a_lock_is_granted_once_in_a_period(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    // One that does not end during the test, and one whose end it awaits.
    let (period, short) = (LONG, ms(1_000));
    let lock = |locks: &Locks, holder: &str| locks.lock("job").holder(holder);
    let by = |locks: &Locks, holder: &str| lock(locks, holder).once_per(period);
    let guard = by(&a, "first").acquire().await.unwrap();
    for is_held in [true, false] {
        let began = now();
        let refused = by(&b, "second").acquire().await.unwrap_err();
        let Error::AlreadyRan {
            name,
            once_per,
            holder,
            ago,
            ..
        } = &refused
        else {
            panic!("{is_held}: {refused:?}")
        };
        assert_eq!((name.as_str(), *once_per), ("job", period));
        assert_eq!(holder.as_deref(), Some("first"));
        assert!(*ago < period && began.elapsed() < ms(10_000), "at once");
        assert!(by(&b, "second").try_acquire().await.unwrap().is_none());
        if is_held {
            assert!(guard.is_held());
            a.force_release("job").await.unwrap();
        }
    }
    drop(guard);
    sleep(short).await;
    let after = lock(&b, "second").once_per(short);
    after.run(async {}).await.unwrap();
    let again = by(&a, "first").acquire().await.unwrap_err();
    assert!(matches!(again, Error::AlreadyRan { holder: Some(it), .. } if it == "second"));
}

/// Both wait for a holder whose work takes longer than the period.
async fn of_two_that_wait_for_a_long_run_one_is_granted(db: &TestDb) {
    let (a, b, c) = (db.locks().await, db.locks().await, db.locks().await);
    let period = ms(5_000);
    let guard = a.lock("job").acquire().await.unwrap();
    sleep(period).await;
    let wait = |locks: &Locks| tokio::spawn(locks.lock("job").once_per(ms(60_000)).acquire());
    // Its grant is recent for a period of a minute, and old for one of 5 s.
    let skipped = wait(&b).await.unwrap().unwrap_err();
    assert!(matches!(skipped, Error::AlreadyRan { .. }), "{skipped:?}");
    let run = |locks: &Locks| {
        let acquiring = locks.lock("job").once_per(period).wait(TIMEOUT).acquire();
        tokio::spawn(async move {
            match acquiring.await {
                Ok(guard) => {
                    sleep(ms(50)).await;
                    guard.release().await.unwrap();
                    1
                }
                Err(Error::AlreadyRan { .. }) => 0,
                Err(error) => panic!("{}", error.chain()),
            }
        })
    };
    let (first, second) = (run(&b), run(&c));
    sleep(ms(300)).await;
    assert!(!first.is_finished() && !second.is_finished(), "they wait");
    guard.release().await.unwrap();
    assert_eq!(first.await.unwrap() + second.await.unwrap(), 1);
}

async fn a_setting_out_of_range_is_refused_before_any_io(db: &TestDb) {
    let locks = db.locks().await;
    let day = Duration::from_secs(86_400);
    let lock = || locks.lock("never made");
    for (lock, message) in [
        (
            lock().at_least(3_653 * day),
            "`at_least` is 3653d 0h, must be 0 to 10 years",
        ),
        (
            lock().once_per(Duration::ZERO),
            "`once_per` is 0ms, must be 100ms to 10 years",
        ),
    ] {
        let error = lock.acquire().await.unwrap_err();
        assert!(matches!(error, Error::Config { .. }));
        assert_eq!(error.to_string(), message);
    }
    assert!(locks.show("never made").await.unwrap().is_none());
}

macro_rules! on {
    ($($engine:ident),*) => {
        $(db_tests!($engine:
            a_released_lock_rests_for_what_is_left, a_guard_that_is_dropped_lets_the_lock_rest,
            work_that_lasts_longer_frees_the_lock_at_once, a_lost_lock_does_not_rest,
            a_lock_whose_lease_has_expired_does_not_rest,
            force_ends_a_rest_and_the_same_holder_does_not,
            a_ticket_releases_at_once_and_a_guard_that_resumes_it_has_its_own_rest,
            a_lock_is_granted_once_in_a_period, of_two_that_wait_for_a_long_run_one_is_granted,
            a_setting_out_of_range_is_refused_before_any_io);)*
    };
}

on!(memory, sqlite, postgres, mariadb, mysql);
