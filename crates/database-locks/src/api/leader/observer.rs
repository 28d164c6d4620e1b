//! Observation of a leader: reads its row until the leader changes.

use std::fmt;
use std::time::Duration;

use crate::api::locks::Locks;
use crate::client::Client;
use crate::client::read::try_read;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{BootInstant, LockInfo, LockName, LockState, Short, Token};

/// The shortest pause between two reads, right after a change: while there is no leader, a
/// candidate is likely to win soon.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause, while nothing changes or the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Observes who leads; made by [`Leader::observe`](crate::Leader::observe).
///
/// It reads the row of the lock every 50 ms after a change, ever less often while nothing changes,
/// and once a second in the end; at the end of a lease too. A read locks nothing. So a change is
/// seen after a second at the latest, and a term that is shorter than that may be skipped.
///
/// An outage of the database is logged once and is no change: the last leader that was seen stays
/// until the database answers. **An observer is for people, dashboards and routing**: when it
/// reports a leader, another process may lead already. What a former leader must not do needs
/// [`Term::is_leader`](crate::Term::is_leader) or a [fence](crate::LockGuard::fence).
///
/// # Example
///
/// ```
/// use database_locks::{Error, Locks};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
/// # let locks = Locks::connect("memory:").await?;
/// let mut observer = locks.leader("scheduler").observe();
/// // The first answer comes at once, each later one when the leader has changed.
/// for _ in 0..1 {
///     match observer.next().await? {
///         Some(leader) => println!("{:?} leads in term {}", leader.holder, leader.token),
///         None => println!("no leader"),
///     }
/// }
/// # Ok(()) }
/// ```
#[must_use = "an observer reads nothing until it is awaited"]
pub struct LeaderObserver {
    locks: Locks,
    name: String,
    /// What the caller knows; `None`: nothing yet.
    known: Option<Known>,
}

/// The leader that the caller knows.
struct Known {
    leader: Option<Identity>,
    /// Since when it was seen.
    since: BootInstant,
    next_read: BootInstant,
}

/// What differs between two terms. A legacy holder (django-database-locks 0.5) has no token of its
/// own, and a lock that was resumed keeps its token.
#[derive(PartialEq, Eq)]
struct Identity {
    token: Token,
    holder: Option<String>,
}

impl fmt::Debug for LeaderObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaderObserver")
            .field(&Short(&self.name))
            .finish()
    }
}

impl LeaderObserver {
    pub(super) fn new(locks: Locks, name: &str) -> Self {
        Self {
            locks,
            name: name.to_owned(),
            known: None,
        }
    }

    /// The present leader at the first call, and the next one at each later call, when the leader
    /// has changed; `None`: no process leads. See [`Leader::current`](crate::Leader::current) for
    /// the fields.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an invalid name; [`Error::Rejected`] if the database refuses. An
    /// outage is waited for.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time: a change is returned once, by the call that completes.
    pub async fn next(&mut self) -> Result<Option<LockInfo>, Error> {
        let name = LockName::new(&self.name)?;
        loop {
            let due = self.known.as_ref().map(|known| known.next_read);
            let read = {
                let name = name.clone();
                self.locks.in_background(move |client| async move {
                    if let Some(due) = due {
                        clock::sleep_until(due).await;
                    }
                    read_surviving_outages(&client, &name).await
                })
            };
            let row = read.await?.filter(leads);
            if self.record(row.as_ref()) {
                return Ok(row);
            }
        }
    }

    /// Record what was read; returns whether the leader has changed.
    fn record(&mut self, leader: Option<&LockInfo>) -> bool {
        let now = clock::now();
        let free_in = leader.and_then(|row| match row.state {
            LockState::Held { free_in } => free_in,
            _ => None,
        });
        let leader = leader.map(|row| Identity {
            token: row.token,
            holder: row.holder.clone(),
        });
        let since = match &self.known {
            Some(known) if known.leader == leader => Some(known.since),
            _ => None,
        };
        self.known = Some(Known {
            leader,
            since: since.unwrap_or(now),
            next_read: now + pause(since.map_or(Duration::ZERO, |since| now - since), free_in),
        });
        since.is_none()
    }
}

/// The pause before the next read, after the same leader was seen for `unchanged`.
fn pause(unchanged: Duration, free_in: Option<Duration>) -> Duration {
    let pause = (unchanged / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    let until_end = free_in.unwrap_or(Duration::MAX).max(SHORTEST_PAUSE);
    pause.min(until_end)
}

/// Read the row. While the database cannot be reached, try again.
async fn read_surviving_outages(
    client: &Client,
    name: &LockName,
) -> Result<Option<LockInfo>, Error> {
    let mut outage = SHORTEST_PAUSE;
    loop {
        let sent = clock::now();
        match try_read(client, name).await {
            Ok(row) => {
                client.outages.log_answered(sent);
                return Ok(row);
            }
            Err(refused @ StoreError::Rejected { .. }) => {
                return Err(refused.into_error("read the locks"));
            }
            Err(failure) => client.outages.log_failed(name, sent, &failure),
        }
        tokio::time::sleep(outage).await;
        outage = (outage * 2).min(LONGEST_PAUSE);
    }
}

/// Whether it is a holder that leads. One that waits for shared holders of the lock does not yet.
pub(super) fn leads(row: &LockInfo) -> bool {
    row.is_held() && row.waits_for.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_leader_is_read_once_a_second_and_when_its_lease_ends() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(0), None), ms(50));
        assert_eq!(pause(ms(1_000), Some(ms(30_000))), ms(250));
        assert_eq!(pause(ms(60_000), None), ms(1_000));
        assert_eq!(pause(ms(60_000), Some(ms(400))), ms(400));
        assert_eq!(pause(ms(60_000), Some(ms(0))), ms(50));
    }
}
