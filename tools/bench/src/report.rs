//! The documents: tables, goals, and the blocks that a run replaces.

use std::fmt::Write as _;

use crate::stats::spread;

/// The block of one part, between marks with its name.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) text: String,
    pub(crate) goals: Vec<Goal>,
    /// File name and content.
    pub(crate) plots: Vec<(String, String)>,
}

/// A number to reach.
#[derive(Debug)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) goal: String,
    pub(crate) reached: String,
    pub(crate) met: bool,
}

impl Section {
    pub(crate) fn paragraph(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.text, "{}\n", text.as_ref());
    }

    pub(crate) fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let _ = writeln!(self.text, "{}", table(head, rows));
    }

    /// Adds a plot that the page shows.
    pub(crate) fn plot(&mut self, file: &str, svg: String) {
        self.plots.push((file.to_owned(), svg));
    }

    pub(crate) fn goal(&mut self, what: &str, goal: &str, reached: Option<String>, met: bool) {
        self.goals.push(Goal {
            what: what.to_owned(),
            goal: goal.to_owned(),
            met: met && reached.is_some(),
            reached: reached.unwrap_or_else(|| "not measured".to_owned()),
        });
    }
}

/// A table whose first column is text and whose other columns are numbers.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|", head.join(" | "));
    for at in 0..head.len() {
        text.push_str(if at == 0 { " --- |" } else { " ---: |" });
    }
    text.push('\n');
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

pub(crate) fn goals(goals: &[Goal]) -> String {
    let row = |goal: &Goal| {
        let met = if goal.met { "met" } else { "**missed**" };
        vec![
            goal.what.clone(),
            goal.goal.clone(),
            goal.reached.clone(),
            met.to_owned(),
        ]
    };
    let rows: Vec<_> = goals.iter().map(row).collect();
    table(&["what", "goal", "reached", ""], &rows)
}

/// Calls in one cycle; a twentieth of a call is noise.
pub(crate) fn counted(value: f64) -> String {
    match value {
        _ if value < 0.05 => "0".to_owned(),
        _ if (value - value.round()).abs() < 0.05 => format!("{:.0}", value.round()),
        _ => format!("{value:.1}"),
    }
}

/// The median, and in brackets the 10th and 90th percentile.
pub(crate) fn median_with_range(values: &[f64]) -> String {
    spread(values).map_or(String::new(), |of| {
        format!("{} ({}–{})", digits(of.p50), digits(of.p10), digits(of.p90))
    })
}

/// Three significant digits.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => thousands(value.round() as i64),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A number with separators: `12,345`.
pub(crate) fn thousands(value: i64) -> String {
    let text = value.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0 {
        grouped.insert(0, '-');
    }
    grouped
}

/// Puts `content` between the marks of block `name`; without marks, appends both.
pub(crate) fn replace(document: &str, name: &str, content: &str) -> String {
    let (begin, end) = (
        format!("<!-- bench: {name} -->"),
        format!("<!-- end of bench: {name} -->"),
    );
    let block = format!("{begin}\n{}\n{end}", content.trim());
    let place = document
        .find(&begin)
        .and_then(|from| Some((from, from + document[from..].find(&end)? + end.len())));
    match place {
        Some((from, to)) => format!("{}{block}{}", &document[..from], &document[to..]),
        None => format!("{}\n\n{block}\n", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_replaced_and_what_is_around_it_stays() {
        let before = "# Title\n\n<!-- bench: a -->\nold\n<!-- end of bench: a -->\n\nwords\n";
        let after = replace(before, "a", "new");
        assert_eq!(after, before.replace("old", "new"));
        assert_eq!(replace(&after, "a", "new"), after);
        let more = replace(&after, "b", "other");
        assert!(more.starts_with(after.trim_end()) && more.contains("<!-- bench: b -->\nother\n"));
    }

    #[test]
    fn figures_have_three_digits_and_groups() {
        let shown = [0.1234, 1.2345, 12.345, 123.45, 1_234_567.0, f64::NAN].map(digits);
        assert_eq!(shown, ["0.123", "1.23", "12.3", "123", "1,234,567", "–"]);
        assert_eq!(thousands(-1000), "-1,000");
    }

    #[test]
    fn a_goal_that_was_not_measured_is_not_met() {
        let mut section = Section::default();
        section.goal("speed", "fast", None, true);
        assert!(goals(&section.goals).contains("| not measured | **missed** |"));
    }
}
