//! `dblock list` and `dblock show NAME`

use database_locks::{ListFilter, LockName};

use crate::exit::{self, Failure};
use crate::output;
use crate::place::Place;

pub(crate) async fn list(place: &Place, all: bool, json: bool) -> Result<u8, Failure> {
    let filter = match all {
        true => ListFilter::new(),
        false => ListFilter::new().not_free(),
    };
    let rows = place.connect().await?.list_filtered(&filter).await?;
    match json {
        true => output::rows_as_json(&rows),
        false => output::rows(&rows, all),
    }?;
    Ok(0)
}

pub(crate) async fn show(place: &Place, name: &LockName, json: bool) -> Result<u8, Failure> {
    let Some(row) = place.connect().await?.show(name.as_str()).await? else {
        let said = format!(
            "there is no lock `{name}`: it was never held, or its row was pruned; `dblock list --all` \
             names all"
        );
        return Err(Failure::new(exit::UNKNOWN, said));
    };
    match json {
        true => output::row_as_json(&row),
        false => output::row(&row),
    }?;
    Ok(0)
}
