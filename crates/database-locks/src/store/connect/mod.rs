//! From a URL to a connection: parsing, credentials, the order of hosts, TLS.

pub(crate) mod backoff;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod connector;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod hosts;
mod invalid;
pub(crate) mod options;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod provider;
pub(crate) mod table;
pub(crate) mod tls;
pub(crate) mod url;
