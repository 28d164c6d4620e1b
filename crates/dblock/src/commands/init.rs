//! `dblock init`

use crate::exit::Failure;
use crate::output;
use crate::place::Place;

pub(crate) async fn init(place: &Place) -> Result<u8, Failure> {
    let locks = place.connect_and_create().await?;
    locks.migrate().await?;
    output::say(&format!(
        "table `{}` is ready in {}",
        place.table(),
        place.shown()
    ))?;
    Ok(0)
}
