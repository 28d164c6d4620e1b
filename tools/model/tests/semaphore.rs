//! Semaphores: their slots hold in every state that can be reached, and each wrong variant is caught.

#![allow(
    clippy::print_stdout,
    reason = "how much was walked through is what a reader wants"
)]

use model::Kind;
use model::semaphore::{Flaw, Semaphore};

mod walk;

use walk::{holds, is_caught};

fn semaphore(kind: Kind, flaw: Flaw) -> Semaphore {
    Semaphore {
        kind,
        flaw,
        clients: 2,
        slots: 2,
        limits: &[],
        asks: 2,
        tokens: 2,
        net: 2,
        ahead: match kind {
            // More than the margin apart.
            Kind::Cluster => &[0, 2],
            _ => &[0],
        },
    }
}

/// With one permit each client needs that of the other.
fn of_one(kind: Kind, flaw: Flaw) -> Semaphore {
    Semaphore {
        slots: 1,
        tokens: 3,
        ..semaphore(kind, flaw)
    }
}

/// The operator lowers the limit, pauses the semaphore, and raises it again.
fn limited(flaw: Flaw) -> Semaphore {
    Semaphore {
        limits: &[1, 0, 2],
        ..semaphore(Kind::Postgres, flaw)
    }
}

#[test]
fn each_slot_has_one_holder() {
    holds(&of_one(Kind::Postgres, Flaw::None), 10_000);
    holds(&semaphore(Kind::Postgres, Flaw::None), 10_000);
}

#[test]
#[ignore = "make prove"]
fn three_clients_have_two_permits() {
    let three = Semaphore {
        clients: 3,
        asks: 3,
        ..semaphore(Kind::Postgres, Flaw::None)
    };
    holds(&three, 1_000_000);
}

#[test]
fn an_operators_limit_counts_for_each_grant_after_it() {
    holds(&limited(Flaw::None), 10_000);
}

#[test]
fn each_slot_has_one_holder_on_a_cluster_whose_clocks_differ() {
    holds(&of_one(Kind::Cluster, Flaw::None), 10_000);
}

#[test]
#[ignore = "make prove"]
fn two_slots_of_a_cluster_are_observed_each_for_itself() {
    let three = Semaphore {
        asks: 3,
        ..semaphore(Kind::Cluster, Flaw::None)
    };
    holds(&three, 1_000_000);
}

#[test]
fn a_look_and_then_a_claim_is_caught() {
    let model = semaphore(Kind::Postgres, Flaw::LooksThenTakes);
    is_caught(&model, "one holder of a slot");
}

#[test]
fn a_repeated_request_that_takes_another_slot_is_caught() {
    let model = semaphore(Kind::Postgres, Flaw::RepeatTakesAnother);
    is_caught(&model, "two permits of one request");
}

#[test]
fn a_repeated_request_that_trusts_a_whole_lease_is_caught() {
    for kind in [Kind::Postgres, Kind::Cluster] {
        let model = of_one(kind, Flaw::RepeatTrustsWhole);
        is_caught(&model, "one holder of a slot");
    }
}

#[test]
fn a_renewal_that_asks_for_the_slot_only_is_caught() {
    let model = of_one(Kind::Postgres, Flaw::RenewsBySlot);
    is_caught(&model, "another grant's lease is renewed");
}

#[test]
fn a_release_that_forgets_the_token_is_caught() {
    let model = semaphore(Kind::Postgres, Flaw::ReleaseForgets);
    is_caught(&model, "a token goes back");
}

#[test]
fn a_limit_that_was_read_before_is_caught() {
    is_caught(&limited(Flaw::OldLimit), "a slot above the limit");
}

#[test]
fn a_node_that_judges_by_its_own_clock_is_caught() {
    let model = of_one(Kind::Cluster, Flaw::NodeClock);
    is_caught(&model, "one holder of a slot");
}

#[test]
fn an_observation_of_another_slot_is_caught() {
    let model = Semaphore {
        asks: 3,
        ..semaphore(Kind::Cluster, Flaw::ObservesAnother)
    };
    is_caught(&model, "one holder of a slot");
}
