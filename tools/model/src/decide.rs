//! What a client concludes from an answer, by the `Lease` of the library, in ticks.
//!
//! A state has remaining times rather than points in time, so that equal situations are equal
//! states. Each function builds the lease of a situation and asks it.

use std::time::Duration;

use protocol::{Answer, BootInstant, Lease, Next, Renewing, Timing};

/// The ttl, in ticks.
pub(crate) const TTL: u8 = 3;
/// The safety margin, in ticks.
pub(crate) const MARGIN: u8 = 1;
/// How long a grant is trusted whose reply came without a delay.
pub(crate) const TRUST: u8 = TTL - MARGIN;

/// The present; all other times of a situation are near it.
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

/// The remaining trust of a lease that was requested `age` ticks ago and is granted now.
pub(crate) fn granted(age: u8) -> u8 {
    left(&Lease::granted(timing(), at(NOW - age), ticks(TTL)))
}

/// [`granted`] for a grant of `length`, such as what is left of an earlier request's.
pub(crate) fn granted_for(age: u8, length: u8) -> u8 {
    left(&Lease::granted(timing(), at(NOW - age), ticks(length)))
}

/// A lease with `trust` ticks left, which a closed fence leaves undecided for `undecided` ticks.
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

/// How long a lease stays undecided after a fence that blocked renewals is closed.
pub(crate) fn closed(trust: u8) -> u8 {
    let sent = NOW + trust - TRUST;
    let mut lease = Lease::granted(timing(), at(sent), ticks(TTL));
    assert!(lease.fence_opened(at(sent)), "trusted");
    lease.fence_closed(at(NOW));
    if lease.outlives_trust() { TTL } else { 0 }
}

/// The remaining trust, and undecided time, after a renewal that was sent `age` ticks ago is
/// confirmed.
pub(crate) fn renewed(trust: u8, undecided: u8, age: u8) -> (u8, u8) {
    let mut lease = held(trust, undecided);
    lease.renewing();
    lease.answered(at(NOW - age), Answer::Renewed, at(NOW));
    let left = left(&lease);
    (left, if left > 0 { 0 } else { undecided })
}

/// Whether the lease may be renewed now.
pub(crate) fn may_renew(trust: u8, undecided: u8, fenced: bool) -> bool {
    let mut lease = held(trust, undecided);
    // A fence that cannot be opened now was opened before trust ended.
    let suspended = fenced && !lease.fence_opened(at(NOW));
    !suspended && lease.next(at(NOW)) == Next::Renew
}

/// Whether a fence that blocks renewals may be opened now.
pub(crate) fn may_fence(trust: u8, undecided: u8) -> bool {
    held(trust, undecided).fence_opened(at(NOW))
}
