//! The protocol of a shared lock as a model for stateright.

use stateright::{Model, Property};

use super::properties::properties;
use super::{Action, Client, Content, Flaw, Hold, Main, Role, Shared, State};
use crate::decide;

impl Model for Shared {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let client = Client {
            hold: Hold::Idle,
            tx: None,
        };
        vec![State {
            main: Main {
                marked: false,
                left: 0,
                token: 0,
                grant: 0,
                was_free: true,
            },
            readers: Vec::new(),
            clients: vec![client; self.clients.into()],
            asks: 0,
            net: Vec::new(),
            top: (0, 0),
            broken: None,
        }]
    }

    fn actions(&self, state: &State, acts: &mut Vec<Action>) {
        let room = state.net.len() < self.net;
        for (c, client) in state.clients.iter().enumerate() {
            self.of_client(c as u8, client, room, state.asks, acts);
        }
        for (i, message) in state.net.iter().enumerate() {
            let i = i as u8;
            acts.push(Action::Lose(i));
            if message.content.is_reply() {
                acts.push(Action::Receive(i));
                continue;
            }
            acts.push(Action::Execute(i, false));
            let reads = matches!(
                message.content,
                Content::Check { .. } | Content::Count { .. }
            );
            if self.flaw == Flaw::ReadsBehind && reads {
                acts.push(Action::Execute(i, true));
            }
        }
        for (i, row) in state.readers.iter().enumerate() {
            let skipped = state.is_fenced(row.grant) && self.flaw != Flaw::RetiresFenced;
            if row.left == 0 && !skipped {
                acts.push(Action::RetireReader(i as u8));
            }
        }
        let main = &state.main;
        if main.grant != 0 && main.left == 0 && !state.is_fenced(main.grant) {
            acts.push(Action::RetireWriter);
        }
        if self.flaw == Flaw::PrunesMarked && main.is_free() && main.marked {
            acts.push(Action::Prune);
        }
        acts.push(Action::Tick);
    }

    fn next_state(&self, state: &State, act: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, act);
        if self.flaw != Flaw::ReadsBehind {
            next.main.was_free = true;
        }
        next.forget_what_cannot_matter();
        next.rename();
        if self.flaw == Flaw::None {
            // Clients are interchangeable. A counterexample keeps them apart, to be readable.
            let other = next.mirrored();
            next = next.min(other);
        }
        Some(next)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.main.token <= self.tokens
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties(self)
    }
}

impl Shared {
    /// What a client may do.
    fn of_client(&self, c: u8, client: &Client, room: bool, asks: u8, acts: &mut Vec<Action>) {
        if client.tx.is_some() {
            acts.extend([Action::Commit(c), Action::Abort(c)]);
        }
        match &client.hold {
            Hold::Idle if room && client.tx.is_none() && asks < self.asks => {
                acts.extend([Action::Ask(c, Role::Reader), Action::Ask(c, Role::Writer)]);
            }
            Hold::Idle => return,
            Hold::Waiting { .. } if room => acts.extend([Action::GiveUp(c), Action::Count(c)]),
            Hold::In {
                role,
                trust,
                renewal,
                ..
            } => {
                if room && renewal.is_none() && decide::may_renew(*trust, 0, false) {
                    acts.push(Action::Renew(c));
                }
                if room && client.tx.is_none() {
                    acts.push(Action::Release(c));
                }
                if client.tx.is_none() && self.fences {
                    acts.push(Action::Fence(c));
                }
                if room && self.downgrades && *role == Role::Writer && *trust > 0 {
                    acts.push(Action::Downgrade(c));
                }
            }
            _ if room => acts.push(Action::GiveUp(c)),
            _ => {}
        }
        acts.push(Action::Crash(c));
    }
}
