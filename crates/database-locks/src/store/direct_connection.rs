//! The interface of the direct connection.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::store::error::StoreError;
use protocol::{AcquireCommand, Outcome, ReleaseCommand, Released};

/// A pending answer.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A second connection of the process, whose I/O is driven by the runtime of the caller, so that no
/// thread has to wake another.
///
/// It is used on one runtime at a time, its *home*: every request is made and polled there. It
/// connects at the first request, and again after the connection has broken. Tasks that it spawns
/// (`tokio::spawn`) run on the home, wrapped in
/// [`ForkSafeFuture`](crate::runtime::fork::ForkSafeFuture). When the home ends, they end, and the
/// next request is made on another runtime.
///
/// The client makes one request at a time, unless requests [block](DirectConnection::blocks). A
/// request has no deadline of its own. If it is late, the client calls
/// [`give_up`](DirectConnection::give_up), and drops the reply as soon as its owner allows. Other
/// replies that were polled once are dropped only if their runtime ends. The effect of a failed or
/// dropped request is *unknown*, as for [`Store`](crate::store::api::Store).
pub trait DirectConnection: Send + Sync + fmt::Debug {
    /// Whether a request blocks the thread that polls it. If so, only blocking callers use it.
    fn blocks(&self) -> bool {
        false
    }

    /// See [`Store::connect`](crate::store::api::Store::connect).
    fn connect(&self) -> Reply<'_, ()>;

    /// See [`Store::acquire`](crate::store::api::Store::acquire).
    fn acquire<'a>(&'a self, commands: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>>;

    /// See [`Store::release`](crate::store::api::Store::release).
    fn release<'a>(&'a self, commands: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>>;

    /// Make the next request on a new connection: a request was late, or the direct connection
    /// moves to another runtime.
    fn give_up(&self);
}
