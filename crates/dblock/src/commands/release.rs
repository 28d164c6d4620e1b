//! `dblock release NAME --ticket TICKET` and `dblock release NAME --force`

use database_locks::{LockName, Locks};

use crate::exit::Failure;
use crate::names;
use crate::output;
use crate::target::Target;
use crate::ticket::TicketSource;
use crate::time::human;

use super::acquire_lock::ticket_failure;
use super::limit::permits_held;
use super::release_notice::ReleaseNotice;

pub(crate) async fn release(
    target: &Target,
    name: &LockName,
    source: &TicketSource,
) -> Result<u8, Failure> {
    let ticket = source.read(name)?;
    let locks = target.connect().await?;
    let notice = ReleaseNotice::begin(&ticket);
    if let Err(error) = locks.release(&ticket).await {
        drop(notice);
        return Err(ticket_failure(&locks, error).await);
    }
    notice.done();
    let what = names::what(name, ticket.slot());
    output::notice(&format!("{what} is released"));
    Ok(0)
}

pub(crate) async fn force_release(
    target: &Target,
    name: &LockName,
    slot: Option<u16>,
) -> Result<u8, Failure> {
    let locks = target.connect().await?;
    let (what, previous) = match slot {
        None => {
            let previous = locks.force_release(name.as_str()).await?;
            if previous.is_none() {
                refuse_shared(&locks, name).await?;
                refuse_semaphore(&locks, name).await?;
            }
            (format!("lock `{name}`"), previous)
        }
        Some(slot) => {
            let previous = locks.force_release_permit(name.as_str(), slot).await?;
            (format!("permit {slot} of `{name}`"), previous)
        }
    };
    let Some(previous) = previous else {
        // Perhaps the name is misspelt.
        output::notice(&match is_known(&locks, name, slot).await {
            true => format!("{what} was free already"),
            false => format!("there is no {what}; `dblock list --all` has all names"),
        });
        return Ok(0);
    };
    let holder = previous.holder.as_deref();
    let holder = holder.unwrap_or("a holder without a name");
    output::notice(&match previous.rested {
        true => format!("{what} is free: its rest after {holder} is ended"),
        false => {
            let age = previous.held_for.map(|age| format!(" for {}", human(age)));
            let age = age.unwrap_or_default();
            format!("{what} released by force: {holder} had held it{age}")
        }
    });
    Ok(0)
}

pub(crate) async fn force_release_shared(target: &Target, name: &LockName) -> Result<u8, Failure> {
    let locks = target.connect().await?;
    let released = locks.force_release_shared(name.as_str()).await?;
    output::notice(&match released.len() {
        0 => format!("no holder shares lock `{name}`"),
        1 => format!("lock `{name}` released by force: one holder had shared it"),
        holders => format!("lock `{name}` released by force: {holders} holders had shared it"),
    });
    Ok(0)
}

/// An error if the lock is shared: all of its holders are meant, or none.
async fn refuse_shared(locks: &Locks, name: &LockName) -> Result<(), Failure> {
    // On a table of an earlier version no lock is shared.
    let Ok(readers) = locks.show_shared(name.as_str()).await else {
        return Ok(());
    };
    match readers.iter().filter(|row| row.is_held()).count() {
        0 => Ok(()),
        held => Err(Failure::usage(format!(
            "lock `{name}` is shared by {}: release all of them with --force --shared",
            holders(held)
        ))),
    }
}

/// `1 holder`, `2 holders`.
fn holders(held: usize) -> String {
    match held {
        1 => "1 holder".to_owned(),
        _ => format!("{held} holders"),
    }
}

/// Whether the lock or the permit has a row. If that cannot be read, it may have one.
async fn is_known(locks: &Locks, name: &LockName, slot: Option<u16>) -> bool {
    let known = match slot {
        None => locks.show(name.as_str()).await.map(|row| row.is_some()),
        Some(_) => locks.show_semaphore(name.as_str()).await.map(|it| {
            let mut permits = it.permits.iter();
            permits.any(|permit| permit.slot == slot)
        }),
    };
    known.unwrap_or(true)
}

/// An error if permits of a semaphore of this name are held: which one is meant?
async fn refuse_semaphore(locks: &Locks, name: &LockName) -> Result<(), Failure> {
    // On a table of an earlier version there are no permits.
    let Ok(semaphore) = locks.show_semaphore(name.as_str()).await else {
        return Ok(());
    };
    match semaphore.held() {
        0 => Ok(()),
        held => Err(Failure::usage(format!(
            "`{name}` is a semaphore, of which {}: name one by --slot, as `dblock show` prints it",
            permits_held(held)
        ))),
    }
}
