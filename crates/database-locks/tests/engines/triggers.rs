//! Triggers that an application has put on the table: audits, and rows that they refuse or hold up.
#![cfg(all(feature = "postgres", feature = "mysql"))]

use std::time::Duration;

use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(30);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// On MySQL and MariaDB a trigger that contains a statement makes the answer to the library's
/// INSERT carry the insert id 0.
async fn a_grant_has_its_token_and_lasts_where_a_trigger_audits(db: &TestDb) {
    let locks = db.locks().await;
    for i in 0..60 {
        let guard = locks.lock(format!("job {i}")).acquire().await.unwrap();
        guard.release().await.unwrap();
    }
    let audit = "CREATE TABLE audit (id bigint AUTO_INCREMENT PRIMARY KEY, name varchar(255))";
    match db.engine {
        "postgres" => {
            db.sql("CREATE TABLE audit (id bigserial PRIMARY KEY, name text)");
            db.sql(
                "CREATE FUNCTION audits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   INSERT INTO audit (name) VALUES (NEW.name); RETURN NEW; END $$; \
                 CREATE TRIGGER audits AFTER UPDATE ON database_locks_lock \
                   FOR EACH ROW EXECUTE FUNCTION audits()",
            );
        }
        _ => {
            db.sql(audit);
            db.sql(
                "CREATE TRIGGER audits AFTER UPDATE ON database_locks_lock \
                 FOR EACH ROW INSERT INTO audit (name) VALUES (NEW.name)",
            );
        }
    }
    let before = locks.show("job 0").await.unwrap().unwrap().token;
    let guard = locks.lock("job 0").ttl(secs(6)).acquire().await.unwrap();
    assert!(guard.token() > before, "{} after {before}", guard.token());
    // A lease that begins with a renewal, and one without end.
    let long = locks.lock("job 1").ttl(secs(600)).acquire().await.unwrap();
    let endless = locks.lock("job 2").ttl(database_locks::Ttl::Infinite);
    let endless = endless.acquire().await.unwrap();
    let crowd: Vec<_> = (3..60)
        .map(|i| {
            let lock = locks.lock(format!("job {i}")).ttl(TIMEOUT);
            tokio::spawn(async move { lock.acquire().await.unwrap() })
        })
        .collect();
    for one in crowd {
        let guard = one.await.unwrap();
        let row = locks.show(guard.name().as_str()).await.unwrap().unwrap();
        assert_eq!(guard.token(), row.token);
        guard.release().await.unwrap();
    }
    // Through some renewals.
    tokio::time::sleep(secs(7)).await;
    for guard in [guard, long, endless] {
        assert!(guard.is_held(), "{:?}", guard.loss());
        guard.check().await.unwrap();
        guard.release().await.unwrap();
    }
    for i in 0..3 {
        let next = locks.lock(format!("job {i}")).try_acquire().await.unwrap();
        next.expect("it was released").release().await.unwrap();
    }
    promise("P2", db.engine);
    promise("P3", db.engine);
}

/// Of many tries that share a statement one is refused, by an error that calls itself a lack of
/// room.
async fn a_name_that_the_database_refuses_fails_no_other_try(db: &TestDb) {
    let locks = db.locks().await;
    for i in 0..60 {
        let guard = locks.lock(format!("job {i}")).acquire().await.unwrap();
        guard.release().await.unwrap();
    }
    db.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF NEW.name = 'job 7' AND NEW.expires_at IS NOT NULL THEN \
             RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END IF; \
           RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE UPDATE ON database_locks_lock \
           FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let tries: Vec<_> = (0..60)
        .map(|i| {
            let lock = locks.lock(format!("job {i}"));
            tokio::spawn(async move { lock.try_acquire().await })
        })
        .collect();
    for (i, tried) in tries.into_iter().enumerate() {
        match tried.await.unwrap() {
            Err(error) => assert_eq!(i, 7, "{}", error.chain()),
            Ok(guard) => drop(guard.expect("it is free")),
        }
    }
}

/// The trigger of one row waits for another table: the statement that renews it hangs.
async fn a_row_that_hangs_takes_few_other_leases_along(db: &TestDb) {
    const LEASES: usize = 32;
    let locks = db.locks().await;
    let mut guards = Vec::new();
    for i in 0..LEASES {
        let lock = locks.lock(format!("job {i}")).ttl(secs(30));
        guards.push(lock.acquire().await.unwrap());
    }
    db.sql(match db.engine {
        "postgres" => {
            "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.name = 'job 7' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END $$; \
             CREATE TRIGGER hang BEFORE UPDATE ON database_locks_lock \
               FOR EACH ROW EXECUTE FUNCTION hang()"
        }
        _ => {
            "CREATE TRIGGER hang BEFORE UPDATE ON database_locks_lock FOR EACH ROW \
             SET NEW.waiting_until = IF(NEW.name = 'job 7' AND SLEEP(60), NULL, NULL)"
        }
    });
    tokio::time::sleep(secs(34)).await;
    let held = guards.iter().filter(|guard| guard.is_held()).count();
    // Halves that got through were renewed, and the rest had no time.
    assert!(held >= LEASES / 2, "{held} of {LEASES}");
    assert!(!guards[7].is_held());
    eprintln_held(db, held);
}

#[allow(clippy::print_stderr, reason = "for who runs it by hand")]
fn eprintln_held(db: &TestDb, held: usize) {
    eprintln!("{}: {held} held", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        a_grant_has_its_token_and_lasts_where_a_trigger_audits,
        a_row_that_hangs_takes_few_other_leases_along,
    ); )* };
}
on!(postgres, mariadb, mysql);

mod crowds {
    use super::a_name_that_the_database_refuses_fails_no_other_try;
    testkit::db_tests!(postgres: a_name_that_the_database_refuses_fails_no_other_try);
}
