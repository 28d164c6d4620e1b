//! Who has a lock that one try did not get, for its error.

use std::time::Duration;

use crate::client::Client;
use crate::client::read::{is_unheld, read, read_semaphore, read_shared};
use crate::error::Error;
use protocol::{LockInfo, LockName, LockState, Slot};

/// Fields of [`Error::TimedOut`].
#[derive(Default)]
pub(super) struct Busy {
    pub(super) holder: Option<String>,
    pub(super) held_for: Option<Duration>,
    pub(super) rests_for: Option<Duration>,
    pub(super) permits: Option<u32>,
    pub(super) shared_by: Option<u32>,
    pub(super) row_locker: Option<Box<str>>,
}

impl Busy {
    pub(super) fn of_row(row: &LockInfo) -> Self {
        let holder = row.holder.clone();
        match row.state {
            LockState::Resting { free_in } => Self {
                holder,
                rests_for: Some(free_in),
                ..Self::default()
            },
            LockState::Held { .. } => Self {
                holder,
                held_for: row.held_for,
                ..Self::default()
            },
            // A free row still contains the last holder.
            _ => Self::default(),
        }
    }

    pub(super) async fn of_lock(client: &Client, name: &LockName) -> Result<Self, Error> {
        let row = read(client, name).await?;
        if !row.as_ref().is_some_and(LockInfo::is_taken)
            && let Some(readers) = Self::of_shared(client, name).await
        {
            return Ok(readers);
        }
        let Some(row) = row else {
            return Ok(Self::default());
        };
        let mut busy = Self::of_row(&row);
        // It would have been acquired.
        if is_unheld(&row)
            && let Some(session) = (client.row_lockers.find_if_possible(name, Slot::Lock)).await
        {
            (busy.holder, busy.row_locker) = (row.holder, Some(session.into()));
        }
        Ok(busy)
    }

    /// `None` if no holder shares the lock.
    async fn of_shared(client: &Client, name: &LockName) -> Option<Self> {
        // Without a table of permits no lock is shared.
        let rows = read_shared(client, name).await.ok()?;
        let held = || rows.iter().filter(|row| row.is_held());
        let first = held().max_by_key(|row| row.held_for)?;
        Some(Self {
            shared_by: u32::try_from(held().count()).ok(),
            ..Self::of_row(first)
        })
    }

    /// `limit` is that of the caller.
    pub(super) async fn of_semaphore(
        client: &Client,
        name: &LockName,
        limit: u32,
    ) -> Result<Self, Error> {
        let semaphore = read_semaphore(client, name).await?;
        let taken = semaphore.permits.iter();
        let taken = taken.filter(|permit| permit.state != LockState::Free);
        let longest = taken.max_by_key(|permit| permit.held_for);
        Ok(Self {
            permits: Some(semaphore.limit.unwrap_or(limit)),
            ..longest.map(Self::of_row).unwrap_or_default()
        })
    }

    pub(super) fn timed_out(self, name: LockName, waited: Duration) -> Error {
        Error::TimedOut {
            name,
            waited,
            holder: self.holder,
            held_for: self.held_for,
            permits: self.permits,
            shared_by: self.shared_by,
            rests_for: self.rests_for,
            row_locker: self.row_locker,
        }
    }
}
