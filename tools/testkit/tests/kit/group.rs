//! The group of MySQL does what the tests that stand on it assume.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use testkit::{Group, time};

const TIMEOUT: Duration = Duration::from_secs(40);

fn count(group: &Group, node: usize, url: &str) -> Option<String> {
    group.query(node, url, "SELECT COUNT(*) FROM t").ok()
}

/// In one test, since each change of the group takes seconds.
#[test]
#[ignore = "make prove"]
fn members_have_the_same_data_and_come_back() {
    let Some(mut group) = Group::shared_alone() else {
        return;
    };
    let url = group.fresh_database();
    let run = |group: &Group, node, sql: &str| group.query(node, &url, sql).unwrap();
    run(&group, 0, "CREATE TABLE t (a int PRIMARY KEY)");
    let insert = |group: &Group, node: usize| {
        group.catch_up(node);
        run(group, node, &format!("INSERT INTO t VALUES ({node})"));
    };
    (0..3).for_each(|node| insert(&group, node));
    let all_have = |group: &Group, rows: &str| {
        (0..3).all(|node| {
            time::wait_until(TIMEOUT, || {
                count(group, node, &url).as_deref() == Some(rows)
            })
        })
    };
    assert!(all_have(&group, "3"));

    // One that was started after it was killed belongs to no group, and takes writes for itself.
    group.kill(2);
    assert!(time::wait_until(TIMEOUT, || group.members(0).len() == 2));
    group.start_outside(2);
    assert!(!group.serves(2) && group.serves(0));
    group.mend();
    assert!((0..3).all(|node| group.serves(node) && group.is_primary(node)));

    for node in 0..3 {
        group.kill(node);
    }
    group.mend();
    assert!(all_have(&group, "3"));
}
