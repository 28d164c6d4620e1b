//! The settings, checked before anything is started.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The repository.
pub(crate) fn repository() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().unwrap_or(here)
}

/// The default of `SECONDS`.
const SECONDS: f64 = 900.0;

/// The settings of a run.
#[derive(Debug)]
pub(crate) struct Settings {
    seconds: f64,
    /// In the order in which they run.
    pub(crate) parts: Vec<&'static str>,
    pub(crate) docs: PathBuf,
}

impl Settings {
    /// Reads the settings by `text`. `parts` are all parts; `root` contains `docs`.
    ///
    /// # Errors
    ///
    /// Which setting is wrong, and what it allows.
    pub(crate) fn read(
        parts: &[&'static str],
        root: &Path,
        text: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let text = |name: &str| text(name).filter(|given| !given.trim().is_empty());
        let seconds = match text("SECONDS") {
            None => SECONDS,
            // Less measures nothing; more is a typing error.
            Some(given) => match given.trim().parse() {
                Ok(seconds) if (10.0..=36_000.0).contains(&seconds) => seconds,
                _ => return Err(format!("SECONDS={given}: it is a number from 10 to 36000")),
            },
        };
        let asked =
            text("ONLY").map(|only| only.split(',').map(|name| name.trim().to_owned()).collect());
        let asked: Vec<String> =
            asked.unwrap_or_else(|| parts.iter().map(ToString::to_string).collect());
        if let Some(unknown) = asked.iter().find(|name| !parts.contains(&name.as_str())) {
            let parts = parts.join(", ");
            return Err(format!(
                "ONLY: there is no part `{unknown}`; the parts are {parts}"
            ));
        }
        let named = parts
            .iter()
            .filter(|part| asked.iter().any(|name| name == *part));
        Ok(Self {
            seconds,
            parts: named.copied().collect(),
            docs: text("DOCS").map_or_else(|| root.join("docs"), PathBuf::from),
        })
    }

    /// A share of the time.
    pub(crate) fn share(&self, of: f64) -> Duration {
        Duration::from_secs_f64(self.seconds * of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(&["cycle", "held", "start"], Path::new("/where"), |name| {
            let found = given.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn parts_run_in_their_own_order_and_an_unknown_one_is_refused() {
        let settings = read(&[("ONLY", ""), ("SECONDS", "")]).unwrap();
        assert_eq!((settings.parts.len(), settings.seconds), (3, SECONDS));
        assert_eq!(settings.docs, Path::new("/where/docs"));
        assert_eq!(
            read(&[("ONLY", "held, cycle")]).unwrap().parts,
            ["cycle", "held"]
        );
        let error = read(&[("ONLY", "cycle,speed")]).unwrap_err();
        assert!(
            error.contains("`speed`") && error.contains("cycle, held, start"),
            "{error}"
        );
        assert!(read(&[("ONLY", "cycle,")]).is_err());
    }

    #[test]
    fn a_bad_number_is_refused_with_its_bounds() {
        for seconds in ["soon", "NaN", "-1", "1e9"] {
            let error = read(&[("SECONDS", seconds)]).unwrap_err();
            assert!(
                error.contains(seconds) && error.contains("36000"),
                "{error}"
            );
        }
    }
}
