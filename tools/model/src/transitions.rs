//! What an action makes of a state.

use crate::decide;
use crate::spec::{Action, Flaw, Protocol};
use crate::state::{Body, Content, Hold, Message, State, Ticket, Watch, Work};

impl Protocol {
    /// Applies an action.
    pub(crate) fn act(&self, state: &mut State, act: Action) {
        match act {
            Action::Ask(c) => self.ask(state, c),
            Action::GiveUp(c) => give_up(state, c),
            Action::Renew(c) => renew(state, c),
            Action::Forget(c) => {
                state.close_connection(c);
                if let Hold::Held { renewal, .. } = &mut state.client(c).hold {
                    *renewal = None;
                }
            }
            Action::Release(c) => state.send_release(c),
            Action::Enter(c) => self.enter(state, c),
            Action::HandOver(c) => {
                if let Hold::Held { token, grant, .. } = state.client(c).hold {
                    state.close_connection(c);
                    state.client(c).hold = Hold::Idle;
                    state.ticket = Some(Ticket { token, grant });
                }
            }
            Action::Resume(c) => resume(state, c),
            Action::Crash(c) => crash(state, c),
            Action::Look(c) => {
                if let Hold::Held { token, grant, .. } = state.client(c).hold {
                    state.client(c).work = Work::Looked { token, grant };
                }
            }
            Action::Fence(c, behind) => self.fence(state, c, behind),
            Action::Write(c) => {
                if let Work::Looked { token, .. } = state.client(c).work {
                    state.wrote(token);
                    state.client(c).work = Work::None;
                }
            }
            Action::Commit(c) => self.commit(state, c),
            Action::Abort(c) => self.ended(state, c),
            Action::Execute(i, node) => self.execute(state, i.into(), node.into()),
            Action::Receive(i) => self.receive(state, i.into()),
            Action::Lose(i) => {
                state.net.remove(i.into());
            }
            Action::Tick(slow, fast) => self.tick(state, slow, fast),
        }
    }

    fn ask(&self, state: &mut State, c: u8) {
        let grant = state.unused_grant();
        let client = state.client(c);
        client.hold = asking(grant, false);
        let content = match &client.watch {
            Some(watch) if watch.left == 0 => Content::TakeOver { grant },
            watch => {
                let long = |watch: &Watch| watch.waited >= self.longest_watch();
                if watch.as_ref().is_some_and(long) {
                    state.broken = Some("a waiter is forgotten");
                }
                Content::Acquire { grant }
            }
        };
        state.send(c, content, false);
    }

    /// The last moment before the caller's body: trust decides, however late the reply was.
    fn enter(&self, state: &mut State, c: u8) {
        let client = state.client(c);
        let trusts = client.trusts();
        let Hold::Held { body, .. } = &mut client.hold else {
            return;
        };
        let hands_out = match body {
            Body::Outside { resumed: false } => self.flaw == Flaw::HandsOutEnded,
            _ => self.flaw == Flaw::ResumesEnded,
        };
        match (trusts, hands_out) {
            (true, _) => *body = Body::Inside,
            (false, true) => *body = Body::Unaware,
            (false, false) => state.send_release(c),
        }
    }

    fn receive(&self, state: &mut State, i: usize) {
        let Message {
            client: c,
            content,
            changed,
            ..
        } = state.net.remove(i);
        // One reply ends it: what else comes belongs to no question.
        state.close_connection(c);
        let client = state.client(c);
        match (content, &mut client.hold) {
            (
                Content::Granted { token, grant },
                &mut Hold::Asking {
                    grant: asked,
                    age,
                    slips,
                    resumes,
                },
            ) if grant == asked => {
                let age = if self.flaw == Flaw::TrustFromReply {
                    0
                } else {
                    age
                };
                client.watch = None;
                client.hold = Hold::Held {
                    token,
                    grant,
                    trust: decide::granted(age),
                    slips,
                    undecided: 0,
                    renewal: None,
                    body: Body::Outside { resumed: resumes },
                };
            }
            (Content::Lost { grant: gone }, Hold::Asking { grant, .. }) if gone == *grant => {
                client.hold = Hold::Idle;
            }
            (Content::Busy { length, .. }, Hold::Asking { .. }) => {
                client.hold = Hold::Idle;
                let waited = client.watch.as_ref().map_or(0, |watch| watch.waited);
                if changed {
                    client.watch = None;
                } else if client.watch.is_none() || self.flaw == Flaw::WatchAnew {
                    client.watch = Some(Watch {
                        left: length,
                        waited,
                        slips: 0,
                    });
                }
            }
            (Content::Renewed { grant: confirmed }, Hold::Held { grant, .. })
                if confirmed == *grant =>
            {
                self.renewed(&mut client.hold);
            }
            (Content::Lost { grant: gone }, Hold::Held { grant, .. }) if gone == *grant => {
                client.hold = Hold::Idle;
            }
            _ => {}
        }
    }

    /// A renewal is confirmed.
    fn renewed(&self, hold: &mut Hold) {
        let Hold::Held {
            trust,
            slips,
            undecided,
            renewal,
            ..
        } = hold
        else {
            return;
        };
        let Some((age, lagged)) = renewal.take() else {
            return;
        };
        let before = *trust;
        match self.flaw {
            Flaw::TrustFromReply => {
                (*trust, *undecided) = decide::renewed(before, *undecided, 0);
            }
            Flaw::RenewalAcquires => *trust = decide::granted(age).max(before),
            _ => (*trust, *undecided) = decide::renewed(before, *undecided, age),
        }
        if *trust > before {
            *slips = lagged;
        }
    }

    fn tick(&self, state: &mut State, slow: u8, fast: u8) {
        let long_ago = self.long_ago();
        state.row.left = (state.row.left - 1).max(long_ago);
        let most = self.longest_watch();
        for (c, client) in state.clients.iter_mut().enumerate() {
            client.pass(slow & 1 << c != 0, self.slow.is_some());
            if let Work::In(tx) = &mut client.work {
                tx.left = (tx.left - 1).max(0);
            }
            if let Some(watch) = &mut client.watch {
                let leaps = fast & 1 << c != 0;
                watch.left = watch.left.saturating_sub(1 + u8::from(leaps));
                watch.slips += u8::from(leaps);
                watch.waited = (watch.waited + 1).min(most);
            }
        }
    }
}

/// A client that has just asked.
fn asking(grant: u8, resumes: bool) -> Hold {
    Hold::Asking {
        grant,
        age: 0,
        slips: 0,
        resumes,
    }
}

fn give_up(state: &mut State, c: u8) {
    if let Hold::Asking { grant, .. } = state.client(c).hold {
        state.close_connection(c);
        state.client(c).hold = Hold::Idle;
        state.send(c, Content::Release { token: None, grant }, false);
        state.close_connection(c);
    }
}

fn renew(state: &mut State, c: u8) {
    if let Hold::Held {
        token,
        grant,
        renewal,
        ..
    } = &mut state.client(c).hold
    {
        *renewal = Some((0, 0));
        let (token, grant) = (*token, *grant);
        state.send(c, Content::Renew { token, grant }, false);
    }
}

fn resume(state: &mut State, c: u8) {
    let grant = state.unused_grant();
    if let Some(ticket) = state.ticket.take() {
        state.client(c).hold = asking(grant, true);
        let content = Content::Resume {
            token: ticket.token,
            from: ticket.grant,
            grant,
        };
        state.send(c, content, false);
    }
}

fn crash(state: &mut State, c: u8) {
    state.close_connection(c);
    let client = state.client(c);
    client.hold = Hold::Idle;
    client.watch = None;
    match &mut client.work {
        Work::In(tx) => tx.orphan = true,
        work => *work = Work::None,
    }
}
