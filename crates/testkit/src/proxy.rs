//! Placeholder.
/// x
#[derive(Debug)]
pub struct Proxy;
