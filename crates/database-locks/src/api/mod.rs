//! The public API: [`Locks`](locks::Locks), [`Lock`](lock::Lock), [`Leader`](leader::Leader),
//! fences, the blocking API and the attribute.

pub(crate) mod administration;
pub(crate) mod all_locks;
#[cfg(feature = "macros")]
pub(crate) mod attribute;
pub mod blocking;
pub(crate) mod builder;
mod busy;
pub(crate) mod default_locks;
mod delegate;
pub(crate) mod fence;
pub(crate) mod force_release;
mod guarded_tables;
pub(crate) mod leader;
pub(crate) mod lock;
pub(crate) mod lock_set;
pub(crate) mod locks;
mod run;
mod shared;
mod spacing;
pub(crate) mod testing;
