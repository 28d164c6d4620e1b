//! What must hold in every state of a shared lock, and which situations a walk must reach.

use stateright::Property;

use super::{Content, Hold, Role, Shared, State};

/// The readers that are in by the database, whether or not they know.
fn is_in(state: &State, wanted: Role) -> bool {
    let is = |hold: &Hold| matches!(hold, Hold::In { role, .. } if *role == wanted);
    state.clients.iter().any(|client| is(&client.hold))
}

pub(super) fn properties(shared: &Shared) -> Vec<Property<Shared>> {
    let mut all = vec![
        Property::always("nothing is broken", |_, s: &State| s.broken.is_none()),
        Property::always("no writer beside a reader", |_, s: &State| {
            s.trusting(Role::Writer) == 0 || s.trusting(Role::Reader) == 0
        }),
        Property::always("one writer", |_, s: &State| s.trusting(Role::Writer) <= 1),
        Property::sometimes("two readers at once", |_, s: &State| {
            s.trusting(Role::Reader) == 2
        }),
        Property::sometimes(
            "a flag that is not visible while a writer is in",
            |_, s: &State| {
                s.trusting(Role::Writer) == 1
                    && s.net
                        .iter()
                        .any(|m| matches!(m.content, Content::Flagging { .. }))
            },
        ),
        Property::sometimes(
            "a row of a dead reader while a writer counts",
            |_, s: &State| {
                let counts = |hold: &Hold| matches!(hold, Hold::Waiting { .. });
                s.clients.iter().any(|client| counts(&client.hold))
                    && s.readers.iter().any(|row| row.left == 0)
            },
        ),
        Property::sometimes(
            "a reader whose row is gone, and that does not know",
            |_, s: &State| {
                s.clients.iter().any(|client| match client.hold {
                    Hold::In {
                        role: Role::Reader,
                        grant,
                        ..
                    } => !s.readers.iter().any(|row| row.grant == grant),
                    _ => false,
                })
            },
        ),
    ];
    if shared.fences {
        all.extend(reached_with_fences());
    }
    if shared.downgrades {
        all.extend(reached_with_downgrades());
    }
    all
}

fn reached_with_fences() -> [Property<Shared>; 2] {
    [
        Property::sometimes(
            "a dead reader's open fence while a writer counts",
            |_, s: &State| {
                let counts = |hold: &Hold| matches!(hold, Hold::Waiting { .. });
                s.clients.iter().any(|client| counts(&client.hold))
                    && s.readers
                        .iter()
                        .any(|row| row.left == 0 && s.is_fenced(row.grant))
            },
        ),
        Property::sometimes(
            "a dead writer's open fence while a reader asks",
            |_, s: &State| {
                let asks = |hold: &Hold| matches!(hold, Hold::Flagging { .. });
                s.clients.iter().any(|client| asks(&client.hold))
                    && s.main.left == 0
                    && s.is_fenced(s.main.grant)
            },
        ),
    ]
}

fn reached_with_downgrades() -> [Property<Shared>; 2] {
    [
        Property::sometimes(
            "a downgrade whose lock another client has taken",
            |_, s: &State| {
                s.clients.iter().any(|client| {
                    matches!(client.hold, Hold::Downgrading { own, .. }
                        if s.main.grant != own && s.main.grant != 0)
                })
            },
        ),
        Property::sometimes("a downgraded reader", |_, s: &State| {
            is_in(s, Role::Reader)
                && s.net.iter().any(|m| {
                    matches!(m.content, Content::Release { role: Role::Writer, grant }
                        if grant == s.main.grant)
                })
        }),
    ]
}
