//! How a database executes the statements of a shared lock.

use super::{Content, Flaw, Hold, Main, Message, ReaderRow, Role, Shared, State, Tx};
use crate::decide::TTL;

impl Main {
    pub(super) fn is_free(&self) -> bool {
        self.grant == 0
    }

    pub(super) fn free(&mut self) {
        self.was_free = self.is_free();
        (self.left, self.grant) = (0, 0);
    }
}

impl State {
    /// Whether a fence of this grant is open.
    pub(super) fn is_fenced(&self, grant: u8) -> bool {
        self.fences().any(|tx| tx.grant == grant)
    }

    pub(super) fn fences(&self) -> impl Iterator<Item = &Tx> {
        self.clients.iter().filter_map(|client| client.tx.as_ref())
    }

    /// The row is made anew, with a token that is greater than all before; it is not marked.
    pub(super) fn prune(&mut self) {
        let token = self.main.token + 1;
        self.main = Main {
            marked: false,
            left: 0,
            token,
            grant: 0,
            was_free: true,
        };
    }

    /// A grant is decided: no fence of a conflicting grant may be open, and the token is new.
    fn granted(&mut self, role: Role, token: u8, grant: u8) {
        let conflicts = |other: Role| role == Role::Writer || other == Role::Writer;
        // A statement may be executed again, and a writer that becomes a reader may have one open.
        let own = |tx: &&Tx| {
            let client = self.clients.iter().find(|c| c.tx.as_ref() == Some(*tx));
            let downgrades = |hold: &Hold| matches!(hold, Hold::Downgrading { grant: other, .. } if *other == grant);
            tx.grant == grant || client.is_some_and(|c| downgrades(&c.hold))
        };
        if self.fences().any(|tx| conflicts(tx.role) && !own(&tx)) {
            self.broken = Some("granted beside an open fence");
        }
        let (writer, reader) = &mut self.top;
        let before = match role {
            Role::Writer => (*writer).max(*reader),
            Role::Reader => *writer,
        };
        let top = if role == Role::Writer { writer } else { reader };
        let again = role == Role::Writer && *top == token;
        if token <= before && !again {
            self.broken = Some("a token goes back");
        }
        *top = token.max(*top);
    }
}

impl Shared {
    /// A fence is executed, possibly long after its client has checked the lock.
    pub(super) fn fence(&self, state: &mut State, c: usize) {
        let Hold::In {
            role, token, grant, ..
        } = state.clients[c].hold
        else {
            return;
        };
        let there = match role {
            Role::Writer => state.main.grant == grant && state.main.token == token,
            Role::Reader => state.readers.iter().any(|row| row.grant == grant),
        };
        if there {
            state.clients[c].tx = Some(Tx {
                role,
                token,
                grant,
                orphan: false,
            });
        }
    }

    pub(super) fn commit(&self, state: &mut State, c: usize) {
        let Some(tx) = state.clients[c].tx.take() else {
            return;
        };
        let (writer, reader) = state.top;
        let newest = match tx.role {
            Role::Writer => writer.max(reader),
            Role::Reader => writer,
        };
        // Its own downgrade has a greater token.
        let own = matches!(state.clients[c].hold, Hold::In { role: Role::Reader, token, .. }
            if tx.role == Role::Writer && token == newest);
        let own = own
            || matches!(state.clients[c].hold, Hold::Downgrading { own, .. } if own == tx.grant);
        if newest > tx.token && !own {
            state.broken = Some("a stale write");
        }
    }

    pub(super) fn execute(&self, state: &mut State, i: usize, behind: bool) {
        let Message {
            client: c,
            content,
            heard,
        } = state.net[i].clone();
        let reply = match content {
            Content::Flag { grant, own } => self.flag(state, i, grant, own),
            Content::Flagging { grant, token, left } => {
                state.net.remove(i);
                state.readers.push(ReaderRow { left, token, grant });
                if matches!(self.flaw, Flaw::NoCheck | Flaw::CheckFirst) {
                    state.granted(Role::Reader, token, grant);
                }
                let marked = true;
                let granted = Content::Granted {
                    grant,
                    token,
                    marked,
                };
                if heard {
                    state.send(c, granted);
                }
                return;
            }
            Content::Check { grant, token, own } => {
                Some(self.check(state, grant, token, own, behind))
            }
            Content::Take { grant } => self.take(state, grant),
            Content::Count { grant, token } => self.count(state, grant, token, behind),
            Content::Renew { role, token, grant } => Some(self.renew(state, role, token, grant)),
            Content::Release { role, grant } => {
                release(state, role, grant);
                None
            }
            _ => None,
        };
        if let Some(reply) = reply.filter(|_| heard) {
            // Without room for both, the statement is not executed again.
            if state.net.len() >= self.net {
                state.net.remove(i);
            }
            state.send(c, reply);
        }
    }

    /// The first half of a flag: what it reads. The message becomes its second half.
    fn flag(&self, state: &mut State, i: usize, grant: u8, own: u8) -> Option<Content> {
        if let Some(row) = state.readers.iter().find(|row| row.grant == grant) {
            let (token, marked) = (row.token, true);
            return Some(Content::Granted {
                grant,
                token,
                marked,
            });
        }
        let main = &mut state.main;
        main.marked = true;
        let free = match own {
            0 => main.is_free() || self.flaw == Flaw::FlagsBesideDeadWriter && main.left == 0,
            _ => main.grant == own || self.flaw == Flaw::DowngradeReleasesFirst,
        };
        if !free {
            return Some(Content::NotClear { grant });
        }
        state.net[i].content = Content::Flagging {
            grant,
            token: main.token + 1,
            left: TTL,
        };
        None
    }

    fn check(&self, state: &mut State, grant: u8, token: u8, own: u8, behind: bool) -> Content {
        let main = &state.main;
        let free = match own {
            _ if behind => main.was_free,
            0 => main.is_free() || self.flaw == Flaw::FlagsBesideDeadWriter && main.left == 0,
            _ => main.grant == own,
        };
        let same = behind
            || main.token + 1 == token
            || matches!(self.flaw, Flaw::ChecksNoToken | Flaw::CheckFirst);
        if !free || !same {
            return Content::NotClear { grant };
        }
        let is_there = state
            .readers
            .iter()
            .any(|row| row.grant == grant && row.left > 0);
        if is_there && self.flaw != Flaw::CheckFirst {
            state.granted(Role::Reader, token, grant);
        }
        Content::Clear { grant }
    }

    fn take(&self, state: &mut State, grant: u8) -> Option<Content> {
        let fenced = state.main.grant != 0 && state.is_fenced(state.main.grant);
        let main = &mut state.main;
        let marked = main.marked;
        if main.grant != grant {
            if !main.is_free() && main.left > 0 || fenced {
                return Some(Content::NotClear { grant });
            }
            let step = if marked { 2 } else { 1 };
            *main = Main {
                marked,
                left: TTL,
                token: main.token + step,
                grant,
                was_free: main.is_free(),
            };
        }
        let token = main.token;
        if !marked || self.flaw == Flaw::NoCount {
            state.granted(Role::Writer, token, grant);
        }
        Some(Content::Granted {
            grant,
            token,
            marked,
        })
    }

    fn count(&self, state: &mut State, grant: u8, token: u8, behind: bool) -> Option<Content> {
        let counts = |row: &&ReaderRow| self.flaw != Flaw::CountsLive || row.left > 0;
        let main = &state.main;
        let held = main.grant == grant && main.token == token && main.left > 0;
        let clear = behind || state.readers.iter().filter(counts).count() == 0;
        if clear && held {
            state.granted(Role::Writer, token, grant);
        }
        // It counts again.
        clear.then_some(Content::Clear { grant })
    }

    fn renew(&self, state: &mut State, role: Role, token: u8, grant: u8) -> Content {
        let renewed = match role {
            Role::Writer => {
                let main = &mut state.main;
                let own = main.grant == grant && main.token == token && main.left > 0;
                if own {
                    main.left = TTL;
                }
                own
            }
            Role::Reader => {
                let mut rows = state.readers.iter_mut();
                let row = rows.find(|row| row.grant == grant && row.left > 0);
                match row {
                    Some(row) => row.left = TTL,
                    None if self.flaw == Flaw::RenewalRevives => {
                        let left = TTL;
                        state.readers.push(ReaderRow { left, token, grant });
                    }
                    None => return Content::Lost { grant },
                }
                true
            }
        };
        match renewed {
            true => Content::Renewed { grant },
            false => Content::Lost { grant },
        }
    }
}

fn release(state: &mut State, role: Role, grant: u8) {
    match role {
        Role::Writer if state.main.grant == grant => state.main.free(),
        Role::Writer => {}
        Role::Reader => state.readers.retain(|row| row.grant != grant),
    }
}
