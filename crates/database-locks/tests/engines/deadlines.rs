//! Deadlines, durability and notifications, whose loss would go unnoticed.

use std::time::Duration;

use database_locks::seam::{
    AcquireCommand, Grant, Outcome, ReleaseCommand, Rows, Slot, StoreError, Table, open,
};
use database_locks::{ListFilter, Locks, Ttl};
use testkit::contract::{StoreFixture, acquire_command, granted, renew};
use testkit::time::{ms, now};
use testkit::{Proxy, TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Every call keeps to its own deadline, and the next one has a new connection.
async fn a_call_that_hangs_ends_at_its_deadline(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let store = open(&proxy.url(&db.url), &Table::default()).unwrap();
    store.connect(TIMEOUT).await.unwrap();
    store.install(TIMEOUT).await.unwrap();
    let grant = granted(&*store, "job", "me", TIMEOUT).await;
    let commands = [acquire_command("job", "other", TIMEOUT)];
    let renewals = [(grant.clone(), Ttl::from(TIMEOUT))];
    let returns = [ReleaseCommand::of(&grant, Ttl::from(TIMEOUT))];
    let within = ms(300);
    for call in 0..4 {
        // It is up, so that it is the statement that hangs.
        store
            .page(Rows::Locks, &ListFilter::new(), None, TIMEOUT)
            .await
            .unwrap();
        proxy.reset_counts();
        proxy.stall();
        let began = now();
        let failure = async {
            match call {
                0 => store
                    .page(Rows::Locks, &ListFilter::new(), None, within)
                    .await
                    .err(),
                1 => store.acquire(&commands, within).await.err(),
                2 => store.renew(&renewals, within).await.err(),
                _ => store.release(&returns, within).await.err(),
            }
        };
        let failure = tokio::time::timeout(TIMEOUT, failure).await;
        let took = began.elapsed();
        let failure = failure.expect("its deadline").expect("no answer");
        assert!(matches!(failure, StoreError::Unavailable(_)), "{failure}");
        assert!(took >= within && took < ms(4500), "{call}: {took:?}");
        proxy.wait_for_fault();
        // What was sent stays unanswered: it is another connection that answers.
        let connections = proxy.counts().connections;
        proxy.cut();
        proxy.resume();
        tokio::time::timeout(TIMEOUT, async {
            while store
                .page(Rows::Locks, &ListFilter::new(), None, TIMEOUT)
                .await
                .is_err()
            {}
        })
        .await
        .expect("a new connection");
        assert!(proxy.counts().connections > connections);
    }
    promise("P4", db.engine);
}

/// A release wakes a waiter of the same process long before its next poll.
async fn a_release_wakes_the_next_of_the_process(db: &TestDb) {
    const ROUNDS: usize = 15;
    let locks = db.locks().await;
    let (mut guards, mut waiters) = (Vec::new(), Vec::new());
    for i in 0..ROUNDS {
        let name = format!("job {i}");
        guards.push(locks.lock(&name).acquire().await.unwrap());
        let locks = locks.clone();
        waiters.push(tokio::spawn(async move {
            let lock = locks.lock(&name).poll(ms(60_000));
            (lock.acquire().await.unwrap(), now())
        }));
    }
    // By now each polls every second or so.
    tokio::time::sleep(ms(6000)).await;
    let (mut woken, mut alone) = (Vec::new(), Vec::new());
    for (i, (guard, waiter)) in guards.into_iter().zip(waiters).enumerate() {
        // At the same time, since the machine may be busier now than before.
        let lock = locks.lock(format!("alone {i}"));
        let other = lock.acquire().await.unwrap();
        let began = now();
        other.release().await.unwrap();
        drop(lock.acquire().await.unwrap());
        alone.push(began.elapsed());
        let began = now();
        guard.release().await.unwrap();
        let waited = tokio::time::timeout(TIMEOUT, waiter).await;
        let (guard, at) = waited.expect("in time").unwrap();
        woken.push(at.saturating_duration_since(began));
        guard.release().await.unwrap();
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (woken, alone) = (median(&mut woken), median(&mut alone));
    assert!(
        woken < ms(200) + 2 * alone,
        "{woken:?}, where release and acquire alone take {alone:?}"
    );
    promise("P12", db.engine);
}

db_tests!(sqlite: a_release_wakes_the_next_of_the_process);

mod durability {
    //! A trigger notes the setting as it is when the transaction commits.
    use super::*;

    const WATCH: &str = "
        CREATE TABLE noted (id serial, setting text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO noted (setting) VALUES (current_setting('synchronous_commit'));
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE ON database_locks_lock
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();";

    /// What was noted since the last time: once for each row that was written.
    fn noted(db: &TestDb) -> String {
        let noted = db.sql("SELECT coalesce(string_agg(setting, ' ' ORDER BY id), '') FROM noted");
        db.sql("DELETE FROM noted");
        noted
    }

    /// A database whose sessions have that `synchronous_commit`.
    async fn watched(setting: &str) -> Option<TestDb> {
        let db = TestDb::postgres()?;
        db.sql(&format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = {setting}', \
             current_database()); END $$"
        ));
        db.locks().await;
        db.sql(WATCH);
        Some(db)
    }

    async fn store(db: &TestDb) -> std::sync::Arc<dyn database_locks::seam::Store> {
        StoreFixture::new("postgres", &db.url).ready().await
    }

    async fn all(on: &str) {
        // The library neither weakens a stricter setting nor keeps a weaker one.
        let durable = if on == "off" { "on" } else { on };
        let Some(db) = watched(on).await else { return };
        let store = store(&db).await;
        let returned = async |grants: &[Grant], ttl: Ttl| {
            let returns: Vec<_> = grants.iter().map(|g| ReleaseCommand::of(g, ttl)).collect();
            store.release(&returns, TIMEOUT).await.unwrap();
        };
        let lasting = Ttl::from(TIMEOUT);
        let twice = |setting: &str| format!("{setting} {setting}");

        let first = granted(&*store, "job", "me", TIMEOUT).await;
        assert_eq!(noted(&db), durable, "a new row");
        assert!(renew(&*store, &first, TIMEOUT).await.is_renewed());
        assert_eq!(noted(&db), durable, "renew");
        returned(std::slice::from_ref(&first), lasting).await;
        assert_eq!(noted(&db), "off", "release");
        let second = granted(&*store, "job", "me", TIMEOUT).await;
        assert_eq!(noted(&db), durable, "acquire");
        returned(&[second], Ttl::Infinite).await;
        assert_eq!(noted(&db), durable, "release of an endless lease");

        granted(&*store, "job", "me", TIMEOUT).await;
        let other = granted(&*store, "other", "me", TIMEOUT).await;
        noted(&db);
        store.force(&other.name, Slot::Lock, TIMEOUT).await.unwrap();
        assert_eq!(noted(&db), durable, "force");
        store.force(&first.name, Slot::Lock, TIMEOUT).await.unwrap();
        noted(&db);

        let both = async || {
            let commands = [
                acquire_command("job", "me", TIMEOUT),
                acquire_command("other", "me", TIMEOUT),
            ];
            let outcomes = store.acquire(&commands, TIMEOUT).await.unwrap();
            let grant = |(command, outcome): (&AcquireCommand, Outcome)| match outcome {
                Outcome::Granted { token, .. } => Grant {
                    slot: Default::default(),
                    name: command.name.clone(),
                    token,
                    id: command.grant,
                    holder: command.holder.clone(),
                    confirmed_by: None,
                },
                outcome => panic!("{outcome:?}"),
            };
            commands.iter().zip(outcomes).map(grant).collect::<Vec<_>>()
        };
        let grants = both().await;
        assert_eq!(noted(&db), twice(durable), "acquire many");
        returned(&grants, lasting).await;
        assert_eq!(noted(&db), twice("off"), "release many");
        let grants = both().await;
        noted(&db);
        returned(&grants, Ttl::Infinite).await;
        assert_eq!(noted(&db), twice(durable), "release many endless ones");

        let locks = Locks::connect(&db.url).await.unwrap();
        let guard = locks.lock("handed over").acquire().await.unwrap();
        let ticket = guard.into_ticket().unwrap();
        noted(&db);
        let guard = locks.resume(&ticket).await.unwrap();
        assert_eq!(noted(&db), durable, "take up");
        guard.release().await.unwrap();
        promise("P7", "postgres");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn writes_that_must_survive_a_crash_are_synchronous() {
        all("off").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn writes_that_a_crash_may_lose_wait_for_no_disk() {
        all("on").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stricter_synchronous_commit_is_kept() {
        all("remote_apply").await;
    }
}

mod servers {
    use super::*;
    db_tests!(postgres:
        a_call_that_hangs_ends_at_its_deadline,
        a_release_wakes_the_next_of_the_process,
    );
    db_tests!(mariadb:
        a_call_that_hangs_ends_at_its_deadline,
        a_release_wakes_the_next_of_the_process,
    );
    db_tests!(mysql:
        a_call_that_hangs_ends_at_its_deadline,
        a_release_wakes_the_next_of_the_process,
    );
}
