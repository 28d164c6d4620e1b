//! From a URL to a connection: what the URL means, where it leads, and with what to log in.

pub(crate) mod backoff;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod connector;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod hosts;
pub(crate) mod options;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) mod provider;
pub(crate) mod table;
pub(crate) mod tls;
pub(crate) mod url;
