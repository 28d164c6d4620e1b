//! What a semaphore shows of its rows.

use super::*;
use crate::info::{limit_state, limit_to_json};
use crate::messages::Permits;

fn held(slot: u16, allowed: i64) -> LockRow {
    LockRow {
        slot: Slot::Permit(slot),
        permits: Some(allowed),
        ..row()
    }
}

fn free(slot: u16, allowed: i64) -> LockRow {
    LockRow {
        expires_in: None,
        grant: None,
        ..held(slot, allowed)
    }
}

fn limit(number: i64) -> LockRow {
    LockRow {
        slot: Slot::AnyPermit,
        permits: Some(number),
        ..LockRow::default()
    }
}

fn semaphore(rows: Vec<LockRow>) -> Semaphore {
    LockRow::semaphore(LockName::new("api").unwrap(), rows)
}

#[test]
fn the_row_of_an_operators_limit_is_no_permit() {
    let shown = semaphore(vec![limit(2), held(0, 3), free(1, 3)]);
    let slots: Vec<_> = shown.permits.iter().map(|permit| permit.slot).collect();
    assert_eq!((shown.limit, slots), (Some(2), vec![Some(0), Some(1)]));
    assert_eq!(semaphore(vec![held(0, 3)]).limit, None);
}

#[test]
fn permits_that_are_held_are_counted() {
    assert_eq!(semaphore(vec![free(0, 3)]).held(), 0);
    assert_eq!(
        semaphore(vec![held(0, 3), free(1, 3), held(2, 3)]).held(),
        2
    );
}

#[test]
fn the_limit_is_the_operators_or_the_greatest_of_a_holder_or_the_greatest_ever() {
    let all = || vec![free(0, 9), held(1, 3), held(2, 5)];
    let with_operators = vec![limit(2)].into_iter().chain(all());
    assert_eq!(
        semaphore(with_operators.collect()).effective_limit(),
        Some(2)
    );
    assert_eq!(semaphore(all()).effective_limit(), Some(5));
    let none_held = vec![free(0, 9), free(1, 4)];
    assert_eq!(semaphore(none_held).effective_limit(), Some(9));
    assert_eq!(semaphore(Vec::new()).effective_limit(), None);
}

/// A waiter observes the permits itself, and the next grant may be that of any of them.
#[test]
fn of_the_holder_whose_permit_is_free_first_a_waiter_is_told_who_and_when() {
    let permits = Permits {
        limit: 2,
        held: 2,
        observed: Vec::new(),
    };
    let first = LockRow {
        slot: Slot::Permit(0),
        ..on_cluster(30_000_000)
    };
    let Outcome::Held(holder) = no_permit_free(permits.clone(), Some(&first)) else {
        panic!("no permit is free");
    };
    assert_eq!(holder.holder, first.holder);
    assert_eq!(holder.free_in, first.holder().free_in);
    assert_eq!(holder.permits, Some(permits.clone()));
    assert_eq!((holder.token, holder.grant), (None, None));
    assert_eq!(holder.observed_expiry, None);
    let paused = Holder {
        permits: Some(permits.clone()),
        ..Holder::default()
    };
    assert_eq!(no_permit_free(permits, None), Outcome::Held(paused));
}

#[test]
fn a_semaphore_is_one_json_object() {
    let shown = semaphore(vec![limit(2), held(0, 3), free(1, 3)]);
    let permits: Vec<_> = shown.permits.iter().map(LockInfo::to_json).collect();
    let expected = format!(
        r#"{{"name":"api","limit":2,"of":2,"held":1,"permits":[{},{}]}}"#,
        permits[0], permits[1]
    );
    assert_eq!(shown.to_json(), expected);
}

#[test]
fn an_operators_limit_in_a_list_has_the_keys_of_a_permit() {
    assert_eq!((limit_state(0), limit_state(1)), ("paused", "free"));
    let name = LockName::new("api").unwrap();
    assert_eq!(
        limit_to_json(&name, 0),
        r#"{"name":"api","state":"paused","holder":null,"token":null,"grant":null,"held_for":null,"free_in":null,"acquired_at":null,"renewed_at":null,"expires_at":null,"metadata":null,"slot":null,"permits":null,"limit":0}"#
    );
}
