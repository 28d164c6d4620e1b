//! After CMD has ended: releases the lock, reports a loss, and chooses the exit code.

use database_locks::{Error, LockGuard, Locks, LostReason};
use nix::sys::signal::Signal;

use crate::cli::{OnLost, RunArgs};
use crate::commands::acquire_lock::read_row;
use crate::commands::release_notice::Listener;
use crate::exit;
use crate::names;
use crate::output;
use crate::time::human;

use super::held::Held;
use super::supervisor::{Outcome, loss_message};

pub(super) async fn finish(locks: &Locks, held: Vec<Held>, outcome: Outcome, args: &RunArgs) -> u8 {
    match outcome {
        Outcome::Stopped(at, reason, signal) => {
            report_loss(locks, &held[at].guard, reason, signal, args).await;
            // Dropping a guard releases the lock, or the rest of the lease, before the process
            // ends.
            drop(held);
            exit::LOST
        }
        Outcome::Ended(end) => {
            let releases = held.into_iter().map(|one| {
                let what = names::what(one.guard.name(), one.guard.slot());
                let was_held = one.guard.is_held();
                let done = tokio::spawn(one.guard.release());
                (what, was_held, done, one.listener)
            });
            // All are under way before the first is waited for.
            for (what, was_held, done, listener) in releases.collect::<Vec<_>>() {
                if let Ok(Err(error)) = done.await {
                    not_released(&what, was_held, error, args, listener).await;
                }
            }
            end.code()
        }
    }
}

/// Prints one line: the loss, its effect on CMD, and the present holder.
async fn report_loss(
    locks: &Locks,
    guard: &LockGuard,
    reason: LostReason,
    signal: Signal,
    args: &RunArgs,
) {
    let what = names::what(guard.name(), guard.slot());
    let grace = human(args.grace());
    let how = match signal {
        Signal::SIGKILL if args.on_lost == OnLost::Term => {
            format!("TERM, and KILL after the grace of {grace}")
        }
        Signal::SIGKILL => "KILL".to_owned(),
        _ => format!("TERM, and ended within the grace of {grace}"),
    };
    let loss = loss_message(guard, reason);
    let names_holder = guard
        .loss()
        .is_some_and(|loss| loss.now_held_by().is_some());
    let now = match names_holder {
        true => String::new(),
        false => match read_row(locks, guard.name(), guard.slot()).await {
            // The row may still be as the lost grant left it.
            Some(row) if row.grant.as_deref() == Some(guard.grant_id()) => {
                "; no other holder has it yet".to_owned()
            }
            Some(row) => format!("; it is now {}", row.holder_summary()),
            None => "; see who has it now with `dblock list`".to_owned(),
        },
    };
    output::error(&format!(
        "{what} {loss}; CMD was stopped, its process group got {how}{now}"
    ));
}

/// Reports that a lock was not released. CMD has ended by itself, so that is all.
async fn not_released(
    what: &str,
    was_held: bool,
    error: Error,
    args: &RunArgs,
    mut listener: Listener,
) {
    match error {
        // The loss was reported when it happened.
        Error::Lost { .. } if !was_held && args.on_lost == OnLost::Ignore => {}
        Error::Lost { reason, .. } if listener.is_released(reason).await => {}
        error @ Error::Lost { .. } => output::error(&format!(
            "{}, just before CMD ended by itself: another holder may have run at the same time",
            error.chain()
        )),
        error => {
            let why = match error {
                Error::Unavailable { .. } => format!(
                    "{what} was not released: the database did not answer within the time \
                     for it"
                ),
                error => error.chain(),
            };
            output::error(&format!(
                "{why}; it is free when its ttl ends ({}), or after `dblock release --force`",
                human(args.lock.ttl)
            ));
        }
    }
}
