//! A failover that one connection of a client notices counts for its other connection.

use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use database_locks::seam::{DirectConnection, Outcome, Store, StoreError, Table};
use testkit::contract::{acquire_command, info, name};
use testkit::{Commits, Pair, promise};

use super::{ENGINE, TIMEOUT, block_in_place, held, in_time, pair, release, row};

const TTL: Duration = Duration::from_secs(60);

/// How long a call may take while servers are lost.
const WITHIN: Duration = Duration::from_secs(2);

/// A client whose connections both lead to the first primary, which is then frozen.
async fn frozen(lock: &str) -> Option<(Pair, String, Arc<dyn Store>, Arc<dyn DirectConnection>)> {
    let (mut pair, url) = pair(None, Commits::Asynchronous).await?;
    let locks = super::client(&url).await;
    release(held(&locks, lock).await).await;
    let store = database_locks::seam::open(&url, &Table::default()).unwrap();
    let direct = store.direct().unwrap();
    store.connect(TIMEOUT).await.unwrap();
    in_time(direct.connect()).await.unwrap();
    block_in_place(|| pair.catch_up());
    block_in_place(|| pair.primary_mut().freeze());
    Some((pair, url, store, direct))
}

fn assert_refused_as_replaced(answer: Result<Vec<Outcome>, StoreError>) {
    let error = answer.unwrap_err().to_string();
    assert!(error.contains("another one has replaced"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn an_answer_of_the_old_primary_on_the_direct_connection_confirms_nothing() {
    let Some((mut pair, url, store, direct)) = frozen("late").await else {
        return;
    };
    let before = row(pair.standby(), &url, "late");
    let late = {
        let direct = Arc::clone(&direct);
        tokio::spawn(async move { direct.acquire(&[acquire_command("late", "me", TTL)]).await })
    };
    block_in_place(|| pair.promote());
    let names = [name("late")];
    in_time(async { while store.read(&names, WITHIN).await.is_err() {} }).await;
    block_in_place(|| pair.primary_mut().thaw());
    assert_refused_as_replaced(in_time(late).await.unwrap());
    assert_eq!(row(pair.standby(), &url, "late"), before);
    // The next one is made where the other connection is.
    let command = acquire_command("late", "me", TTL);
    let made = in_time(direct.acquire(from_ref(&command))).await.unwrap();
    assert!(matches!(made[0], Outcome::Granted { .. }), "{made:?}");
    let known = info(&*store, "late").await.unwrap();
    assert_eq!(known.grant.as_deref(), Some(command.grant.as_str()));
    promise("P1", ENGINE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_failover_noticed_by_the_direct_connection_counts_for_the_background() {
    let Some((mut pair, url, store, direct)) = frozen("late").await else {
        return;
    };
    let before = row(pair.standby(), &url, "late");
    let late = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            store
                .acquire(&[acquire_command("late", "me", TTL)], TIMEOUT)
                .await
        })
    };
    block_in_place(|| pair.promote());
    let elsewhere = acquire_command("elsewhere", "me", TTL);
    in_time(async {
        loop {
            let asked = tokio::time::timeout(WITHIN, direct.acquire(from_ref(&elsewhere)));
            match asked.await {
                Ok(Ok(_)) => return,
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(_) => direct.give_up(),
            }
        }
    })
    .await;
    block_in_place(|| pair.primary_mut().thaw());
    assert_refused_as_replaced(in_time(late).await.unwrap());
    assert_eq!(row(pair.standby(), &url, "late"), before);
    let known = info(&*store, "elsewhere").await.unwrap();
    assert_eq!(known.grant.as_deref(), Some(elsewhere.grant.as_str()));
    promise("P1", ENGINE);
}
