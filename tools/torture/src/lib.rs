//! Torture test: many processes contend for a few locks of a real database while faults are
//! injected; a checker reads the histories afterwards.
//!
//! - [`target`]: the locks and semaphores that the processes contend for.
//! - [`plan`]: which fault comes when; it depends on the seed alone.
//! - [`run`]: starts the servers, the proxies and the processes. [`faults`] injects each fault and
//!   observes that it took effect.
//! - [`tables`]: made before a run, and read after it.
//! - [`operator`]: changes the limits of semaphores.
//! - [`lock_rows`]: how faults read and change the rows of the locks.
//! - [`history`]: what a process records. [`check`]: which histories are violations.
//! - [`timeline`] and [`report`]: a picture and the tables of the results.
//!
//! The processes run the binary `torture-worker` and the Python programs beside these sources;
//! [`worker`] describes their commands.

pub mod check;
pub mod clock;
pub mod control;
pub mod engine;
pub mod faults;
pub mod history;
pub mod lock_rows;
pub mod network;
pub mod operator;
pub mod options;
pub mod outcome;
pub mod plan;
pub mod report;
pub mod run;
pub mod sql;
pub mod tables;
pub mod target;
pub mod timeline;
pub mod worker;
pub mod worker_process;
