use super::*;

fn at(ms: u64) -> Option<String> {
    rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}

#[test]
fn times_are_written_in_rfc_3339_to_the_millisecond() {
    for (ms, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (951_868_800_000, "2000-03-01T00:00:00.000Z"),
        (1_709_210_096_042, "2024-02-29T12:34:56.042Z"),
        (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ] {
        assert_eq!(at(ms).as_deref(), Some(text));
    }
    let cut = SystemTime::UNIX_EPOCH + Duration::from_micros(1_999);
    assert_eq!(rfc3339(cut).as_deref(), Some("1970-01-01T00:00:00.001Z"));
}

#[test]
fn times_before_1970_and_after_9999_are_not_written() {
    assert_eq!(at(253_402_300_800_000), None);
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(rfc3339(before), None);
}

fn held(metadata: Option<&str>) -> LockInfo {
    LockInfo {
        slot: None,
        permits: None,
        waits_for: None,
        was_shared: false,
        shared_slot: None,
        name: LockName::new("a \"job\"").unwrap(),
        state: LockState::Held {
            free_in: Some(Duration::from_millis(1500)),
        },
        holder: Some("me".into()),
        token: Token::from_db(7),
        grant: Some("ab".into()),
        held_for: Some(Duration::from_micros(2_000_900)),
        acquired_at: Some(SystemTime::UNIX_EPOCH),
        renewed_at: None,
        expires_at: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)),
        metadata: metadata.map(str::to_owned),
        observed_expiry: None,
    }
}

fn resting() -> LockState {
    LockState::Resting {
        free_in: Duration::from_secs(40),
    }
}

fn expired() -> LockState {
    LockState::Expired {
        since: Duration::from_secs(5),
    }
}

#[test]
fn the_json_keeps_its_order_and_a_missing_value_is_null() {
    assert_eq!(
        held(Some(r#"{"pid":1}"#)).to_json(),
        r#"{"name":"a \"job\"","state":"held","holder":"me","token":7,"grant":"ab","held_for":2.0,"free_in":1.5,"acquired_at":"1970-01-01T00:00:00.000Z","renewed_at":null,"expires_at":"1970-01-01T00:00:01.500Z","metadata":{"pid":1}}"#
    );
}

#[test]
fn the_json_says_how_long_the_lease_lasts_in_each_state() {
    for (state, word, free_in) in [
        (LockState::Free, "free", json!(null)),
        (LockState::Held { free_in: None }, "held", json!(null)),
        (held(None).state, "held", json!(1.5)),
        (resting(), "resting", json!(40.0)),
        (expired(), "expired", json!(0.0)),
    ] {
        let info = LockInfo {
            state,
            ..held(None)
        };
        let all: Value = serde_json::from_str(&info.to_json()).unwrap();
        assert_eq!((&all["state"], &all["free_in"]), (&json!(word), &free_in));
    }
}

#[test]
fn the_description_is_the_callers_keys_before_the_program() {
    for (metadata, description) in [
        (r#"{"program":"worker","pid":1}"#, "worker"),
        (
            r#"{"program":"dblock","meta":{"ticket":"OPS-1","command":"report.sh"}}"#,
            "report.sh ticket=OPS-1",
        ),
        (r#"{"meta":{"n":1,"none":null}}"#, "n=1 none="),
        ("by hand", "by hand"),
        ("{}", ""),
    ] {
        assert_eq!(held(Some(metadata)).description(), description);
    }
    assert_eq!(held(None).description(), "");
}

#[test]
fn only_a_held_lock_has_a_holder() {
    let info = held(None);
    assert_eq!(info.holder_summary(), "held by me for 2s");
    let by = info.held_by().unwrap();
    assert_eq!(by.to_string(), "held by me for 2s, token 7");
    for state in [LockState::Free, expired()] {
        let info = LockInfo {
            state,
            ..held(None)
        };
        assert_eq!(info.holder_summary(), "free");
        assert_eq!(info.held_by(), None);
    }
}

#[test]
fn a_lock_that_rests_has_no_holder_but_the_latest_one() {
    let info = LockInfo {
        state: resting(),
        ..held(None)
    };
    assert!(!info.is_held());
    assert_eq!(info.holder_summary(), "resting for another 40s after me");
    assert_eq!(info.held_by(), None);
}

#[test]
fn a_legacy_holder_has_neither_token_nor_age() {
    let legacy = LockInfo {
        holder: None,
        grant: None,
        held_for: None,
        ..held(None)
    };
    assert_eq!(legacy.holder_summary(), "held by an unnamed holder");
    assert_eq!(legacy.held_by(), Some(HeldBy::new(None, None, None)));
}

#[test]
fn a_filter_selects_by_prefix_and_leaves_out_free_locks() {
    let all = ListFilter::new();
    let reports = all.clone().prefix("report-");
    let busy = reports.clone().not_free();
    for (name, is_free, selected) in [
        ("report-1", true, [true, true, false]),
        ("report-1", false, [true, true, true]),
        ("job", true, [true, false, false]),
        ("a report-1", false, [true, false, false]),
    ] {
        let selects = [&all, &reports, &busy].map(|filter| filter.matches(name, is_free));
        assert_eq!(selects, selected, "{name} {is_free}");
    }
}

#[test]
fn legacy_rows_are_pruned_only_if_asked_for() {
    let idle = Duration::from_secs(1);
    let prune = Prune::older_than(idle);
    assert_eq!((prune.idle, prune.legacy), (idle, false));
    let prune = prune.include_legacy();
    assert_eq!((prune.idle, prune.legacy), (idle, true));
}

#[test]
fn a_shared_holder_and_one_that_waits_for_them_are_told_apart() {
    assert_eq!(held(None).row_slot(), crate::Slot::Lock);
    let text = held(None).to_json();
    assert!(
        !text.contains("shared") && !text.contains("waits_for"),
        "{text}"
    );
    let reader = LockInfo {
        shared_slot: Some(-7),
        ..held(None)
    };
    assert!(reader.is_shared() && reader.row_slot() == crate::Slot::Shared(-7));
    assert!(
        reader.to_json().ends_with(r#","shared":true}"#),
        "{}",
        reader.to_json()
    );
    let waiting = LockInfo {
        waits_for: Some(2),
        ..held(None)
    };
    assert!(!waiting.is_shared());
    assert!(
        waiting.to_json().ends_with(r#","waits_for":2}"#),
        "{}",
        waiting.to_json()
    );
    let permit = LockInfo {
        slot: Some(3),
        ..held(None)
    };
    assert_eq!(permit.row_slot(), crate::Slot::Permit(3));
    assert!(permit.to_json().contains(r#""slot":3,"permits":null}"#));
}

#[test]
fn a_lock_is_taken_while_it_is_held_or_rests() {
    let in_state = |state| LockInfo {
        state,
        ..held(None)
    };
    assert!(held(None).is_taken() && in_state(resting()).is_taken());
    let since = Duration::ZERO;
    for state in [LockState::Free, LockState::Expired { since }] {
        assert!(!in_state(state).is_taken());
    }
}
