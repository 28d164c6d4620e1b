//! Values of the public API: names, tokens, tickets, durations. Each constructor checks its input.

pub(crate) mod grant;
pub(crate) mod invalid;
pub(crate) mod name;
pub(crate) mod slot;
pub(crate) mod spacing;
pub(crate) mod text;
pub(crate) mod ticket;
pub(crate) mod time;
pub(crate) mod timing;
pub(crate) mod ttl;
