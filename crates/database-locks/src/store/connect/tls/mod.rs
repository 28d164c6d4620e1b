//! TLS: the options of a URL, the certificates, and errors in plain words.

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod config;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod failure;
mod options;

#[cfg(feature = "postgres")]
pub(crate) use config::Identity;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use config::Tls;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use failure::{TlsFailure, tls_failure};
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use options::{Check, Encrypt};
pub(crate) use options::{Mode, Roots, TlsOptions, file_of};
