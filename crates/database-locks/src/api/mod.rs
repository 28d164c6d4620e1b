//! The public API: [`Locks`](locks::Locks), [`Lock`](lock::Lock), [`Leader`](leader::Leader),
//! fences, the blocking API and the attribute.

pub(crate) mod administration;
#[cfg(feature = "macros")]
pub(crate) mod attribute;
pub mod blocking;
pub(crate) mod builder;
pub(crate) mod default_locks;
pub(crate) mod fence;
pub(crate) mod leader;
pub(crate) mod lock;
pub(crate) mod locks;
mod run;
pub(crate) mod testing;
