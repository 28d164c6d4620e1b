//! The checker on histories of semaphores, and of readers and writers.

use super::story::Story;
use super::*;
use crate::history::What;
use crate::target::Mode;

const TWO: Mode = Mode::Permit(2);

/// A permit, and the name of its process.
fn permit(story: Story, process: &str, span: (u64, u64), token: i64, slot: u16) -> Story {
    story.inside(span, process, TWO, token, Some(slot))
}

#[test]
fn as_many_permits_as_the_limit_are_no_violation() {
    let story = permit(Story::new(), "x", (10, 100), 7, 0);
    let story = permit(story, "y", (20, 200), 3, 1);
    // The slots have tokens of their own.
    let story = permit(story, "z", (110, 300), 8, 0);
    assert_eq!(story.found(), []);
}

#[test]
fn one_slot_held_twice_is_found() {
    let story = permit(Story::new(), "x", (10, 100), 7, 0);
    let story = permit(story, "y", (20, 200), 8, 0);
    assert_eq!(story.found(), [Kind::TwoHolders]);
}

#[test]
fn a_token_of_one_slot_that_goes_back_is_found() {
    let story = permit(Story::new(), "x", (10, 100), 7, 0);
    let story = permit(story, "y", (110, 200), 6, 0);
    // Granted, and then trusted.
    assert_eq!(story.found(), [Kind::Token, Kind::Token]);
}

#[test]
fn more_permits_than_the_limit_are_found_without_slots_too() {
    let story = |third| {
        Story::new()
            .inside((10, 100), "x", TWO, 0, None)
            .inside((20, 200), "y", TWO, 0, None)
            .inside((third, 300), "z", TWO, 0, None)
            .found()
    };
    assert_eq!(story(50), [Kind::TooMany]);
    assert_eq!(story(150), []);
}

#[test]
fn a_slot_that_is_not_below_the_limit_is_found() {
    let story = permit(Story::new(), "x", (10, 100), 7, 2);
    assert_eq!(story.found(), [Kind::TooMany]);
}

/// The holders of the higher limit may go on; others may not come above the lower one.
#[test]
fn holders_of_a_higher_limit_drain() {
    let story = |slot| {
        let story = Story::new().limited(5, Some(3));
        let story = permit(story, "x", (10, 400), 7, 2);
        let story = permit(story, "y", (20, 100), 7, 1).limited(200, Some(1));
        permit(story, "z", (300, 500), 8, slot)
    };
    assert_eq!(story(0).found(), []);
    assert_eq!(story(1).found(), [Kind::TooMany]);
    let paused = permit(Story::new().limited(5, Some(0)), "x", (10, 100), 7, 0);
    assert_eq!(paused.found(), [Kind::TooMany]);
}

/// A waiter for a permit, while `x` holds one of two.
fn waited(until: u64) -> Story {
    Story::new()
        .asked_as(5, "x", TWO)
        .granted_slot(10, "x", 7, Some(0))
        .trusted(11, "x", 1300)
        .trusted(9000, "x", 1300)
        .asked_as(20, "y", TWO)
        .granted_slot(until, "y", 8, Some(1))
}

#[test]
fn a_waiter_for_a_free_permit_is_found() {
    assert_eq!(waited(5000).found(), []);
    assert_eq!(waited(9000).found(), [Kind::ForgottenWaiter]);
}

#[test]
fn a_lower_limit_excuses_a_waiter() {
    for limit in [0, 1] {
        let story = waited(9000).limited(30, Some(limit)).limited(8000, None);
        assert_eq!(story.found(), []);
    }
    let raised = waited(9000).limited(30, Some(3));
    assert_eq!(raised.found(), [Kind::ForgottenWaiter]);
}

/// A process that is in with a token.
fn user(story: Story, process: &str, mode: Mode, span: (u64, u64), token: i64) -> Story {
    story.inside(span, process, mode, token, None)
}

#[test]
fn readers_may_be_in_together_with_one_token() {
    let story = user(Story::new(), "x", Mode::Shared, (10, 100), 8);
    let story = user(story, "y", Mode::Shared, (20, 200), 8);
    let story = user(story, "z", Mode::Exclusive, (210, 300), 9);
    assert_eq!(story.found(), []);
}

#[test]
fn a_writer_beside_a_reader_is_found_whoever_came_first() {
    for (first, second) in [
        (Mode::Shared, Mode::Exclusive),
        (Mode::Exclusive, Mode::Shared),
    ] {
        let story = user(Story::new(), "x", first, (10, 100), 8);
        let story = user(story, "y", second, (50, 200), 9);
        assert_eq!(story.found(), [Kind::ReaderAndWriter]);
    }
}

/// The writer is found although a reader that stays longer came between.
#[test]
fn each_reader_that_is_in_counts() {
    let story = user(Story::new(), "w", Mode::Exclusive, (10, 100), 8);
    let story = user(story, "x", Mode::Shared, (20, 400), 9);
    let story = user(story, "y", Mode::Shared, (30, 50), 9);
    let found = story.found();
    assert_eq!(found, [Kind::ReaderAndWriter, Kind::ReaderAndWriter]);
}

#[test]
fn two_writers_of_a_shared_lock_are_two_holders() {
    let story = user(Story::new(), "x", Mode::Exclusive, (10, 100), 8);
    let story = user(story, "y", Mode::Exclusive, (50, 200), 9);
    assert_eq!(story.found(), [Kind::TwoHolders]);
}

/// A writer that gave up has taken a token: later readers have a greater one than `x`, which is
/// still in and writes.
#[test]
fn a_reader_goes_on_beside_readers_with_greater_tokens() {
    let story = user(Story::new(), "x", Mode::Shared, (10, 500), 8);
    let story = user(story, "y", Mode::Shared, (100, 300), 10);
    let mut story = story
        .wrote(150, "y", 10)
        .wrote(200, "x", 8)
        .trusted(350, "x", 100);
    // They change nothing.
    story.0.counters.insert("a".into(), 0);
    assert_eq!(story.found(), []);
}

#[test]
fn a_token_of_a_writer_that_is_not_greater_than_that_of_a_reader_before_is_found() {
    let story = |token| {
        let story = user(Story::new(), "x", Mode::Shared, (10, 100), 8);
        user(story, "y", Mode::Exclusive, (110, 200), token)
    };
    assert_eq!(story(9).found(), []);
    assert_eq!(story(8).found(), [Kind::Token]);
}

#[test]
fn a_write_of_a_reader_after_the_next_writers_is_found() {
    let story = Story::new()
        .asked_as(0, "x", Mode::Shared)
        .granted(5, "x", 8)
        .asked(10, "y")
        .granted(1600, "y", 9)
        .wrote(1650, "y", 9)
        .wrote(1700, "x", 8);
    let mut story = story;
    story.0.counters.insert("a".into(), 1);
    assert_eq!(story.found(), [Kind::StaleWrite]);
}

/// It keeps new readers out while it waits, and then gives up.
#[test]
fn a_writer_that_waits_excuses_a_reader() {
    let story = |writer: bool| {
        let story = user(Story::new(), "x", Mode::Shared, (10, 100), 8)
            .asked_as(200, "y", Mode::Shared)
            .granted(9000, "y", 10);
        if !writer {
            return story.found();
        }
        let why = "busy".to_owned();
        let gave_up = What::GaveUp { request: 1, why };
        story.asked(150, "w").event(8500, "w", gave_up).found()
    };
    assert_eq!(story(true), []);
    assert_eq!(story(false), [Kind::ForgottenWaiter]);
}
