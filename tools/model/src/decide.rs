//! What a client makes of the answers that it gets: the core's `lease`, asked in ticks.
//!
//! The checker needs states that come again, so a state has no points in time but only how much is left.
//! Each question builds the lease as it stands, from its own beginnings, and asks it.

use std::time::Duration;

use protocol::{Answer, Lease, Next, Renewing, Timing};

/// The ttl, in ticks.
pub(crate) const TTL: u8 = 3;
/// How much earlier a holder stops trusting, in ticks.
pub(crate) const MARGIN: u8 = 1;
/// How long a grant is trusted whose reply came at once.
pub(crate) const TRUST: u8 = TTL - MARGIN;

/// Late enough for everything that is in the past of it.
const NOW: u8 = 100;

fn at(tick: u8) -> Duration {
    Duration::from_secs(tick.into())
}

fn timing() -> Timing {
    let ttl = at(TTL).into();
    Timing::new(ttl, Renewing::ByDefault, Some(at(MARGIN))).expect("a ttl of seconds is allowed")
}

fn left(lease: &Lease) -> u8 {
    let left = lease.trusted_until().saturating_sub(at(NOW));
    left.as_secs().try_into().expect("never more than the ttl")
}

/// How long a lease is trusted yet that was asked for so many ticks ago and is granted now.
pub(crate) fn granted(age: u8) -> u8 {
    left(&Lease::granted(timing(), at(NOW - age), at(TTL)))
}

/// A lease that is trusted for `trust` ticks yet, and that a fence which was closed leaves `undecided` for
/// so many.
fn held(trust: u8, undecided: u8) -> Lease {
    let sent = NOW + trust - TRUST;
    if undecided == 0 {
        return Lease::granted(timing(), at(sent), at(TTL));
    }
    let closed = NOW + undecided - TTL;
    let sent = if trust > 0 { sent } else { closed - TTL };
    let mut lease = Lease::granted(timing(), at(sent), at(TTL));
    assert!(lease.fence_opened(at(sent)), "trusted");
    lease.fence_closed(at(closed));
    lease
}

/// How long it stays undecided when a fence is closed that held renewals back.
pub(crate) fn closed(trust: u8) -> u8 {
    let sent = NOW + trust - TRUST;
    let mut lease = Lease::granted(timing(), at(sent), at(TTL));
    assert!(lease.fence_opened(at(sent)), "trusted");
    lease.fence_closed(at(NOW));
    if lease.outlives_trust() { TTL } else { 0 }
}

/// How long it is trusted, and undecided, after a renewal that was sent `age` ticks ago is confirmed.
pub(crate) fn renewed(trust: u8, undecided: u8, age: u8) -> (u8, u8) {
    let mut lease = held(trust, undecided);
    lease.renewing();
    lease.answered(at(NOW - age), Answer::Renewed, at(NOW));
    let left = left(&lease);
    (left, if left > 0 { 0 } else { undecided })
}

/// Whether it is renewed now.
pub(crate) fn may_renew(trust: u8, undecided: u8, fenced: bool) -> bool {
    let mut lease = held(trust, undecided);
    // Where it cannot be opened it was, before trust ran out.
    let suspended = fenced && !lease.fence_opened(at(NOW));
    !suspended && lease.next(at(NOW)) == Next::Renew
}

/// Whether a fence that no renewal gets past may be opened now.
pub(crate) fn may_fence(trust: u8, undecided: u8) -> bool {
    held(trust, undecided).fence_opened(at(NOW))
}
