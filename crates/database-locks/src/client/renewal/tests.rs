//! Tests of the lease table and of the state of a grant.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pollster::block_on;

use super::grant_state::{Confirmed, GrantState, RenewalFailure, Status};
use super::lease_events::LeaseEvents;
use super::lease_table::{CONNECT_AHEAD, LONGEST_SLEEP, LeaseTable};
use super::round::Failed;
use crate::api::locks::Locks;
use crate::client::grant_id::random_grant_id;
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{
    Answer, BootInstant, Grant, GrantId, Lease, LockName, LostReason, Primary, Renewing, Timing,
    Token, Ttl,
};

fn table_of(n: u64) -> (LeaseTable, BootInstant) {
    let (mut table, start) = (LeaseTable::default(), clock::now());
    for i in 0..n {
        let sent = start + Duration::from_millis(i);
        let (state, lease) = held_for(Duration::from_secs(30), sent);
        table.add(lease, state, sent);
    }
    (table, start)
}

/// Add a lease of this ttl; returns whether that wakes the task.
fn wakes(table: &mut LeaseTable, ttl: Duration, now: BootInstant) -> (bool, GrantId) {
    let (state, lease) = held_for(ttl, now);
    let id = state.grant.id;
    table.add(lease, state, now);
    (table.sleeps_past_deadline(now), id)
}

#[test]
fn cycles_of_acquire_and_release_wake_the_task_once_in_six_seconds() {
    let (mut table, start) = (LeaseTable::default(), clock::now());
    let (mut woken, mut until) = (0, None);
    for ms in 0..60_000 {
        let now = start + Duration::from_millis(ms);
        if until.is_some_and(|until| until <= now) {
            assert!(
                table
                    .begin_due(now, &mut LeaseEvents::default())
                    .together
                    .is_empty()
            );
            until = table.begin_sleep(now);
        }
        let (wake, id) = wakes(&mut table, Duration::from_secs(30), now);
        if wake {
            woken += 1;
            until = table.begin_sleep(now);
        }
        table.remove(id);
        assert!(!table.sleeps_past_deadline(now), "woken by a release");
    }
    assert_eq!(woken, 10);
    // After the last release the task sleeps until it is woken.
    let end = start + Duration::from_secs(70);
    table.begin_due(end, &mut LeaseEvents::default());
    assert_eq!(table.begin_sleep(end), None);
}

#[test]
fn a_deadline_before_the_end_of_the_sleep_wakes_the_task() {
    let (mut table, start) = (LeaseTable::default(), clock::now());
    let secs = Duration::from_secs;
    assert!(wakes(&mut table, secs(30), start).0, "it sleeps for good");
    assert_eq!(
        table.begin_sleep(start),
        Some(start + secs(10) - CONNECT_AHEAD)
    );
    assert!(!wakes(&mut table, secs(30), start + secs(5)).0);
    assert!(!wakes(&mut table, secs(300), start + secs(5)).0);
    assert!(!wakes(&mut table, secs(6), start + secs(5)).0, "due later");
    let (wake, id) = wakes(&mut table, secs(6), start + secs(1));
    assert!(wake, "due earlier");
    table.remove(id);
    // As after an extension or a check.
    let now = start + secs(2);
    let id = *table.entries.keys().next().unwrap();
    table.entries.get_mut(&id).unwrap().lease.check(now);
    table.reschedule(id, now);
    assert!(table.sleeps_past_deadline(now));
    table.remove(id);
    assert!(!table.sleeps_past_deadline(now));
    // The machine was suspended, and the task has not woken yet.
    assert!(wakes(&mut table, secs(30), start + secs(60)).0);
}

#[test]
fn a_lease_with_a_late_deadline_wakes_the_task_now_and_then() {
    let (mut table, start) = (LeaseTable::default(), clock::now());
    wakes(&mut table, Duration::from_secs(3_600), start);
    assert_eq!(table.begin_sleep(start), Some(start + LONGEST_SLEEP));
}

#[test]
fn locks_acquired_one_after_another_are_renewed_together() {
    let (mut table, start) = table_of(3_000);
    let mut due = |secs| {
        table.begin_due(
            start + Duration::from_secs(secs),
            &mut LeaseEvents::default(),
        )
    };
    assert!(due(9).together.is_empty());
    assert_eq!(due(10).together.len(), 3_000);
}

#[test]
fn a_lease_that_was_refused_alone_is_renewed_separately_until_that_succeeds() {
    let (mut table, start) = table_of(100);
    let at = |secs| start + Duration::from_secs(secs);
    let id = *table.entries.keys().next().unwrap();
    table.entries.get_mut(&id).unwrap().separate = true;
    let mut events = LeaseEvents::default();
    let due = table.begin_due(at(11), &mut events);
    assert_eq!((due.together.len(), due.separate.len()), (99, 1));
    assert_eq!(due.separate[0].0.id, id);
    table.answered(id, at(11), (Answer::Renewed, None), &mut events);
    assert!(!table.entries[&id].separate);
    assert_eq!(events.renewed_again.len(), 1);
}

#[test]
fn one_renewal_at_a_time_waits_for_a_row_that_was_locked_twice() {
    let (mut table, start) = table_of(3);
    let at = |ms| start + Duration::from_millis(ms);
    let ids: Vec<GrantId> = table.entries.keys().copied().collect();
    let mut events = LeaseEvents::default();
    // Each is due again within a few seconds after its row was locked.
    let due = |table: &mut LeaseTable, ms, may_wait| {
        table.may_wait = may_wait;
        let due = table.begin_due(at(ms), &mut LeaseEvents::default());
        (due.together.len(), due.waiting.map(|(grant, _)| grant.id))
    };
    let mut busy = |table: &mut LeaseTable, id| {
        table.answered(id, at(0), (Answer::Busy, None), &mut events);
    };
    assert_eq!(due(&mut table, 10_100, true), (3, None));
    ids.iter().for_each(|id| busy(&mut table, *id));
    assert_eq!(due(&mut table, 11_200, true), (3, None));
    ids.iter().for_each(|id| busy(&mut table, *id));
    assert_eq!(due(&mut table, 12_300, false), (3, None), "none may wait");
    ids.iter().for_each(|id| busy(&mut table, *id));
    let (together, waiting) = due(&mut table, 13_400, true);
    let first = waiting.expect("one waits");
    assert_eq!(together, 2);
    ids.iter().for_each(|id| busy(&mut table, *id));
    let (together, waiting) = due(&mut table, 14_500, true);
    assert_eq!(together, 2);
    assert!(waiting.is_some_and(|id| id != first), "another one");
    table.answered(
        first,
        at(14_000),
        (Answer::Renewed, None),
        &mut LeaseEvents::default(),
    );
    assert!(!table.entries[&first].lease.is_failing());
}

#[test]
fn a_loss_names_the_latest_failure_whether_the_guard_or_the_scheduler_detects_it() {
    for asked in [false, true] {
        let (mut table, _) = table_of(0);
        let (state, lease) = trusted_until(clock::now() + Duration::from_millis(1));
        let id = state.grant.id;
        table.add(lease, Arc::clone(&state), clock::now());
        table.entries.get_mut(&id).unwrap().begin_renewal();
        let failure = RenewalFailure {
            reason: LostReason::Refused,
            message: "permission denied".into(),
        };
        state.record_answer(Some(failure));
        let loss = match asked {
            true => state.lose(LostReason::Expired),
            false => state.mark_lost(LostReason::Refused.into()).unwrap(),
        };
        assert_eq!(loss.reason(), LostReason::Refused);
        assert_eq!(loss.last_answer(), Some("permission denied"));
    }
}

/// A grant trusted until `until`, and a lease whose renewal confirms it for longer.
fn trusted_until(until: BootInstant) -> (Arc<GrantState>, Lease) {
    let (state, lease) = held_for(Duration::from_secs(30), clock::now());
    state.trust_until(until);
    (state, lease)
}

/// A grant that was requested at `sent`.
fn held_for(ttl: Duration, sent: BootInstant) -> (Arc<GrantState>, Lease) {
    let timing = Timing::new(ttl.into(), Renewing::ByDefault, None).unwrap();
    let grant = Grant {
        slot: Default::default(),
        name: LockName::new("job").unwrap(),
        token: Token::from_db(1),
        id: random_grant_id().unwrap(),
        holder: "me".into(),
        confirmed_by: None,
    };
    let lease = Lease::granted(timing, sent, ttl);
    (
        GrantState::new("memory", grant, &lease, BootInstant::ZERO),
        lease,
    )
}

#[test]
fn each_renewal_names_the_server_that_confirmed_the_grant_last() {
    let (mut table, _) = table_of(1);
    let entry = table.entries.values_mut().next().unwrap();
    assert_eq!(entry.begin_renewal().0.confirmed_by, None);
    let server = |timeline| {
        Some(Primary {
            system: 1,
            timeline,
        })
    };
    for (confirmed_by, named) in [(server(1), 1), (None, 1), (server(2), 2)] {
        entry.state.confirmed_by(confirmed_by);
        assert_eq!(entry.begin_renewal().0.confirmed_by, server(named));
    }
}

#[test]
fn a_late_confirmation_does_not_revoke_a_reported_end_of_trust() {
    let (state, lease) = trusted_until(clock::now());
    assert!(state.trusted_for().is_zero());
    assert!(matches!(state.confirm(&lease), Confirmed::TooLate));
    assert!(state.trusted_for().is_zero(), "held again");

    // No caller has read the end of trust, so the confirmation counts.
    let (state, lease) = trusted_until(clock::now());
    assert!(!matches!(state.confirm(&lease), Confirmed::TooLate));
    assert!(!state.trusted_for().is_zero());
}

/// After a suspended process continues, the loss counts from the end of trust, whether the guard or
/// the scheduler detects it.
#[test]
fn a_loss_counts_from_the_end_of_trust() {
    let ago = Duration::from_secs(5);
    for asked in [false, true] {
        let (state, _) = trusted_until(clock::now() - ago);
        if asked {
            assert!(state.trusted_for().is_zero());
        }
        let loss = state.lose(LostReason::Expired);
        assert!(loss.elapsed() >= ago, "{loss}");
        assert!(loss.elapsed() < ago * 10, "{loss}");
        assert_eq!(state.lose(LostReason::Forced), loss);
    }
}

#[test]
fn a_grant_that_is_confirmed_too_late_is_lost() {
    let (mut table, _) = table_of(0);
    let (state, lease) = trusted_until(clock::now());
    let (id, now) = (state.grant.id, clock::now());
    table.add(lease, Arc::clone(&state), now);
    assert!(state.trusted_for().is_zero());
    table.entries.get_mut(&id).unwrap().lease.renewing();
    let mut events = LeaseEvents::default();
    table.answered(id, now, (Answer::Renewed, None), &mut events);
    assert!(matches!(state.status(), Status::Lost(loss) if loss.reason() == LostReason::Expired));
    assert_eq!(events.lost.len(), 1);
    assert!(table.entries.is_empty());
    events.deliver();
}

#[test]
fn a_failure_is_not_logged_for_a_lease_that_is_lost() {
    let fails = |table: &mut LeaseTable, state: &GrantState| {
        let mut events = LeaseEvents::default();
        let failed = Failed {
            part: vec![(state.grant.clone(), Ttl::Infinite)],
            sent: clock::now(),
            error: StoreError::rejected("permission denied", None),
        };
        table.begin_outage(&failed, &mut events);
        events
    };
    let (mut table, _) = table_of(1);
    let state = Arc::clone(&table.entries.values().next().unwrap().state);
    let logged = fails(&mut table, &state).failing.expect("logged");
    assert_eq!(logged.still_held().count(), 1);
    let mut events = LeaseEvents::default();
    table.mark_lost(state.grant.id, LostReason::Refused.into(), &mut events);
    events.deliver();
    // Neither if the lease is lost after the failure, nor if the failure follows the loss.
    assert_eq!(logged.still_held().count(), 0);
    assert!(fails(&mut table, &state).failing.is_none());
}

#[test]
fn a_reported_end_of_trust_is_final_with_concurrent_readers() {
    for round in 0..400 {
        let (state, lease) = trusted_until(clock::now() + Duration::from_micros(100));
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    let mut ended = false;
                    for _ in 0..2_000 {
                        let now_ended = state.trusted_for().is_zero();
                        assert!(now_ended || !ended, "held again, in round {round}");
                        ended = now_ended;
                    }
                });
            }
            start.wait();
            let at = clock::now() + Duration::from_micros(round % 100);
            while clock::now() < at {}
            state.confirm(&lease);
        });
    }
}

#[test]
fn a_lost_lease_leaves_the_table_and_notifies_its_guard() {
    let (mut table, start) = table_of(1);
    let state = Arc::clone(&table.entries.values().next().unwrap().state);
    let mut events = LeaseEvents::default();
    assert!(
        table
            .begin_due(start + Duration::from_secs(40), &mut events)
            .together
            .is_empty()
    );
    assert!(matches!(state.status(), Status::Lost(loss) if loss.reason() == LostReason::Expired));
    events.deliver();
    assert!(table.entries.is_empty() && table.deadlines.is_empty());
}

/// A round holds the table while it records losses, and the end of a guard waits for the table.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "blocks the thread of the test only"
)]
fn a_loss_that_is_recorded_while_a_guard_ends_is_its_error() {
    let locks = block_on(Locks::connect("memory:")).unwrap();
    type End = fn(LockGuard) -> Result<(), Error>;
    let endings: [(&str, End); 2] = [
        ("released", |guard| block_on(guard.release())),
        ("handed over", |guard| guard.into_ticket().map(drop)),
    ];
    for (name, end) in endings {
        let guard = block_on(locks.lock(name).acquire()).unwrap();
        let (client, id) = (Arc::clone(&guard.client), guard.state.grant.id);
        let mut events = LeaseEvents::default();
        let mut table = client.scheduler.table();
        let ending = thread::spawn(move || end(guard));
        thread::sleep(Duration::from_millis(100));
        table.mark_lost(id, LostReason::Forced.into(), &mut events);
        drop(table);
        let error = ending.join().unwrap().unwrap_err();
        let Error::Lost { reason, .. } = error else {
            panic!("{name}: {error}");
        };
        assert_eq!(reason, LostReason::Forced, "{name}");
    }
}
