//! Passwords that change: asked for at each connect, from a function or a file, on real servers.
//! In a process of their own, since they change the password of a user of the shared PostgreSQL.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use database_locks::{BoxError, Error, LockGuard, Locks, blocking};
use testkit::time::ms;
use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(30);

/// On PostgreSQL the one user whom the test server asks for a password.
fn user(db: &TestDb) -> &'static str {
    if db.is_mysql_like() {
        "rotating"
    } else {
        "locker"
    }
}

/// Held by a test that changes the password of a user, or relies on it.
static PASSWORD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Gives the user this password, closes all of its connections, and waits until they are closed.
fn change_password(db: &TestDb, password: &str) {
    let user = user(db);
    if !db.is_mysql_like() {
        db.sql(&format!("ALTER ROLE {user} PASSWORD '{password}'"));
        db.sql(&format!(
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE usename = '{user}'"
        ));
        return;
    }
    let identified = format!("'{user}'@'127.0.0.1' IDENTIFIED BY '{password}'");
    db.sql(&format!("CREATE USER IF NOT EXISTS {identified}"));
    db.sql(&format!("ALTER USER {identified}"));
    db.sql(&format!("GRANT ALL ON `t\\_%`.* TO '{user}'@'127.0.0.1'"));
    let ids = format!("SELECT id FROM information_schema.processlist WHERE user = '{user}'");
    for id in db.sql(&ids).split_whitespace() {
        // It may have ended meanwhile.
        let _ = db.sql_session().run(&format!("KILL {id}"));
        let left = format!("{ids} AND id = {id}");
        let closed = || db.sql(&left).trim().is_empty();
        assert!(testkit::time::wait_until(TIMEOUT, closed), "{id} is closed");
    }
}

/// The URL of the test database for that user, with no password or this one.
fn url(db: &TestDb, password: Option<&str>) -> String {
    let (scheme, rest) = db.url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    let password = password.map_or_else(String::new, |password| format!(":{password}"));
    format!("{scheme}://{}{password}@{place}", user(db))
}

async fn hold(locks: &Locks, name: &str) -> LockGuard {
    let lock = locks.lock(name).ttl(ms(60_000)).renew_every(ms(1_000));
    lock.acquire()
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()))
}

/// Until the lease was renewed on a connection that was made since.
async fn renewed(guard: &LockGuard) {
    let done = tokio::time::timeout(TIMEOUT, async {
        while guard.trusted_for() < ms(50_000) || guard.check().await.is_err() {
            tokio::time::sleep(ms(50)).await;
        }
    });
    done.await.expect("renewed");
    assert!(guard.is_held());
}

/// Put another file in the place of one, which is there at each moment.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn a_held_lock_reconnects_with_the_new_password(db: &TestDb) {
    let _alone = PASSWORD.lock().await;
    change_password(db, "first");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    let passfile = folder.path().join("passwords");
    let tell = |password: &str| {
        replace(&file, &(url(db, Some(password)) + "\n"));
        replace(&passfile, &format!("*:*:*:*:{password}\n"));
    };
    tell("first");
    let (secret, asked) = (Arc::new(Mutex::new("first\n".to_owned())), Arc::default());
    let by_function = {
        let (secret, asked) = (Arc::clone(&secret), Arc::<AtomicU32>::clone(&asked));
        Locks::builder(url(db, None)).password(move || {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(secret.lock().unwrap().clone())
        })
    };
    let by_function = by_function.connect().await.unwrap();
    by_function.migrate().await.unwrap();
    let by_file = Locks::builder_from_file(&file)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut all = vec![by_function, by_file];
    if !db.is_mysql_like() {
        let url = format!("{}?passfile={}", url(db, None), passfile.display());
        all.push(Locks::connect(url).await.unwrap());
    }
    let mut guards = Vec::new();
    for (i, locks) in all.iter().enumerate() {
        guards.push(hold(locks, &format!("held-{i}")).await);
    }
    let before = asked.load(Ordering::SeqCst);
    assert!(before > 0, "asked when it connected");

    *secret.lock().unwrap() = "second".into();
    tell("second");
    change_password(db, "second");
    for guard in &guards {
        renewed(guard).await;
    }
    assert!(asked.load(Ordering::SeqCst) > before, "asked again");

    // The server knows the new one first: a login that is refused meanwhile loses nothing.
    change_password(db, "third");
    let wait = |(i, locks): (usize, &Locks)| {
        let lock = locks.lock(format!("new-{i}")).wait(TIMEOUT);
        tokio::spawn(async move { lock.acquire().await })
    };
    let waiters: Vec<_> = all.iter().enumerate().map(wait).collect();
    tokio::time::sleep(ms(700)).await;
    assert!(guards.iter().all(LockGuard::is_held));
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    *secret.lock().unwrap() = "third".into();
    tell("third");
    for guard in &guards {
        renewed(guard).await;
    }
    for waiter in waiters {
        guards.push(waiter.await.unwrap().expect("it went on waiting"));
    }
    for guard in guards {
        guard.release().await.unwrap();
    }
    let stale = Locks::connect(url(db, Some("first"))).await;
    let message = stale.expect_err("an old password");
    assert!(matches!(message, Error::Rejected { .. }), "{message:?}");
    assert!(!message.chain().contains("first"), "{message:?}");
    promise("P6", db.engine);
    promise("P14", db.engine);
}

async fn a_function_that_fails_is_asked_again_within_the_wait(db: &TestDb) {
    let _alone = PASSWORD.lock().await;
    db.locks().await;
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    let locks =
        Locks::builder(&db.url).password(move || match counted.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Err("the token service is down".into()),
            2 => panic!("a fault of the function's"),
            _ => Ok(String::new()),
        });
    let locks = locks.connect_lazy().unwrap();
    let guard = locks
        .lock("job")
        .wait(TIMEOUT)
        .acquire()
        .await
        .expect("later");
    assert!(asked.load(Ordering::SeqCst) >= 4);
    guard.release().await.unwrap();

    let down = || -> Result<String, BoxError> {
        Err(io::Error::other("the token service is down").into())
    };
    let builder = Locks::builder(&db.url).password(down);
    let message = builder.clone().connect().await.expect_err("no password");
    let lock = builder.connect_lazy().unwrap().lock("job").wait(ms(3_000));
    for message in [message, lock.acquire().await.expect_err("no password")] {
        assert!(matches!(message, Error::Unavailable { .. }), "{message:?}");
        let chain = message.chain();
        assert!(
            chain.contains("the password could not be had: the token"),
            "{chain}"
        );
    }
    let of_no_use = Locks::builder(&db.url)
        .password(|| Err(io::Error::new(io::ErrorKind::InvalidInput, "no such secret").into()));
    let message = of_no_use.connect().await.expect_err("no password");
    assert!(matches!(message, Error::Rejected { .. }), "{message:?}");
    promise("P12", db.engine);
}

/// No more than one call at a time, and what else is held is renewed meanwhile.
async fn a_function_that_hangs_holds_nothing_up(db: &TestDb) {
    let _alone = PASSWORD.lock().await;
    let others = db.locks().await;
    let held = others.lock("held").ttl(ms(4500)).acquire().await.unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let (wait, asked) = (Mutex::new(wait), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&asked);
    let locks = Locks::builder(&db.url).password(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = wait.lock().unwrap().recv();
        Ok(String::new())
    });
    // Not put down to the network.
    let late = locks.clone().connect().await.expect_err("no password");
    let message = late.chain();
    let why = "the function for the password has not returned yet";
    assert!(message.contains(why), "{message}");
    assert_eq!(asked.swap(0, Ordering::SeqCst), 1);
    let locks = locks.connect_lazy().unwrap();
    for _ in 0..3 {
        let late = locks.lock("job").wait(ms(700)).acquire().await;
        assert!(matches!(late, Err(Error::Unavailable { .. })), "{late:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert!(held.is_held(), "renewed meanwhile");
    drop(go);
    let guard = locks
        .lock("job")
        .wait(TIMEOUT)
        .acquire()
        .await
        .expect("it answered");
    guard.release().await.unwrap();
    held.release().await.unwrap();
    promise("P12", db.engine);
}

/// A secret that is read from the wrong file. To hash it for a login would take minutes, on the
/// thread that renews leases.
async fn a_password_longer_than_any_is_refused_and_holds_nothing_up(db: &TestDb) {
    let _alone = PASSWORD.lock().await;
    change_password(db, "short");
    let others = db.locks().await;
    let held = others.lock("held").ttl(ms(9000)).acquire().await.unwrap();
    let long = "x".repeat(4 << 20);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passwords");
    replace(&file, &format!("*:*:*:*:{long}\n"));
    let by_url = Locks::builder(url(db, Some(&long))).connect_lazy();
    assert!(matches!(by_url, Err(Error::Config { .. })), "{by_url:?}");
    let by_function = Locks::builder(url(db, None)).password(move || Ok(long.clone()));
    let mut all = vec![by_function];
    if !db.is_mysql_like() {
        let url = format!("{}?passfile={}", url(db, None), file.display());
        all.push(Locks::builder(url));
    }
    for builder in all {
        let refused = tokio::time::timeout(TIMEOUT, builder.connect()).await;
        let refused = refused.expect("at once").expect_err("no password");
        let message = refused.chain();
        assert!(message.contains("4194304 bytes long"), "{message}");
        assert!(!message.contains("xxx"), "{message}");
    }
    held.check().await.unwrap();
    held.release().await.unwrap();
    promise("P17", db.engine);
}

db_tests!(postgres: a_held_lock_reconnects_with_the_new_password,
    a_function_that_fails_is_asked_again_within_the_wait, a_function_that_hangs_holds_nothing_up,
    a_password_longer_than_any_is_refused_and_holds_nothing_up);
db_tests!(mariadb: a_held_lock_reconnects_with_the_new_password,
    a_function_that_fails_is_asked_again_within_the_wait, a_function_that_hangs_holds_nothing_up,
    a_password_longer_than_any_is_refused_and_holds_nothing_up);
db_tests!(mysql: a_held_lock_reconnects_with_the_new_password);

#[test]
fn blocking_builders_take_password_functions_too() {
    let Some(db) = TestDb::postgres() else { return };
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    let locks = blocking::Locks::builder(&db.url).password(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok("not needed".into())
    });
    let locks = locks.connect().unwrap();
    locks.migrate().unwrap();
    locks.lock("job").acquire().unwrap().release().unwrap();
    assert!(asked.load(Ordering::SeqCst) > 0);
}

#[test]
fn the_debug_output_of_a_builder_has_no_secret() {
    let builder = Locks::builder("postgres://u:hunter2@h/d")
        .password(|| Ok("hunter2".into()))
        .url_with(|| Ok("postgres://u:hunter2@h/d".into()));
    let shown = format!("{builder:?} {:?}", builder.clone().connect_lazy());
    assert!(!shown.contains("hunter2"), "{shown}");
    let missing = Locks::builder_from_file(Path::new("/no/such/file")).unwrap_err();
    assert!(matches!(missing, Error::Config { .. }), "{missing:?}");
}
