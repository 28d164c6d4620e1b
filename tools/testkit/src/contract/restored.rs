//! Tokens keep growing after the table was restored from a backup or a copy.

use std::time::Duration;

use database_locks::Token;
use database_locks::seam::{Force, Grant, Outcome, Slot, Store};

use super::fixture::{LONG, StoreFixture, WITHIN, granted, info, release};
use super::same_holder::{over, take_over};
use crate::promise::promise;

/// Tokens that a row restored from a copy may have: an early one, or none.
const OLDER: [i64; 2] = [7, 0];

/// A table in memory cannot be restored. A test of its own shows that it follows the same rule.
fn can_be_restored(fixture: &StoreFixture) -> bool {
    fixture.engine != "memory"
}

/// The last of some grants in quick succession, once the clock has passed its token.
async fn held(store: &dyn Store) -> Grant {
    let mut last = granted(store, "job", "me", LONG).await;
    for _ in 0..5 {
        release(store, &last).await;
        last = granted(store, "job", "me", LONG).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    last
}

fn set_back(fixture: &StoreFixture, token: i64) {
    fixture.sql(&format!(
        "UPDATE database_locks_lock SET token = {token} WHERE name = 'job'"
    ));
}

async fn token_of(store: &dyn Store) -> Token {
    info(store, "job").await.expect("a row").token
}

/// Whether the row kept its place and went back, or was deleted and inserted again.
pub async fn a_grant_after_an_older_row_was_put_back_has_a_greater_token(fixture: &StoreFixture) {
    if !can_be_restored(fixture) {
        return;
    }
    let store = fixture.ready().await;
    for token in OLDER {
        let last = held(&*store).await;
        release(&*store, &last).await;
        set_back(fixture, token);
        let next = granted(&*store, "job", "me", LONG).await;
        assert!(next.token > last.token, "{token}: {next:?} after {last:?}");
        release(&*store, &next).await;
        tokio::time::sleep(Duration::from_millis(50)).await;

        fixture.sql("DELETE FROM database_locks_lock WHERE name = 'job'");
        fixture.sql(&format!(
            "INSERT INTO database_locks_lock (name, locked_by, token) VALUES ('job', 'me', {token})"
        ));
        let latest = granted(&*store, "job", "me", LONG).await;
        assert!(
            latest.token > next.token,
            "{token}: {latest:?} after {next:?}"
        );
        release(&*store, &latest).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    promise("P2", fixture.engine);
}

/// A take-over by the same holder, after an older row was put back.
pub async fn a_take_over_after_an_older_row_was_put_back_has_a_greater_token(
    fixture: &StoreFixture,
) {
    if !can_be_restored(fixture) {
        return;
    }
    let store = fixture.ready().await;
    for token in OLDER {
        let last = held(&*store).await;
        set_back(fixture, token);
        let seen = Grant {
            token: token_of(&*store).await,
            ..last.clone()
        };
        let what = over(&seen, "me");
        let Outcome::Granted { token: next, .. } = take_over(&*store, &what).await else {
            panic!("{token}: not taken over")
        };
        assert!(next > last.token, "{token}: {next} after {}", last.token);
        store
            .force(&last.name, Slot::Lock, WITHIN)
            .await
            .expect("an answer");
    }
    promise("P2", fixture.engine);
}

/// A release by force, after an older row was put back: its token must be greater than that of the
/// holder that is notified of it.
pub async fn a_release_by_force_after_an_older_row_was_put_back_has_a_greater_token(
    fixture: &StoreFixture,
) {
    if !can_be_restored(fixture) {
        return;
    }
    let store = fixture.ready().await;
    for token in OLDER {
        let last = held(&*store).await;
        set_back(fixture, token);
        let forced = store
            .force(&last.name, Slot::Lock, WITHIN)
            .await
            .expect("an answer");
        assert!(matches!(forced, Force::Freed(_)), "{token}: {forced:?}");
        let raised = token_of(&*store).await;
        assert!(
            raised > last.token,
            "{token}: {raised} after {}",
            last.token
        );
        let next = granted(&*store, "job", "me", LONG).await;
        assert!(next.token > raised, "{token}: {next:?} after {raised}");
        release(&*store, &next).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    promise("P2", fixture.engine);
}
