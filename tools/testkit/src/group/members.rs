//! What a node knows of the members of its group.

/// One member, as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The port of its clients.
    pub port: u16,
    /// `ONLINE`, `RECOVERING`, `OFFLINE`, `ERROR` or `UNREACHABLE`.
    pub state: String,
    /// `PRIMARY` or `SECONDARY`.
    pub role: String,
}

/// Reads the rows of [`Member::parse`].
pub(crate) const QUERY: &str = "SELECT member_port, member_state, member_role \
    FROM performance_schema.replication_group_members WHERE member_id <> ''";

impl Member {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut columns = line.split('\t').map(str::to_owned);
        Some(Self {
            port: columns.next()?.parse().ok()?,
            state: columns.next()?,
            role: columns.next()?,
        })
    }

    pub(crate) fn is_online(&self) -> bool {
        self.state == "ONLINE"
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.role == "PRIMARY"
    }
}

/// Whether more than half of these members are online; a node that has just founded the group is
/// its only member.
pub(crate) fn is_majority(members: &[Member]) -> bool {
    members.iter().filter(|member| member.is_online()).count() * 2 > members.len()
}
