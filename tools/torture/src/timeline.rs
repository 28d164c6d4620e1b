//! The timeline of a run as SVG: a row for each lock, a bar for each grant.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::check::{self, End, Grant};
use crate::outcome::Outcome;
use crate::plan::{KINDS, Kind};
use crate::report;

/// The length of a strip in microseconds; a run takes several.
const STRIP: u64 = 10_000_000;
const LEFT: f64 = 64.0;
const WIDTH: f64 = 1500.0;
/// The height of a row, and of a bar.
const ROW: f64 = 26.0;
const BAR: f64 = ROW - 6.0;
/// Faults are above the rows, on several lines, so that neighbours do not overlap.
const FAULT_LINES: usize = 4;
const FAULT_LINE: f64 = 15.0;

/// Distinct from each other, and from the red of violations.
const COLOURS: [&str; 8] = [
    "#4e79a7", "#f2a93b", "#59a14f", "#9c6bb0", "#76b7b2", "#b07d52", "#e39cb5", "#8a8f98",
];

const STYLE: &str = "text{font:11px sans-serif;fill:#222} .s{font-size:10px;fill:#555} \
    .h{font-size:16px;font-weight:bold} .k{font-size:10px;font-weight:bold} \
    .in{font-size:10px;fill:#fff;font-weight:bold} .g{stroke:#e6e6e6}";

struct Timeline<'a> {
    outcome: &'a Outcome,
    grants: Vec<Grant>,
    locks: Vec<String>,
    colours: BTreeMap<String, &'static str>,
    svg: String,
}

/// The name of a process, without the count of its starts.
fn name_of(process: &str) -> &str {
    process.split('.').next().unwrap_or(process)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Draws a run.
pub fn draw(outcome: &Outcome) -> String {
    let grants = check::grants(&outcome.evidence.events);
    let mut names: Vec<&str> = outcome
        .evidence
        .events
        .iter()
        .map(|e| name_of(&e.process))
        .collect();
    names.sort_unstable();
    names.dedup();
    let colours = names
        .iter()
        .zip(COLOURS.iter().cycle())
        .map(|(name, colour)| ((*name).to_owned(), *colour))
        .collect();
    let mut timeline = Timeline {
        locks: outcome.evidence.counters.keys().cloned().collect(),
        grants,
        outcome,
        colours,
        svg: String::new(),
    };
    let strips = (outcome.ended - outcome.began).div_ceil(STRIP).max(1);
    let mut y = timeline.heading();
    for number in 0..strips {
        y = timeline.strip(outcome.began + number * STRIP, y);
    }
    let (width, height) = (LEFT + WIDTH + 16.0, y + 8.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width} {height:.0}\"><style>{STYLE}</style>\n\
         <defs><pattern id=\"frozen\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"2.2\" height=\"6\" fill=\"#1b4fd0\"/></pattern>\
         </defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}</svg>\n",
        timeline.svg
    )
}

impl Timeline<'_> {
    fn put(&mut self, element: &str) {
        self.svg.push_str(element);
        self.svg.push('\n');
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escape(text);
        self.put(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>"
        ));
    }

    /// Title and legend; the y at which the strips begin.
    fn heading(&mut self) -> f64 {
        let options = &self.outcome.options;
        let title = format!(
            "{}: {}, seed {}, {} s, {} grants, {} writes, {} violations",
            options.engine.as_str(),
            report::clients(options),
            options.seed,
            options.length.as_secs(),
            self.outcome.numbers.grants,
            self.outcome.numbers.writes,
            self.outcome.violations.len(),
        );
        self.text(12.0, 26.0, "h", &title);
        let mut x = 12.0;
        self.text(x, 50.0, "", "A bar is a grant, from its reply until it is released, lost or no longer trusted. The number is the end of its token, the colour its process:");
        for (name, colour) in self.colours.clone() {
            self.put(&format!(
                "<rect x=\"{x}\" y=\"58\" width=\"22\" height=\"13\" fill=\"{colour}\"/>"
            ));
            self.text(x + 27.0, 69.0, "", &name);
            x += 48.0 + 7.0 * name.len() as f64;
        }
        let marks = [
            (
                "<rect width=\"30\" height=\"13\" fill=\"#bbb\"/><rect width=\"30\" height=\"13\" fill=\"url(#frozen)\"/>",
                "the process was frozen",
            ),
            (
                "<rect width=\"30\" height=\"13\" fill=\"#bbb\" opacity=\"0.4\"/>",
                "the process was killed, its lease ran on",
            ),
            (
                "<path d=\"M5 13 L10 4 L15 13 Z\" fill=\"#c00\"/>",
                "the holder was notified of the loss",
            ),
            (
                "<circle cx=\"10\" cy=\"7\" r=\"5\" fill=\"none\" stroke=\"#c00\" stroke-width=\"2\"/><path d=\"M6.5 10.5 L13.5 3.5\" stroke=\"#c00\" stroke-width=\"2\"/>",
                "the fence or the guard refused a write",
            ),
            (
                "<rect x=\"2\" y=\"1\" width=\"26\" height=\"11\" fill=\"none\" stroke=\"#e00\" stroke-width=\"3\"/>",
                "VIOLATION",
            ),
        ];
        x = 12.0;
        for (mark, words) in marks {
            self.put(&format!("<g transform=\"translate({x} 80)\">{mark}</g>"));
            self.text(x + 35.0, 91.0, "", words);
            x += 60.0 + 6.0 * words.len() as f64;
        }
        let mut y = 112.0;
        x = 12.0;
        self.text(
            x,
            y,
            "",
            "Faults, above the rows, in the colour of the process:",
        );
        x = 350.0;
        let came = |kind: &Kind| {
            self.outcome
                .faults
                .iter()
                .any(|fault| fault.planned.kind == *kind)
        };
        let kinds: Vec<Kind> = KINDS.into_iter().filter(came).collect();
        for kind in kinds {
            let wide = 34.0 + 5.6 * kind.as_str().len() as f64;
            if x + wide > LEFT + WIDTH {
                (x, y) = (350.0, y + 16.0);
            }
            self.text(x, y, "k", kind.abbreviation());
            self.text(x + 20.0, y, "s", kind.as_str());
            x += wide;
        }
        y + 14.0
    }

    fn x(&self, from: u64, at: u64) -> f64 {
        LEFT + at.saturating_sub(from).min(STRIP) as f64 / STRIP as f64 * WIDTH
    }

    /// One strip, from the time `from` on; the y at which the next begins.
    fn strip(&mut self, from: u64, top: f64) -> f64 {
        let until = from + STRIP;
        let rows = top + 16.0 + FAULT_LINES as f64 * FAULT_LINE;
        let bottom = rows + ROW * self.locks.len() as f64;
        for second in 0..=STRIP / 1_000_000 {
            let x = self.x(from, from + second * 1_000_000);
            let at = (from - self.outcome.began) / 1_000_000 + second;
            self.put(&format!(
                "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" class=\"g\"/>",
                top + 14.0
            ));
            self.text(x - 6.0, top + 11.0, "s", &format!("{at} s"));
        }
        self.text(12.0, rows - 8.0, "s", "faults");
        self.faults(from, until, top + 16.0, bottom);
        for (row, lock) in self.locks.clone().iter().enumerate() {
            let y = rows + ROW * row as f64;
            self.text(12.0, y + 17.0, "", &format!("lock {lock}"));
            self.put(&format!(
                "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"#ccc\"/>",
                y + ROW,
                LEFT + WIDTH
            ));
            self.row(lock, from, until, y + 3.0);
        }
        bottom + 14.0
    }

    fn faults(&mut self, from: u64, until: u64, top: f64, bottom: f64) {
        let mut free = [0.0; FAULT_LINES];
        let mut faults: Vec<_> = self.outcome.faults.iter().collect();
        faults.sort_by_key(|fault| fault.from);
        for fault in faults {
            if fault.until < from || fault.from >= until {
                continue;
            }
            let (begin, end) = (
                self.x(from, fault.from.max(from)),
                self.x(from, fault.until),
            );
            let of_server = fault.process.is_empty();
            let colour = match self.colours.get(name_of(&fault.process)) {
                Some(colour) if !of_server => colour,
                _ => "#555",
            };
            let line = (0..FAULT_LINES).find(|line| free[*line] <= begin);
            let line = line.unwrap_or(FAULT_LINES - 1);
            let label = match &fault.lock {
                Some(lock) => format!("{} {lock}", fault.planned.kind.abbreviation()),
                None => fault.planned.kind.abbreviation().to_owned(),
            };
            free[line] = end.max(begin + 8.0 + 7.0 * label.len() as f64);
            let y = top + line as f64 * FAULT_LINE;
            let wide = (end - begin).max(3.0);
            if of_server {
                self.put(&format!(
                    "<rect x=\"{begin:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{:.1}\" \
                     fill=\"#000\" opacity=\"0.09\"/>",
                    bottom - y
                ));
            }
            let title = escape(&format!(
                "{} {}",
                fault.planned.kind.as_str(),
                fault.process
            ));
            self.put(&format!(
                "<rect x=\"{begin:.1}\" y=\"{:.1}\" width=\"{wide:.1}\" height=\"3\" fill=\"{colour}\">\
                 <title>{title}</title></rect>",
                y + 11.0
            ));
            let cross = if fault.missed.is_some() { "!" } else { "" };
            self.text(begin, y + 9.0, "k", &format!("{label}{cross}"));
        }
    }

    /// The row of one lock: its grants, and the marks above them.
    fn row(&mut self, lock: &str, from: u64, until: u64, y: f64) {
        let of_lock = |grant: &&Grant| grant.resource() == lock;
        let grants: Vec<Grant> = self.grants.iter().filter(of_lock).cloned().collect();
        let mut marks = String::new();
        for grant in &grants {
            self.grant(grant, from, until, y);
            if let Some(lost) = grant.lost.filter(|lost| (from..until).contains(lost)) {
                let x = self.x(from, lost);
                let _ = write!(
                    marks,
                    "<path d=\"M{:.1} {:.1} l5 -9 l5 9 Z\" fill=\"#c00\" stroke=\"#fff\"><title>lost</title></path>",
                    x - 5.0,
                    y + BAR
                );
            }
        }
        self.freezes(&mut marks, lock, from, until, y);
        self.refusals(&mut marks, lock, from, until, y);
        self.violations(&mut marks, lock, from, until, y);
        self.put(&marks);
    }

    /// The bar of a grant, until it was released, lost or no longer trusted.
    fn grant(&mut self, grant: &Grant, from: u64, until: u64, y: f64) {
        let killed = self.killed(grant);
        let trusted = grant.trusted_until.max(grant.granted);
        let ends = [grant.releasing, grant.lost, killed, Some(trusted)];
        let end = ends.into_iter().flatten().min().unwrap_or(trusted);
        if end < from || grant.granted >= until {
            return;
        }
        let colour = self.colours[name_of(&grant.process)];
        let begin = self.x(from, grant.granted.max(from));
        let wide = (self.x(from, end) - begin).max(1.5);
        let title = escape(&format!("{} token {}", grant.process, grant.token));
        self.put(&format!(
            "<rect x=\"{begin:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{BAR}\" rx=\"2\" \
             fill=\"{colour}\"><title>{title}</title></rect>"
        ));
        if wide > 30.0 && grant.token != 0 {
            let label = format!("…{:03}", grant.token % 1000);
            self.text(begin + 3.0, y + 14.0, "in", &label);
        }
        // The lease runs on after its holder was killed.
        if let Some(killed) = killed.filter(|killed| *killed < trusted && grant.releasing.is_none())
        {
            let (a, b) = (self.x(from, killed.max(from)), self.x(from, trusted));
            self.put(&format!(
                "<rect x=\"{a:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\" \
                 opacity=\"0.35\"/>",
                (b - a).max(0.0)
            ));
        }
    }

    fn freezes(&self, marks: &mut String, lock: &str, from: u64, until: u64, y: f64) {
        let freezes = [
            Kind::FreezeHolding,
            Kind::FreezeInFence,
            Kind::FreezeBeforeGuarded,
            Kind::FreezeInGuarded,
        ];
        let here = self.outcome.faults.iter().filter(|fault| {
            freezes.contains(&fault.planned.kind)
                && fault.lock.as_deref() == Some(lock)
                && fault.until >= from
                && fault.from < until
        });
        for fault in here {
            let (a, b) = (
                self.x(from, fault.from.max(from)),
                self.x(from, fault.until),
            );
            let _ = write!(
                marks,
                "<rect x=\"{a:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"7\" fill=\"url(#frozen)\"/>",
                y + BAR - 7.0,
                b - a
            );
        }
    }

    fn refusals(&self, marks: &mut String, lock: &str, from: u64, until: u64, y: f64) {
        let events = &self.outcome.evidence.events;
        let fenced = check::writes(events, &self.grants);
        let fenced = fenced.values().map(|write| (Some(write.grant), write.end));
        let guarded = check::guarded_writes(events, &self.grants);
        let guarded = guarded.values().map(|write| (write.grant, write.end));
        for (grant, end) in fenced.chain(guarded) {
            let grant = grant.and_then(|place| self.grants.get(place));
            if let Some((at, End::Refused)) = end
                && grant.is_some_and(|grant| grant.resource() == lock)
                && (from..until).contains(&at)
            {
                let x = self.x(from, at);
                let _ = write!(
                    marks,
                    "<g transform=\"translate({x:.1} {:.1})\" stroke=\"#c00\" stroke-width=\"2\" fill=\"#fff\">\
                     <circle r=\"5\"/><path d=\"M-3.5 3.5 L3.5 -3.5\"/></g>",
                    y + 6.0
                );
            }
        }
    }

    fn violations(&self, marks: &mut String, lock: &str, from: u64, until: u64, y: f64) {
        for violation in &self.outcome.violations {
            if violation.lock == lock && (from..until).contains(&violation.at) {
                let x = self.x(from, violation.at);
                let title = escape(&violation.to_string());
                let _ = write!(
                    marks,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"16\" height=\"{}\" fill=\"none\" stroke=\"#e00\" \
                     stroke-width=\"3\"><title>{title}</title></rect>",
                    x - 8.0,
                    y - 2.0,
                    BAR + 4.0
                );
            }
        }
    }

    /// When the process of a grant was killed.
    fn killed(&self, grant: &Grant) -> Option<u64> {
        let mine = |outage: &&check::Outage| {
            outage.killed
                && outage.process.as_ref() == Some(&grant.process)
                && outage.from >= grant.granted
        };
        self.outcome
            .evidence
            .outages
            .iter()
            .find(mine)
            .map(|outage| outage.from)
    }
}
