//! TLS: what a URL asks for, the certificates that are trusted, and what went wrong, in words.

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod failure;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod ready;
mod wanted;

#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use failure::{TlsFailure, tls_failure};
#[cfg(feature = "postgres")]
pub(crate) use ready::Identity;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use ready::Tls;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use wanted::{Check, Encrypt};
pub(crate) use wanted::{Mode, Roots, Wanted, file_of};
