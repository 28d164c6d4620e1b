//! What the client asks of a store and what it answers. All times are lengths, so that no caller
//! can compare two clocks.

use std::sync::Arc;
use std::time::Duration;

use crate::info::LockInfo;
use crate::lost::{Gone, LostReason};
use crate::observation::{ObservedExpiry, Version};
use crate::values::grant::{GrantId, Token};
use crate::values::name::LockName;
use crate::values::timing::Ttl;

/// How many rows a page looks at.
pub const PAGE: u32 = 1_000;

/// Some of the rows of the table.
#[derive(Debug, Default)]
pub struct Page {
    /// Those that match, in the order of their ids.
    pub rows: Vec<LockInfo>,
    /// The last id that was looked at; none: there are no more.
    pub last: Option<i64>,
}

/// What became of a page of rows that was pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// How many of them were deleted.
    pub deleted: u64,
    /// Where the next page begins; none: there are no more.
    pub last: Option<i64>,
}

/// What is asked for in an acquire.
#[derive(Clone, Debug)]
pub struct AcquireCommand {
    /// Which lock.
    pub name: LockName,
    /// Drawn before the request is sent: asked for again, the same grant is recognised.
    pub grant: GrantId,
    /// Goes into `locked_by`.
    pub holder: Arc<str>,
    /// How long the lease shall last.
    pub length: Duration,
    /// JSON.
    pub metadata: Arc<str>,
    /// The version of its row that was watched for as long as its lease lasts: it has lapsed, and
    /// is to be granted as if it were free. See [`ObservedExpiry`].
    pub lapsed: Option<Version>,
}

/// What became of an [`AcquireCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is ours, for at least `length` from when the request was sent.
    Granted {
        /// The fencing number.
        token: Token,
        /// What was asked for, or what is left of it where this very grant had been made before.
        length: Duration,
        /// The server that says so, where one may take the place of another.
        confirmed_by: Option<Primary>,
    },
    /// Somebody else has it.
    Held(Holder),
    /// It looks free or expired, but somebody has its row locked right now, or made it just now.
    /// Soon it may be had.
    Busy,
}

impl Outcome {
    /// The same, as this server said it.
    #[must_use]
    pub fn confirmed_by(mut self, server: Option<Primary>) -> Self {
        if let Self::Granted { confirmed_by, .. } = &mut self {
            *confirmed_by = server;
        }
        self
    }
}

/// One of several database servers that can take each other's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    /// The same for a primary and its standbys.
    pub system: i64,
    /// Goes up when a standby takes the place of its primary.
    pub timeline: u32,
}

/// Who has a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// `locked_by`.
    pub holder: Option<String>,
    /// The token of that grant.
    pub token: Option<Token>,
    /// For how long it has been held.
    pub held_for: Option<Duration>,
    /// How long its lease goes on; none: without end. Where it ends by being watched: if the watch
    /// began now.
    pub free_in: Option<Duration>,
    /// How it ends, where that is by being watched.
    pub lapse: Option<ObservedExpiry>,
    /// The grant id that stands in its row.
    pub grant: Option<String>,
    /// Whether that is the grant which holds it. If not, 0.5 has it, which leaves what it does not
    /// know as it was.
    pub intact: bool,
}

/// One grant: who may renew and release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which lock.
    pub name: LockName,
    /// Its fencing number.
    pub token: Token,
    /// Its random id.
    pub id: GrantId,
    /// `locked_by`.
    pub holder: Arc<str>,
    /// The server that granted or renewed it last, where one may take the place of another.
    pub confirmed_by: Option<Primary>,
}

/// What became of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lasts at least the whole ttl from when the request was sent.
    Renewed {
        /// The server that says so, where one may take the place of another.
        confirmed_by: Option<Primary>,
    },
    /// A plain read says that it is still ours, but its row is locked by somebody.
    Busy,
    /// A plain read says that it is no longer ours.
    Lost(Gone),
}

impl Renewal {
    /// Why it was lost, if it was.
    pub fn lost(&self) -> Option<LostReason> {
        match self {
            Self::Lost(gone) => Some(gone.reason),
            Self::Renewed { .. } | Self::Busy => None,
        }
    }

    /// Whether it was renewed.
    pub fn is_renewed(&self) -> bool {
        matches!(self, Self::Renewed { .. })
    }
}

/// A grant that is to end at once, since its holder comes again and wants another.
#[derive(Clone, Debug)]
pub struct TakeOverCommand {
    /// The grant that is asked for; its holder has to be that of the one that ends.
    pub to: AcquireCommand,
    /// The token of the one that ends.
    pub token: Token,
    /// The grant id that stands in its row; none: 0.5 made it, which has no such thing.
    pub grant: Option<String>,
}

/// A grant that goes on as another one, elsewhere.
#[derive(Clone, Debug)]
pub struct ResumeCommand {
    /// The token of both.
    pub token: Token,
    /// The grant that ends.
    pub from: GrantId,
    /// The one that takes its place.
    pub to: AcquireCommand,
}

/// A grant to be given back.
#[derive(Clone, Debug)]
pub struct ReleaseCommand {
    /// Which lock.
    pub name: LockName,
    /// Its fencing number; none where the reply to the acquire was lost. The random id is proof
    /// enough then.
    pub token: Option<Token>,
    /// Its random id.
    pub grant: GrantId,
    /// `locked_by`.
    pub holder: Arc<str>,
    /// Whether a crash of the database must not forget it: so for a lease without end, which would
    /// otherwise stay held for ever.
    pub durable: bool,
}

impl ReleaseCommand {
    /// Give back a grant.
    pub fn of(grant: &Grant, ttl: Ttl) -> Self {
        Self {
            name: grant.name.clone(),
            token: Some(grant.token),
            grant: grant.id,
            holder: Arc::clone(&grant.holder),
            durable: ttl == Ttl::Infinite,
        }
    }
}

/// What became of a [`ReleaseCommand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It was ours and is free now.
    Freed,
    /// The same, and clients that wait for it were notified.
    Awaited,
    /// Still ours, but its row is locked by somebody.
    Busy,
    /// It was not ours any more; nothing was changed.
    NotOurs,
}

/// What became of a release by force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    /// It is free now; this is who had it.
    Freed(Holder),
    /// It was free, or there is no such lock.
    WasFree,
    /// Its row is locked by somebody: a fenced transaction may be open.
    Busy,
}
