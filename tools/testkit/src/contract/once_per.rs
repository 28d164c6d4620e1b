//! Acquires that are refused if the latest grant is too recent: `once_per`.

use std::time::Duration;

use database_locks::LockState;
use database_locks::seam::{AcquireCommand, Outcome};

use super::fixture::{
    LONG, StoreFixture, WITHIN, acquire_command, decided, granted, info, name, release,
};

/// A window that does not end during a test.
const WINDOW: Duration = Duration::from_secs(600);
/// A window whose end the test awaits, with room for two calls on a busy machine.
const SHORT_WINDOW: Duration = Duration::from_secs(3);

fn not_within(lock: &str, window: Duration) -> AcquireCommand {
    AcquireCommand {
        not_within: Some(window),
        ..acquire_command(lock, "you", LONG)
    }
}

/// A lock is refused while its latest grant is recent, whether that holds it or was released. The
/// answer names its holder and its age, and the row stays as it was.
pub async fn a_recent_grant_keeps_another_from_beginning(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    for is_held in [true, false] {
        if !is_held {
            release(&*store, &grant).await;
        }
        let before = info(&*store, "job").await.expect("a row");
        let outcome = decided(&*store, &not_within("job", WINDOW)).await;
        let Outcome::TooRecent(latest) = outcome else {
            panic!("{is_held}: {outcome:?}")
        };
        assert_eq!(latest.holder.as_deref(), Some("me"));
        assert!(latest.ago < LONG, "{latest:?}");
        let after = info(&*store, "job").await.expect("a row");
        assert_eq!(
            (after.token, after.acquired_at, after.grant),
            (before.token, before.acquired_at, before.grant)
        );
    }
    let outcome = decided(&*store, &acquire_command("job", "you", LONG)).await;
    assert!(
        matches!(outcome, Outcome::Granted { .. }),
        "without it: {outcome:?}"
    );
}

/// When the window has passed, the lock is granted, or held as for any other caller.
pub async fn an_old_grant_keeps_none_from_beginning(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    for lock in ["released", "held"] {
        let grant = granted(&*store, lock, "me", LONG).await;
        if lock == "released" {
            release(&*store, &grant).await;
        }
    }
    tokio::time::sleep(SHORT_WINDOW + Duration::from_millis(100)).await;
    let held = decided(&*store, &not_within("held", SHORT_WINDOW)).await;
    assert!(matches!(held, Outcome::Held(_)), "{held:?}");
    let next = decided(&*store, &not_within("released", SHORT_WINDOW)).await;
    assert!(matches!(next, Outcome::Granted { .. }), "{next:?}");
    let again = decided(&*store, &not_within("released", SHORT_WINDOW)).await;
    // The reply of another grant, not of this one.
    assert!(matches!(again, Outcome::TooRecent(_)), "{again:?}");
}

/// A lock that was never granted is granted, and the repeated request recognises its own grant.
pub async fn a_first_grant_is_never_too_late(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = not_within("job", WINDOW);
    for _ in 0..2 {
        let outcome = decided(&*store, &command).await;
        assert!(matches!(outcome, Outcome::Granted { .. }), "{outcome:?}");
    }
}

/// Each request of a batch has its own window, also where a batch has a statement of its own.
pub async fn a_batch_of_acquires_has_a_window_for_each(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let names: Vec<String> = (0..12).map(|at| format!("lock {at}")).collect();
    for lock in &names {
        let grant = granted(&*store, lock, "me", LONG).await;
        release(&*store, &grant).await;
    }
    let mut commands: Vec<AcquireCommand> = names
        .iter()
        .map(|lock| acquire_command(lock, "you", LONG))
        .collect();
    for command in commands.iter_mut().step_by(3) {
        command.not_within = Some(WINDOW);
    }
    commands.push(not_within("new", WINDOW));
    let mut outcomes = Vec::new();
    for _ in 0..500 {
        outcomes = store.acquire(&commands, WITHIN).await.unwrap_or_default();
        if !outcomes.is_empty() && !outcomes.contains(&Outcome::Busy) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (at, outcome) in outcomes.iter().enumerate() {
        let is_recent = at % 3 == 0 && at < 12;
        assert_eq!(
            matches!(outcome, Outcome::TooRecent(_)),
            is_recent,
            "{at}: {outcome:?}"
        );
        assert_eq!(
            matches!(outcome, Outcome::Granted { .. }),
            !is_recent,
            "{at}: {outcome:?}"
        );
    }
    assert_eq!(outcomes.len(), 13);
}

/// Of many clients that start at about the same time, each of which works for a moment, one gets
/// the lock.
pub async fn of_many_starts_in_one_period_one_is_granted(fixture: &StoreFixture) {
    fixture.ready().await;
    let starts = (0..8).map(|client| {
        let store = fixture.store();
        tokio::spawn(async move {
            while store.connect(WITHIN).await.is_err() {}
            tokio::time::sleep(Duration::from_millis(20 * client)).await;
            let command = not_within("job", WINDOW);
            match decided(&*store, &command).await {
                Outcome::Granted { token, .. } => {
                    let grant = command.granted(Default::default(), token, None);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    release(&*store, &grant).await;
                    1
                }
                Outcome::TooRecent(_) => 0,
                other => panic!("{other:?}"),
            }
        })
    });
    let mut runs = 0;
    for start in starts.collect::<Vec<_>>() {
        runs += start.await.expect("no panic");
    }
    assert_eq!(runs, 1);
}

/// The time of the latest grant of this library counts after a legacy holder. A time that is
/// further in the future than the window is from before the clock was set back.
pub async fn the_latest_recorded_grant_counts_unless_it_is_far_in_the_future(
    fixture: &StoreFixture,
) {
    let store = fixture.ready().await;
    if fixture.engine == "memory" {
        return;
    }
    let grant = granted(&*store, "job", "me", LONG).await;
    release(&*store, &grant).await;
    let table = fixture.table.as_str();
    // As legacy acquires and releases.
    fixture.sql(&format!(
        "UPDATE {table} SET locked_by = 'legacy', expires_at = '2020-01-01 00:00:00.000000'"
    ));
    let outcome = decided(&*store, &not_within("job", WINDOW)).await;
    let Outcome::TooRecent(latest) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(latest.holder, None, "it is not known");
    fixture.sql(&format!(
        "UPDATE {table} SET expires_at = NULL, granted_until = NULL, \
         acquired_at = '2100-01-01 00:00:00.000000'"
    ));
    let outcome = decided(&*store, &not_within("job", WINDOW)).await;
    assert!(matches!(outcome, Outcome::Granted { .. }), "{outcome:?}");
    let row = store.read(&[name("job")], WITHIN).await.expect("an answer");
    assert!(matches!(row[0].state, LockState::Held { .. }));
}
