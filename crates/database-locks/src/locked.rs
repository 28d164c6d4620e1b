//! The attribute `#[locked]`, and what it expands to besides the public face.

use std::marker::PhantomData;

use crate::error::Error;

/// Run a function only while holding a lock.
///
/// On any `fn` or `async fn` with a body: generic ones, methods, with arguments and results of all
/// kinds, `unsafe` ones. Each call takes the lock, runs the body, and releases the lock when the body
/// has ended, however that was: `return`, `?`, a panic, a future that is dropped.
///
/// ```
/// use database_locks::{Locks, locked};
///
/// #[locked("nightly report", ttl = "30s")]
/// async fn report() {
///     // One at a time, of all processes that use this database.
/// }
///
/// #[locked(name = format!("invoice {id}"), wait = "5s")]
/// async fn send(id: u64) -> Result<(), database_locks::Error> {
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// Locks::set_default(Locks::connect("memory:").await?);
/// report().await;
/// send(17).await?;
/// # Ok(()) }
/// ```
///
/// # Arguments
///
/// All may be left out. Each value is evaluated once a call, before the body, and may use the
/// function's arguments, which stay with the body.
///
/// | argument              | value                                         | default |
/// | ---                   | ---                                           | --- |
/// | `name = …`, or a literal alone and first | anything that is `AsRef<str>` | module path and function: `app::jobs::report` |
/// | `ttl = …`             | `"100ms"` to ten years or `"inf"`; [`Duration`], [`Ttl`] | 30 s |
/// | `wait = …`            | `"0"`: try once; [`Duration`]                 | as long as it takes |
/// | `renew_every = …`     | `"10ms"` at least; [`Duration`]               | a third of the ttl |
/// | `auto_renew = …`      | `bool`                                        | `true` |
/// | `margin = …`          | less than half of the ttl; [`Duration`]       | a tenth of the ttl, at most 3 s or a hundredth |
/// | `holder = …`          | who, for people: anything that is `AsRef<str>` | `host.pid.random` |
/// | `via = …`             | the database: anything that is `AsRef<Locks>` | [`Locks::get_default`] |
/// | `crate = …`           | the path of this crate, where it was renamed  | `::database_locks` |
///
/// What they mean is said at [`Lock`]. Durations in literals are read as by
/// [`parse_duration`](crate::parse_duration), and refused, as names are, while compiling where they
/// cannot be right.
///
/// **The name.** All instances of a generic function share the default name. A method must be given
/// one, since the attribute sees neither the type nor the trait that it belongs to; so should
/// an associated function without `self`, of which there may be two of one name in a module. A name
/// that is a literal is used as it is; for more there is `name = format!(…)`.
///
/// **The database.** [`Locks`] and [`blocking::Locks`](crate::blocking::Locks) are `AsRef<Locks>`, by
/// value or by reference, and whatever has locks may implement it. Without `via` the
/// function takes those of [`Locks::set_default`], or else connects once to the database that the
/// environment variable `DATABASE_LOCKS_URL` names, or the file in `DATABASE_LOCKS_URL_FILE`.
///
/// ```
/// use database_locks::{Error, Locks, locked};
///
/// struct Shop {
///     locks: Locks,
/// }
///
/// impl Shop {
///     #[locked("stock", via = self.locks)]
///     async fn count(&mut self, shelves: &[u32]) -> Result<u32, Error> {
///         Ok(shelves.iter().sum())
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// # let mut shop = Shop { locks: Locks::connect("memory:").await? };
/// # assert_eq!(shop.count(&[1, 2]).await?, 3);
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// A function that returns a `Result<T, E>`, by whatever alias, answers with `Err` where the lock was
/// not got, with any [`Error`] of [`Lock::acquire`] or [`Locks::get_default`], and where it was lost,
/// with [`Error::Lost`]. `E` must be `From<Error>`:
///
/// ```compile_fail
/// #[database_locks::locked]
/// fn report() -> Result<(), std::fmt::Error> { // the trait `From<database_locks::Error>` is not implemented
///     Ok(())
/// }
/// ```
///
/// A body is never skipped in silence. To do without where somebody else is at it, ask for that:
///
/// ```
/// use database_locks::{Error, locked};
///
/// #[locked("cleaning", wait = "0")]
/// fn clean() -> Result<(), Error> {
///     Ok(())
/// }
///
/// # fn main() -> Result<(), Error> {
/// # let locks = database_locks::blocking::Locks::connect("memory:")?;
/// # database_locks::blocking::Locks::set_default(locks);
/// match clean() {
///     Err(Error::TimedOut { .. }) => {} // somebody else cleans
///     other => other?,
/// }
/// # Ok(()) }
/// ```
///
/// **When the lock is lost** while the body of an `async fn` runs, the body is stopped, by dropping
/// it where it awaits, before anybody else can have the lock; see [`Lock::run`]. The body of a `fn`
/// cannot be stopped: it runs to its end, and the loss is then the answer, in place of its own. Work
/// that is long, or does harm without the lock, takes a [`LockGuard`](crate::LockGuard) instead and
/// asks it.
///
/// # Panics
///
/// A function that returns anything else panics in all these cases, with [`Error::chain`].
///
/// # Cancel safety
///
/// The future of an `async fn` may be dropped at any time: while it waits nothing is left held, and
/// later the body is dropped first and the lock released in the background. It is `Send` where the
/// body and what it answers with are.
///
/// # Notes
///
/// - A lock is not re-entrant: a function that calls itself, or another with the same name of a lock,
///   waits for itself.
/// - The lock covers the body, not what its value does later: an iterator that is returned, a task
///   that was spawned. A `fn` that returns a future is refused.
/// - Write it above other attributes that rewrite the function, such as `#[tokio::main]`. Under
///   `#[async_trait]` an `async fn` is such a `fn` and refused: let it call one that is locked.
/// - Arguments that the body does not use are dropped after the release.
///
/// [`Duration`]: std::time::Duration
/// [`Lock`]: crate::Lock
/// [`Lock::acquire`]: crate::Lock::acquire
/// [`Lock::run`]: crate::Lock::run
/// [`Locks`]: crate::Locks
/// [`Locks::get_default`]: crate::Locks::get_default
/// [`Locks::set_default`]: crate::Locks::set_default
/// [`Ttl`]: crate::Ttl
pub use database_locks_macros::locked;

/// How a function answers that its lock was not got, or was lost: with `Err` where it returns a
/// `Result`, found by its type so that aliases are seen through.
#[derive(Debug)]
pub struct Failure<T>(PhantomData<T>);

impl<T, E> Failure<Result<T, E>> {
    /// The bound stands here and not on the `impl`: an error type that does not fit shall be
    /// refused, and not lead to the panic of the others.
    pub fn answer(error: Error) -> Result<T, E>
    where
        E: From<Error>,
    {
        Err(E::from(error))
    }
}

/// The same for all other types; a method of the type itself comes before one of a trait.
pub trait Panics<T> {
    /// Panic.
    fn answer(error: Error) -> T;
}

impl<T> Panics<T> for Failure<T> {
    #[track_caller]
    fn answer(error: Error) -> T {
        panic(error)
    }
}

/// Panic with all that is known.
#[track_caller]
pub fn panic(error: Error) -> ! {
    panic!("{}", error.chain())
}
