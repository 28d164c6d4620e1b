//! The semaphore as a model for stateright: its actions, and what must hold.

use stateright::{Model, Property};

use super::{Action, Client, Content, Flaw, Row, Semaphore, State};
use crate::decide;
use crate::spec::Kind;

impl State {
    /// The slots that clients trust.
    fn trusted(&self) -> Vec<u8> {
        let slot = |client: &Client| match client {
            Client::Held {
                slot, trust: 1.., ..
            } => Some(*slot),
            _ => None,
        };
        self.clients.iter().filter_map(slot).collect()
    }
}

impl Model for Semaphore {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let row = Row {
            left: 0,
            token: 0,
            top: 0,
            grant: 0,
        };
        vec![State {
            rows: vec![row; self.slots.into()],
            limited: 0,
            clients: vec![Client::Idle; self.clients.into()],
            asks: 0,
            net: Vec::new(),
            broken: None,
        }]
    }

    fn actions(&self, state: &State, acts: &mut Vec<Action>) {
        let room = state.net.len() < self.net;
        for (c, client) in state.clients.iter().enumerate() {
            let c = c as u8;
            match client {
                Client::Idle if room && state.asks < self.asks => acts.push(Action::Ask(c)),
                Client::Idle => {}
                Client::Asking { .. } => {
                    acts.push(Action::Crash(c));
                    if room {
                        acts.extend([Action::Repeat(c), Action::GiveUp(c)]);
                    }
                }
                Client::Held { trust, renewal, .. } => {
                    acts.push(Action::Crash(c));
                    if room {
                        acts.push(Action::Release(c));
                    }
                    if room && renewal.is_none() && decide::may_renew(*trust, 0, false) {
                        acts.push(Action::Renew(c));
                    }
                }
            }
        }
        for (i, message) in state.net.iter().enumerate() {
            let i = i as u8;
            acts.push(Action::Lose(i));
            if message.content.is_reply() {
                acts.push(Action::Receive(i));
                continue;
            }
            for node in 0..self.ahead.len() {
                let slots = match &message.content {
                    Content::Acquire {
                        grant,
                        observed,
                        limit,
                    } => self.free(state, *grant, *observed, *limit, node),
                    _ => vec![0],
                };
                let choices = if slots.is_empty() {
                    (0..self.slots).collect()
                } else {
                    slots
                };
                acts.extend(
                    choices
                        .into_iter()
                        .map(|slot| Action::Execute(i, node as u8, slot)),
                );
            }
        }
        if usize::from(state.limited) < self.limits.len() {
            acts.push(Action::Limit);
        }
        acts.push(Action::Tick);
    }

    fn next_state(&self, state: &State, act: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, act);
        next.forget_what_cannot_matter();
        next.rename();
        if self.flaw == Flaw::None {
            // Clients are interchangeable. A counterexample keeps them apart, to be readable.
            for one in 0..self.clients {
                for other in one + 1..self.clients {
                    let exchanged = next.mirrored(one, other);
                    next = next.min(exchanged);
                }
            }
        }
        Some(next)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.rows.iter().all(|row| row.top <= self.tokens)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("nothing is broken", |_, s: &State| s.broken.is_none()),
            Property::always("one holder of a slot", |_, s: &State| {
                let mut slots = s.trusted();
                slots.sort_unstable();
                slots.windows(2).all(|pair| pair[0] != pair[1])
            }),
            Property::always("no more holders than permits", |m: &Self, s: &State| {
                let most = m.limits.iter().copied().max().unwrap_or(0).max(m.slots);
                s.trusted().len() <= most.into()
            }),
            Property::sometimes("as many holders as permits", |m: &Self, s: &State| {
                s.trusted().len() == usize::from(m.slots)
            }),
            Property::sometimes(
                "a slot taken over, which its holder does not know",
                |_, s: &State| {
                    s.clients.iter().any(|client| match client {
                        Client::Held { slot, token, .. } => {
                            s.rows[usize::from(*slot)].token > *token
                        }
                        _ => false,
                    })
                },
            ),
            Property::sometimes("a grant whose reply is lost", |_, s: &State| {
                s.clients.iter().any(|client| match client {
                    Client::Asking { grant, .. } => {
                        s.rows.iter().any(|row| row.grant == *grant) && s.net.is_empty()
                    }
                    _ => false,
                })
            }),
        ];
        if !self.limits.is_empty() {
            all.push(Property::sometimes(
                "a holder above a lowered limit",
                |m: &Self, s: &State| s.trusted().iter().any(|slot| *slot >= m.limit(s)),
            ));
        }
        if self.kind == Kind::Cluster {
            all.push(Property::sometimes(
                "a slot whose lease was observed",
                |_, s: &State| {
                    s.clients.iter().any(|client| {
                        matches!(
                            client,
                            Client::Asking {
                                watch: Some((_, 0)),
                                ..
                            }
                        )
                    })
                },
            ));
        }
        all
    }
}
