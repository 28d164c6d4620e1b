//! What clients and the database do.

use super::{Action, Client, Content, Flaw, Message, Row, Semaphore, State};
use crate::decide::{self, TTL};
use crate::spec::Kind;

/// From this age on nothing differs.
const OLD: u8 = TTL + 1;

impl State {
    pub(super) fn send(&mut self, client: u8, content: Content, heard: bool) {
        self.net.push(Message {
            client,
            content,
            heard,
        });
    }

    /// What was asked before gets no reply any more.
    fn close(&mut self, c: u8) {
        self.net
            .retain(|m| m.client != c || !m.heard || !m.content.is_reply());
        for message in self.net.iter_mut().filter(|m| m.client == c) {
            message.heard = false;
        }
    }

    /// A row was changed: observations of it are void.
    fn changed(&mut self, slot: u8) {
        for message in &mut self.net {
            match &mut message.content {
                Content::Acquire { observed, .. } if *observed == Some(slot) => *observed = None,
                _ => {}
            }
        }
        for client in &mut self.clients {
            if let Client::Asking { watch, .. } = client
                && watch.is_some_and(|(of, _)| of == slot)
            {
                *watch = None;
            }
        }
    }
}

impl Semaphore {
    /// The limit in force.
    pub(super) fn limit(&self, state: &State) -> u8 {
        match state.limited {
            0 => self.slots,
            set => self.limits[usize::from(set) - 1],
        }
    }

    pub(super) fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Ask(c) => {
                let grant = state.unused_grant();
                state.asks += 1;
                state.clients[usize::from(c)] = Client::Asking {
                    grant,
                    age: 0,
                    watch: None,
                };
                self.ask(state, c);
            }
            Action::Repeat(c) => {
                state.close(c);
                if let Client::Asking { age, .. } = &mut state.clients[usize::from(c)] {
                    *age = 0;
                }
                self.ask(state, c);
            }
            Action::GiveUp(c) | Action::Release(c) => release(state, c),
            Action::Renew(c) => {
                if let Client::Held {
                    slot,
                    token,
                    grant,
                    renewal,
                    ..
                } = &mut state.clients[usize::from(c)]
                {
                    *renewal = Some(0);
                    let (slot, token, grant) = (*slot, *token, *grant);
                    state.send(c, Content::Renew { grant, slot, token }, true);
                }
            }
            Action::Crash(c) => {
                state.close(c);
                state.clients[usize::from(c)] = Client::Idle;
            }
            Action::Execute(i, node, slot) => self.execute(state, i.into(), node.into(), slot),
            Action::Receive(i) => receive(state, i.into()),
            Action::Lose(i) => drop(state.net.remove(i.into())),
            Action::Limit => state.limited += 1,
            Action::Tick => self.tick(state),
        }
    }

    fn ask(&self, state: &mut State, c: u8) {
        let limit = self.limit(state);
        let Client::Asking { grant, watch, .. } = &mut state.clients[usize::from(c)] else {
            return;
        };
        let observed = match watch {
            Some((slot, 0)) => Some(*slot),
            _ => None,
        };
        let grant = *grant;
        let acquire = Content::Acquire {
            grant,
            observed,
            limit,
        };
        state.send(c, acquire, true);
    }

    fn tick(&self, state: &mut State) {
        let least = self.ahead.iter().min().copied().unwrap_or(0).min(0);
        for row in &mut state.rows {
            row.left = (row.left - 1).max(least);
        }
        for client in &mut state.clients {
            match client {
                Client::Idle => {}
                Client::Asking { age, watch, .. } => {
                    *age = (*age + 1).min(OLD);
                    if let Some((_, left)) = watch {
                        *left = left.saturating_sub(1);
                    }
                }
                Client::Held { trust, renewal, .. } => {
                    *trust = trust.saturating_sub(1);
                    if let Some(age) = renewal {
                        *age = (*age + 1).min(OLD);
                    }
                }
            }
        }
    }

    /// The slots that an acquire may take.
    pub(super) fn free(
        &self,
        state: &State,
        grant: u8,
        observed: Option<u8>,
        limit: u8,
        node: usize,
    ) -> Vec<u8> {
        let own = state.rows.iter().any(|row| row.grant == grant);
        if own && self.flaw != Flaw::RepeatTakesAnother {
            return Vec::new();
        }
        let limit = match self.flaw {
            Flaw::OldLimit => limit,
            _ => self.limit(state),
        };
        let free = |slot: &u8| {
            let row = &state.rows[usize::from(*slot)];
            let over = match self.kind {
                Kind::Cluster if self.flaw == Flaw::NodeClock => row.left <= self.ahead[node],
                Kind::Cluster if self.flaw == Flaw::ObservesAnother => observed.is_some(),
                Kind::Cluster => observed == Some(*slot),
                _ => row.left <= 0,
            };
            row.grant == 0 || over && row.grant != grant
        };
        (0..limit.min(self.slots)).filter(free).collect()
    }

    fn execute(&self, state: &mut State, i: usize, node: usize, slot: u8) {
        let Message {
            client: c,
            content,
            heard,
        } = state.net[i].clone();
        let reply = match content {
            Content::Acquire {
                grant,
                observed,
                limit,
            } => self.acquire(state, grant, observed, limit, (node, slot)),
            Content::Take { grant, slot } => Some(self.grant(state, grant, slot, node)),
            Content::Renew { grant, slot, token } => {
                Some(self.renew(state, grant, slot, token, node))
            }
            Content::Release { grant, slot } => {
                self.give_back(state, grant, slot);
                None
            }
            _ => None,
        };
        if let Some(reply) = reply.filter(|_| heard) {
            // Without room for both, the statement is not executed again.
            if state.net.len() >= self.net {
                state.net.remove(i);
            }
            state.send(c, reply, true);
        }
    }

    fn acquire(
        &self,
        state: &mut State,
        grant: u8,
        observed: Option<u8>,
        limit: u8,
        (node, slot): (usize, u8),
    ) -> Option<Content> {
        let free = self.free(state, grant, observed, limit, node);
        if free.contains(&slot) {
            if self.flaw == Flaw::LooksThenTakes {
                return Some(Content::Free { grant, slot });
            }
            return Some(self.grant(state, grant, slot, node));
        }
        if !free.is_empty() {
            // Another choice of the same statement.
            return None;
        }
        if let Some(own) = state.rows.iter().position(|row| row.grant == grant) {
            return Some(self.repeated(state, own, node));
        }
        let below = usize::from(self.limit(state).min(self.slots));
        let rows = &state.rows[..below];
        if rows.iter().any(|row| row.grant == 0) {
            state.broken = Some("a waiter is forgotten");
        }
        // With a single primary the client learns nothing from this reply.
        let slot = slot.min(below.saturating_sub(1) as u8);
        (self.kind == Kind::Cluster && below > 0).then_some(Content::Busy { grant, slot })
    }

    /// The reply to an earlier request of this grant was lost.
    fn repeated(&self, state: &mut State, own: usize, node: usize) -> Content {
        let row = &mut state.rows[own];
        let (grant, token, slot) = (row.grant, row.token, own as u8);
        let mut length = row.left.max(0).unsigned_abs();
        if self.flaw == Flaw::RepeatTrustsWhole {
            length = TTL;
        } else if self.kind == Kind::Cluster {
            // The clock of this node cannot tell how much is left, so it is renewed.
            row.left = row.left.max(self.ahead[node] + TTL as i8);
            length = TTL;
            state.changed(slot);
        }
        Content::Granted {
            grant,
            slot,
            token,
            length,
        }
    }

    fn grant(&self, state: &mut State, grant: u8, slot: u8, node: usize) -> Content {
        if slot >= self.limit(state) {
            state.broken = Some("a slot above the limit");
        }
        let twice = |(at, row): (usize, &Row)| at != usize::from(slot) && row.grant == grant;
        if state.rows.iter().enumerate().any(twice) {
            state.broken = Some("two permits of one request");
        }
        let row = &mut state.rows[usize::from(slot)];
        row.token += 1;
        if row.token <= row.top {
            state.broken = Some("a token goes back");
        }
        row.top = row.top.max(row.token);
        (row.grant, row.left) = (grant, self.ahead[node] + TTL as i8);
        let token = row.token;
        state.changed(slot);
        Content::Granted {
            grant,
            slot,
            token,
            length: TTL,
        }
    }

    fn renew(&self, state: &mut State, grant: u8, slot: u8, token: u8, node: usize) -> Content {
        let ahead = self.ahead[node];
        let row = &mut state.rows[usize::from(slot)];
        let alive = self.kind == Kind::Cluster || row.left > 0;
        let own = row.grant == grant && row.token == token;
        let renews = own || self.flaw == Flaw::RenewsBySlot && row.grant != 0;
        if !renews || !alive {
            return Content::Lost { grant };
        }
        if !own {
            state.broken = Some("another grant's lease is renewed");
            return Content::Lost { grant };
        }
        row.left = row.left.max(ahead + TTL as i8);
        state.changed(slot);
        Content::Renewed { grant }
    }

    fn give_back(&self, state: &mut State, grant: u8, slot: Option<u8>) {
        for at in 0..self.slots {
            let row = &mut state.rows[usize::from(at)];
            if row.grant != grant || slot.is_some_and(|slot| slot != at) {
                continue;
            }
            (row.grant, row.left) = (0, self.ahead.iter().min().copied().unwrap_or(0).min(0));
            if self.flaw == Flaw::ReleaseForgets {
                row.token = 0;
            }
            state.changed(at);
        }
    }
}

fn receive(state: &mut State, i: usize) {
    let Message {
        client: c, content, ..
    } = state.net.remove(i);
    let at = usize::from(c);
    match (content, state.clients[at].clone()) {
        (
            Content::Granted {
                grant,
                slot,
                token,
                length,
            },
            Client::Asking {
                grant: mine, age, ..
            },
        ) if grant == mine => {
            state.close(c);
            let trust = decide::granted_for(age, length);
            state.clients[at] = Client::Held {
                slot,
                token,
                grant,
                trust,
                renewal: None,
            };
            // A guard is not handed out after the end of trust.
            if trust == 0 {
                release(state, c);
            }
        }
        (Content::Free { grant, slot }, Client::Asking { grant: mine, .. }) if grant == mine => {
            state.close(c);
            state.send(c, Content::Take { grant, slot }, true);
        }
        (
            Content::Busy { grant, slot },
            Client::Asking {
                grant: mine,
                age,
                watch,
            },
        ) if grant == mine => {
            state.close(c);
            // It counts from the reply on. The greatest difference of the clocks is part of a lease.
            let watch = watch.or(Some((slot, TTL)));
            state.clients[at] = Client::Asking { grant, age, watch };
        }
        (
            Content::Renewed { grant },
            Client::Held {
                slot,
                token,
                grant: mine,
                trust,
                renewal: Some(age),
            },
        ) if grant == mine => {
            state.close(c);
            state.clients[at] = Client::Held {
                slot,
                token,
                grant,
                trust: decide::renewed(trust, 0, age).0,
                renewal: None,
            };
        }
        (Content::Lost { grant }, Client::Held { grant: mine, .. }) if grant == mine => {
            state.close(c);
            state.clients[at] = Client::Idle;
        }
        _ => {}
    }
}

/// Releases whatever the client may have.
fn release(state: &mut State, c: u8) {
    state.close(c);
    let client = std::mem::replace(&mut state.clients[usize::from(c)], Client::Idle);
    match client {
        Client::Idle => {}
        Client::Asking { grant, .. } => {
            state.send(c, Content::Release { grant, slot: None }, false);
        }
        Client::Held { grant, slot, .. } => {
            let slot = Some(slot);
            state.send(c, Content::Release { grant, slot }, false);
        }
    }
}
