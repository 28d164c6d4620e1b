//! `dblock doctor`

use database_locks::doctor::{Finding, Severity};

use crate::cli::DoctorArgs;
use crate::exit::{self, Failure};
use crate::output;
use crate::target::Target;

pub(crate) async fn doctor(target: &Target, args: &DoctorArgs) -> Result<u8, Failure> {
    let mut report = target.connect().await?.doctor().await?;
    let is_ignored = |found: &Finding| args.ignore.contains(&found.id);
    let (ignored, counted) = report.findings.into_iter().partition(is_ignored);
    report.findings = counted;
    output::print(&match args.json {
        true => output::report_json(&report),
        false => output::report_lines(&report, &ignored),
    })?;
    let counts = |found: &Finding| args.strict || found.severity == Severity::Error;
    Ok(match report.findings.iter().any(counts) {
        true => exit::FINDINGS,
        false => 0,
    })
}
