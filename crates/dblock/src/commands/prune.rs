//! `dblock prune --older-than 30d`

use std::time::Duration;

use database_locks::Prune;

use crate::exit::Failure;
use crate::output;
use crate::place::Place;

pub(crate) async fn prune(place: &Place, idle: Duration, legacy: bool) -> Result<u8, Failure> {
    let mut what = Prune::older_than(idle);
    if legacy {
        what = what.include_legacy();
    }
    let deleted = place.connect().await?.prune(what).await?;
    let rows = if deleted == 1 { "row" } else { "rows" };
    let idle = output::human(idle);
    output::say(&format!(
        "{deleted} {rows} deleted of locks that have been free for {idle}"
    ))?;
    Ok(0)
}
