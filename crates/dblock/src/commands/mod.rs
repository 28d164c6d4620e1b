//! The commands, each in a module of its own.

mod acquire;
mod acquire_lock;
mod doctor;
mod guard;
mod init;
mod lead;
mod limit;
mod nested;
mod pgoptions;
mod prune;
mod release;
mod release_notice;
mod renew;
mod run;
mod show;
mod wanted;

pub(crate) use acquire::acquire;
pub(crate) use doctor::doctor;
pub(crate) use guard::{guard, guards, unguard};
pub(crate) use init::init;
pub(crate) use lead::lead;
pub(crate) use limit::limit;
pub(crate) use prune::prune;
pub(crate) use release::{force_release, force_release_shared, release};
pub(crate) use renew::renew;
pub(crate) use run::run;
pub(crate) use show::{list, show};
