//! `dblock acquire NAME`

use std::io;
use std::time::Duration;

use database_locks::Ttl;

use crate::cli::AcquireArgs;
use crate::exit::{self, Failure};
use crate::names;
use crate::notices::Notices;
use crate::output;
use crate::process::{Ignored, Signals};
use crate::target::Target;

use super::acquire_lock::{acquire_lock, cannot_listen, row_of_ticket};
use super::wanted::Settings;

/// Acquires the lock and prints its ticket. From then on no process renews the lock.
pub(crate) async fn acquire(
    target: &Target,
    args: &AcquireArgs,
    json: bool,
    notices: &Notices,
) -> Result<u8, Failure> {
    let mut signals = Signals::listen(Ignored::at_start()).map_err(cannot_listen)?;
    // The process of the pid in the metadata ends now. The command shows that this is expected.
    let settings = Settings {
        command: Some("dblock acquire".to_owned()),
        margin: None,
        at_least: Duration::ZERO,
        once_per: None,
    };
    let acquired = acquire_lock(target, args, None, &mut signals, notices, settings);
    let (locks, mut guards) = acquired.await?;
    // `acquire` takes one name.
    let guard = guards.remove(0);
    let holder = guard.holder().to_owned();
    let ticket = guard.into_ticket()?;

    let row = row_of_ticket(&locks, &ticket).await;
    let text = match json {
        true => output::ticket_json(&ticket, &holder, row.as_ref()),
        false => format!("{ticket}\n"),
    };
    let printed = match output::stdout_is_closed() {
        true => Err(io::Error::other("standard output is closed")),
        false => output::print_all(&text),
    };
    // Without its ticket the lock would stay held until its ttl ends.
    if let Err(error) = printed {
        let next = match locks.release(&ticket).await {
            Ok(()) => "the lock was released again".to_owned(),
            Err(error) => format!(
                "the lock is held until its ttl ends, since it could not be released: {}",
                error.chain()
            ),
        };
        return Err(Failure::new(
            exit::NOT_PRINTED,
            format!("the ticket cannot be printed: {error}; {next}"),
        ));
    }
    let name = names::shell_word(args.name.as_str());
    let held = format!(
        "{} is held {}",
        names::what(&args.name, ticket.slot()),
        output::lease_end(row.as_ref())
    );
    let release = format!("release it with `dblock release {name} --ticket TICKET`");
    output::notice(&match args.ttl {
        Ttl::Infinite => format!("{held}: {release}"),
        Ttl::Finite(_) => format!(
            "{held}, and is not renewed in the background: renew it with `dblock renew {name} \
             --ticket TICKET`, and {release}"
        ),
    });
    Ok(0)
}
