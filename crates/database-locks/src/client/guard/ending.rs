//! The end of a guard: a release, a hand-over by ticket, or a drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::LockGuard;
use super::lease::why_lost;
use crate::client::own_grants::Releasing;
use crate::client::pending_releases;
use crate::client::release::ReleaseRequest;
use crate::client::renewal::grant_state::{Status, log_grant, ms};
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use protocol::{BootInstant, LostReason, ReleaseCommand, Released, Ticket};

/// How long [`LockGuard::release`] waits for the database. After it, the background continues.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

impl LockGuard {
    /// Hand the lock over: stop renewing it, and return a ticket for another task or process. No
    /// I/O.
    ///
    /// The lock stays held until its present lease ends, [`trusted_for`](LockGuard::trusted_for)
    /// plus the margin from now. The ticket must be [resumed](crate::Locks::resume) or
    /// [renewed](crate::Locks::renew) before that; if this may take longer,
    /// [extend](LockGuard::extend) the lease first.
    ///
    /// A ticket does not contain [`Lock::at_least`](crate::Lock::at_least): a release with it frees
    /// the lock at once, and a guard that resumes it counts its own from then.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the lock is lost. [`Error::Conflict`] while the guard is
    /// [suspended](LockGuard::is_suspended): the guard is then dropped and the lock released.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("import").acquire().await?;
    /// let text = guard.into_ticket()?.to_string(); // to a queue, a file, an environment variable
    /// // … in another process …
    /// let guard = locks.resume(&text.parse()?).await?;
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn into_ticket(self) -> Result<Ticket, Error> {
        self.forget_listeners();
        // Before the check, so that no renewal records a loss after it.
        self.client.scheduler.remove(self.state.grant.id);
        self.still_trusted()?;
        self.released.store(true, Ordering::Relaxed);
        self.state.mark_released();
        self.left();
        log_grant!(
            debug,
            &self.state.grant,
            lock.held_ms = ms(self.state.held_for()),
            "{} handed over",
            self.state.grant.slot.as_str()
        );
        Ok(self.ticket())
    }

    /// Release the lock. It is free at once, or after [`Lock::at_least`](crate::Lock::at_least).
    ///
    /// On MySQL and MariaDB, if a [fence](LockGuard::fence) of this guard is open, this does not
    /// wait for it: the lock is released when that transaction ends, and a log record at `info`
    /// says so.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if this grant no longer held the lock: the work was not protected to its
    /// end, and nothing was changed. [`Error::Unavailable`] if the database did not answer within 5
    /// s, and [`Error::Rejected`] if it refused: tries go on in the background, and the lock is
    /// free when its ttl ends at the latest.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the release is carried out even if the future is dropped. Before that, dropping
    /// it is like dropping the guard.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").acquire().await?;
    /// // … the work …
    /// guard.release().await?; // an error if the work was not protected to its end
    /// assert!(!locks.show("report").await?.expect("its row stays").is_held());
    /// # Ok(()) }
    /// ```
    pub async fn release(self) -> Result<(), Error> {
        self.release_shared().await
    }

    /// [`release`](LockGuard::release) for a guard that is shared. Only the first release counts.
    pub(crate) async fn release_shared(&self) -> Result<(), Error> {
        let (name, began) = (self.name().clone(), clock::now());
        self.forget_listeners();
        match self.still_trusted() {
            // A suspended guard can still be released.
            Ok(()) | Err(Error::Conflict { .. }) => {}
            Err(lost) => return Err(lost),
        }
        let Some(mut release) = self.begin_release() else {
            // A renewal has recorded a loss since the check above.
            return self
                .loss()
                .map_or(Ok(()), |loss| Err(Error::lost(&name, loss)));
        };
        let done = match release.directly().await {
            Some(done) => done,
            None => {
                let op = format!("release {}", self.what());
                in_background(op, release, began + RELEASE_TIMEOUT).await?
            }
        };
        if done != Released::NotHeld {
            return Ok(());
        }
        let (client, state) = (Arc::clone(&self.client), Arc::clone(&self.state));
        let ttl = *self.longest_ttl();
        let why = runtime::run(async move {
            Ok::<_, Error>(why_lost(&client, &state, ttl).await.ok().flatten())
        });
        let gone = why.await?.unwrap_or(LostReason::Preempted.into());
        Err(Error::lost(self.name(), self.state.loss(gone)))
    }

    /// Drop the listeners: no loss is reported after a release.
    pub(crate) fn forget_listeners(&self) {
        // In a forked child their mutex may be locked for ever, by a thread of the parent.
        if self.state.is_in_owner_process() {
            drop(self.state.listeners.take());
        }
    }

    /// The row is free, or another client's, without a release by this guard.
    fn left(&self) {
        let slot = self.state.grant.slot;
        self.client.queues(slot).left(self.name());
        self.client.wake_shared(slot, self.name());
    }

    /// Stop renewals and build the release; `None` if there is nothing to release.
    fn begin_release(&self) -> Option<ReleaseRequest> {
        // A forked child must neither release nor touch its parent's grant.
        if self.released.swap(true, Ordering::Relaxed) || !self.state.is_in_owner_process() {
            return None;
        }
        self.forget_listeners();
        // Until the release exists. A waiter that finds the grant meanwhile need not announce
        // itself.
        let _releasing = Releasing::new(self.state.grant.id, self.client.number);
        self.client.scheduler.remove(self.state.grant.id);
        let _ = self.still_trusted();
        let before = self.state.status();
        self.state.mark_released();
        let until = match before {
            Status::Held(_) => self.state.unavailable_until(),
            // A lost lock does not rest.
            Status::Lost(loss) if loss.reason().leaves_a_lease() => BootInstant::ZERO,
            // After a loss to another holder, or of the row, there is nothing to release.
            Status::Lost(_) | Status::Released => {
                self.left();
                return None;
            }
        };
        let (client, ttl) = (Arc::clone(&self.client), *self.longest_ttl());
        let command = ReleaseCommand::of(&self.state.grant, ttl);
        let held_for = Some(self.state.held_for());
        Some(ReleaseRequest::new(client, command, until, ttl, held_for))
    }
}

/// Run the release in the background, and wait for its result until `until`.
async fn in_background(
    op: String,
    release: ReleaseRequest,
    until: BootInstant,
) -> Result<Released, Error> {
    let work = runtime::spawn(release.in_background())?;
    runtime::run(async move {
        tokio::select! {
            done = work => done.unwrap_or_else(|stopped| Err(Error::Unavailable {
                op: "release a lock".into(),
                source: Box::new(stopped),
            })),
            () = clock::sleep_until(until) => Err(Error::Unavailable {
                op,
                source: "no answer within 5s; trying again in the background".into(),
            }),
        }
    })
    .await
}

impl LockGuard {
    /// Release the lock in the background, as the drop of the guard does.
    pub(crate) fn release_in_background(&self) {
        if let Some(release) = self.begin_release() {
            drop(release);
            pending_releases::guard_dropped();
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.release_in_background();
    }
}
