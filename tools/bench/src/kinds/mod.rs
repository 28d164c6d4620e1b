//! The kinds of lock beside plain locks: permits, shared locks, several locks at once, spaced grants, leaders.
//!
//! A kind that is new gets a [`cycles::Row`], and a `Crowd` of `crowds` if several tasks use it at
//! once.

use std::time::Duration;

use crate::report::Section;
use crate::results::Results;
use crate::servers::Servers;
use crate::subject;

mod crowds;
mod cycles;
mod leader;
mod writer;

pub(crate) fn run(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let engines = servers.engines();
    for engine in &engines {
        drop(subject::connected(
            &crate::drive::current_thread(),
            &engine.url,
        ));
    }
    let mut section = Section::default();
    cycles::run(&engines, length.mul_f64(0.22), &mut section);
    crowds::run(&engines, length.mul_f64(0.64), &mut section);
    writer::run(&engines, length.mul_f64(0.05), &mut section);
    leader::run(&engines, length.mul_f64(0.09), &mut section);
    section
}
