//! `dblock acquire NAME`

use database_locks::Lock;

use crate::args::Wish;
use crate::exit::{self, Failure};
use crate::output;
use crate::place::Place;
use crate::signals::{Ignored, Signals};

use super::renew::held;
use super::take::{cannot_listen, drain, take};

/// Take the lock, and leave it held by its ticket alone.
pub(crate) async fn acquire(place: &Place, wish: &Wish, json: bool) -> Result<u8, Failure> {
    let mut signals = Signals::listen(Ignored::at_start()).map_err(cannot_listen)?;
    // Whoever looks must not take it for left behind, since the process that took it is gone.
    let settings = |lock: Lock| lock.metadata("command", "dblock acquire");
    let (locks, guard) = take(place, wish, None, &mut signals, settings).await?;
    let holder = guard.holder().to_owned();
    let ticket = guard.hand_over()?;

    let row = held(&locks, &ticket).await;
    let printed = match json {
        true => output::ticket_as_json(&ticket, &holder, row.as_ref()),
        false => output::ticket(&ticket),
    };
    // Nobody would have the ticket, and the lock would be held for nothing.
    if let Err(error) = printed {
        let released = locks.release(&ticket).await;
        drain(&locks).await;
        let next = match released {
            Ok(()) => "the lock was released again".to_owned(),
            Err(error) => format!("and the lock is held until its ttl ends: {}", error.chain()),
        };
        let said = format!("the ticket cannot be printed: {error}; {next}");
        return Err(Failure::new(exit::UNPRINTED, said));
    }
    let word = output::shell_word(wish.name.as_str());
    output::complain(&format!(
        "lock `{}` is held {}, and nobody renews it: do so with `dblock renew {word} --ticket \
         TICKET`, and end with `dblock release {word} --ticket TICKET`",
        wish.name,
        output::lasts(row.as_ref()),
    ));
    Ok(0)
}
