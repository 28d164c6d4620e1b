//! The store contract: the clauses that each engine must pass.
//!
//! Each clause is an `async fn` of a [`StoreFixture`]; [`contract_tests!`](crate::contract_tests)
//! makes one test of each clause for an engine. Leases are short and run by the clock of the
//! database; the bounds of waits leave room for a busy machine.

mod acquiring;
mod batches;
mod direct_store;
pub(crate) mod fixture;
mod once_per;
mod releasing;
mod renewing;
mod resting;
mod restored;
mod same_holder;
mod semaphores;
mod several;
mod shared;
mod table;
mod tickets;

pub use acquiring::*;
pub use batches::*;
pub use fixture::{
    StoreFixture, acquire_command, granted, info, list, name, release, renew, try_once,
};
pub use once_per::*;
pub use releasing::*;
pub use renewing::*;
pub use resting::*;
pub use restored::*;
pub use same_holder::*;
pub use semaphores::*;
pub use several::*;
pub use shared::*;
pub use table::*;
pub use tickets::*;

/// Makes one test of each clause: `contract_tests!(memory, TestDb::memory())`, where the expression
/// is an `Option<TestDb>`, and `None` skips. An attribute before the name is that of each test.
#[macro_export(local_inner_macros)]
macro_rules! contract_tests {
    ($(# $attribute:tt)? $engine:ident, $db:expr) => {
        contract_tests!($(# $attribute)? $engine, $db,
            a_held_lock_names_its_holder,
            an_expired_lock_is_free,
            a_released_lock_is_free,
            tokens_grow,
            the_first_token_is_the_time_of_the_database,
            a_grant_after_an_older_row_was_put_back_has_a_greater_token,
            a_take_over_after_an_older_row_was_put_back_has_a_greater_token,
            a_release_by_force_after_an_older_row_was_put_back_has_a_greater_token,
            a_repeated_acquire_recognises_its_own_grant,
            renewed_leases_outlive_their_first_length,
            a_renewal_shortens_nothing,
            a_renewal_may_be_repeated,
            an_endless_lease_ends_only_by_release,
            a_stale_grant_can_neither_renew_nor_release,
            the_same_holder_is_another_grant,
            a_late_renewal_revives_nothing,
            a_grant_that_differs_in_any_part_is_refused,
            a_release_by_force_is_a_loss_for_the_holder,
            a_grant_whose_token_is_unknown_can_be_released,
            a_ticket_resumes_a_lock_once,
            a_dead_ticket_revives_nothing,
            pruning_deletes_locks_that_are_free_for_long,
            distinct_names_are_distinct_locks,
            a_batch_of_acquires_is_answered_one_by_one,
            a_batch_that_asks_for_a_lock_twice_gets_it_once,
            a_batch_writes_for_each_what_it_asked_for,
            a_batch_of_releases_is_answered_one_by_one,
            a_batch_of_renewals_is_answered_one_by_one,
            a_large_batch_of_acquires_is_answered_one_by_one,
            a_large_batch_of_releases_is_answered_one_by_one,
            two_thousand_leases_are_renewed_by_one_call,
            first_use_by_twenty_at_once_has_one_winner,
            an_expired_lease_has_one_successor,
            contending_clients_hold_a_lock_one_at_a_time,
            several_locks_are_granted_all_or_none,
            several_grants_are_recognised_when_the_request_is_repeated,
            an_expired_lease_is_taken_along_with_others,
            overlapping_sets_exclude_each_other_and_all_are_served,
            a_reader_sees_what_the_holder_wrote,
            a_list_is_read_in_pages_and_filtered_where_the_rows_are,
            a_poll_returns_the_holder_or_that_the_lock_may_be_free,
            installing_twice_changes_nothing,
            the_same_holder_takes_over,
            only_the_observed_grant_is_taken_over,
            a_free_lock_is_not_taken_over,
            as_many_permits_are_granted_as_the_limit_says,
            a_batch_of_permits_is_answered_one_by_one,
            a_permit_is_renewed_and_lost_like_a_lock,
            the_permit_of_a_dead_holder_is_granted_again,
            an_operators_limit_takes_precedence,
            a_repeated_acquire_of_a_permit_recognises_its_own_grant,
            a_semaphore_and_a_lock_of_one_name_are_independent,
            a_ticket_resumes_a_permit,
            permits_are_listed_and_pruned,
            contending_clients_never_exceed_the_limit,
            shared_holders_come_together_and_an_exclusive_one_alone,
            a_lock_that_was_never_shared_is_known_as_such,
            a_shared_grant_is_renewed_and_lost_like_a_lock,
            a_dead_shared_holder_does_not_keep_an_exclusive_one_out,
            a_dead_exclusive_holder_does_not_keep_shared_ones_out,
            a_repeated_shared_acquire_recognises_its_own_grant,
            a_ticket_resumes_a_shared_grant,
            an_exclusive_grant_becomes_a_shared_one_with_no_other_in_between,
            shared_grants_are_listed_and_the_mark_of_their_lock_is_not_pruned,
            contending_clients_share_or_exclude,
            a_lock_rests_after_its_release,
            a_repeated_release_makes_no_rest_longer,
            a_lock_is_free_after_its_rest,
            a_release_by_force_ends_a_rest,
            a_rest_is_neither_taken_over_nor_resumed,
            a_batch_of_releases_has_a_rest_for_each,
            a_lock_that_rests_is_listed_and_pruned_when_its_rest_has_ended,
            a_release_without_a_rest_frees_the_lock_at_once,
            a_recent_grant_keeps_another_from_beginning,
            an_old_grant_keeps_none_from_beginning,
            a_first_grant_is_never_too_late,
            a_batch_of_acquires_has_a_window_for_each,
            of_many_starts_in_one_period_one_is_granted,
            the_latest_recorded_grant_counts_unless_it_is_far_in_the_future,
        );
    };
    ($engine:ident, $db:expr, $($clause:ident),* $(,)?) => {
        contract_tests!(#[cfg(all())] $engine, $db, $($clause),*);
    };
    (# $attribute:tt $engine:ident, $db:expr, $($clause:ident),* $(,)?) => {
        mod $engine {
            use super::*;
            $(
                # $attribute
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $clause() {
                    if let Some(db) = $db {
                        $crate::contract::$clause(&db.fixture()).await;
                    }
                }
            )*
        }
    };
}
