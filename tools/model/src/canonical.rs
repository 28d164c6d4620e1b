//! Maps states whose differences do not matter to one state, so that the walk ends.

use crate::state::{Content, Hold, State, Ticket, Work};

impl State {
    /// A grant id that is not in use. Grant ids are only compared with each other.
    pub(crate) fn unused_grant(&mut self) -> u8 {
        let mut most = 0;
        self.each_grant(|grant| most = most.max(*grant));
        most + 1
    }

    /// Renumbers the grant ids in the order in which they appear.
    pub(crate) fn rename(&mut self) {
        // Sorted without the ids first, so that the ids do not decide the order.
        self.net.sort_by_key(|message| {
            let mut plain = message.clone();
            *plain.content.grant_mut() = 0;
            if let Content::Resume { from, .. } = &mut plain.content {
                *from = 0;
            }
            (plain, message.content.grant())
        });
        let mut met: Vec<u8> = vec![0];
        self.each_grant(|grant| {
            let at = met.iter().position(|id| id == grant);
            let at = at.unwrap_or_else(|| {
                met.push(*grant);
                met.len() - 1
            });
            *grant = at as u8;
        });
    }

    fn each_grant(&mut self, mut f: impl FnMut(&mut u8)) {
        f(&mut self.row.grant);
        if let Some(ticket) = &mut self.ticket {
            f(&mut ticket.grant);
        }
        for client in &mut self.clients {
            if let Hold::Asking { grant, .. } | Hold::Held { grant, .. } = &mut client.hold {
                f(grant);
            }
            if let Work::Looked { grant, .. } = &mut client.work {
                f(grant);
            }
        }
        for message in &mut self.net {
            if let Content::Resume { from, .. } = &mut message.content {
                f(from);
            }
            f(message.content.grant_mut());
        }
    }

    /// The state with the first two clients exchanged.
    pub(crate) fn mirrored(&self) -> Self {
        let mut other = self.clone();
        other.clients.swap(0, 1);
        for message in &mut other.net {
            message.client = match message.client {
                0 => 1,
                1 => 0,
                c => c,
            };
        }
        other.rename();
        other
    }

    /// Drops statements whose reply no client awaits, and whose grant id the row neither has nor
    /// can get.
    pub(crate) fn forget_what_cannot_matter(&mut self) {
        let asked: Vec<u8> = self
            .net
            .iter()
            .filter(|m| m.content.asks())
            .map(|m| m.content.grant())
            .collect();
        let row = self.row.grant;
        let alive = |ticket: &Ticket| ticket.grant == row || asked.contains(&ticket.grant);
        self.ticket = self.ticket.take().filter(alive);
        self.net.retain(|m| {
            let grant = m.content.grant();
            let idle = matches!(m.content, Content::Renew { .. } | Content::Release { .. });
            m.heard || !idle || grant == row || asked.contains(&grant)
        });
    }
}
