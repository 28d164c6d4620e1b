//! `dblock init`

use crate::exit::Failure;
use crate::output;
use crate::target::Target;

pub(crate) async fn init(target: &Target) -> Result<u8, Failure> {
    let locks = target.connect_and_create().await?;
    locks.migrate().await?;
    output::result(&format!(
        "tables `{}` and `{}` are ready in {}",
        target.table(),
        target.permit_table(),
        target.display()
    ))?;
    Ok(0)
}
