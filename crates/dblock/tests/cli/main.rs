//! The command `dblock`, run as a user runs it.

mod completions;
mod credentials;
mod doctor;
mod guide;
mod homes;
mod lost;
mod nested;
mod outage;
mod output;
mod prune;
mod run;
mod servers;
mod show;
mod signals;
mod support;
mod terminal;
mod tickets;
mod ttl;
