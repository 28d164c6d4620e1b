//! The protocol as a model for stateright.

use stateright::{Model, Property};

use crate::properties::properties;
use crate::spec::{Action, Flaw, Protocol};
use crate::state::{Client, Hold, Row, State, Work};

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let client = Client {
            hold: Hold::Idle,
            work: Work::None,
            watch: None,
        };
        vec![State {
            row: Row {
                left: self.long_ago(),
                length: 0,
                token: 0,
                grant: 0,
            },
            top: 0,
            clients: vec![client; self.clients.into()],
            ticket: None,
            net: Vec::new(),
            broken: None,
        }]
    }

    fn actions(&self, state: &State, acts: &mut Vec<Action>) {
        self.possible(state, acts);
    }

    fn next_state(&self, state: &State, act: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, act);
        if self.flaw != Flaw::RenewalAcquires {
            next.forget_what_cannot_matter();
        }
        next.rename();
        if self.flaw == Flaw::None {
            // Clients are interchangeable. A counterexample keeps them apart, to be readable.
            let other = next.mirrored();
            next = next.min(other);
        }
        Some(next)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.top <= self.grants
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties(self)
    }
}
