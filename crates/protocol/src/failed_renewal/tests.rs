use LostReason::*;

use super::*;
use crate::messages::Kind;
use crate::values::grant::{GrantId, Token};
use crate::values::name::LockName;
use crate::values::slot::Slot;

type Change = fn(&mut LockRow, &str);

fn grant() -> Grant {
    Grant {
        slot: Slot::Lock,
        name: LockName::new("job").unwrap(),
        token: Token::from_db(7),
        id: GrantId::of([7; 16]),
        holder: "me".into(),
        confirmed_by: None,
    }
}

/// The row of the grant after a change, which gets the id of the grant.
fn row(change: Change) -> LockRow {
    let id = grant().id.to_string();
    let mut row = LockRow {
        name: "job".into(),
        holder: Some("me".into()),
        token: 7,
        grant: Some(id.clone()),
        expires_in: Some(1_000_000),
        ..LockRow::default()
    };
    change(&mut row, &id);
    row
}

fn other() -> Option<String> {
    Some("other".to_owned())
}

/// Each change to the row, with the reason of the loss on the server that confirmed the grant, and
/// on another one.
const CHANGES: [(&str, Change, Option<LostReason>, Option<LostReason>); 19] = [
    ("none", |_, _| (), None, None),
    (
        "its lease ended",
        |r, _| r.expires_in = Some(0),
        Some(Expired),
        Some(Failover),
    ),
    (
        "a later grant",
        |r, _| r.token = 8,
        Some(Preempted),
        Some(Preempted),
    ),
    (
        "a later grant of another holder",
        |r, _| (r.token, r.grant, r.holder) = (8, other(), other()),
        Some(Preempted),
        Some(Failover),
    ),
    (
        "a later grant of the same holder",
        |r, _| (r.token, r.grant) = (8, other()),
        Some(Preempted),
        Some(Failover),
    ),
    (
        "a later grant that names it",
        |r, id| {
            (r.token, r.grant, r.metadata) = (8, other(), Some(format!(r#"{{"over":"{id}"}}"#)))
        },
        Some(Preempted),
        Some(Preempted),
    ),
    (
        "a later grant that was released",
        |r, _| (r.token, r.grant, r.holder) = (8, None, other()),
        Some(Preempted),
        Some(Failover),
    ),
    (
        "a later grant that names it and was released",
        |r, id| (r.token, r.grant, r.metadata) = (8, None, Some(format!(r#"{{"over":"{id}"}}"#))),
        Some(Preempted),
        Some(Preempted),
    ),
    (
        "released by force",
        |r, _| (r.token, r.grant) = (8, None),
        Some(Forced),
        Some(Forced),
    ),
    (
        "an earlier token",
        |r, _| r.token = 6,
        Some(Failover),
        Some(Failover),
    ),
    (
        "an earlier token, released",
        |r, _| (r.token, r.grant) = (6, None),
        Some(Failover),
        Some(Failover),
    ),
    (
        "a legacy client",
        |r, _| r.is_legacy = true,
        Some(Preempted),
        Some(Preempted),
    ),
    (
        "released",
        |r, _| r.grant = None,
        Some(Released),
        Some(Released),
    ),
    (
        "resumed and released",
        |r, id| (r.grant, r.holder, r.metadata) = (None, other(), Some(id.to_owned())),
        Some(Released),
        Some(Released),
    ),
    (
        "the same token of another holder, released",
        |r, _| (r.grant, r.holder) = (None, other()),
        Some(Failover),
        Some(Failover),
    ),
    (
        "another grant of the same token",
        |r, _| r.grant = other(),
        Some(Failover),
        Some(Failover),
    ),
    (
        "resumed",
        |r, id| (r.grant, r.metadata) = (other(), Some(format!(r#"{{"from":"{id}"}}"#))),
        Some(Resumed),
        Some(Resumed),
    ),
    (
        "another holder, by hand",
        |r, _| r.holder = other(),
        Some(Preempted),
        Some(Preempted),
    ),
    (
        "other metadata",
        |r, _| (r.grant, r.metadata) = (other(), other()),
        Some(Failover),
        Some(Failover),
    ),
];

#[test]
fn each_way_of_losing_has_its_reason() {
    for (what, change, here, _) in CHANGES {
        assert_eq!(
            failed_renewal_outcome(&grant(), Some(&row(change))).lost(),
            here,
            "{what}"
        );
    }
    assert_eq!(failed_renewal_outcome(&grant(), None).lost(), Some(RowGone));
}

/// Another server lacks what it does not know of a trusted grant.
#[test]
fn another_server_forgot_what_it_does_not_know() {
    for (what, change, _, elsewhere) in CHANGES {
        assert_eq!(
            failed_renewal_outcome_elsewhere(&grant(), Some(&row(change))).lost(),
            elsewhere,
            "{what}"
        );
    }
    assert_eq!(
        failed_renewal_outcome_elsewhere(&grant(), None).lost(),
        Some(Failover)
    );
}

#[test]
fn a_row_that_holds_the_grant_is_locked_by_another_transaction() {
    assert_eq!(
        failed_renewal_outcome(&grant(), Some(&row(|_, _| ()))),
        Renewal::Busy
    );
    assert_eq!(
        failed_renewal_outcome_elsewhere(&grant(), Some(&row(|_, _| ()))),
        Renewal::Busy
    );
}

/// The present holder that the loss names, as it is shown.
fn present_holder(outcome: Renewal) -> Option<String> {
    match outcome {
        Renewal::Lost(gone) => gone.now.map(|now| now.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_loss_names_the_present_holder() {
    for (what, change, expected) in [
        (
            "another client holds it",
            (|r, _| {
                (r.token, r.holder, r.grant) = (8, Some("you".into()), other());
                r.held_for = Some(3_000_000);
            }) as Change,
            Some("held by you for 3s, token 8"),
        ),
        (
            "the same holder holds it again",
            |r, _| (r.token, r.grant) = (8, other()),
            Some("held by me, token 8"),
        ),
        (
            "a legacy client holds it: the token is that of an earlier grant",
            |r, _| {
                (r.is_legacy, r.holder) = (true, Some("old".into()));
                r.held_for = Some(3_000_000);
            },
            Some("held by old"),
        ),
        (
            "it is free",
            |r, _| (r.token, r.grant, r.expires_in) = (8, None, None),
            None,
        ),
        (
            "it is expired",
            |r, _| (r.token, r.expires_in) = (8, Some(0)),
            None,
        ),
        ("its own lease ended", |r, _| r.expires_in = Some(0), None),
        (
            "by hand: a greater token, but its own grant",
            |r, _| r.token = 8,
            None,
        ),
        (
            "by hand: its own token, but no grant",
            |r, _| r.grant = None,
            None,
        ),
        (
            "by hand: its own grant, but another holder",
            |r, _| r.holder = other(),
            Some("held by other, token 7"),
        ),
    ] {
        let now = present_holder(failed_renewal_outcome(&grant(), Some(&row(change))));
        assert_eq!(now.as_deref(), expected, "{what}");
    }
}

fn ticket() -> ResumeCommand {
    ResumeCommand {
        slot: Slot::Lock,
        token: Token::from_db(7),
        from: grant().id,
        to: crate::messages::AcquireCommand {
            name: grant().name,
            grant: GrantId::of([8; 16]),
            holder: "next".into(),
            length: std::time::Duration::from_secs(30),
            not_within: None,
            metadata: "{}".into(),
            expired_version: None,
            kind: Kind::Exclusive,
        },
    }
}

#[test]
fn a_ticket_is_judged_without_knowing_its_holder() {
    for (what, change, expected) in [
        ("nothing changed", (|_, _| ()) as Change, None),
        (
            "its lease ended",
            |r, _| r.expires_in = Some(0),
            Some(Expired),
        ),
        (
            "released, by any holder",
            |r, _| (r.grant, r.holder) = (None, other()),
            Some(Released),
        ),
        (
            "resumed",
            |r, id| (r.grant, r.metadata) = (other(), Some(id.to_owned())),
            Some(Resumed),
        ),
        // The holder in the row cannot tell a release by force from a later grant.
        (
            "a greater token",
            |r, _| (r.token, r.grant) = (8, None),
            Some(Preempted),
        ),
        ("a smaller token", |r, _| r.token = 6, Some(Failover)),
    ] {
        assert_eq!(
            failed_resume_outcome(&ticket(), Some(&row(change))).lost(),
            expected,
            "{what}"
        );
    }
    assert_eq!(failed_resume_outcome(&ticket(), None).lost(), Some(RowGone));
}

#[test]
fn a_ticket_that_is_too_late_names_the_present_holder() {
    let later = row(|r, _| (r.token, r.holder) = (8, Some("you".into())));
    let now = present_holder(failed_resume_outcome(&ticket(), Some(&later)));
    assert_eq!(now.as_deref(), Some("held by you, token 8"));
}
