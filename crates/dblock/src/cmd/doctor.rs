//! `dblock doctor`

use crate::exit::{self, Failure};
use crate::output;
use crate::place::Place;

pub(crate) async fn doctor(place: &Place, json: bool) -> Result<u8, Failure> {
    let report = place.connect().await?.doctor().await?;
    match json {
        true => output::report_as_json(&report),
        false => output::report(&report),
    }?;
    Ok(match report.findings.is_empty() {
        true => 0,
        false => exit::FOUND,
    })
}
