//! From a URL to a connection: parsing, credentials, the order of hosts, TLS.

pub(crate) mod backoff;
pub(crate) mod connector;
pub(crate) mod hosts;
mod invalid;
pub(crate) mod options;
pub(crate) mod provider;
pub(crate) mod table;
pub(crate) mod tls;
pub(crate) mod url;
