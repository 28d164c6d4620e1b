//! Shared locks: the protocol holds in every state that can be reached, and each wrong variant is
//! caught.

#![allow(
    clippy::print_stdout,
    reason = "how much was walked through is what a reader wants"
)]

use model::shared::{Flaw, Shared};

mod walk;

use walk::{holds, is_caught};

fn shared(flaw: Flaw) -> Shared {
    Shared {
        flaw,
        clients: 2,
        asks: 2,
        tokens: 4,
        net: 2,
        downgrades: false,
        fences: false,
    }
}

fn with_fences(shared: Shared) -> Shared {
    Shared {
        fences: true,
        ..shared
    }
}

fn with_downgrades(shared: Shared) -> Shared {
    Shared {
        downgrades: true,
        ..shared
    }
}

#[test]
fn readers_and_writers_exclude_each_other() {
    holds(&shared(Flaw::None), 100_000);
}

#[test]
fn readers_and_writers_write_in_fenced_transactions() {
    holds(&with_fences(shared(Flaw::None)), 100_000);
}

#[test]
fn a_writer_becomes_a_reader() {
    holds(&with_downgrades(shared(Flaw::None)), 500_000);
}

/// One more request: a writer may come and go.
#[test]
#[ignore = "make prove"]
fn readers_and_writers_exclude_each_other_again_and_again() {
    let more = Shared {
        asks: 3,
        tokens: 5,
        ..shared(Flaw::None)
    };
    holds(&more, 1_000_000);
}

#[test]
fn a_check_before_the_flag_is_caught() {
    is_caught(&shared(Flaw::CheckFirst), "no writer beside a reader");
}

#[test]
fn a_flag_without_a_check_is_caught() {
    is_caught(&shared(Flaw::NoCheck), "a token goes back");
}

#[test]
fn a_check_that_compares_no_token_is_caught() {
    is_caught(&shared(Flaw::ChecksNoToken), "a token goes back");
}

#[test]
fn a_flag_beside_the_open_fence_of_a_dead_writer_is_caught() {
    let model = with_fences(shared(Flaw::FlagsBesideDeadWriter));
    is_caught(&model, "granted beside an open fence");
}

#[test]
fn a_writer_that_does_not_count_readers_is_caught() {
    is_caught(&shared(Flaw::NoCount), "no writer beside a reader");
}

#[test]
fn a_writer_that_counts_live_rows_only_is_caught() {
    let model = with_fences(shared(Flaw::CountsLive));
    is_caught(&model, "granted beside an open fence");
}

#[test]
fn a_row_that_is_deleted_under_an_open_fence_is_caught() {
    let model = with_fences(shared(Flaw::RetiresFenced));
    is_caught(&model, "granted beside an open fence");
}

#[test]
fn a_renewal_that_makes_the_row_anew_is_caught() {
    // Its holder does not trust it again, but its fence passes.
    let model = with_fences(shared(Flaw::RenewalRevives));
    is_caught(&model, "a stale write");
}

#[test]
fn a_node_that_reads_behind_is_caught() {
    is_caught(&shared(Flaw::ReadsBehind), "no writer beside a reader");
}

#[test]
fn pruning_a_marked_row_is_caught() {
    is_caught(&shared(Flaw::PrunesMarked), "no writer beside a reader");
}

#[test]
fn a_downgrade_that_does_not_check_is_caught() {
    let model = with_downgrades(shared(Flaw::DowngradeUnchecked));
    is_caught(&model, "no writer beside a reader");
}

#[test]
fn a_downgrade_that_releases_first_is_caught() {
    let model = with_downgrades(shared(Flaw::DowngradeReleasesFirst));
    is_caught(&model, "no writer beside a reader");
}
