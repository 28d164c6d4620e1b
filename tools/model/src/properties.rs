//! The properties: what must hold in every state, and which situations a walk must reach.

use stateright::Property;

use crate::spec::{Kind, Protocol};
use crate::state::{Hold, State, Work};

/// All properties of a walk.
pub(crate) fn properties(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let mut all = situations();
    all.push(Property::always("nothing is broken", |_, s: &State| {
        s.broken.is_none()
    }));
    if protocol.slow.is_some() {
        all.push(Property::always("one trusted holder", |_, s: &State| {
            s.trusting() <= 1
        }));
        all.push(Property::always("one body at a time", |_, s: &State| {
            s.bodies() <= 1
        }));
    }
    all.push(Property::sometimes(
        "a reply after the end of trust, while another client is in its body",
        |_, s: &State| s.bodies() == 1 && s.clients.iter().any(|c| c.got_the_loss_late(false)),
    ));
    if protocol.tickets {
        all.push(Property::sometimes(
            "a ticket resumed after the end of trust, while another client is in its body",
            |_, s: &State| s.bodies() == 1 && s.clients.iter().any(|c| c.got_the_loss_late(true)),
        ));
    }
    match protocol.kind {
        Kind::Postgres => all.push(Property::sometimes(
            "a trusted lease under an old fence",
            |_, s: &State| {
                s.clients
                    .iter()
                    .any(|c| c.trusts() && matches!(&c.work, Work::In(tx) if tx.left <= 0))
            },
        )),
        Kind::MySql => all.push(Property::sometimes(
            "a lease that is suspended",
            |_, s: &State| {
                s.clients
                    .iter()
                    .any(|c| !c.trusts() && matches!(&c.work, Work::In(tx) if !tx.orphan))
            },
        )),
        Kind::Cluster => all.push(Property::sometimes(
            "a take-over under an open fence",
            |_, s: &State| s.fences().any(|tx| tx.changed && tx.token < s.row.token),
        )),
    }
    all
}

/// The hard situations, which a walk must reach.
fn situations() -> Vec<Property<Protocol>> {
    vec![
        Property::sometimes(
            "a take-over that the holder before has not noticed",
            |_, s: &State| {
                s.clients.iter().any(|c| match c.hold {
                    Hold::Held { grant, token, .. } => s.row.grant != grant && s.row.token > token,
                    _ => false,
                })
            },
        ),
        Property::sometimes(
            "a pause past the ttl with a write ahead",
            |m: &Protocol, s: &State| {
                (m.kind == Kind::Cluster || s.row.left <= 0)
                    && s.clients.iter().any(|c| {
                        !c.trusts()
                            && matches!(c.work, Work::Looked { grant, .. } if grant == s.row.grant)
                    })
            },
        ),
        Property::sometimes("a stale write is about to be tried", |_, s: &State| {
            s.clients
                .iter()
                .any(|c| matches!(c.work, Work::Looked { token, .. } if token < s.top))
        }),
        Property::sometimes("a grant whose reply is lost", |_, s: &State| {
            s.clients.iter().any(|c| match c.hold {
                Hold::Asking { grant, .. } => {
                    s.row.grant == grant && !s.net.iter().any(|m| m.content.grant() == grant)
                }
                _ => false,
            })
        }),
        Property::sometimes(
            "a statement of a dead client is under way",
            |_, s: &State| {
                s.net
                    .iter()
                    .any(|m| !m.heard && s.clients[usize::from(m.client)].hold == Hold::Idle)
            },
        ),
        Property::sometimes("a transaction outlives its client", |_, s: &State| {
            s.fences().any(|tx| tx.orphan)
        }),
    ]
}
