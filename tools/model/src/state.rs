//! The state at one moment. Times are remaining times, so that equal situations are equal states.

use crate::decide::TRUST;

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// The lock's row.
    pub row: Row,
    /// The greatest token that was ever granted.
    pub top: u8,
    /// The clients.
    pub clients: Vec<Client>,
    /// A ticket that no client has resumed yet.
    pub ticket: Option<Ticket>,
    /// The messages under way; their order does not matter.
    pub net: Vec<Message>,
    /// The violation that has happened.
    pub broken: Option<&'static str>,
}

/// The row of the lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// `expires_at` from now, by a correct clock; bounded where no statement differs.
    pub left: i8,
    /// `expires_at − renewed_at`: how long a contender on a cluster observes the lease.
    pub length: u8,
    /// The token of the latest grant.
    pub token: u8,
    /// The grant id; 0 is null.
    pub grant: u8,
}

/// A ticket, which resumes a held lock in another client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The token of the grant.
    pub token: u8,
    /// Its grant id.
    pub grant: u8,
}

/// One client: a process, or a task of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    /// Whether it believes that it holds the lock.
    pub hold: Hold,
    /// Its work under the lock. It goes on after a loss, because the client may be asleep.
    pub work: Work,
    /// Its observation of a lease that it waits for, on a cluster.
    pub watch: Option<Watch>,
}

/// Whether a client believes that it holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hold {
    /// It does not.
    Idle,
    /// It has requested the lock.
    Asking {
        /// The grant id of the request.
        grant: u8,
        /// How long ago, by its own clock.
        age: u8,
        /// By how many ticks its clock has lagged since.
        slips: u8,
        /// Whether it resumes a ticket.
        resumes: bool,
    },
    /// It was granted the lock.
    Held {
        /// The token.
        token: u8,
        /// The grant id.
        grant: u8,
        /// The remaining trust, by its own clock.
        trust: u8,
        /// By how many ticks its clock has lagged since the request that trust counts from.
        slips: u8,
        /// How long a renewal after a fence may still decide.
        undecided: u8,
        /// A renewal that is under way: its age and by how many ticks the clock has lagged since.
        renewal: Option<(u8, u8)>,
        /// Where the caller is.
        body: Body,
    },
}

/// The caller's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Body {
    /// Not entered: the reply is there, and the guard is not handed out yet.
    Outside {
        /// Whether a ticket was resumed.
        resumed: bool,
    },
    /// Entered. The caller is notified of the end of trust.
    Inside,
    /// Entered after the end of trust, without a notification. Only wrong variants get here.
    Unaware,
}

/// The work of a client under the lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Nothing.
    None,
    /// It has checked that it holds the lock, and is about to write.
    Looked {
        /// The token under which it is held.
        token: u8,
        /// The grant id.
        grant: u8,
    },
    /// It has a transaction open that passed the fence.
    In(Tx),
}

/// An open transaction that passed the fence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tx {
    /// The token that it was fenced with.
    pub token: u8,
    /// `expires_at` from now, as the UPDATE of the fence has set it (MySQL).
    pub left: i8,
    /// Whether the row was written meanwhile, so that a cluster refuses the commit.
    pub changed: bool,
    /// Whether its client is dead. Statements that it sent may still be executed.
    pub orphan: bool,
}

/// The observation of an unchanged lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Watch {
    /// How much longer it must stay unchanged, by the contender's clock.
    pub left: u8,
    /// How long it has been unchanged in fact; bounded.
    pub waited: u8,
    /// By how many ticks the contender's clock has run ahead.
    pub slips: u8,
}

/// A statement or a reply under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    /// Its client.
    pub client: u8,
    /// Its content.
    pub content: Content,
    /// Whether the row was written since the observation on which it relies.
    pub changed: bool,
    /// Whether the client still awaits the reply.
    pub heard: bool,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Statement: take the lock if it is free.
    Acquire {
        /// The grant id.
        grant: u8,
    },
    /// Statement, on a cluster: take the lock if its row is as observed.
    TakeOver {
        /// The grant id.
        grant: u8,
    },
    /// Statement: renew.
    Renew {
        /// The token.
        token: u8,
        /// The grant id.
        grant: u8,
    },
    /// Statement: release. Without a token if the reply to the acquire was lost.
    Release {
        /// The token.
        token: Option<u8>,
        /// The grant id.
        grant: u8,
    },
    /// Statement: replace the grant id of the ticket by a new one.
    Resume {
        /// The token of both.
        token: u8,
        /// The grant id of the ticket.
        from: u8,
        /// The new grant id.
        grant: u8,
    },
    /// Reply: granted.
    Granted {
        /// The token.
        token: u8,
        /// The grant id.
        grant: u8,
    },
    /// Reply: another client holds the lock, with a lease of this length.
    Busy {
        /// The grant id of the request.
        grant: u8,
        /// The length.
        length: u8,
    },
    /// Reply: renewed.
    Renewed {
        /// The grant id.
        grant: u8,
    },
    /// Reply: the lock is lost.
    Lost {
        /// The grant id.
        grant: u8,
    },
}

impl State {
    /// The number of clients that trust their lease.
    pub fn trusting(&self) -> usize {
        self.clients.iter().filter(|c| c.trusts()).count()
    }

    /// The number of running bodies without a notification of loss.
    pub fn bodies(&self) -> usize {
        self.clients.iter().filter(|c| c.is_in_its_body()).count()
    }

    /// The transactions that passed the fence and are open.
    pub fn fences(&self) -> impl Iterator<Item = &Tx> {
        self.clients.iter().filter_map(|c| match &c.work {
            Work::In(tx) => Some(tx),
            _ => None,
        })
    }
}

impl Client {
    /// The answer of `is_held()`.
    pub fn trusts(&self) -> bool {
        matches!(self.hold, Hold::Held { trust: 1.., .. })
    }

    /// Whether its body runs without a notification of loss.
    fn is_in_its_body(&self) -> bool {
        match self.hold {
            Hold::Held { body, trust, .. } => match body {
                Body::Outside { .. } => false,
                Body::Inside => trust > 0,
                Body::Unaware => true,
            },
            _ => false,
        }
    }
}

impl Content {
    /// Whether it asks for the lock.
    pub(crate) fn asks(&self) -> bool {
        matches!(
            self,
            Self::Acquire { .. } | Self::TakeOver { .. } | Self::Resume { .. }
        )
    }

    pub(crate) fn grant(&self) -> u8 {
        let mut content = self.clone();
        *content.grant_mut()
    }

    pub(crate) fn grant_mut(&mut self) -> &mut u8 {
        match self {
            Self::Acquire { grant }
            | Self::TakeOver { grant }
            | Self::Renew { grant, .. }
            | Self::Release { grant, .. }
            | Self::Resume { grant, .. }
            | Self::Granted { grant, .. }
            | Self::Busy { grant, .. }
            | Self::Renewed { grant }
            | Self::Lost { grant } => grant,
        }
    }
}

impl Content {
    pub(crate) fn is_reply(&self) -> bool {
        matches!(
            self,
            Self::Granted { .. } | Self::Busy { .. } | Self::Renewed { .. } | Self::Lost { .. }
        )
    }
}

impl Client {
    /// Whether it is about to write, or writes.
    pub(crate) fn is_at_work(&self) -> bool {
        match &self.work {
            Work::None => false,
            Work::Looked { .. } => true,
            Work::In(tx) => !tx.orphan,
        }
    }

    /// Whether the reply to its asking, with a ticket or without one, came after the end of trust.
    pub(crate) fn got_the_loss_late(&self, with_ticket: bool) -> bool {
        matches!(self.hold, Hold::Held { trust: 0, body: Body::Outside { resumed }, .. }
            if resumed == with_ticket)
    }

    /// Whether its clock may lag now: only for as long as that is within the bound for all that it
    /// times.
    pub(crate) fn may_lag(&self, most: Option<u8>) -> bool {
        let most = most.unwrap_or(u8::MAX);
        match self.hold {
            Hold::Idle => false,
            Hold::Asking { slips, .. } => slips < most,
            Hold::Held {
                trust,
                slips,
                renewal,
                ..
            } => {
                (trust > 0 || renewal.is_some())
                    && (trust == 0 || slips < most)
                    && renewal.is_none_or(|(_, slips)| slips < most)
            }
        }
    }

    /// A tick passes, which its clock shows or not.
    pub(crate) fn pass(&mut self, lags: bool, counted: bool) {
        let lagged = u8::from(lags && counted);
        let shown = u8::from(!lags);
        match &mut self.hold {
            Hold::Idle => {}
            Hold::Asking { age, slips, .. } => {
                *age = (*age + shown).min(TRUST);
                *slips += lagged;
            }
            Hold::Held {
                trust,
                slips,
                undecided,
                renewal,
                body,
                ..
            } => {
                if *body == Body::Unaware {
                    *body = Body::Inside;
                }
                *slips += lagged;
                *trust = trust.saturating_sub(shown);
                *undecided = undecided.saturating_sub(shown);
                if *trust == 0 {
                    *slips = 0;
                }
                if let Some((age, slips)) = renewal {
                    *age = (*age + shown).min(TRUST);
                    *slips += lagged;
                }
            }
        }
    }
}

impl State {
    /// Sends a release of a grant, whether or not the client still holds it.
    pub(crate) fn send_release(&mut self, c: u8) {
        let Hold::Held { token, grant, .. } = self.client(c).hold else {
            return;
        };
        self.close_connection(c);
        self.client(c).hold = Hold::Idle;
        let token = Some(token);
        self.send(c, Content::Release { token, grant }, false);
        self.close_connection(c);
    }

    pub(crate) fn client(&mut self, c: u8) -> &mut Client {
        &mut self.clients[usize::from(c)]
    }

    pub(crate) fn send(&mut self, client: u8, content: Content, changed: bool) {
        let message = Message {
            client,
            content,
            changed,
            heard: true,
        };
        if !self.net.contains(&message) {
            self.net.push(message);
        }
    }

    /// A connection is given up: what was sent may still be carried out, but its answer is lost.
    pub(crate) fn close_connection(&mut self, c: u8) {
        self.net.retain(|m| m.client != c || !m.content.is_reply());
        for message in self.net.iter_mut().filter(|m| m.client == c) {
            message.heard = false;
        }
        self.net.sort_unstable();
        self.net.dedup();
    }

    /// A write under that token is there for good.
    pub(crate) fn wrote(&mut self, token: u8) {
        if token < self.top {
            self.broken = Some("a stale write");
        }
    }
}
