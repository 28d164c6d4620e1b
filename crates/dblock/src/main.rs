//! `dblock`: run a command under a lock that lives in your SQL database.

mod cli;
mod commands;
mod exit;
mod names;
mod notices;
mod output;
mod process;
mod target;
mod ticket;
mod time;

use std::process::ExitCode;

use crate::cli::{Invocation, Task};
use crate::exit::Failure;
use crate::notices::Notices;
use crate::target::Target;

fn main() -> ExitCode {
    let result = cli::parse_arguments().and_then(run);
    result
        .unwrap_or_else(|failure| {
            output::error(&failure.message);
            failure.code
        })
        .into()
}

/// Runs the task on this thread, which lives until the process ends: on Linux the parent-death
/// signal of CMD is sent when the *thread* that started it ends.
fn run(invocation: Invocation) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unavailable(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        let notices = Notices::start(invocation.verbosity);
        let result = dispatch(&invocation.target, invocation.task, &notices).await;
        notices.flush().await;
        result
    })
}

async fn dispatch(target: &Target, task: Task, notices: &Notices) -> Result<u8, Failure> {
    match task {
        Task::Run(args) => commands::run(target, args, notices).await,
        Task::Lead(args) => commands::lead(target, args, notices).await,
        Task::Acquire { args, json } => commands::acquire(target, &args, json, notices).await,
        Task::Renew { name, ticket, ttl } => commands::renew(target, &name, &ticket, ttl).await,
        Task::Release { name, ticket } => commands::release(target, &name, &ticket).await,
        Task::ForceRelease {
            name, shared: true, ..
        } => commands::force_release_shared(target, &name).await,
        Task::ForceRelease { name, slot, .. } => commands::force_release(target, &name, slot).await,
        Task::Limit { name, limit } => commands::limit(target, &name, limit).await,
        Task::List { all, json } => commands::list(target, all, json).await,
        Task::Show { name, json } => commands::show(target, &name, json).await,
        Task::Guard(args) => commands::guard(target, &args).await,
        Task::Guards { json } => commands::guards(target, json).await,
        Task::Unguard { table } => commands::unguard(target, &table).await,
        Task::Prune(prune) => commands::prune(target, prune).await,
        Task::Init => commands::init(target).await,
        Task::Print(text) => {
            output::print(&text)?;
            Ok(0)
        }
        Task::Doctor(args) => commands::doctor(target, &args).await,
    }
}
