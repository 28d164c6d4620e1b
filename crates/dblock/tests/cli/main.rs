//! The command `dblock`, run as a user runs it.

mod completions;
mod credentials;
mod default_file;
mod doctor;
mod early_release;
mod engines;
mod first_use;
mod guards;
mod guide;
mod lead;
mod lost;
mod nested;
mod outage;
mod output;
mod prune;
mod run;
mod semaphore;
mod several;
mod shared;
mod show;
mod signals;
mod spacing;
mod support;
mod terminal;
mod tickets;
mod ttl;
