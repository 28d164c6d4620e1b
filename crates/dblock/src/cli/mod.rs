//! Parses the command line into typed options. No other module uses clap.

mod commands;
mod generate;
mod help;
mod parse;
mod task;
#[cfg(test)]
mod tests;
mod usage_error;
mod values;

pub(crate) use self::parse::parse_arguments;
pub(crate) use self::task::{
    AcquireArgs, DEFAULT_ACQUIRE_TTL, DoctorArgs, GuardArgs, Invocation, OnLost, PruneArgs,
    RunArgs, Task, Verbosity,
};
pub(crate) use self::values::Limit;
