//! `dblock acquire NAME`

use std::io;

use database_locks::Lock;

use crate::args::Wish;
use crate::exit::{self, Failure};
use crate::notices::Notices;
use crate::output;
use crate::place::Place;
use crate::signals::{Ignored, Signals};

use super::renew::held;
use super::take::{cannot_listen, take};

/// Take the lock, and leave it held by its ticket alone.
pub(crate) async fn acquire(
    place: &Place,
    wish: &Wish,
    json: bool,
    notices: &Notices,
) -> Result<u8, Failure> {
    let mut signals = Signals::listen(Ignored::at_start()).map_err(cannot_listen)?;
    // The process that acquired it is gone soon: `list` must not make the lock look left behind.
    let settings = |lock: Lock| lock.metadata("command", "dblock acquire");
    let (locks, guard) = take(place, wish, None, &mut signals, notices, settings).await?;
    let holder = guard.holder().to_owned();
    let ticket = guard.into_ticket()?;

    let row = held(&locks, &ticket).await;
    let printed = match json {
        _ if output::stdout_is_closed() => Err(io::Error::other("standard output is closed")),
        true => output::ticket_as_json(&ticket, &holder, row.as_ref()),
        false => output::ticket(&ticket),
    };
    // Without its ticket the lock would be held for nothing.
    if let Err(error) = printed {
        let released = locks.release(&ticket).await;
        let next = match released {
            Ok(()) => "the lock was released again".to_owned(),
            Err(error) => format!("and the lock is held until its ttl ends: {}", error.chain()),
        };
        let said = format!("the ticket cannot be printed: {error}; {next}");
        return Err(Failure::new(exit::UNPRINTED, said));
    }
    let word = output::shell_word(wish.name.as_str());
    output::notice(&format!(
        "lock `{}` is held {}, and is not renewed by itself: do so with `dblock renew {word} --ticket \
         TICKET`, and end with `dblock release {word} --ticket TICKET`",
        wish.name,
        output::lasts(row.as_ref()),
    ));
    Ok(0)
}
