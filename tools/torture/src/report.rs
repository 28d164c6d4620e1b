//! The tables of results in `docs/evidence.md`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::check::KINDS;
use crate::options::Options;
use crate::outcome::Outcome;
use crate::target;
use crate::worker::Client;

const TABLE: (&str, &str) = (
    "<!-- torture: the table, written by make torture -->",
    "<!-- torture: its end -->",
);
const FAULTS: (&str, &str) = (
    "<!-- torture: the faults, written by make torture -->",
    "<!-- torture: their end -->",
);

const GUARDED: (&str, &str) = (
    "<!-- torture: the guarded writes, written by make torture -->",
    "<!-- torture: their last line -->",
);

/// The clients of a run, and what they contend for besides locks, in words.
pub fn clients(options: &Options) -> String {
    let mut words = client(options);
    for target in &options.targets {
        match target.kind {
            target::Kind::Lock => {}
            target::Kind::Semaphore(permits) => {
                words.push_str(&format!(", a semaphore of {permits}"));
            }
            target::Kind::Shared => words.push_str(", a shared lock"),
            target::Kind::Guarded if options.clients[0] == Client::Unguarded => {}
            target::Kind::Guarded => words.push_str(", a guarded table"),
        }
    }
    words
}

fn client(options: &Options) -> String {
    let many = |wanted| {
        options
            .clients
            .iter()
            .filter(|client| **client == wanted)
            .count()
    };
    match options.clients[0] {
        Client::Correct => "simple client without a mistake".into(),
        Client::RenewalAcquires => "control: renewal that acquires".into(),
        Client::TrustFromReply => "control: trust counted from the reply".into(),
        Client::ClientClock => "control: expiry by the client's clock".into(),
        Client::HandsOutEnded => "control: a lock handed out after the end of trust".into(),
        Client::Unfenced => "control: unfenced writes".into(),
        Client::CountsThenEnters => "control: a count of the holders, then a claim".into(),
        Client::LooksThenEnters => "control: readers and writers that look, then enter".into(),
        Client::Unguarded => "control: a table without a guard".into(),
        Client::Legacy => "control: legacy".into(),
        Client::Rust | Client::Python => match many(Client::Python) {
            0 => format!("database-locks, {} in Rust", many(Client::Rust)),
            python => format!(
                "database-locks, {} in Rust and {python} in Python",
                many(Client::Rust)
            ),
        },
    }
}

fn header() -> String {
    let mut head = String::from(
        "| engine | clients | seed | seconds | processes | grants | losses notified | writes | refused | \
         commits of unknown outcome | faults landed |",
    );
    for kind in KINDS {
        head.push_str(&format!(" {} |", kind.as_str()));
    }
    let columns = head.matches('|').count() - 1;
    format!("{head}\n|{}", " --- |".repeat(columns))
}

fn row(outcome: &Outcome) -> String {
    let (options, numbers) = (&outcome.options, &outcome.numbers);
    let landed = outcome
        .faults
        .iter()
        .filter(|fault| fault.missed.is_none())
        .count();
    let mut row = format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {landed} of {} |",
        options.engine.as_str(),
        clients(options),
        options.seed,
        options.length.as_secs(),
        options.clients.len(),
        numbers.grants,
        numbers.losses,
        numbers.writes,
        numbers.refused,
        numbers.unknown,
        outcome.faults.len(),
    );
    for kind in KINDS {
        let many = outcome
            .violations
            .iter()
            .filter(|one| one.kind == kind)
            .count();
        row.push_str(&format!(" {many} |"));
    }
    row
}

fn faults(outcome: &Outcome) -> String {
    let mut landed = BTreeMap::new();
    for fault in outcome.faults.iter().filter(|fault| fault.missed.is_none()) {
        *landed.entry(fault.planned.kind).or_insert(0) += 1;
    }
    let each: Vec<String> = landed
        .iter()
        .map(|(kind, many)| format!("{} {many}", kind.as_str()))
        .collect();
    let (engine, clients) = (outcome.options.engine.as_str(), clients(&outcome.options));
    format!("- {engine}, {clients}: {}.", each.join(", "))
}

/// What became of the writes to the guarded table; `None` if there was none.
pub fn guarded(outcome: &Outcome) -> Option<String> {
    let mut targets = outcome.options.targets.iter();
    targets.find(|target| target.kind == target::Kind::Guarded)?;
    let numbers = outcome.numbers.guarded;
    Some(format!(
        "{} writes committed; refused: {} late, {} with an outdated ticket, {} without \
         a ticket, {} of holders; {} ended by a fault",
        numbers.committed,
        numbers.late,
        numbers.outdated,
        numbers.bare,
        numbers.holders,
        numbers.failed,
    ))
}

fn guarded_line(outcome: &Outcome) -> Option<String> {
    let (engine, clients) = (outcome.options.engine.as_str(), clients(&outcome.options));
    let numbers = guarded(outcome)?;
    let seed = outcome.options.seed;
    Some(format!("- {engine}, {clients}, seed {seed}: {numbers}."))
}

/// The tables of some runs, to be printed.
pub fn tables(outcomes: &[Outcome]) -> String {
    let rows: Vec<String> = outcomes.iter().map(row).collect();
    let guarded: Vec<String> = outcomes.iter().filter_map(guarded_line).collect();
    let faults: Vec<String> = outcomes.iter().map(faults).collect();
    let parts = [rows, guarded, faults].map(|lines| lines.join("\n"));
    format!("{}\n{}", header(), parts.join("\n\n"))
}

/// Writes the tables into the document; they replace the rows of the same engines.
///
/// # Errors
///
/// If the document cannot be read or written, or has no marks.
pub fn put(path: &Path, outcomes: &[Outcome]) -> std::io::Result<()> {
    let text = std::fs::read_to_string(path)?;
    let engines: Vec<&str> = outcomes
        .iter()
        .map(|one| one.options.engine.as_str())
        .collect();
    let rows: Vec<String> = outcomes.iter().map(row).collect();
    let lines: Vec<String> = outcomes.iter().map(faults).collect();
    let guarded: Vec<String> = outcomes.iter().filter_map(guarded_line).collect();
    let replaced = replace(&text, TABLE, &header(), "| ", &engines, rows)
        .and_then(|text| replace(&text, GUARDED, "", "- ", &engines, guarded))
        .and_then(|text| replace(&text, FAULTS, "", "- ", &engines, lines));
    let missing = || std::io::Error::other(format!("{}: no marks", path.display()));
    std::fs::write(path, replaced.ok_or_else(missing)?)
}

/// Replaces the text between two marks: the header, the lines of other engines unchanged, and the
/// new lines.
fn replace(
    text: &str,
    (begin, end): (&str, &str),
    head: &str,
    sign: &str,
    engines: &[&str],
    new: Vec<String>,
) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (between, after) = rest.split_once(end)?;
    let stays = |line: &&str| {
        let engine = line.strip_prefix(sign).unwrap_or_default();
        let engine = engine.split([' ', ',']).next().unwrap_or_default();
        crate::engine::Engine::of(engine).is_some() && !engines.contains(&engine)
    };
    let mut lines: Vec<String> = between.lines().filter(stays).map(str::to_owned).collect();
    lines.extend(new);
    // A stable sort by engine.
    lines.sort_by_key(|line| {
        let engine = line.trim_start_matches(sign).split([' ', ',']).next();
        let word = engine.unwrap_or_default().to_owned();
        crate::engine::ENGINES
            .iter()
            .position(|engine| engine.as_str() == word)
    });
    let head = if head.is_empty() {
        String::new()
    } else {
        format!("{head}\n")
    };
    Some(format!(
        "{before}{begin}\n{head}{}\n{end}{after}",
        lines.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_the_engines_that_were_run_are_replaced() {
        let text = "before\n<b>\nhead\n| postgres | 1 |\n| sqlite | 2 |\n<e>\nafter";
        let new = vec!["| postgres | 3 |".to_owned()];
        let put = replace(text, ("<b>", "<e>"), "head", "| ", &["postgres"], new);
        let put = put.expect("it has marks");
        let wanted = "before\n<b>\nhead\n| postgres | 3 |\n| sqlite | 2 |\n<e>\nafter";
        assert_eq!(put, wanted);
        assert!(replace("none", ("<b>", "<e>"), "", "| ", &[], Vec::new()).is_none());
    }
}
