//! Events as lines, and back.

use super::*;

fn all() -> Vec<Event> {
    let id = || "w.1".to_owned();
    let why = || "a \"reason\"".to_owned();
    let asked = |mode| What::Asked {
        request: 1,
        lock: "a".into(),
        mode,
        wait: None,
    };
    let guarded = |shown| What::Guarded {
        request: 1,
        id: id(),
        shown,
    };
    let whats = [
        asked(Mode::Exclusive),
        asked(Mode::Shared),
        asked(Mode::Permit(3)),
        What::GaveUp {
            request: 1,
            why: why(),
        },
        What::Granted {
            request: 1,
            token: 7,
            slot: None,
        },
        What::Granted {
            request: 1,
            token: 7,
            slot: Some(2),
        },
        What::Trusted {
            request: 1,
            before: 5,
            lasting: 9,
        },
        What::Lost {
            request: 1,
            reason: "expired".into(),
            ended: Some(11),
        },
        What::Releasing { request: 1 },
        What::Released {
            request: 1,
            ok: true,
        },
        What::Write {
            request: 1,
            id: id(),
        },
        What::Committing { id: id() },
        What::Committed { id: id() },
        What::Refused {
            id: id(),
            why: why(),
        },
        What::Failed {
            id: id(),
            why: why(),
        },
        guarded(Shown::Held),
        guarded(Shown::Outdated),
        guarded(Shown::Nothing),
        What::Clock { skew: -300 },
    ];
    let event = |what| Event {
        at: 12,
        process: "rust-0.1".into(),
        what,
    };
    whats.into_iter().map(event).collect()
}

#[test]
fn a_written_history_is_read_back() {
    let events = all();
    let text: String = events
        .iter()
        .map(|e| format!("{}\n", e.to_json()))
        .collect();
    assert_eq!(parse_lines(&text), Ok(events));
}

#[test]
fn only_an_incomplete_last_line_is_skipped() {
    let lines: Vec<String> = all().iter().map(|e| e.to_json().to_string()).collect();
    let torn = format!("{}\n{}", lines[0], &lines[1][..lines[1].len() / 2]);
    assert_eq!(parse_lines(&torn).expect("readable").len(), 1);
    assert!(parse_lines(&format!("{torn}\n{}", lines[2])).is_err());
}
