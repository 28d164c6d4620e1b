//! Handing over a held lock by a ticket.

use database_locks::LostReason;
use database_locks::seam::{AcquireCommand, Grant, Released, Renewal, ResumeCommand, Store};

use super::fixture::{
    BRIEF, LONG, SHORT, StoreFixture, WITHIN, acquire_command, granted, info, outlived, release,
    renew,
};
use crate::promise::promise;

fn handed_to(grant: &Grant, holder: &str) -> ResumeCommand {
    let metadata = format!("{{\"from\":\"{}\"}}", grant.id).into();
    let to = AcquireCommand {
        metadata,
        ..acquire_command(grant.name.as_str(), holder, LONG)
    };
    ResumeCommand {
        slot: Default::default(),
        token: grant.token,
        from: grant.id,
        to,
    }
}

async fn resume(store: &dyn Store, command: &ResumeCommand) -> Renewal {
    store.resume(command, WITHIN).await.expect("an answer")
}

/// A resumed lock has the same token and another grant. The former grant can no longer change the
/// row.
pub async fn a_ticket_resumes_a_lock_once(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let given = granted(&*store, "job", "giver", BRIEF).await;
    let (command, again) = (handed_to(&given, "taker"), handed_to(&given, "another"));
    assert!(resume(&*store, &command).await.is_renewed());
    let repeated = resume(&*fixture.store(), &command).await;
    assert!(repeated.is_renewed(), "its reply may be lost");
    outlived(BRIEF).await;

    let row = info(&*store, "job").await.expect("a row");
    assert_eq!(
        (row.token, row.holder.as_deref()),
        (given.token, Some("taker"))
    );
    assert_eq!(
        resume(&*store, &again).await.lost(),
        Some(LostReason::Resumed)
    );
    assert_eq!(
        renew(&*store, &given, LONG).await.lost(),
        Some(LostReason::Resumed)
    );
    assert_eq!(release(&*store, &given).await, Released::NotHeld);
    let taken = Grant {
        id: command.to.grant,
        holder: "taker".into(),
        ..given
    };
    assert!(renew(&*store, &taken, LONG).await.is_renewed());
    assert_eq!(release(&*store, &taken).await, Released::Freed);
    assert_eq!(
        resume(&*store, &again).await.lost(),
        Some(LostReason::Released)
    );
    promise("P3", fixture.engine);
}

/// A ticket whose lease has ended resumes nothing, whether or not another client took the lock.
pub async fn a_dead_ticket_revives_nothing(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let given = granted(&*store, "job", "giver", SHORT).await;
    outlived(SHORT).await;
    let late = handed_to(&given, "late");
    // On a cluster no clock ends the lease: the ticket is valid until another client takes over.
    if !fixture.is_cluster() {
        assert_eq!(
            resume(&*store, &late).await.lost(),
            Some(LostReason::Expired)
        );
    }
    let next = granted(&*store, "job", "next", LONG).await;
    assert_eq!(
        resume(&*store, &late).await.lost(),
        Some(LostReason::Preempted)
    );
    assert!(renew(&*store, &next, LONG).await.is_renewed());
    let nowhere = ResumeCommand {
        to: acquire_command("no row", "late", LONG),
        ..late
    };
    assert_eq!(
        resume(&*store, &nowhere).await.lost(),
        Some(LostReason::RowGone)
    );
}
