//! Releasing a lock or a permit by force.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::api::locks::Locks;
use crate::client::Client;
use crate::client::force::{force, force_after_fence};
use crate::client::read::{is_unheld, read_row};
use crate::error::Error;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;
use protocol::{Force, Holder, LockName, Slot, Token};

/// How long a release by force retries while the row is locked.
const FORCE_TIMEOUT: Duration = Duration::from_secs(2);

impl Locks {
    /// Release a lock by force, and return its former holder; `None` if it was free. If it
    /// [rests](crate::Lock::at_least), end the rest, and return the latest holder.
    ///
    /// **The former holder keeps working until its next renewal**, where it learns of this (on
    /// PostgreSQL at once if its renewals are more than 5 s apart). Make sure first that it is dead
    /// or stopped. If a fenced transaction of this process is open under the lock, the lock is
    /// released when that transaction ends, and a warning says so.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if the row stays locked for 2 s, even if no client holds the lock. As a rule
    /// that is a fenced or guarded transaction of another process. The source names its session, the age
    /// of the transaction and how to end it, where the database tells this user.
    /// [`Error::Unavailable`], also if no client holds the lock, but the database does not tell within 3 s
    /// whether a transaction has its row locked. [`Error::Config`] for an invalid name; [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lock may or may not be released.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").holder("web-2").acquire().await?;
    /// let former = locks.force_release("report").await?.expect("it was held");
    /// assert_eq!((former.holder.as_deref(), former.token), (Some("web-2"), Some(guard.token())));
    /// assert!(locks.force_release("report").await?.is_none(), "it is free");
    /// assert!(guard.release().await.is_err(), "the holder learns of it now at the latest");
    /// # Ok(()) }
    /// ```
    pub fn force_release<N: AsRef<str>>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Option<PreviousHolder>, Error>> + Send + 'static + use<N> {
        let forced = LockName::new(name).map(|name| self.force(name, Slot::Lock));
        async move { Ok(forced?.await?.map(PreviousHolder::of)) }
    }

    /// [`Locks::force_release`] for one permit of a semaphore: `slot` is its number, as
    /// [`Locks::show_semaphore`] gives it.
    ///
    /// # Errors
    ///
    /// As [`Locks::force_release`].
    ///
    /// # Cancel safety
    ///
    /// As [`Locks::force_release`].
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.semaphore("partner api", 3).acquire().await?;
    /// let slot = guard.slot().expect("a permit");
    /// assert!(locks.force_release_permit("partner api", slot).await?.is_some());
    /// assert!(guard.check().await.is_err());
    /// # Ok(()) }
    /// ```
    pub fn force_release_permit<N: AsRef<str>>(
        &self,
        name: N,
        slot: u16,
    ) -> impl Future<Output = Result<Option<PreviousHolder>, Error>> + Send + 'static + use<N> {
        let forced = LockName::new(name).map(|name| self.force(name, Slot::Permit(slot)));
        async move { Ok(forced?.await?.map(PreviousHolder::of)) }
    }

    pub(crate) fn force(
        &self,
        name: LockName,
        slot: Slot,
    ) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + use<> {
        self.in_background(move |client| async move {
            let op = || format!("release {} by force", slot.named(&name));
            let unheld = Mutex::new(None);
            let forced =
                while_contended(FORCE_TIMEOUT, || try_force(&client, &name, slot, &unheld));
            let (from, done) = match forced.await {
                Err(conflict @ StoreError::Contention(_)) => {
                    let find = client.row_lockers.find_if_possible(&name, slot);
                    let cause = find.await.map_or(conflict, |session| locked_by(&session));
                    return Err(cause.into_error(op()));
                }
                forced => forced.map_err(|e| e.into_error(op()))?,
            };
            if !done {
                return Ok(from);
            }
            client.queues(slot).wake(&name);
            client.wake_shared(slot, &name);
            if let Some(from) = &from {
                tracing::warn!(
                    lock.name = name.as_str(),
                    lock.slot = slot.number(),
                    lock.token = from.token.map(Token::get),
                    lock.holder = from.holder.as_deref(),
                    "{} released by force",
                    slot.as_str()
                );
            }
            Ok(from)
        })
    }
}

/// One try: the holder, and whether the lock is free now or only when its fenced transaction ends.
///
/// `unheld` is the token of the latest grant, if an earlier try found that no client holds the lock.
async fn try_force(
    client: &Arc<Client>,
    name: &LockName,
    slot: Slot,
    unheld: &Mutex<Option<Token>>,
) -> Result<(Option<Holder>, bool), StoreError> {
    let row = read_row(client, name, slot).await?;
    let tried = *unheld.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(token) = tried {
        // Not tried once more: a client that was granted the lock since is not meant.
        return match row.is_some_and(|row| row.token == token) {
            true => free_unless_locked(client, name, slot).await,
            false => Ok((None, true)),
        };
    }
    match force(client, name, slot).await? {
        Force::Freed(from) => Ok((Some(from), true)),
        Force::WasFree => {
            let Some(row) = row.filter(is_unheld) else {
                return Ok((None, true));
            };
            *unheld.lock().unwrap_or_else(PoisonError::into_inner) = Some(row.token);
            free_unless_locked(client, name, slot).await
        }
        Force::Busy => match force_after_fence(client, name, slot) {
            Some(from) => Ok((Some(from), false)),
            None => Err(locked_by("another transaction")),
        },
    }
}

/// A lock that no client holds is free, unless a transaction has its row locked.
async fn free_unless_locked(
    client: &Client,
    name: &LockName,
    slot: Slot,
) -> Result<(Option<Holder>, bool), StoreError> {
    match client.row_lockers.find(name, slot).await {
        Ok(None) => Ok((None, true)),
        Ok(Some(session)) => Err(locked_by(&session)),
        Err(StoreError::Unavailable(cause) | StoreError::Contention(cause)) => {
            let unseen =
                "no client holds it, but whether a transaction has its row locked cannot be seen";
            Err(StoreError::Unavailable(format!("{unseen}: {cause}").into()))
        }
        Err(rejected) => Err(rejected),
    }
}

fn locked_by(session: &str) -> StoreError {
    StoreError::Contention(format!("its row is locked by {session}").into())
}

/// The holder that lost a lock by [`Locks::force_release`], or the latest one of a lock that
/// rested.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousHolder {
    /// Its name, as [`Lock::holder`](crate::Lock::holder) set it.
    pub holder: Option<String>,
    /// The fencing token of its grant; `None` for a legacy holder (django-database-locks 0.5).
    pub token: Option<Token>,
    /// How long it had held the lock, by the database's clock; `None` for a legacy holder, and if
    /// the lock rested.
    pub held_for: Option<Duration>,
    /// Whether it had released the lock, which [rested](crate::Lock::at_least).
    pub rested: bool,
}

impl PreviousHolder {
    pub(super) fn of(holder: Holder) -> Self {
        Self {
            holder: holder.holder,
            token: holder.token,
            held_for: holder.held_for.filter(|_| !holder.is_resting),
            rested: holder.is_resting,
        }
    }
}
