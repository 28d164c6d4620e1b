//! How long it takes until another process leads, after a resignation and after a kill.

use std::time::Duration;

use testkit::time;

use crate::child::Child;
use crate::console::progress;
use crate::report::{Section, digits};
use crate::serve::now_ns;
use crate::servers::Engine;
use crate::stats::spread;
use crate::worker;

/// The ttl of the terms.
const TTL: Duration = Duration::from_secs(1);
/// A process that has resigned campaigns again after a second at least.
const CAMPAIGNS_AGAIN: Duration = Duration::from_millis(1300);
/// The least number of each, however short the run is.
const LEAST: usize = 3;

/// The leader and a candidate on one engine, and the milliseconds of the take-overs.
struct Pair {
    engine: Engine,
    leader: Child,
    candidate: Child,
    resigned: Vec<f64>,
    killed: Vec<f64>,
}

fn start(engine: &Engine) -> Option<Child> {
    let ttl = TTL.as_millis().to_string();
    worker::start(&["lead", &engine.url, "the leader", &ttl])
}

impl Pair {
    fn new(engine: &Engine) -> Option<Self> {
        let leader = start(engine)?;
        time_of(&leader, "leads");
        Some(Self {
            engine: engine.clone(),
            leader,
            candidate: start(engine)?,
            resigned: Vec::new(),
            killed: Vec::new(),
        })
    }

    /// The leader resigns, and the candidate leads.
    fn resign(&mut self) {
        self.leader.send("resign");
        let from = time_of(&self.leader, "resigns");
        self.resigned.push(self.taken_over(from));
        std::mem::swap(&mut self.leader, &mut self.candidate);
    }

    /// Kills the leader; when it was.
    fn kill(&mut self) -> u64 {
        let from = now_ns();
        self.leader.kill();
        from
    }

    /// The candidate leads after a kill, and a new process is the candidate.
    fn replace(&mut self, killed: u64) {
        self.killed.push(self.taken_over(killed));
        std::mem::swap(&mut self.leader, &mut self.candidate);
        if let Some(child) = start(&self.engine) {
            self.candidate = child;
        }
    }

    /// Milliseconds until the candidate leads.
    fn taken_over(&self, from: u64) -> f64 {
        time_of(&self.candidate, "leads").saturating_sub(from) as f64 / 1e6
    }
}

/// The time of the next line of a process, which must say `what`.
fn time_of(child: &Child, what: &str) -> u64 {
    let line = child.receive(TTL);
    let time = line
        .strip_prefix(what)
        .and_then(|at| at.trim().parse().ok());
    time.unwrap_or_else(|| panic!("not `{what}`: {line}"))
}

pub(super) fn run(engines: &[Engine], length: Duration, section: &mut Section) {
    let mut pairs: Vec<Pair> = engines.iter().filter_map(Pair::new).collect();
    let began = time::now();
    while began.elapsed() < length || pairs.iter().any(|pair| pair.killed.len() < LEAST) {
        // All engines pause together.
        time::sleep(CAMPAIGNS_AGAIN);
        fastrand::shuffle(&mut pairs);
        pairs.iter_mut().for_each(Pair::resign);
        time::sleep(CAMPAIGNS_AGAIN.mul_f64(1.0 + fastrand::f64() / 2.0));
        let killed: Vec<u64> = pairs.iter_mut().map(Pair::kill).collect();
        for (pair, killed) in pairs.iter_mut().zip(killed) {
            pair.replace(killed);
        }
    }
    progress(&format!(
        "kinds: {} terms each",
        2 * pairs.first().map_or(0, |pair| pair.killed.len())
    ));
    section.paragraph(format!(
        "Milliseconds until another process leads: from `resign` on, and from a SIGKILL of the leader on, whose \
         lease of {} s ends first.",
        TTL.as_secs()
    ));
    pairs.sort_by_key(|pair| {
        engines
            .iter()
            .position(|engine| engine.key == pair.engine.key)
    });
    let mut rows = Vec::new();
    for pair in &pairs {
        for (what, values) in [("resigned", &pair.resigned), ("killed", &pair.killed)] {
            let Some(of) = spread(values) else { continue };
            let mut row = vec![
                format!("{}, {what}", pair.engine.name),
                of.count.to_string(),
            ];
            row.extend([of.p10, of.p50, of.p90, of.max].map(digits));
            rows.push(row);
        }
    }
    section.table(&["", "terms", "p10", "p50", "p90", "longest"], &rows);
}
