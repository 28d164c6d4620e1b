//! A pooler in between, which goes on to the other server under connections that stay.

use database_locks::{Error, LostReason};
use testkit::{Commits, PgBouncer, promise};

use super::{ENGINE, TIMEOUT, block_in_place, check, client, held, in_time, pair, release};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_pooler_hides_no_failover() {
    let Some((mut pair, url)) = pair(None, Commits::Asynchronous).await else {
        return;
    };
    let Some(bouncer) = block_in_place(|| PgBouncer::start(pair.primary(), &[])) else {
        return;
    };
    let locks = client(&bouncer.url(&url)).await;
    release(held(&locks, "job").await).await;
    block_in_place(|| pair.catch_up());
    block_in_place(|| pair.part());
    // No renewal of it meets an outage, which would cost it the connection.
    let lock = locks.lock("job").ttl(TIMEOUT);
    let guard = in_time(lock.acquire()).await.unwrap();

    block_in_place(|| pair.primary_mut().kill());
    block_in_place(|| pair.promote());
    let sql = "UPDATE database_locks_lock SET token = token + 2, locked_by = 'another'";
    block_in_place(|| pair.standby().query(&url, sql)).unwrap();
    block_in_place(|| bouncer.lead_to(pair.standby()));
    let reason = match check(&guard).await {
        Err(Error::Lost { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason, LostReason::Failover);
    promise("P6", ENGINE);
}
