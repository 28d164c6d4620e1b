//! The actions that are possible in a state.

use crate::decide;
use crate::spec::{Action, Flaw, Kind, Protocol};
use crate::state::{Body, Client, Hold, State, Work};

impl Protocol {
    /// Lists all actions that are possible in a state.
    pub(crate) fn possible(&self, state: &State, acts: &mut Vec<Action>) {
        let two = state.trusting() > 1 || state.bodies() > 1;
        if state.broken.is_some() || two && self.slow.is_some() {
            return;
        }
        let room = state.net.len() < self.net;
        for (c, client) in (0_u8..).zip(&state.clients) {
            self.with_the_lock(c, client, room, state.ticket.is_some(), acts);
            match &client.work {
                Work::None => {}
                Work::Looked { .. } if self.flaw == Flaw::Unfenced => acts.push(Action::Write(c)),
                Work::Looked { .. } => {
                    acts.push(Action::Fence(c, false));
                    if self.kind == Kind::Cluster {
                        acts.push(Action::Fence(c, true));
                    }
                }
                Work::In(_) => acts.extend([Action::Commit(c), Action::Abort(c)]),
            }
        }
        for (i, message) in (0_u8..).zip(&state.net) {
            acts.push(Action::Lose(i));
            if message.content.is_reply() {
                acts.push(Action::Receive(i));
            } else {
                let nodes = match self.kind {
                    Kind::Cluster => self.ahead.len() as u8,
                    _ => 1,
                };
                acts.extend((0..nodes).map(|node| Action::Execute(i, node)));
            }
        }
        self.ticks(state, acts);
    }

    /// What a client may do to get the lock, to keep it or to release it. `room`: whether another
    /// message may be under way.
    fn with_the_lock(
        &self,
        c: u8,
        client: &Client,
        room: bool,
        ticket: bool,
        acts: &mut Vec<Action>,
    ) {
        match &client.hold {
            Hold::Idle if room && client.work == Work::None => {
                acts.push(Action::Ask(c));
                if ticket {
                    acts.push(Action::Resume(c));
                }
            }
            Hold::Idle => {}
            Hold::Asking { .. } => {
                acts.push(Action::Crash(c));
                if room {
                    acts.push(Action::GiveUp(c));
                }
            }
            &Hold::Held {
                trust,
                undecided,
                renewal,
                body,
                ..
            } => {
                acts.push(Action::Crash(c));
                let outside = matches!(body, Body::Outside { .. });
                // To release the lock instead takes a message.
                if outside && (room || trust > 0) {
                    acts.push(Action::Enter(c));
                }
                let held_back = self.kind != Kind::Postgres && client.is_at_work();
                let may_renew = decide::may_renew(trust, undecided, held_back)
                    || self.flaw == Flaw::RenewalAcquires;
                if room && renewal.is_none() && may_renew {
                    acts.push(Action::Renew(c));
                }
                if renewal.is_some() {
                    acts.push(Action::Forget(c));
                }
                if room && !client.is_at_work() {
                    acts.push(Action::Release(c));
                }
                let may_fence = decide::may_fence(trust, undecided);
                if !outside && client.work == Work::None && may_fence {
                    acts.push(Action::Look(c));
                    if self.tickets {
                        acts.push(Action::HandOver(c));
                    }
                }
            }
        }
    }

    /// Time passes, with every set of clocks that may lag or run ahead.
    fn ticks(&self, state: &State, acts: &mut Vec<Action>) {
        let (mut slow, mut fast) = (vec![0], vec![0]);
        for (c, client) in state.clients.iter().enumerate() {
            let add = |sets: &mut Vec<u8>| {
                let with: Vec<u8> = sets.iter().map(|set| set | 1 << c).collect();
                sets.extend(with);
            };
            if client.may_lag(self.slow) {
                add(&mut slow);
            }
            let watch = client.watch.as_ref();
            if watch.is_some_and(|watch| watch.left > 0 && watch.slips < self.fast) {
                add(&mut fast);
            }
        }
        for slow in slow {
            acts.extend(fast.iter().map(|fast| Action::Tick(slow, *fast)));
        }
    }
}
