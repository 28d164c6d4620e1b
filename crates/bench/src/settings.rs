//! What was asked for, checked before anything is started.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Less measures nothing, more is a mistake.
const SECONDS: RangeInclusive<f64> = 10.0..=36_000.0;
const ROUNDS: RangeInclusive<usize> = 2..=1_000;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    /// In the order in which they run.
    pub(crate) parts: Vec<&'static str>,
    pub(crate) docs: PathBuf,
}

impl Settings {
    /// As the environment says; `parts` are those that there are, `root` is where `docs` lies.
    ///
    /// # Errors
    ///
    /// What is wrong, in words for the one who typed it.
    pub(crate) fn read(parts: &[&'static str], root: &std::path::Path) -> Result<Self, String> {
        Self::from(parts, root, |name| {
            std::env::var(format!("BENCH_{name}")).ok()
        })
    }

    fn from(
        parts: &[&'static str],
        root: &std::path::Path,
        text: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let text = |name: &str| {
            let given = text(name)?.trim().to_owned();
            (!given.is_empty()).then_some(given)
        };
        let only = match text("ONLY") {
            Some(only) => chosen(&only, parts)?,
            None => parts.to_vec(),
        };
        Ok(Self {
            seconds: number("SECONDS", text("SECONDS"), 700.0, SECONDS)?,
            rounds: number("ROUNDS", text("ROUNDS"), 20, ROUNDS)?,
            parts: only,
            docs: text("DOCS").map_or_else(|| root.join("docs"), PathBuf::from),
        })
    }

    /// So much of the time.
    pub(crate) fn share(&self, of: f64) -> Duration {
        Duration::from_secs_f64(self.seconds * of)
    }
}

/// The parts that a list with commas names.
fn chosen(only: &str, parts: &[&'static str]) -> Result<Vec<&'static str>, String> {
    let asked: Vec<&str> = only.split(',').map(str::trim).collect();
    if let Some(unknown) = asked.iter().find(|name| !parts.contains(name)) {
        return Err(format!(
            "ONLY={only}: there is no part `{unknown}`; the parts are {}",
            parts.join(", ")
        ));
    }
    let named = parts.iter().filter(|part| asked.contains(part));
    Ok(named.copied().collect())
}

fn number<T: std::str::FromStr + PartialOrd + Display>(
    name: &str,
    text: Option<String>,
    default: T,
    within: RangeInclusive<T>,
) -> Result<T, String> {
    let Some(text) = text else {
        return Ok(default);
    };
    match text.parse() {
        Ok(number) if within.contains(&number) => Ok(number),
        _ => Err(format!(
            "{name}={text}: it is a number from {} to {}, {default} where it is left out",
            within.start(),
            within.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [&str; 3] = ["cycle", "held", "start"];

    fn read(given: &[(&str, &str)]) -> Result<Settings, String> {
        let root = std::path::Path::new("/where");
        Settings::from(&PARTS, root, |name| {
            let found = given.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_given_is_all_of_it() {
        let settings = read(&[("ONLY", ""), ("SECONDS", "")]).unwrap();
        assert_eq!(settings.parts, PARTS);
        assert_eq!((settings.seconds, settings.rounds), (700.0, 20));
        assert_eq!(settings.docs, std::path::Path::new("/where/docs"));
    }

    #[test]
    fn parts_run_in_their_own_order_and_an_unknown_one_is_refused() {
        let settings = read(&[("ONLY", "held, cycle")]).unwrap();
        assert_eq!(settings.parts, ["cycle", "held"]);
        let error = read(&[("ONLY", "cycle,speed")]).unwrap_err();
        assert!(
            error.contains("`speed`") && error.contains("cycle, held, start"),
            "{error}"
        );
        assert!(read(&[("ONLY", "cycle,")]).is_err());
    }

    #[test]
    fn what_is_no_such_number_is_refused_with_its_bounds() {
        for (name, value) in [
            ("SECONDS", "soon"),
            ("SECONDS", "NaN"),
            ("SECONDS", "-1"),
            ("SECONDS", "1e9"),
            ("ROUNDS", "2.5"),
            ("ROUNDS", "0"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.contains(&format!("{name}={value}")), "{error}");
        }
    }
}
