//! `dblock doctor`

use database_locks::doctor::{Finding, Severity};

use crate::args::Checkup;
use crate::exit::{self, Failure};
use crate::output;
use crate::place::Place;

pub(crate) async fn doctor(place: &Place, checkup: &Checkup) -> Result<u8, Failure> {
    let mut report = place.connect().await?.doctor().await?;
    let is_ignored = |found: &Finding| checkup.ignored.contains(&found.id);
    let (ignored, counted) = report.findings.into_iter().partition(is_ignored);
    report.findings = counted;
    match checkup.json {
        true => output::report_as_json(&report),
        false => output::report(&report, &ignored),
    }?;
    let counts = |found: &Finding| checkup.strict || found.severity == Severity::Error;
    Ok(match report.findings.iter().any(counts) {
        true => exit::FOUND,
        false => 0,
    })
}
