//! One module a command.

mod acquire;
mod doctor;
mod init;
mod prune;
mod release;
mod renew;
mod run;
mod show;
mod take;

pub(crate) use acquire::acquire;
pub(crate) use doctor::doctor;
pub(crate) use init::init;
pub(crate) use prune::prune;
pub(crate) use release::{release, release_by_force};
pub(crate) use renew::renew;
pub(crate) use run::run;
pub(crate) use show::{list, show};
