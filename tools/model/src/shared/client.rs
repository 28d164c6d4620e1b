//! What a client of a shared lock does.

use super::{Action, Client, Content, Flaw, Hold, Message, Role, Shared, State};
use crate::decide::{self, TTL};

/// From this age on nothing differs.
const OLD: u8 = TTL + 1;

impl Hold {
    fn pass(&mut self) {
        let older = |age: &mut u8| *age = (*age + 1).min(OLD);
        match self {
            Self::Idle => {}
            Self::Flagging { age, .. }
            | Self::Checking { age, .. }
            | Self::Taking { age, .. }
            | Self::Waiting { age, .. } => older(age),
            Self::In { trust, renewal, .. } => {
                *trust = trust.saturating_sub(1);
                renewal.iter_mut().for_each(older);
            }
            Self::Downgrading { trust, age, .. } => {
                *trust = trust.saturating_sub(1);
                older(age);
            }
        }
    }
}

impl State {
    /// The clients that trust a lease of this role.
    pub(super) fn trusting(&self, wanted: Role) -> usize {
        let trusts = |client: &&Client| match client.hold {
            Hold::In { role, trust, .. } => role == wanted && trust > 0,
            Hold::Downgrading { trust, .. } => wanted == Role::Writer && trust > 0,
            _ => false,
        };
        self.clients.iter().filter(trusts).count()
    }

    fn client(&mut self, c: u8) -> &mut Client {
        &mut self.clients[usize::from(c)]
    }

    pub(super) fn send(&mut self, client: u8, content: Content) {
        let heard = true;
        self.net.push(Message {
            client,
            content,
            heard,
        });
    }

    /// A request that no reply is awaited to.
    fn send_unheard(&mut self, client: u8, content: Content) {
        let heard = false;
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
}

impl Shared {
    pub(super) fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Ask(c, role) => self.ask(state, c, role),
            Action::Count(c) => {
                if let Hold::Waiting { token, grant, .. } = state.client(c).hold {
                    state.send(c, Content::Count { grant, token });
                }
            }
            Action::GiveUp(c) | Action::Release(c) => release(state, c),
            Action::Renew(c) => {
                if let Hold::In {
                    role,
                    token,
                    grant,
                    renewal,
                    ..
                } = &mut state.client(c).hold
                {
                    *renewal = Some(0);
                    let renew = Content::Renew {
                        role: *role,
                        token: *token,
                        grant: *grant,
                    };
                    state.send(c, renew);
                }
            }
            Action::Downgrade(c) => self.downgrade(state, c),
            Action::Crash(c) => {
                state.close(c);
                let client = state.client(c);
                client.hold = Hold::Idle;
                if let Some(tx) = &mut client.tx {
                    tx.orphan = true;
                }
            }
            Action::Fence(c) => self.fence(state, c.into()),
            Action::Commit(c) => self.commit(state, c.into()),
            Action::Abort(c) => state.client(c).tx = None,
            Action::Execute(i, behind) => self.execute(state, i.into(), behind),
            Action::Receive(i) => self.receive(state, i.into()),
            Action::Lose(i) => drop(state.net.remove(i.into())),
            Action::RetireReader(i) => drop(state.readers.remove(i.into())),
            Action::RetireWriter => state.main.free(),
            Action::Prune => state.prune(),
            Action::Tick => {
                state.main.left = state.main.left.saturating_sub(1);
                for row in &mut state.readers {
                    row.left = row.left.saturating_sub(1);
                }
                for message in &mut state.net {
                    if let Content::Flagging { left, .. } = &mut message.content {
                        *left = left.saturating_sub(1);
                    }
                }
                state.clients.iter_mut().for_each(|c| c.hold.pass());
            }
        }
    }

    fn ask(&self, state: &mut State, c: u8, role: Role) {
        let grant = state.unused_grant();
        state.asks += 1;
        match role {
            Role::Writer => {
                state.client(c).hold = Hold::Taking { grant, age: 0 };
                state.send(c, Content::Take { grant });
            }
            // The mistake: the token is only known from the flag.
            Role::Reader if self.flaw == Flaw::CheckFirst => {
                let token = state.main.token + 1;
                let age = 0;
                state.client(c).hold = Hold::Checking { token, grant, age };
                state.send(
                    c,
                    Content::Check {
                        grant,
                        token,
                        own: 0,
                    },
                );
            }
            Role::Reader => {
                state.client(c).hold = Hold::Flagging { grant, age: 0 };
                state.send(c, Content::Flag { grant, own: 0 });
            }
        }
    }

    fn downgrade(&self, state: &mut State, c: u8) {
        let unused = state.unused_grant();
        let Hold::In { grant, trust, .. } = state.client(c).hold else {
            return;
        };
        state.close(c);
        let role = Role::Writer;
        let first = self.flaw == Flaw::DowngradeReleasesFirst;
        if first {
            state.send_unheard(c, Content::Release { role, grant });
        }
        let trust = if first { 0 } else { trust };
        state.client(c).hold = Hold::Downgrading {
            own: grant,
            trust,
            grant: unused,
            age: 0,
            token: None,
        };
        let flag = Content::Flag {
            grant: unused,
            own: grant,
        };
        state.send(c, flag);
    }

    fn receive(&self, state: &mut State, i: usize) {
        let Message {
            client: c, content, ..
        } = state.net.remove(i);
        let grant = content.grant();
        let hold = state.client(c).hold.clone();
        match (content, hold) {
            (Content::Granted { token, .. }, Hold::Flagging { grant: mine, age })
                if grant == mine =>
            {
                if matches!(self.flaw, Flaw::NoCheck | Flaw::CheckFirst) {
                    return enter(state, c, Role::Reader, token, grant, age);
                }
                state.client(c).hold = Hold::Checking { token, grant, age };
                state.send(
                    c,
                    Content::Check {
                        grant,
                        token,
                        own: 0,
                    },
                );
            }
            (
                Content::Clear { .. },
                Hold::Checking {
                    token,
                    grant: mine,
                    age,
                },
            ) if grant == mine => {
                if self.flaw == Flaw::CheckFirst {
                    state.client(c).hold = Hold::Flagging { grant, age };
                    return state.send(c, Content::Flag { grant, own: 0 });
                }
                enter(state, c, Role::Reader, token, grant, age);
            }
            (Content::Granted { token, marked, .. }, Hold::Taking { grant: mine, age })
                if grant == mine =>
            {
                if !marked || self.flaw == Flaw::NoCount {
                    return enter(state, c, Role::Writer, token, grant, age);
                }
                state.client(c).hold = Hold::Waiting { token, grant, age };
            }
            (
                Content::Clear { .. },
                Hold::Waiting {
                    token,
                    grant: mine,
                    age,
                },
            ) if grant == mine => {
                enter(state, c, Role::Writer, token, grant, age);
            }
            (
                Content::NotClear { .. },
                Hold::Flagging { grant: mine, .. }
                | Hold::Checking { grant: mine, .. }
                | Hold::Taking { grant: mine, .. },
            ) if grant == mine => release(state, c),
            (content, hold) => self.receive_when_in(state, c, &content, hold),
        }
    }

    fn receive_when_in(&self, state: &mut State, c: u8, content: &Content, hold: Hold) {
        match (content, hold) {
            (
                Content::Renewed { grant },
                Hold::In {
                    role,
                    token,
                    grant: mine,
                    trust,
                    renewal: Some(age),
                },
            ) if *grant == mine => {
                state.client(c).hold = Hold::In {
                    role,
                    token,
                    grant: mine,
                    trust: decide::renewed(trust, 0, age).0,
                    renewal: None,
                };
            }
            (Content::Lost { grant }, Hold::In { grant: mine, .. }) if *grant == mine => {
                state.client(c).hold = Hold::Idle;
            }
            (
                Content::Granted { grant, token, .. },
                Hold::Downgrading {
                    own,
                    trust,
                    grant: mine,
                    age,
                    ..
                },
            ) if *grant == mine => {
                if matches!(
                    self.flaw,
                    Flaw::DowngradeUnchecked | Flaw::DowngradeReleasesFirst
                ) {
                    return downgraded(state, c, own, (*token, mine), age);
                }
                let (token, grant) = (*token, *grant);
                state.client(c).hold = Hold::Downgrading {
                    own,
                    trust,
                    grant,
                    age,
                    token: Some(token),
                };
                state.send(c, Content::Check { grant, token, own });
            }
            (
                Content::Clear { grant },
                Hold::Downgrading {
                    own,
                    grant: mine,
                    age,
                    token: Some(token),
                    ..
                },
            ) if *grant == mine => downgraded(state, c, own, (token, mine), age),
            (Content::NotClear { grant }, Hold::Downgrading { grant: mine, .. })
                if *grant == mine =>
            {
                release(state, c);
            }
            _ => {}
        }
    }
}

/// The last moment before the body: trust decides.
fn enter(state: &mut State, c: u8, role: Role, token: u8, grant: u8, age: u8) {
    let trust = decide::granted(age);
    state.close(c);
    state.client(c).hold = Hold::In {
        role,
        token,
        grant,
        trust,
        renewal: None,
    };
    if trust == 0 {
        release(state, c);
    }
}

/// The writer is a reader, and releases the row of the lock.
fn downgraded(state: &mut State, c: u8, own: u8, (token, grant): (u8, u8), age: u8) {
    enter(state, c, Role::Reader, token, grant, age);
    let role = Role::Writer;
    state.send_unheard(c, Content::Release { role, grant: own });
}

/// Releases whatever the client may have.
fn release(state: &mut State, c: u8) {
    state.close(c);
    let hold = std::mem::replace(&mut state.client(c).hold, Hold::Idle);
    let mut send = |role, grant| state.send_unheard(c, Content::Release { role, grant });
    match hold {
        Hold::Idle => {}
        Hold::Flagging { grant, .. } | Hold::Checking { grant, .. } => send(Role::Reader, grant),
        Hold::Taking { grant, .. } | Hold::Waiting { grant, .. } => send(Role::Writer, grant),
        Hold::In { role, grant, .. } => send(role, grant),
        Hold::Downgrading { own, grant, .. } => {
            send(Role::Reader, grant);
            send(Role::Writer, own);
        }
    }
}
