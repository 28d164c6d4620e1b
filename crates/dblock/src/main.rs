//! `dblock`: run a command under a lock that lives in your SQL database.

mod args;
mod child;
mod cmd;
mod exit;
mod nested;
mod notices;
mod output;
mod pages;
mod place;
mod release_notice;
mod signals;
mod terminal;
mod ticket;

use std::process::ExitCode;

use crate::args::{Invocation, Task};
use crate::exit::Failure;
use crate::notices::Notices;
use crate::place::Place;

fn main() -> ExitCode {
    let done = args::read().and_then(work);
    done.unwrap_or_else(|failure| {
        output::complain(&failure.said);
        failure.code
    })
    .into()
}

/// Everything happens on this thread, which lives until the end: the kernel ends CMD when the
/// *thread* that started it is gone.
fn work(invocation: Invocation) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime =
        runtime.map_err(|error| Failure::unavailable(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let notices = Notices::start(invocation.detail);
        let done = do_it(&invocation.place, invocation.task, &notices).await;
        notices.flush().await;
        done
    })
}

async fn do_it(place: &Place, task: Task, notices: &Notices) -> Result<u8, Failure> {
    match task {
        Task::Run(job) => cmd::run(place, job, notices).await,
        Task::Acquire { wish, json } => cmd::acquire(place, &wish, json, notices).await,
        Task::Renew { name, ticket, ttl } => cmd::renew(place, &name, &ticket, ttl).await,
        Task::Release { name, ticket } => cmd::release(place, &name, &ticket).await,
        Task::Force { name } => cmd::release_by_force(place, &name).await,
        Task::List { all, json } => cmd::list(place, all, json).await,
        Task::Show { name, json } => cmd::show(place, &name, json).await,
        Task::Prune { idle, legacy } => cmd::prune(place, idle, legacy).await,
        Task::Init => cmd::init(place).await,
        Task::Print(text) => {
            output::text(&text)?;
            Ok(0)
        }
        Task::Doctor(checkup) => cmd::doctor(place, &checkup).await,
    }
}
