//! The attribute `#[locked]`, and the items that its expansion uses besides the public API.

use std::marker::PhantomData;

use serde_json::Value;

use crate::api::lock::Lock;
use crate::error::Error;

/// Run a function only while holding a lock.
///
/// Each call acquires the lock, runs the body, and releases the lock when the body ends: by
/// `return`, `?`, a panic, or because its future is dropped. If the lock is not acquired or is
/// lost, a function that returns a `Result` returns `Err`. **A function that returns anything else
/// panics**, an `Option` and `()` included: when the database cannot be reached, when `wait` is
/// over, when the lock is lost. The body is never skipped silently.
///
/// ```
/// use database_locks::{Error, Locks, locked};
///
/// #[locked("nightly report", ttl = "30s")]
/// async fn report() -> Result<(), Error> {
///     // One call at a time, of all processes that use this database.
///     Ok(())
/// }
///
/// #[locked(name = format!("invoice {id}"), wait = "5s")]
/// async fn send(id: u64) -> std::io::Result<()> {
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// Locks::set_default(Locks::connect("memory:").await?);
/// report().await?;
/// send(17).await?;
/// # Ok(()) }
/// ```
///
/// It applies to any `fn` or `async fn` with a body: generic functions, methods, methods of a trait
/// under `#[async_trait]`, functions that return `impl Future<Output = …>` or a boxed future,
/// `unsafe` functions.
///
/// # Arguments
///
/// All are optional. Each value is evaluated once in each call, before the body, and may use the
/// function's arguments, which the body can still use.
///
/// | argument              | value                                         | default |
/// | ---                   | ---                                           | --- |
/// | `name = …`; first, a string literal, a constant or a macro alone | anything that is `AsRef<str>` | module path and function: `app::jobs::report` |
/// | `ttl = …`             | `"100ms"` to ten years or `"inf"`; [`Duration`], [`Ttl`] | 30 s |
/// | `wait = …`            | `"0"`: try once; [`Duration`]                 | no limit |
/// | `poll = …`            | `"1ms"` at least; [`Duration`]                | 250 ms |
/// | `renew_every = …`     | `"10ms"` at least; [`Duration`]               | a third of the ttl |
/// | `auto_renew = …`      | `bool`                                        | `true` |
/// | `margin = …`          | less than half of the ttl; [`Duration`]       | a tenth of the ttl up to 30 s; 3 s for a ttl of 30 s to 5 min; 1 % above that |
/// | `holder = …`          | the holder's name, for people: anything that is `AsRef<str>` | `host.pid.random` |
/// | `shared = …`          | `bool`: many calls at once, and no exclusive one beside them | `false` |
/// | `preempt = …`         | `bool`; `true` needs a `holder`               | `false` |
/// | `at_least = …`        | `"0"` to ten years; [`Duration`]               | 0 |
/// | `once_per = …`        | `"100ms"` to ten years; [`Duration`]          | none |
/// | `metadata = …`        | pairs: `[("order", id), ("by", user)]`, or any expression that iterates over `(impl Into<String>, impl Into<Value>)` | none |
/// | `via = …`             | the database: anything that is `AsRef<Locks>` | [`Locks::get_default`] |
/// | `crate = …`           | the path of this crate, if it was renamed     | `::database_locks` |
///
/// [`Lock`] documents what they mean. A duration literal is read as by
/// [`parse_duration`](crate::parse_duration). A literal out of range is a compile error.
///
/// **The name.** A string literal is used as it is; it is not a format string. A constant or a
/// macro may stand alone as well: `#[locked(names::REPORT)]`, `#[locked(concat!("app/",
/// "report"))]`; any other expression follows `name =`. A method must have a name, since the
/// attribute sees neither the type nor the trait that the method belongs to; so should an
/// associated function without `self`, of which there may be two in a module. All instances of a
/// generic function share the default name.
///
/// **The database.** [`Locks`] and [`blocking::Locks`](crate::api::blocking::Locks) are
/// `AsRef<Locks>`, by value or by reference, and an application's own types may implement it.
/// Without `via` the function uses the locks of [`Locks::set_default`], or else connects once to
/// the database in the environment variable `DATABASE_LOCKS_URL`, or in the file that
/// `DATABASE_LOCKS_URL_FILE` names.
///
/// ```
/// use database_locks::{Error, Locks, locked};
///
/// const STOCK: &str = "stock";
///
/// struct Shop {
///     locks: Locks,
/// }
///
/// impl Shop {
///     #[locked(STOCK, via = self.locks, metadata = [("shelves", shelves.len())])]
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
/// A function that returns a `Result<T, E>`, under any alias, returns `Err` if the lock was not
/// acquired, with any [`Error`] of [`Lock::acquire`] or [`Locks::get_default`], and [`Error::Lost`]
/// if it was lost. `E` must implement `From<Error>`; [`Error`], [`std::io::Error`], `Box<dyn
/// Error>` and `anyhow::Error` do.
///
/// ```compile_fail
/// #[database_locks::locked]
/// fn report() -> Result<(), std::fmt::Error> { // the trait `From<database_locks::Error>` is not implemented
///     Ok(())
/// }
/// ```
///
/// To go on without the lock while another holder has it, match on the error:
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
///     Err(Error::TimedOut { .. }) => {} // another holder is cleaning
///     other => other?,
/// }
/// # Ok(()) }
/// ```
///
/// With `once_per`, a function that another machine has run in this period is not called either,
/// and returns [`Error::AlreadyRan`]. For a job that several machines start, that is no failure:
///
/// ```
/// use database_locks::{Error, locked};
///
/// #[locked("hourly report", once_per = "1h")]
/// fn report() -> Result<(), Error> {
///     Ok(())
/// }
///
/// # fn main() -> Result<(), Error> {
/// # let locks = database_locks::blocking::Locks::connect("memory:")?;
/// # database_locks::blocking::Locks::set_default(locks);
/// # report()?;
/// match report() {
///     Err(Error::AlreadyRan { .. }) => {}
///     other => other?,
/// }
/// # Ok(()) }
/// ```
///
/// **If the lock is lost** while the body of an `async fn` runs, the body is stopped before another
/// client can acquire the lock: its future is dropped where it awaits; see [`Lock::run`]. The body
/// of a blocking `fn` cannot be stopped: it runs to its end, and the loss is returned in place of
/// its value. Work that is long, or harmful without the lock, should use a
/// [`LockGuard`](crate::LockGuard) and check it.
///
/// # Panics
///
/// A function that returns no `Result` panics in all these cases, with [`Error::chain`]. So does
/// one that returns a type parameter, even if that is a `Result` in some call.
///
/// # Cancel safety
///
/// The future of an `async fn` may be dropped at any time: during the wait nothing is left held,
/// and later the body is dropped first and the lock released in the background. The future is
/// `Send` if the body and its value are.
///
/// # Notes
///
/// - A lock is not re-entrant: a function that calls itself, or another function with the same lock
///   name, waits for itself.
/// - The lock covers the body only, not a returned iterator or a spawned task that runs later.
/// - A `fn` that returns `impl Future<Output = …>`, `Pin<Box<dyn Future<Output = …>>>` or a
///   `BoxFuture` is locked while that future runs, and all of its body runs then, not at the call.
///   A `fn` that returns another type of future is refused.
/// - The attribute goes on the methods under `#[async_trait]`, not on the `impl`. It stands above
///   `#[tokio::main]`: below it, it would be on a blocking function.
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

/// The result of a function with return type `T` whose lock was not acquired or was lost. A
/// `Result` is recognized by its type, so that aliases of it count too.
#[derive(Debug)]
pub struct Failure<T>(PhantomData<T>);

impl<T, E> Failure<Result<T, E>> {
    /// The error as `Err`. The bound is here and not on the `impl`: an error type without that
    /// conversion has to be a compile error, and not a panic as for other types.
    pub fn answer(error: Error) -> Result<T, E>
    where
        E: From<Error>,
    {
        Err(E::from(error))
    }
}

/// `Failure::answer` for all types but `Result`, since the compiler prefers a method of the type
/// itself to that of a trait.
pub trait Panics<T> {
    /// Panic with the error.
    fn answer(error: Error) -> T;
}

impl<T> Panics<T> for Failure<T> {
    #[track_caller]
    fn answer(error: Error) -> T {
        panic(error)
    }
}

/// The value of a blocking function. It must not be a future, which would run after the release.
#[derive(Debug)]
pub struct Returned<'a, T>(pub &'a T);

impl<T: Future> Returned<'_, T> {
    /// A value that [`require_finished`] refuses.
    pub fn work(&self) -> IsFuture {
        IsFuture
    }
}

/// [`Returned::work`] for all types that are not a future.
pub trait Finished {
    /// A value that [`require_finished`] accepts.
    fn work(&self) {}
}

impl<T> Finished for Returned<'_, T> {}

/// Marks the value of a function as a future.
#[derive(Debug)]
pub struct IsFuture;

/// Implemented for the mark of a value that is no future.
#[diagnostic::on_unimplemented(
    message = "the lock would be free again before the future that this function returns runs",
    label = "this is a future",
    note = "make it an `async fn`, or return `impl Future<Output = …>` or \
            `Pin<Box<dyn Future<Output = …> + …>>`"
)]
pub trait NotFuture {}

impl NotFuture for () {}

/// Refuse a function that returns a future.
pub fn require_finished(_: impl NotFuture) {}

/// Panic with the error and its causes.
#[track_caller]
pub fn panic(error: Error) -> ! {
    panic!(
        "a `#[locked]` function that returns no `Result`: {}",
        error.chain()
    )
}

/// Call the body of a function that returns a future. A direct call of a closure would be a lint.
pub fn call<T>(body: impl FnOnce() -> T) -> T {
    body()
}

/// A key of `metadata`. The function keeps its argument.
pub fn metadata_key(key: &(impl AsRef<str> + ?Sized)) -> &str {
    key.as_ref()
}

/// A value of `metadata`. The function keeps its argument.
pub fn metadata_value<T: Clone + Into<Value>>(value: &T) -> Value {
    value.clone().into()
}

/// The lock with pairs of metadata from an iterator.
pub fn with_metadata<K: Into<String>, V: Into<Value>>(
    lock: Lock,
    pairs: impl IntoIterator<Item = (K, V)>,
) -> Lock {
    let pairs = pairs.into_iter();
    pairs.fold(lock, |lock, (key, value)| lock.metadata(key, value))
}
