//! `dblock prune --older-than DURATION`

use database_locks::Prune;

use crate::cli::PruneArgs;
use crate::exit::Failure;
use crate::output;
use crate::target::Target;
use crate::time::human;

pub(crate) async fn prune(target: &Target, args: PruneArgs) -> Result<u8, Failure> {
    let mut prune = Prune::older_than(args.older_than);
    if args.include_legacy {
        prune = prune.include_legacy();
    }
    let deleted = target.connect().await?.prune(prune).await?;
    let rows = if deleted == 1 { "row" } else { "rows" };
    output::result(&format!(
        "{deleted} {rows} deleted of locks that have been free for {}",
        human(args.older_than)
    ))?;
    Ok(0)
}
