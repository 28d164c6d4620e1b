//! One module a command.

mod doctor;
mod init;
mod release;
mod run;
mod show;

pub(crate) use doctor::doctor;
pub(crate) use init::init;
pub(crate) use release::release;
pub(crate) use run::run;
pub(crate) use show::{list, show};
