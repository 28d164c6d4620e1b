//! Maps states whose differences do not matter to one state, so that the walk ends.

use super::{Client, Content, State};

impl Content {
    pub(super) fn is_reply(&self) -> bool {
        matches!(
            self,
            Self::Granted { .. }
                | Self::Free { .. }
                | Self::Busy { .. }
                | Self::Renewed { .. }
                | Self::Lost { .. }
        )
    }

    fn grant_mut(&mut self) -> &mut u8 {
        match self {
            Self::Acquire { grant, .. }
            | Self::Take { grant, .. }
            | Self::Renew { grant, .. }
            | Self::Release { grant, .. }
            | Self::Granted { grant, .. }
            | Self::Free { grant, .. }
            | Self::Busy { grant, .. }
            | Self::Renewed { grant }
            | Self::Lost { grant } => grant,
        }
    }

    fn grant(&self) -> u8 {
        let mut content = self.clone();
        *content.grant_mut()
    }
}

impl State {
    /// A grant id that is not in use. Grant ids are only compared with each other.
    pub(super) fn unused_grant(&mut self) -> u8 {
        let mut most = 0;
        self.each_grant(|grant| most = most.max(*grant));
        most + 1
    }

    /// Renumbers the grant ids in the order in which they appear.
    pub(super) fn rename(&mut self) {
        // Sorted without the ids first, so that the ids do not decide the order.
        self.net.sort_by_key(|message| {
            let mut plain = message.clone();
            *plain.content.grant_mut() = 0;
            (plain, message.content.grant())
        });
        let mut met: Vec<u8> = vec![0];
        self.each_grant(|grant| {
            let at = met.iter().position(|id| id == grant);
            *grant = at.unwrap_or_else(|| {
                met.push(*grant);
                met.len() - 1
            }) as u8;
        });
    }

    fn each_grant(&mut self, mut f: impl FnMut(&mut u8)) {
        self.rows.iter_mut().for_each(|row| f(&mut row.grant));
        for client in &mut self.clients {
            if let Client::Asking { grant, .. } | Client::Held { grant, .. } = client {
                f(grant);
            }
        }
        for message in &mut self.net {
            f(message.content.grant_mut());
        }
    }

    /// The state with the first two clients exchanged.
    pub(super) fn mirrored(&self, one: u8, other: u8) -> Self {
        let mut next = self.clone();
        next.clients.swap(one.into(), other.into());
        for message in &mut next.net {
            message.client = match message.client {
                c if c == one => other,
                c if c == other => one,
                c => c,
            };
        }
        next.rename();
        next
    }

    /// Drops statements whose reply no client awaits, and that can change nothing any more.
    pub(super) fn forget_what_cannot_matter(&mut self) {
        let takes =
            |content: &Content| matches!(content, Content::Acquire { .. } | Content::Take { .. });
        let asks = self.net.iter().filter(|m| takes(&m.content));
        let mut alive: Vec<u8> = asks.map(|m| m.content.grant()).collect();
        alive.extend(self.rows.iter().map(|row| row.grant));
        self.net
            .retain(|m| m.heard || takes(&m.content) || alive.contains(&m.content.grant()));
    }
}
