//! How a database executes statements, fences and commits.

use crate::decide::{self, TTL};
use crate::spec::{Flaw, Kind, Protocol};
use crate::state::{Content, Hold, Message, Row, State, Tx, Work};

impl Protocol {
    /// A fence is executed, possibly long after its client has checked the lock.
    pub(crate) fn fence(&self, state: &mut State, c: u8, behind: bool) {
        let Work::Looked { token, grant } = state.client(c).work else {
            return;
        };
        let there = state.row.token == token && state.row.grant == grant;
        let passes = match self.kind {
            Kind::Postgres => there,
            Kind::MySql => there && state.row.left > 0 && state.fences().next().is_none(),
            // A node that lags behind passes the fence; the commit then fails certification.
            Kind::Cluster => there != behind,
        };
        if passes {
            state.client(c).work = Work::In(Tx {
                token,
                left: match self.kind {
                    Kind::Postgres => 1,
                    Kind::MySql => TTL as i8,
                    Kind::Cluster => 0,
                },
                changed: behind,
                orphan: false,
            });
        } else {
            self.ended(state, c);
        }
    }

    pub(crate) fn commit(&self, state: &mut State, c: u8) {
        let Work::In(tx) = state.client(c).work.clone() else {
            return;
        };
        let certified = self.kind != Kind::Cluster || !tx.changed;
        if certified {
            state.wrote(tx.token);
            if self.kind == Kind::MySql {
                state.row.left = tx.left.max(self.long_ago());
            }
            if self.kind != Kind::Postgres {
                self.written(state);
            }
        }
        self.ended(state, c);
    }

    /// The work of a client under the lock has ended.
    pub(crate) fn ended(&self, state: &mut State, c: u8) {
        let client = state.client(c);
        let orphan = matches!(&client.work, Work::In(tx) if tx.orphan);
        client.work = Work::None;
        if self.kind == Kind::Postgres || orphan {
            return;
        }
        if let Hold::Held {
            trust, undecided, ..
        } = &mut client.hold
        {
            *undecided = decide::closed(*trust);
        }
    }

    /// A node executes a statement, and sends the reply if the client still listens.
    pub(crate) fn execute(&self, state: &mut State, i: usize, node: usize) {
        let Message {
            client: c,
            content,
            changed,
            heard,
        } = state.net[i].clone();
        // By how much the deciding clock is ahead.
        let ahead = match (self.kind, self.flaw) {
            (Kind::Cluster, _) => self.ahead[node],
            (_, Flaw::ClientClock) => self.ahead[usize::from(c)],
            _ => 0,
        };
        let fenced = state.fences().next().is_some();
        let reply = match content {
            Content::Acquire { grant } => self.acquire(state, grant, false, ahead),
            Content::TakeOver { grant } => self.acquire(state, grant, !changed, ahead),
            Content::Renew { .. } | Content::Release { .. }
                if fenced && self.kind == Kind::MySql =>
            {
                None
            }
            // An open fence blocks it as it blocks an acquire; the client repeats it.
            Content::Resume { .. } if fenced && self.kind != Kind::Cluster => None,
            Content::Resume { token, from, grant } => {
                Some(self.resume(state, token, from, grant, ahead))
            }
            Content::Renew { token, grant } => Some(self.renew(state, token, grant, ahead)),
            Content::Release { token, grant } => {
                self.release(state, token, grant);
                None
            }
            _ => None,
        };
        if let Some(reply) = reply.filter(|_| heard) {
            // Without room for both, the statement is not executed again.
            if state.net.len() >= self.net {
                state.net.remove(i);
            }
            state.send(c, reply, false);
        }
    }

    /// `observed`: the row is as the client has observed it for the length of the lease.
    fn acquire(&self, state: &mut State, grant: u8, observed: bool, ahead: i8) -> Option<Content> {
        let row = state.row.clone();
        let fenced = state.fences().next().is_some();
        let over = row.left <= ahead;
        let free = row.grant == 0
            || match self.kind {
                Kind::Cluster => observed || self.flaw == Flaw::NodeClock && over,
                _ => over,
            };
        // Another node of a cluster does not know of the fence.
        let kept_out = fenced && self.kind != Kind::Cluster && self.flaw != Flaw::PassesFence;
        if free && !kept_out {
            self.grant(state, grant, ahead);
            let token = state.row.token;
            return Some(Content::Granted { token, grant });
        }
        if row.grant == grant {
            let token = row.token;
            return Some(Content::Granted { token, grant });
        }
        if self.kind != Kind::Cluster && row.left <= 0 && !fenced {
            state.broken = Some("a waiter is forgotten");
        }
        let length = row.length;
        // With a single primary the client learns nothing from this reply.
        (self.kind == Kind::Cluster).then_some(Content::Busy { grant, length })
    }

    fn resume(&self, state: &mut State, token: u8, from: u8, grant: u8, ahead: i8) -> Content {
        let row = &state.row;
        let alive = self.kind == Kind::Cluster || row.left > ahead;
        let there = row.token == token && (row.grant == from || row.grant == grant);
        if there && row.grant != 0 && alive {
            self.lengthen(state, ahead, grant);
            Content::Granted { token, grant }
        } else {
            Content::Lost { grant }
        }
    }

    fn renew(&self, state: &mut State, token: u8, grant: u8, ahead: i8) -> Content {
        let row = &state.row;
        let alive = self.kind == Kind::Cluster || row.left > ahead;
        let its_own = row.token == token && row.grant == grant;
        let takes = self.flaw == Flaw::RenewalAcquires && (row.grant == 0 || !alive);
        if takes && token < state.top {
            state.broken = Some("a token goes back");
        }
        if takes || its_own && alive {
            state.row.token = token;
            self.lengthen(state, ahead, grant);
            Content::Renewed { grant }
        } else {
            Content::Lost { grant }
        }
    }

    fn release(&self, state: &mut State, token: Option<u8>, grant: u8) {
        let row = &state.row;
        if row.grant != grant || token.is_some_and(|token| token != row.token) {
            return;
        }
        let token = match self.flaw {
            Flaw::ReleaseForgets => 0,
            _ => row.token,
        };
        state.row = Row {
            left: self.long_ago(),
            length: 0,
            token,
            grant: 0,
        };
        self.written(state);
    }

    /// Extends the lease to a ttl from now, unless it lasts longer already.
    fn lengthen(&self, state: &mut State, ahead: i8, grant: u8) {
        let left = state.row.left.max(ahead + TTL as i8);
        let length = (left - ahead).unsigned_abs();
        state.row = Row {
            left,
            length,
            token: state.row.token,
            grant,
        };
        self.written(state);
    }

    fn grant(&self, state: &mut State, grant: u8, ahead: i8) {
        let token = state.row.token + 1;
        if token <= state.top {
            state.broken = Some("a token goes back");
        }
        state.top = state.top.max(token);
        state.row = Row {
            left: ahead + TTL as i8,
            length: TTL,
            token,
            grant,
        };
        self.written(state);
    }

    /// The row was written: on a cluster, observations and fences of the former row are void.
    fn written(&self, state: &mut State) {
        if self.kind != Kind::Cluster {
            return;
        }
        for client in &mut state.clients {
            client.watch = None;
            if let Work::In(tx) = &mut client.work {
                tx.changed = true;
            }
        }
        for message in &mut state.net {
            message.changed |= matches!(
                message.content,
                Content::TakeOver { .. } | Content::Busy { .. }
            );
        }
    }
}
