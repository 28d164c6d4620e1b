//! The protocol holds in every state that can be reached, and each wrong variant of it is caught.

#![allow(
    clippy::print_stdout,
    reason = "how much was walked through is what a reader wants"
)]

use std::fmt;

use model::{Flaw, Kind, Protocol};
use stateright::{Checker, Expectation, HasDiscoveries, Model};

const ONE_CLOCK: &[i8] = &[0];
/// More than the margin apart.
const TWO_CLOCKS: &[i8] = &[0, 2];

fn protocol(kind: Kind, grants: u8, net: usize) -> Protocol {
    Protocol {
        kind,
        flaw: Flaw::None,
        clients: 2,
        grants,
        net,
        // The margin, in ticks.
        slow: Some(1),
        fast: 0,
        tickets: false,
        ahead: match kind {
            Kind::Cluster => TWO_CLOCKS,
            _ => ONE_CLOCK,
        },
    }
}

fn with_tickets(protocol: Protocol) -> Protocol {
    Protocol {
        tickets: true,
        ..protocol
    }
}

/// Walk through all of it: nothing that must not be is found, all that must be seen is, and there
/// was something to walk through.
fn holds(protocol: Protocol, least: usize) {
    let what = format!("{protocol:?}");
    let end = protocol.checker().threads(2).spawn_bfs().join();
    let states = end.unique_state_count();
    println!("{what}: {states} states, {} deep", end.max_depth());
    for property in end.model().properties() {
        let found = end.discovery(property.name);
        match (property.expectation, found) {
            (Expectation::Sometimes, None) => panic!("{what}: never seen: {}", property.name),
            (Expectation::Always, Some(path)) => {
                let last = path.last_state().clone();
                panic!(
                    "{}\n{last:?}",
                    Counterexample(property.name, path.into_actions())
                )
            }
            _ => {}
        }
    }
    assert!(end.is_done(), "{what}: not walked to its end");
    assert!(states >= least, "{what}: only {states} states");
}

/// A wrong variant ends in this, which is found on the shortest way.
fn is_caught(protocol: Protocol, flaw: Flaw, found: &str) {
    let wrong = Protocol { flaw, ..protocol };
    let what = format!("{wrong:?}");
    let walk = wrong.checker().finish_when(HasDiscoveries::AnyFailures);
    let end = walk.spawn_bfs().join();
    let path = end
        .discovery("nothing is broken")
        .or_else(|| end.discovery("one trusted holder"))
        .or_else(|| end.discovery("one body at a time"))
        .unwrap_or_else(|| {
            panic!(
                "{what}: nothing found in {} states",
                end.unique_state_count()
            )
        });
    let last = path.last_state().clone();
    let seen = last.broken.unwrap_or(match last.trusting() {
        0 | 1 => "two bodies at once",
        _ => "two trusted holders",
    });
    println!("{what}: {}", Counterexample(seen, path.into_actions()));
    assert_eq!(seen, found, "{what}");
}

/// A violation, and the steps to it.
struct Counterexample<A>(&'static str, Vec<A>);

impl<A: fmt::Debug> fmt::Display for Counterexample<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {} steps:", self.0, self.1.len())?;
        self.1.iter().try_for_each(|act| write!(f, " {act:?}"))
    }
}

#[test]
#[ignore = "make prove"]
fn the_protocol_holds_with_renewals_under_a_fence() {
    holds(protocol(Kind::Postgres, 3, 2), 100_000);
    holds(protocol(Kind::Postgres, 2, 3), 200_000);
}

#[test]
fn the_protocol_holds_if_a_fence_delays_renewals() {
    holds(protocol(Kind::MySql, 2, 2), 100_000);
}

#[test]
fn the_protocol_holds_with_tickets() {
    holds(with_tickets(protocol(Kind::Postgres, 2, 2)), 100_000);
}

#[test]
#[ignore = "make prove"]
fn the_protocol_holds_on_a_cluster_whose_clocks_differ() {
    holds(protocol(Kind::Cluster, 2, 2), 1_000_000);
    // The bound is on how much one clock gains on another: that of the contender may be the wrong
    // one.
    let fast = Protocol {
        slow: Some(0),
        fast: 1,
        ahead: ONE_CLOCK,
        ..protocol(Kind::Cluster, 2, 2)
    };
    holds(fast, 50_000);
}

/// Nothing but the fence is promised then, and it needs no clock.
#[test]
fn no_stale_write_passes_the_fence_however_wrong_the_clocks_are() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::Cluster] {
        let wild = Protocol {
            slow: None,
            ahead: ONE_CLOCK,
            ..protocol(kind, 2, 2)
        };
        holds(wild, 20_000);
    }
}

/// The margin is no more than is needed: the promise ends where the documentation says so.
#[test]
fn clocks_that_drift_by_more_than_the_margin_are_caught() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::Cluster] {
        let drifting = Protocol {
            slow: Some(2),
            ..protocol(kind, 2, 2)
        };
        is_caught(drifting, Flaw::None, "two trusted holders");
    }
    let both = Protocol {
        fast: 1,
        ..protocol(Kind::Cluster, 2, 2)
    };
    is_caught(both, Flaw::None, "two trusted holders");
}

#[test]
fn a_renewal_that_acquires_is_caught() {
    let postgres = protocol(Kind::Postgres, 2, 2);
    is_caught(postgres, Flaw::RenewalAcquires, "a token goes back");
}

#[test]
fn trust_that_counts_from_the_reply_is_caught() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::Cluster] {
        let model = protocol(kind, 2, 2);
        is_caught(model, Flaw::TrustFromReply, "two trusted holders");
    }
}

#[test]
fn a_guard_that_is_handed_out_after_the_end_of_trust_is_caught() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::Cluster] {
        let model = protocol(kind, 2, 2);
        is_caught(model, Flaw::HandsOutEnded, "two bodies at once");
    }
}

#[test]
#[ignore = "make prove"]
fn a_ticket_that_is_resumed_after_the_end_of_trust_is_caught() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::Cluster] {
        let model = with_tickets(protocol(kind, 2, 2));
        is_caught(model, Flaw::ResumesEnded, "two bodies at once");
    }
}

#[test]
fn expiry_by_the_clients_clocks_is_caught() {
    let clocks = Protocol {
        ahead: TWO_CLOCKS,
        ..protocol(Kind::Postgres, 2, 2)
    };
    is_caught(clocks, Flaw::ClientClock, "two trusted holders");
}

#[test]
fn a_take_over_by_the_nodes_own_clock_is_caught() {
    let cluster = protocol(Kind::Cluster, 2, 2);
    is_caught(cluster, Flaw::NodeClock, "two trusted holders");
}

#[test]
fn writes_without_a_fence_are_caught() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::Cluster] {
        is_caught(protocol(kind, 2, 2), Flaw::Unfenced, "a stale write");
    }
}

#[test]
fn a_take_over_that_passes_an_open_fence_is_caught() {
    let postgres = protocol(Kind::Postgres, 2, 2);
    is_caught(postgres, Flaw::PassesFence, "a stale write");
}

#[test]
fn a_release_that_forgets_the_token_is_caught() {
    let postgres = protocol(Kind::Postgres, 2, 2);
    is_caught(postgres, Flaw::ReleaseForgets, "a token goes back");
}

#[test]
fn an_observation_that_begins_anew_with_each_read_is_caught() {
    let cluster = protocol(Kind::Cluster, 2, 2);
    is_caught(cluster, Flaw::WatchAnew, "a waiter is forgotten");
}
