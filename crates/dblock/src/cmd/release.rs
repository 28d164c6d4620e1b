//! `dblock release NAME --force`

use database_locks::{LockName, Ttl};

use crate::exit::Failure;
use crate::output;
use crate::place::Place;

pub(crate) async fn release(place: &Place, name: &LockName) -> Result<u8, Failure> {
    let freed = place.connect().await?.force_release(name.as_str()).await?;
    let said = match freed {
        None => format!("lock `{name}` was free already"),
        Some(from) => {
            let who = from
                .holder
                .as_deref()
                .unwrap_or("somebody who gave no name");
            let age = from.held_for.map(|age| format!(" for {}", Ttl::from(age)));
            let age = age.unwrap_or_default();
            format!("lock `{name}` released by force: {who} had held it{age}")
        }
    };
    output::say(&said);
    Ok(0)
}
