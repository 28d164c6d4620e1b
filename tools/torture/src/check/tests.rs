//! The checker on histories written for it, with and without violations.

use super::story::{MS, Story};
use super::*;
use crate::history::What;

#[test]
fn holders_one_after_the_other_are_no_violation() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1300)
        .asked(10, "y")
        .wrote(20, "x", 7)
        .released(100, "x")
        .granted(103, "y", 8)
        .trusted(104, "y", 1300)
        .wrote(110, "y", 8)
        .released(200, "y");
    assert_eq!(numbers(&story.0).grants, 2);
    assert_eq!(story.found(), []);
}

#[test]
fn a_take_over_when_trust_has_ended_is_no_violation() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1345)
        .asked(10, "y")
        .granted(1505, "y", 8)
        .trusted(1506, "y", 1300)
        .event(
            1600,
            "x",
            What::Lost {
                request: 1,
                ended: None,
                reason: "expired".into(),
            },
        );
    assert_eq!(story.found(), []);
}

/// A reply after the end of trust: the holder checks, and only then knows.
fn handed_out_late(ended: u64) -> Story {
    let lost = What::Lost {
        request: 1,
        ended: Some(ended * MS),
        reason: "expired".into(),
    };
    Story::new()
        .asked(0, "x")
        .asked(10, "y")
        .granted(1505, "y", 8)
        .trusted(1506, "y", 1300)
        .granted(2000, "x", 7)
        .event(2015, "x", lost)
}

#[test]
fn a_lock_handed_out_after_the_end_of_trust_and_two_bodies_at_once_are_found() {
    let found = handed_out_late(1350).found();
    // And the token is older than one that was granted before; but no holder trusted it.
    assert_eq!(found, [Kind::TwoHolders, Kind::HandedOutLost]);
}

#[test]
fn a_process_that_was_busy_between_its_last_check_and_its_body_is_no_violation() {
    assert_eq!(handed_out_late(1950).found(), []);
}

#[test]
fn two_clients_that_trust_at_once_are_found() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1300)
        .asked(10, "y")
        .granted(900, "y", 8)
        .trusted(901, "y", 1300);
    assert_eq!(story.found(), [Kind::TwoHolders]);
}

/// Trust includes the time that the holder trusted in advance: that it was frozen meanwhile changes
/// nothing.
#[test]
fn trust_lasts_from_one_check_to_the_next() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 0)
        .trusted(6, "x", 0)
        .asked(10, "y")
        .granted(900, "y", 0)
        .trusted(901, "y", 0)
        .trusted(950, "y", 0)
        .trusted(2000, "x", 0);
    assert_eq!(story.found(), [Kind::TwoHolders]);
}

#[test]
fn a_check_that_was_frozen_before_its_answer_is_no_trust_at_its_end() {
    let late = What::Trusted {
        request: 1,
        before: 10 * MS,
        lasting: 1300 * MS,
    };
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .asked(20, "y")
        .granted(1600, "y", 8)
        .trusted(1601, "y", 1300)
        .event(1700, "x", late);
    assert_eq!(story.found(), []);
}

#[test]
fn a_token_that_goes_back_or_is_repeated_is_found() {
    let twice = |second| {
        Story::new()
            .asked(0, "x")
            .granted(5, "x", 7)
            .trusted(6, "x", 1300)
            .released(50, "x")
            .asked(60, "y")
            .granted(65, "y", second)
            .found()
    };
    assert_eq!(twice(8), []);
    assert_eq!(twice(7), [Kind::Token]);
    assert_eq!(twice(6), [Kind::Token]);
}

/// The order of the replies is not that of the grants.
#[test]
fn replies_may_overtake_each_other() {
    let story = Story::new()
        .asked(0, "x")
        .asked(0, "y")
        .granted(5, "y", 8)
        .granted(2000, "x", 7);
    assert_eq!(story.found(), []);
}

#[test]
fn a_token_that_is_trusted_after_a_newer_one_was_granted_is_found() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1300)
        .asked(10, "y")
        .granted(1600, "y", 8)
        .trusted(1601, "y", 1300)
        .released(1650, "y")
        .trusted(1800, "x", 1300);
    assert!(story.found().contains(&Kind::Token));
}

#[test]
fn a_write_after_that_of_a_newer_holder_is_found() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .asked(10, "y")
        .granted(1600, "y", 8)
        .wrote(1650, "y", 8)
        .wrote(1700, "x", 7);
    assert_eq!(story.found(), [Kind::StaleWrite]);
}

#[test]
fn a_write_after_a_newer_grant_is_found_even_without_a_newer_write() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .asked(10, "y")
        .granted(1600, "y", 8)
        .wrote(1700, "x", 7);
    assert_eq!(story.found(), [Kind::StaleWrite]);
}

/// The write was fenced when the older lease ended: no other client had been granted the lock when
/// it was committed.
#[test]
fn a_long_write_before_the_next_grant_is_no_violation() {
    let story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1300)
        .wrote(3000, "x", 7)
        .asked(10, "y")
        .granted(3010, "y", 8);
    assert_eq!(story.found(), []);
}

#[test]
fn a_lost_increment_is_found() {
    let mut story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .wrote(10, "x", 7)
        .wrote(20, "x", 7);
    story.0.counters.insert("a".into(), 1);
    assert_eq!(story.found(), [Kind::LostIncrement]);
}

#[test]
fn a_confirmed_write_that_is_not_there_is_found() {
    let mut story = Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .wrote(10, "x", 7);
    story.0.rows.clear();
    story.0.counters.insert("a".into(), 0);
    assert_eq!(story.found(), [Kind::LostIncrement]);
}

#[test]
fn a_commit_that_was_not_answered_may_be_there_or_not() {
    for there in [true, false] {
        let mut story = Story::new()
            .asked(0, "x")
            .granted(5, "x", 7)
            .wrote(10, "x", 7);
        story.0.events.pop();
        if !there {
            story.0.rows.clear();
            story.0.counters.insert("a".into(), 0);
        }
        assert_eq!(numbers(&story.0).unknown, 1);
        assert_eq!(story.found(), []);
    }
}

fn waited(until: u64) -> Story {
    Story::new()
        .asked(0, "x")
        .granted(5, "x", 7)
        .trusted(6, "x", 1300)
        .asked(10, "y")
        .released(100, "x")
        .granted(until, "y", 8)
}

#[test]
fn a_waiter_for_a_free_lock_is_found() {
    assert_eq!(waited(5000).found(), []);
    assert_eq!(waited(9000).found(), [Kind::ForgottenWaiter]);
}

#[test]
fn an_outage_excuses_a_waiter() {
    assert_eq!(waited(9000).outage(None, 1000, 4000).found(), []);
    assert_eq!(waited(9000).outage(Some("y"), 1000, 4000).found(), []);
    let other = waited(9000).outage(Some("z"), 1000, 4000);
    assert_eq!(other.found(), [Kind::ForgottenWaiter]);
}

#[test]
fn the_lease_of_a_dead_holder_excuses_a_waiter() {
    let story = |until| {
        Story::new()
            .asked(0, "x")
            .granted(5, "x", 7)
            .trusted(2000, "x", 1300)
            .asked(10, "y")
            .granted(until, "y", 8)
    };
    assert_eq!(story(9000).found(), []);
    assert_eq!(story(13_000).found(), [Kind::ForgottenWaiter]);
}
