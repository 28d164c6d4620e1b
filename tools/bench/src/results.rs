//! What the parts measured, by the keys of cases: the table of peers is made of it.

use std::collections::BTreeMap;

use crate::child::Times;
use crate::strace::Counts;

/// The cycles of one case: the times of all rounds, and the median of each round.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) all: Times,
    pub(crate) acquire: Vec<f64>,
    pub(crate) cycle: Vec<f64>,
}

/// The results of a run.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) cycles: BTreeMap<String, Measured>,
    /// The key of each case, its name and its system calls.
    pub(crate) counts: Vec<(String, String, Counts)>,
    /// The median hand-over, in milliseconds.
    pub(crate) handovers: BTreeMap<String, f64>,
}
