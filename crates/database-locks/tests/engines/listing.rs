//! Reading a table of many rows does not keep the process's own leases from being renewed.

use std::time::Duration;

use database_locks::{ListFilter, Prune};
use testkit::time::now;
use testkit::{TestDb, db_tests};

const ROWS: usize = 200_000;
/// Much longer than a page of rows takes.
const TTL: Duration = Duration::from_secs(9);
/// Several times shorter than one list takes.
const EVERY: Duration = Duration::from_millis(100);

fn fill(db: &TestDb) {
    let rows = match db.engine {
        "mariadb" => format!("SELECT CONCAT('row ', seq), 1 FROM seq_1_to_{ROWS}"),
        "mysql" => {
            let digits = (0..10).map(|digit| format!("SELECT {digit} d"));
            let digits = digits.collect::<Vec<_>>().join(" UNION ALL ");
            let tables = ["a", "b", "c", "d", "e", "f"].map(|name| format!("({digits}) {name}"));
            format!(
                "SELECT CONCAT('row ', a.d, b.d, c.d, d.d, e.d, f.d), 1 FROM {} LIMIT {ROWS}",
                tables.join(", ")
            )
        }
        "sqlite" => format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
             SELECT 'row ' || i, 1 FROM n"
        ),
        _ => format!("SELECT 'row ' || i, 1 FROM generate_series(1, {ROWS}) i"),
    };
    db.sql(&format!(
        "INSERT INTO database_locks_lock (name, token) {rows}"
    ));
}

async fn a_short_lease_outlives_lists_and_prunes_of_a_large_table(db: &TestDb) {
    let locks = db.locks().await;
    fill(db);
    let guard = locks.lock("job").ttl(TTL).acquire().await.unwrap();
    let often = locks.lock("often").ttl(TTL).renew_every(EVERY);
    let often = often.acquire().await.unwrap();
    let (began, mut lists, mut renewed) = (now(), 0, 0);
    while began.elapsed() < TTL {
        let (this, trusted) = (now(), often.trusted_for());
        assert_eq!(locks.list().await.unwrap().len(), ROWS + 2);
        lists += 1;
        assert!(guard.is_held(), "list {lists}: {:?}", guard.loss());
        // By more than what was under way when the list began.
        renewed += u32::from(often.trusted_for() + this.elapsed() > trusted + 2 * EVERY);
    }
    assert!(renewed > 0, "none of {lists} lists let a renewal through");
    often.release().await.unwrap();
    let held = ListFilter::new().not_free().prefix("j");
    let held = locks.list_filtered(&held).await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].name.as_str(), "job");
    assert_eq!(
        locks
            .prune(Prune::older_than(Duration::ZERO).include_legacy())
            .await
            .unwrap(),
        ROWS as u64 + 1
    );
    assert!(guard.is_held(), "prune: {:?}", guard.loss());
    guard.check().await.unwrap();
    guard.release().await.unwrap();
}

macro_rules! on {
    ($($(# $attribute:tt)? $engine:ident),*) => { $(
        db_tests!($(# $attribute)? $engine: a_short_lease_outlives_lists_and_prunes_of_a_large_table);
    )* };
}
on!(
    #[ignore = "make prove"]
    sqlite,
    postgres,
    #[ignore = "make prove"]
    mariadb,
    #[ignore = "make prove"]
    mysql
);
