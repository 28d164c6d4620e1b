//! What may happen next, and what comes of it.

use stateright::{Model, Property};

use crate::decide::{self, TTL};
use crate::state::{Body, Client, Hold, Msg, Row, Said, State, Ticket, Tx, Watch, Work};

/// How a kind of database goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One primary; renewals go on under an open fence. SQLite and `memory` are like that too.
    Postgres,
    /// One primary; nothing gets past an open fence, so renewals are held back.
    MySql,
    /// Several primaries with a clock each: a lease is taken over that was watched for its length.
    Cluster,
}

/// What a wrong implementation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing: the protocol as it is.
    None,
    /// A renewal takes the lock where it finds it free or expired, and the client goes on.
    RenewalAcquires,
    /// Trust counts from the moment at which the reply came.
    TrustFromReply,
    /// Clients judge by their own wall clocks whether a lease has ended, and write by them.
    ClientClock,
    /// A node of a cluster judges by its own clock.
    NodeClock,
    /// Writes are not fenced.
    Unfenced,
    /// A take-over does not skip a row that a fence has locked.
    PassesFence,
    /// A release forgets the token.
    ReleaseForgets,
    /// A watch begins anew with each look.
    WatchAnew,
    /// An acquire hands out what was granted, although trust has ended before the reply came.
    HandsOutEnded,
    /// Taking a ticket up does; an acquire does not.
    ResumesEnded,
}

/// The protocol with its surroundings.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Which database.
    pub kind: Kind,
    /// What is wrong with it.
    pub flaw: Flaw,
    /// How many clients there are.
    pub clients: u8,
    /// How many grants there are at most.
    pub grants: u8,
    /// How many statements and replies are under way at most.
    pub net: usize,
    /// By how many ticks the clock of a holder lags behind over the length of a lease; none: any number.
    pub slow: Option<u8>,
    /// By how many ticks the clock of a contender runs ahead while it watches a lease.
    pub fast: u8,
    /// Whether a holder may hand its lock over by a ticket.
    pub tickets: bool,
    /// What the clock of each node is ahead by. Of each client's instead with [`Flaw::ClientClock`].
    pub ahead: &'static [i8],
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A client asks for the lock.
    Ask(u8),
    /// It waits for the reply no longer, and sends a release after it.
    GiveUp(u8),
    /// It sends a renewal.
    Renew(u8),
    /// It waits for that reply no longer.
    Forget(u8),
    /// It releases the lock, or what may be left of it.
    Release(u8),
    /// The guard is handed out and the body begins; where trust has ended the grant is given back.
    Enter(u8),
    /// Its body ends, and a ticket takes the place of the guard.
    HandOver(u8),
    /// It asks for the lock with the ticket.
    Resume(u8),
    /// It ends, and begins again with nothing.
    Crash(u8),
    /// It sees that it has the lock, and is about to write.
    Look(u8),
    /// Its fence is carried out; with `true` on a node that has not heard yet of what came last.
    Fence(u8, bool),
    /// It writes without a fence.
    Write(u8),
    /// Its transaction is committed.
    Commit(u8),
    /// Its transaction is rolled back, by itself or by a server that finds its client dead.
    Abort(u8),
    /// A statement is carried out, by that node. It may be once more.
    Execute(u8, u8),
    /// A reply comes.
    Receive(u8),
    /// What is under way is lost, or will not come again.
    Lose(u8),
    /// Time passes; the clocks of the clients in the first set stand still, of the second leap.
    Tick(u8, u8),
}

impl Model for Protocol {
    type State = State;
    type Action = Act;

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

    fn actions(&self, state: &State, acts: &mut Vec<Act>) {
        let two = state.trusting() > 1 || state.bodies() > 1;
        if state.broken.is_some() || two && self.slow.is_some() {
            return;
        }
        for (c, client) in (0_u8..).zip(&state.clients) {
            let room = state.net.len() < self.net;
            match &client.hold {
                Hold::Idle if room && client.work == Work::None => {
                    acts.push(Act::Ask(c));
                    if state.ticket.is_some() {
                        acts.push(Act::Resume(c));
                    }
                }
                Hold::Idle => {}
                Hold::Asking { .. } => {
                    acts.push(Act::Crash(c));
                    if room {
                        acts.push(Act::GiveUp(c));
                    }
                }
                &Hold::Held {
                    trust,
                    undecided,
                    renewal,
                    body,
                    ..
                } => {
                    acts.push(Act::Crash(c));
                    let outside = matches!(body, Body::Outside { .. });
                    // To give it back is to send something.
                    if outside && (room || trust > 0) {
                        acts.push(Act::Enter(c));
                    }
                    let held_back = self.kind != Kind::Postgres && client.is_at_work();
                    let may_renew = decide::may_renew(trust, undecided, held_back)
                        || self.flaw == Flaw::RenewalAcquires;
                    if room && renewal.is_none() && may_renew {
                        acts.push(Act::Renew(c));
                    }
                    if renewal.is_some() {
                        acts.push(Act::Forget(c));
                    }
                    if room && !client.is_at_work() {
                        acts.push(Act::Release(c));
                    }
                    let may_fence = decide::may_fence(trust, undecided);
                    if !outside && client.work == Work::None && may_fence {
                        acts.push(Act::Look(c));
                        if self.tickets {
                            acts.push(Act::HandOver(c));
                        }
                    }
                }
            }
            match &client.work {
                Work::None => {}
                Work::Looked { .. } if self.flaw == Flaw::Unfenced => acts.push(Act::Write(c)),
                Work::Looked { .. } => {
                    acts.push(Act::Fence(c, false));
                    if self.kind == Kind::Cluster {
                        acts.push(Act::Fence(c, true));
                    }
                }
                Work::In(_) => acts.extend([Act::Commit(c), Act::Abort(c)]),
            }
        }
        for (i, msg) in (0_u8..).zip(&state.net) {
            acts.push(Act::Lose(i));
            if msg.said.is_reply() {
                acts.push(Act::Receive(i));
            } else {
                let nodes = match self.kind {
                    Kind::Cluster => self.ahead.len() as u8,
                    _ => 1,
                };
                acts.extend((0..nodes).map(|node| Act::Execute(i, node)));
            }
        }
        let (mut slow, mut fast) = (vec![0], vec![0]);
        for (c, client) in state.clients.iter().enumerate() {
            let add = |sets: &mut Vec<u8>| {
                let with: Vec<u8> = sets.iter().map(|set| set | 1 << c).collect();
                sets.extend(with);
            };
            if client.may_lag(self.slow) {
                add(&mut slow);
            }
            if client
                .watch
                .as_ref()
                .is_some_and(|w| w.left > 0 && w.slips < self.fast)
            {
                add(&mut fast);
            }
        }
        for slow in slow {
            acts.extend(fast.iter().map(|fast| Act::Tick(slow, *fast)));
        }
    }

    fn next_state(&self, state: &State, act: Act) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, act);
        if self.flaw != Flaw::RenewalAcquires {
            next.forget_what_cannot_matter();
        }
        next.rename();
        if self.flaw == Flaw::None {
            // Which client is which does not matter; in a counterexample it would confuse.
            let other = next.mirrored();
            next = next.min(other);
        }
        Some(next)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.top <= self.grants
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("nothing is broken", |_, s: &State| s.broken.is_none()),
            Property::sometimes(
                "a take-over that the holder before has not noticed",
                |_, s: &State| {
                    s.clients.iter().any(|c| match c.hold {
                        Hold::Held { grant, token, .. } => {
                            s.row.grant != grant && s.row.token > token
                        }
                        _ => false,
                    })
                },
            ),
            Property::sometimes(
                "a pause past the ttl with a write ahead",
                |m: &Self, s: &State| {
                    (m.kind == Kind::Cluster || s.row.left <= 0) && s.clients.iter().any(|c| {
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
                        s.row.grant == grant && !s.net.iter().any(|m| m.said.grant() == grant)
                    }
                    _ => false,
                })
            }),
            Property::sometimes(
                "a statement of somebody dead is under way",
                |_, s: &State| {
                    s.net
                        .iter()
                        .any(|m| !m.heard && s.clients[usize::from(m.client)].hold == Hold::Idle)
                },
            ),
            Property::sometimes("a transaction outlives its client", |_, s: &State| {
                s.fences().any(|tx| tx.orphan)
            }),
        ];
        if self.slow.is_some() {
            all.push(Property::always("one trusted holder", |_, s: &State| {
                s.trusting() <= 1
            }));
            all.push(Property::always("one body at a time", |_, s: &State| {
                s.bodies() <= 1
            }));
        }
        all.push(Property::sometimes(
            "a reply after the end of trust, while another client is in its body",
            |_, s: &State| s.bodies() == 1 && s.clients.iter().any(|c| c.was_told_late(false)),
        ));
        if self.tickets {
            all.push(Property::sometimes(
                "a ticket resumed after the end of trust, while another client is in its body",
                |_, s: &State| s.bodies() == 1 && s.clients.iter().any(|c| c.was_told_late(true)),
            ));
        }
        match self.kind {
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
}

impl Protocol {
    /// What an `expires_at` is clamped to, from now: below it no clock and no statement tells a difference.
    fn long_ago(&self) -> i8 {
        let least = self.ahead.iter().min().copied().unwrap_or(0);
        match (self.kind, self.flaw) {
            (_, Flaw::ClientClock | Flaw::NodeClock) => least.min(0),
            // Only a renewal goes by it there, and lengthens it at least to this.
            (Kind::Cluster, _) => least + TTL as i8,
            _ => 0,
        }
    }

    /// The longest that any lease is watched.
    fn longest_watch(&self) -> u8 {
        let most = self.ahead.iter().max().copied().unwrap_or(0);
        let least = self.ahead.iter().min().copied().unwrap_or(0);
        TTL + (most - least).unsigned_abs()
    }

    fn act(&self, state: &mut State, act: Act) {
        match act {
            Act::Ask(c) => self.ask(state, c),
            Act::GiveUp(c) => {
                if let Hold::Asking { grant, .. } = state.client(c).hold {
                    state.hang_up(c);
                    state.client(c).hold = Hold::Idle;
                    state.send(c, Said::Release { token: None, grant }, false);
                    state.hang_up(c);
                }
            }
            Act::Renew(c) => {
                if let Hold::Held {
                    token,
                    grant,
                    renewal,
                    ..
                } = &mut state.client(c).hold
                {
                    *renewal = Some((0, 0));
                    let said = Said::Renew {
                        token: *token,
                        grant: *grant,
                    };
                    state.send(c, said, false);
                }
            }
            Act::Forget(c) => {
                state.hang_up(c);
                if let Hold::Held { renewal, .. } = &mut state.client(c).hold {
                    *renewal = None;
                }
            }
            Act::Release(c) => state.give_back(c),
            Act::Enter(c) => self.enter(state, c),
            Act::HandOver(c) => {
                if let Hold::Held { token, grant, .. } = state.client(c).hold {
                    state.hang_up(c);
                    state.client(c).hold = Hold::Idle;
                    state.ticket = Some(Ticket { token, grant });
                }
            }
            Act::Resume(c) => {
                let grant = state.unused_grant();
                if let Some(ticket) = state.ticket.take() {
                    state.client(c).hold = asking(grant, true);
                    let said = Said::Resume {
                        token: ticket.token,
                        from: ticket.grant,
                        grant,
                    };
                    state.send(c, said, false);
                }
            }
            Act::Crash(c) => {
                state.hang_up(c);
                let client = state.client(c);
                client.hold = Hold::Idle;
                client.watch = None;
                match &mut client.work {
                    Work::In(tx) => tx.orphan = true,
                    work => *work = Work::None,
                }
            }
            Act::Look(c) => {
                if let Hold::Held { token, grant, .. } = state.client(c).hold {
                    state.client(c).work = Work::Looked { token, grant };
                }
            }
            Act::Fence(c, behind) => self.fence(state, c, behind),
            Act::Write(c) => {
                if let Work::Looked { token, .. } = state.client(c).work {
                    state.wrote(token);
                    state.client(c).work = Work::None;
                }
            }
            Act::Commit(c) => self.commit(state, c),
            Act::Abort(c) => self.ended(state, c),
            Act::Execute(i, node) => self.execute(state, i.into(), node.into()),
            Act::Receive(i) => self.receive(state, i.into()),
            Act::Lose(i) => {
                state.net.remove(i.into());
            }
            Act::Tick(slow, fast) => self.tick(state, slow, fast),
        }
    }

    fn ask(&self, state: &mut State, c: u8) {
        let grant = state.unused_grant();
        let client = state.client(c);
        client.hold = asking(grant, false);
        let said = match &client.watch {
            Some(watch) if watch.left == 0 => Said::TakeOver { grant },
            watch => {
                let long = |watch: &Watch| watch.waited >= self.longest_watch();
                if watch.as_ref().is_some_and(long) {
                    state.broken = Some("a waiter is forgotten");
                }
                Said::Acquire { grant }
            }
        };
        state.send(c, said, false);
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
            (false, false) => state.give_back(c),
        }
    }

    /// A fence is carried out, long after its client has looked perhaps.
    fn fence(&self, state: &mut State, c: u8, behind: bool) {
        let Work::Looked { token, grant } = state.client(c).work else {
            return;
        };
        let there = state.row.token == token && state.row.grant == grant;
        let passes = match self.kind {
            Kind::Postgres => there,
            Kind::MySql => there && state.row.left > 0 && state.fences().next().is_none(),
            // What that node has not heard of is found out at the commit.
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

    fn commit(&self, state: &mut State, c: u8) {
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

    /// What a client did under the lock has ended.
    fn ended(&self, state: &mut State, c: u8) {
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

    fn execute(&self, state: &mut State, i: usize, node: usize) {
        let Msg {
            client: c,
            said,
            changed,
            heard,
        } = state.net[i].clone();
        // What the clock that decides is ahead by.
        let ahead = match (self.kind, self.flaw) {
            (Kind::Cluster, _) => self.ahead[node],
            (_, Flaw::ClientClock) => self.ahead[usize::from(c)],
            _ => 0,
        };
        let row = state.row.clone();
        let fenced = state.fences().next().is_some();
        let reply = match said {
            Said::Acquire { grant } | Said::TakeOver { grant } => {
                let seen = matches!(said, Said::TakeOver { .. }) && !changed;
                let over = row.left <= ahead;
                let free = row.grant == 0
                    || match self.kind {
                        Kind::Cluster => seen || self.flaw == Flaw::NodeClock && over,
                        _ => over,
                    };
                // On a cluster the other node does not know of the fence.
                let kept_out =
                    fenced && self.kind != Kind::Cluster && self.flaw != Flaw::PassesFence;
                if free && !kept_out {
                    self.grant(state, grant, ahead);
                    Some(Said::Granted {
                        token: state.row.token,
                        grant,
                    })
                } else if row.grant == grant {
                    Some(Said::Granted {
                        token: row.token,
                        grant,
                    })
                } else {
                    if self.kind != Kind::Cluster && row.left <= 0 && !fenced {
                        state.broken = Some("a waiter is forgotten");
                    }
                    // On one primary there is nothing to be learned from it.
                    let busy = Said::Busy {
                        grant,
                        length: row.length,
                    };
                    (self.kind == Kind::Cluster).then_some(busy)
                }
            }
            Said::Renew { .. } | Said::Release { .. } if fenced && self.kind == Kind::MySql => None,
            // A fence keeps it out as it does an acquire, and it is repeated.
            Said::Resume { .. } if fenced && self.kind != Kind::Cluster => None,
            Said::Resume { token, from, grant } => {
                let alive = self.kind == Kind::Cluster || row.left > ahead;
                let there = row.token == token && (row.grant == from || row.grant == grant);
                if there && row.grant != 0 && alive {
                    self.lengthen(state, ahead, grant);
                    Some(Said::Granted { token, grant })
                } else {
                    Some(Said::Lost { grant })
                }
            }
            Said::Renew { token, grant } => {
                let alive = self.kind == Kind::Cluster || row.left > ahead;
                let ours = row.token == token && row.grant == grant;
                let takes = self.flaw == Flaw::RenewalAcquires && (row.grant == 0 || !alive);
                if takes && token < state.top {
                    state.broken = Some("a token goes back");
                }
                if takes || ours && alive {
                    state.row.token = token;
                    self.lengthen(state, ahead, grant);
                    Some(Said::Renewed { grant })
                } else {
                    Some(Said::Lost { grant })
                }
            }
            Said::Release { token, grant } => {
                if row.grant == grant && token.is_none_or(|token| token == row.token) {
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
                None
            }
            _ => None,
        };
        if let Some(reply) = reply.filter(|_| heard) {
            // Where there is no room for both it does not come again.
            if state.net.len() >= self.net {
                state.net.remove(i);
            }
            state.send(c, reply, false);
        }
    }

    /// The lease under this grant id lasts a ttl from now, or as long as it did.
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

    /// The row was written: whoever on a cluster goes by what it was finds it changed.
    fn written(&self, state: &mut State) {
        if self.kind != Kind::Cluster {
            return;
        }
        for client in &mut state.clients {
            // What it watched is no more; it will notice.
            client.watch = None;
            if let Work::In(tx) = &mut client.work {
                tx.changed = true;
            }
        }
        for msg in &mut state.net {
            msg.changed |= matches!(msg.said, Said::TakeOver { .. } | Said::Busy { .. });
        }
    }

    fn receive(&self, state: &mut State, i: usize) {
        let Msg {
            client: c,
            said,
            changed,
            ..
        } = state.net.remove(i);
        // One reply ends it: what else comes belongs to no question.
        state.hang_up(c);
        let client = state.client(c);
        match (said, &mut client.hold) {
            (
                Said::Granted { token, grant },
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
            (Said::Lost { grant: gone }, Hold::Asking { grant, .. }) if gone == *grant => {
                client.hold = Hold::Idle;
            }
            (Said::Busy { length, .. }, Hold::Asking { .. }) => {
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
            (
                Said::Renewed { grant: confirmed },
                Hold::Held {
                    grant,
                    trust,
                    slips,
                    undecided,
                    renewal,
                    ..
                },
            ) if confirmed == *grant => {
                let Some((age, lagged)) = renewal.take() else {
                    return;
                };
                let before = *trust;
                if self.flaw == Flaw::TrustFromReply {
                    (*trust, *undecided) = decide::renewed(before, *undecided, 0);
                } else if self.flaw == Flaw::RenewalAcquires {
                    // Whatever was acquired is held.
                    *trust = decide::granted(age).max(before);
                } else {
                    (*trust, *undecided) = decide::renewed(before, *undecided, age);
                }
                if *trust > before {
                    *slips = lagged;
                }
            }
            (Said::Lost { grant: gone }, Hold::Held { grant, .. }) if gone == *grant => {
                client.hold = Hold::Idle;
            }
            _ => {}
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
