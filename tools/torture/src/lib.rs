//! Torture: many processes on a few locks of a real database, faults from a printed seed, and a checker
//! that reads afterwards what everybody saw.
//!
//! - [`plan`]: which fault comes when, from the seed alone.
//! - [`run`]: the servers, the proxies, the processes; each fault is made and seen to have landed.
//! - [`rows`]: the rows of the locks, as the faults look at them and change them.
//! - [`history`]: what the processes write down. [`check`]: what must not be in it.
//! - [`picture`] and [`evidence`]: the same for people.
//!
//! The processes are the binary `torture-worker`, and the Python programs beside this crate's sources.

pub mod check;
pub mod clock;
pub mod engine;
pub mod evidence;
pub mod faults;
pub mod history;
pub mod naive;
pub mod network;
pub mod picture;
pub mod plan;
pub mod process;
pub mod rows;
pub mod run;
pub mod store;
