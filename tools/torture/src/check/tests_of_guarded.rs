//! The checker on writes to a guarded table.

use super::story::Story;
use super::*;
use crate::history::{Shown, What};

/// What a write does, as its process records it.
impl Story {
    /// A write that begins at one moment and sends its COMMIT at another, which is answered.
    fn guarded(self, (begun, committing): (u64, u64), process: &str, shown: Shown) -> Self {
        let id = guarded_id(process, begun);
        let what = What::Guarded {
            request: 1,
            id: id.clone(),
            shown,
        };
        self.event(begun, process, what)
            .event(committing, process, What::Committing { id: id.clone() })
            .event(committing + 2, process, What::Committed { id })
    }

    /// The row of a write.
    fn there(mut self, begun: u64, process: &str, token: i64, older: i64) -> Self {
        let id = guarded_id(process, begun);
        self.0.guarded.push(GuardedRow { id, token, older });
        self
    }

    /// A write that the guard refuses.
    fn guard_refused(self, at: u64, process: &str, shown: Shown) -> Self {
        let id = guarded_id(process, at);
        let what = What::Guarded {
            request: 1,
            id: id.clone(),
            shown,
        };
        let why = "is guarded by lock".to_owned();
        self.event(at, process, what)
            .event(at + 1, process, What::Refused { id, why })
    }
}

fn guarded_id(process: &str, begun: u64) -> String {
    format!("{process} guarded at {begun}")
}

/// `x` has the lock, and then `y`, whose first write sees one write of `x`.
fn taken_over() -> Story {
    Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1300)
        .guarded((10, 12), "x", Shown::Held)
        .there(10, "x", 7, 0)
        .asked(20, "y")
        .granted(1600, "y", 8)
        .trusted(1601, "y", 1300)
        .guarded((1610, 1612), "y", Shown::Held)
        .there(1610, "y", 8, 1)
}

#[test]
fn writes_of_one_holder_after_the_other_are_no_violation() {
    let story = taken_over();
    assert_eq!(numbers(&story.0).guarded.committed, 2);
    assert_eq!(story.found(), []);
}

#[test]
fn a_write_that_is_committed_after_the_next_grant_was_known_is_found() {
    let story = taken_over()
        .guarded((1400, 1605), "x", Shown::Held)
        .there(1400, "x", 7, 0);
    let mut story = story;
    // As if the later write had seen it, so that the times alone show it.
    story.0.guarded[1].older = 2;
    assert_eq!(story.found(), [Kind::LateGuardedWrite]);
}

/// The frozen process sends its COMMIT at once when it goes on, and records so earlier.
#[test]
fn a_write_that_a_later_grants_write_did_not_see_is_found() {
    let story = taken_over()
        .guarded((1400, 1590), "x", Shown::Held)
        .there(1400, "x", 7, 0);
    assert_eq!(story.found(), [Kind::LateGuardedWrite]);
}

/// Between two writes of the later grant: the second one has seen it.
#[test]
fn each_write_of_a_later_grant_must_have_seen_the_same() {
    let story = taken_over()
        .guarded((1400, 1590), "x", Shown::Held)
        .there(1400, "x", 7, 0)
        .guarded((1700, 1702), "y", Shown::Held)
        .there(1700, "y", 8, 2);
    assert_eq!(story.found(), [Kind::LateGuardedWrite]);
}

/// The lease has ended, and no other client has been granted the lock.
#[test]
fn a_late_write_before_the_next_grant_is_no_violation() {
    let story = taken_over()
        .guarded((1400, 1595), "x", Shown::Held)
        .there(1400, "x", 7, 0);
    let mut story = story;
    story.0.guarded[1].older = 2;
    assert_eq!(story.found(), []);
}

#[test]
fn a_write_of_an_unanswered_commit_counts_as_soon_as_it_is_there() {
    let story = |there: bool| {
        let id = guarded_id("x", 1400);
        let begun = What::Guarded {
            request: 1,
            id: id.clone(),
            shown: Shown::Held,
        };
        let story = taken_over()
            .event(1400, "x", begun)
            .event(1605, "x", What::Committing { id });
        match there {
            true => story.there(1400, "x", 7, 0).found(),
            false => story.found(),
        }
    };
    assert_eq!(story(false), []);
    assert!(story(true).contains(&Kind::LateGuardedWrite));
}

#[test]
fn a_write_without_a_ticket_is_found_although_its_process_holds_the_lock() {
    let story = taken_over()
        .guarded((1650, 1652), "y", Shown::Nothing)
        .there(1650, "y", 0, 0);
    assert_eq!(story.found(), [Kind::UnheldGuardedWrite]);
}

#[test]
fn a_write_with_an_outdated_ticket_is_found() {
    let story = taken_over()
        .guarded((1650, 1652), "x", Shown::Outdated)
        .there(1650, "x", 0, 0);
    assert_eq!(story.found(), [Kind::UnheldGuardedWrite]);
}

#[test]
fn a_write_that_no_process_has_recorded_is_found() {
    let story = taken_over().there(1650, "z", 8, 1);
    assert_eq!(story.found(), [Kind::UnheldGuardedWrite]);
}

#[test]
fn a_write_with_the_token_of_another_grant_is_found() {
    let story = taken_over()
        .guarded((1650, 1652), "y", Shown::Held)
        .there(1650, "y", 9, 2);
    assert_eq!(story.found(), [Kind::UnheldGuardedWrite]);
}

#[test]
fn a_confirmed_write_that_is_not_in_the_guarded_table_is_found() {
    let mut story = taken_over();
    story.0.guarded.pop();
    assert_eq!(story.found(), [Kind::LostIncrement]);
}

#[test]
fn a_write_that_a_later_grant_saw_and_that_is_gone_is_found() {
    let mut story = taken_over();
    story.0.guarded[1].older = 2;
    assert_eq!(story.found(), [Kind::LostIncrement]);
}

#[test]
fn refused_writes_are_counted_by_what_they_showed() {
    let story = taken_over()
        .guard_refused(1700, "x", Shown::Held)
        .guard_refused(1710, "x", Shown::Outdated)
        .guard_refused(1720, "z", Shown::Nothing)
        .guard_refused(1730, "z", Shown::Nothing)
        .guard_refused(1740, "y", Shown::Held);
    let guarded = numbers(&story.0).guarded;
    let counts = (guarded.late, guarded.outdated, guarded.bare);
    assert_eq!(counts, (1, 1, 2));
    assert_eq!(guarded.holders, 1, "y trusts its lock");
    assert_eq!(guarded.failed, 0);
    assert_eq!(story.found(), []);
}

/// The lock was lost and no client has it: refused, but not late.
#[test]
fn a_refusal_before_a_later_grant_is_not_counted_as_late() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1300)
        .guard_refused(1700, "x", Shown::Held);
    assert_eq!(numbers(&story.0).guarded, GuardedNumbers::default());
}
