//! Maps states whose differences do not matter to one state, so that the walk ends.

use super::{Content, Hold, State};

impl Content {
    pub(super) fn grant(&self) -> u8 {
        let mut content = self.clone();
        *content.grant_mut()
    }

    fn grant_mut(&mut self) -> &mut u8 {
        match self {
            Self::Flag { grant, .. }
            | Self::Flagging { grant, .. }
            | Self::Check { grant, .. }
            | Self::Take { grant }
            | Self::Count { grant, .. }
            | Self::Renew { grant, .. }
            | Self::Release { grant, .. }
            | Self::Granted { grant, .. }
            | Self::Clear { grant }
            | Self::NotClear { grant }
            | Self::Renewed { grant }
            | Self::Lost { grant } => grant,
        }
    }

    /// The grant of a writer that becomes a reader.
    fn own_mut(&mut self) -> Option<&mut u8> {
        match self {
            Self::Flag { own, .. } | Self::Check { own, .. } => Some(own),
            _ => None,
        }
    }

    pub(super) fn is_reply(&self) -> bool {
        matches!(
            self,
            Self::Granted { .. }
                | Self::Clear { .. }
                | Self::NotClear { .. }
                | Self::Renewed { .. }
                | Self::Lost { .. }
        )
    }

    /// Whether it can make a row.
    fn makes_a_row(&self) -> bool {
        matches!(
            self,
            Self::Flag { .. } | Self::Flagging { .. } | Self::Take { .. }
        )
    }
}

impl Hold {
    fn each_grant(&mut self, f: &mut impl FnMut(&mut u8)) {
        match self {
            Self::Idle => {}
            Self::Flagging { grant, .. }
            | Self::Checking { grant, .. }
            | Self::Taking { grant, .. }
            | Self::Waiting { grant, .. }
            | Self::In { grant, .. } => f(grant),
            Self::Downgrading { own, grant, .. } => {
                f(own);
                f(grant);
            }
        }
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
        self.readers
            .sort_by_key(|row| (row.left, row.token, row.grant));
        self.net.sort_by_key(|message| {
            let mut plain = message.clone();
            *plain.content.grant_mut() = 0;
            if let Some(own) = plain.content.own_mut() {
                *own = u8::from(*own != 0);
            }
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
        f(&mut self.main.grant);
        for client in &mut self.clients {
            client.hold.each_grant(&mut f);
            if let Some(tx) = &mut client.tx {
                f(&mut tx.grant);
            }
        }
        self.readers.iter_mut().for_each(|row| f(&mut row.grant));
        for message in &mut self.net {
            f(message.content.grant_mut());
            if let Some(own) = message.content.own_mut() {
                f(own);
            }
        }
    }

    /// The state with the first two clients exchanged.
    pub(super) fn mirrored(&self) -> Self {
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

    /// Drops statements whose reply no client awaits, and that can change nothing any more.
    pub(super) fn forget_what_cannot_matter(&mut self) {
        let made = self.net.iter().filter(|m| m.content.makes_a_row());
        let mut alive: Vec<u8> = made.map(|m| m.content.grant()).collect();
        alive.push(self.main.grant);
        alive.extend(self.readers.iter().map(|row| row.grant));
        self.net.retain(|m| {
            let changes = m.content.makes_a_row()
                || matches!(m.content, Content::Renew { .. } | Content::Release { .. })
                    && alive.contains(&m.content.grant());
            m.heard || changes
        });
    }
}
