//! Several held locks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::api::fence::{FenceTransaction, OpenFence};
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime::join::{first_of, join_all};
use protocol::{LockName, Ticket, Ttl};

/// Several held locks, renewed in the background while this value lives.
///
/// [`AllLocks::acquire`](crate::AllLocks::acquire) makes one. It has one [`LockGuard`] for each
/// lock, in the order of the names.
///
/// **One lost means all lost**: from then on the set is not [held](LockSet::is_held). The other
/// locks stay held, and are renewed, until the set is released or dropped, so that no other client
/// gets them while the work that is to stop is still at it.
///
/// Dropping it releases all locks in the background, as the drop of a [`LockGuard`] does.
#[must_use = "the locks are released when this is dropped"]
pub struct LockSet(Vec<LockGuard>);

impl fmt::Debug for LockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockSet").field(&self.0).finish()
    }
}

impl LockSet {
    pub(crate) fn new(guards: Vec<LockGuard>) -> Self {
        Self(guards)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.0.iter().map(LockGuard::name)
    }

    /// The guard of each lock, in the order of the names.
    pub fn guards(&self) -> &[LockGuard] {
        &self.0
    }

    /// The guard of the lock of this name, for its [token](LockGuard::token); `None` if it is not
    /// one of the set.
    pub fn guard(&self, name: impl AsRef<str>) -> Option<&LockGuard> {
        let name = name.as_ref();
        self.0.iter().find(|guard| guard.name().as_str() == name)
    }

    /// The guards one by one, of which each then ends by itself.
    pub fn into_guards(self) -> Vec<LockGuard> {
        self.0
    }

    /// A ticket of each grant: see [`LockGuard::ticket`].
    pub fn tickets(&self) -> Vec<Ticket> {
        self.0.iter().map(LockGuard::ticket).collect()
    }

    /// Whether the leases of all locks are trusted: see [`LockGuard::is_held`]. Never waits for
    /// I/O.
    pub fn is_held(&self) -> bool {
        self.0.iter().all(LockGuard::is_held)
    }

    /// How long all leases are trusted if no further renewal succeeds: the least
    /// [`LockGuard::trusted_for`]. Never waits for I/O.
    pub fn trusted_for(&self) -> Duration {
        let each = self.0.iter().map(LockGuard::trusted_for);
        each.min().unwrap_or_default()
    }

    /// Wait until one of the locks is lost, and return its name and the loss. Never resolves if
    /// they are released first.
    ///
    /// The future does not borrow the set, so it may be spawned.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; call this again for another future.
    pub fn lost(&self) -> impl Future<Output = (LockName, Loss)> + Send + use<> {
        let each: Vec<_> = (self.0.iter())
            .map(|guard| (guard.name().clone(), guard.lost()))
            .collect();
        let each = each.into_iter();
        first_of(each.map(|(name, lost)| async move { (name, lost.await) }))
    }

    /// The loss of the first lock that is lost, in the order of the names: see [`LockGuard::loss`].
    /// Never waits for I/O.
    pub fn loss(&self) -> Option<(LockName, Loss)> {
        let lost = |guard: &LockGuard| Some((guard.name().clone(), guard.loss()?));
        self.0.iter().find_map(lost)
    }

    /// Call `f` with the name and the loss when the first lock is lost, at most once: see
    /// [`LockGuard::on_lost`].
    pub fn on_lost(&self, f: impl FnOnce(LockName, Loss) + Send + 'static) {
        let once = Arc::new(Mutex::new(Some(f)));
        for guard in &self.0 {
            let (once, name) = (Arc::clone(&once), guard.name().clone());
            guard.on_lost(move |loss| {
                let f = once.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(f) = f {
                    f(name, loss);
                }
            });
        }
    }

    /// Ask the database whether these grants still hold all locks: see [`LockGuard::check`].
    ///
    /// # Errors
    ///
    /// As [`LockGuard::check`]: [`Error::Lost`] names the lock that is not held.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    pub async fn check(&self) -> Result<(), Error> {
        first_error(join_all(self.0.iter().map(LockGuard::check)).await)
    }

    /// Renew all to `ttl` at once, and use `ttl` for all later renewals: see [`LockGuard::extend`].
    ///
    /// # Errors
    ///
    /// As [`LockGuard::extend`], if one of them fails.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the leases may or may not be extended.
    pub async fn extend(&self, ttl: impl Into<Ttl>) -> Result<(), Error> {
        let ttl = ttl.into();
        first_error(join_all(self.0.iter().map(|guard| guard.extend(ttl))).await)
    }

    /// Fence a transaction, before its first statement: it then commits only while all of these
    /// locks are held. See [`LockGuard::fence`], whose rules hold for it.
    ///
    /// The fences are set in the order of the names. To fence by one of the locks alone, use
    /// [`guard`](LockSet::guard). For a driver that is not supported, send the
    /// [`fence_statement`](LockGuard::fence_statement) of each guard.
    ///
    /// # Errors
    ///
    /// As [`LockGuard::fence`], for the first lock whose fence fails: roll the transaction back.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction may or may not be fenced: roll it back.
    pub async fn fence<T: FenceTransaction>(&self, tx: &mut T) -> Result<OpenFences, Error> {
        self.fence_within(tx, None).await
    }

    /// [`fence`](LockSet::fence) for a transaction that may last for `lasting`: see
    /// [`LockGuard::open_fence`].
    ///
    /// # Errors
    ///
    /// As [`LockSet::fence`], and [`Error::Config`] for `lasting` out of range.
    ///
    /// # Cancel safety
    ///
    /// As [`LockSet::fence`].
    pub async fn fence_with_duration<T: FenceTransaction>(
        &self,
        tx: &mut T,
        lasting: Duration,
    ) -> Result<OpenFences, Error> {
        self.fence_within(tx, Some(lasting)).await
    }

    async fn fence_within<T: FenceTransaction>(
        &self,
        tx: &mut T,
        lasting: Option<Duration>,
    ) -> Result<OpenFences, Error> {
        let mut open = Vec::with_capacity(self.0.len());
        for guard in &self.0 {
            open.push(guard.fence_within(tx, lasting).await?);
        }
        Ok(OpenFences(open))
    }

    /// Release all locks.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if one of the grants no longer held its lock: the work was not protected to
    /// its end. The others are released all the same. Else as [`LockGuard::release`], for one that
    /// failed.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the releases are carried out even if the future is dropped. Before that,
    /// dropping it is like dropping the set.
    pub async fn release(self) -> Result<(), Error> {
        for guard in &self.0 {
            guard.forget_listeners();
        }
        first_error(join_all(self.0.into_iter().map(LockGuard::release)).await)
    }
}

/// A set of one lock, for code that holds one or several.
impl From<LockGuard> for LockSet {
    fn from(guard: LockGuard) -> Self {
        Self(vec![guard])
    }
}

/// A loss, or else the first other error.
fn first_error(results: Vec<Result<(), Error>>) -> Result<(), Error> {
    let mut first = Ok(());
    for error in results.into_iter().filter_map(Result::err) {
        if matches!(error, Error::Lost { .. }) {
            return Err(error);
        }
        if first.is_ok() {
            first = Err(error);
        }
    }
    first
}

/// The open fences of one transaction, one for each lock of a [`LockSet`]. Drop this when the
/// transaction has ended, as an [`OpenFence`].
#[derive(Debug)]
#[must_use = "the fenced transaction counts as ended when this is dropped"]
pub struct OpenFences(#[allow(dead_code, reason = "dropped at the end")] Vec<OpenFence>);
