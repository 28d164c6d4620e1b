//! What a client makes of the answers that it gets: the core's `lease`, asked in ticks.
//!
//! The checker needs states that come again, so a state has no points in time but only how much is left.
//! Each question builds the lease as it stands, from its own beginnings, and asks it.

use std::time::Duration;

use protocol::{Answer, BootInstant, Lease, Next, Renewing, Timing};

/// The ttl, in ticks.
pub const TTL: u8 = 3;
/// How much earlier a holder stops trusting, in ticks.
pub const MARGIN: u8 = 1;
/// How long a grant is trusted whose reply came at once.
pub const TRUST: u8 = TTL - MARGIN;

/// Late enough for everything that is in the past of it.
const NOW: u8 = 100;

fn ticks(count: u8) -> Duration {
    Duration::from_secs(count.into())
}

fn at(tick: u8) -> BootInstant {
    BootInstant::from_boot(ticks(tick))
}

fn timing() -> Timing {
    let ttl = ticks(TTL).into();
    Timing::new(ttl, Renewing::ByDefault, Some(ticks(MARGIN))).expect("a ttl of seconds is allowed")
}

fn left(lease: &Lease) -> u8 {
    let left = lease.trusted_until() - at(NOW);
    left.as_secs().try_into().expect("never more than the ttl")
}

/// How long a lease is trusted yet that was asked for so many ticks ago and is granted now.
pub fn granted(age: u8) -> u8 {
    left(&Lease::granted(timing(), at(NOW - age), ticks(TTL)))
}

/// A lease that is trusted for `trust` ticks yet, and that a fence which was closed leaves `undecided` for
/// so many.
fn held(trust: u8, undecided: u8) -> Lease {
    let sent = NOW + trust - TRUST;
    if undecided == 0 {
        return Lease::granted(timing(), at(sent), ticks(TTL));
    }
    let closed = NOW + undecided - TTL;
    let sent = if trust > 0 { sent } else { closed - TTL };
    let mut lease = Lease::granted(timing(), at(sent), ticks(TTL));
    assert!(lease.fence_opened(at(sent)), "trusted");
    lease.fence_closed(at(closed));
    lease
}

/// How long it stays undecided when a fence is closed that held renewals back.
pub fn closed(trust: u8) -> u8 {
    let sent = NOW + trust - TRUST;
    let mut lease = Lease::granted(timing(), at(sent), ticks(TTL));
    assert!(lease.fence_opened(at(sent)), "trusted");
    lease.fence_closed(at(NOW));
    if lease.outlives_trust() { TTL } else { 0 }
}

/// How long it is trusted, and undecided, after a renewal that was sent `age` ticks ago is confirmed.
pub fn renewed(trust: u8, undecided: u8, age: u8) -> (u8, u8) {
    let mut lease = held(trust, undecided);
    lease.renewing();
    lease.answered(at(NOW - age), Answer::Renewed, at(NOW));
    let left = left(&lease);
    (left, if left > 0 { 0 } else { undecided })
}

/// Whether it is renewed now.
pub fn may_renew(trust: u8, undecided: u8, fenced: bool) -> bool {
    let mut lease = held(trust, undecided);
    // Where it cannot be opened it was, before trust ran out.
    let suspended = fenced && !lease.fence_opened(at(NOW));
    !suspended && lease.next(at(NOW)) == Next::Renew
}

/// Whether a fence that no renewal gets past may be opened now.
pub fn may_fence(trust: u8, undecided: u8) -> bool {
    held(trust, undecided).fence_opened(at(NOW))
}
