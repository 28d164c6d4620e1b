//! `dblock guard [TABLE --lock NAME]` and `dblock unguard TABLE`

use crate::cli::GuardArgs;
use crate::exit::Failure;
use crate::output;
use crate::target::Target;

pub(crate) async fn guard(target: &Target, args: &GuardArgs) -> Result<u8, Failure> {
    let GuardArgs {
        table,
        lock,
        allow_cascades,
    } = args;
    let locks = target.connect().await?;
    match allow_cascades {
        true => {
            let guarded = locks.guard_table_allowing_cascades(table, lock.as_str());
            guarded.await?;
        }
        false => locks.guard_table(table, lock.as_str()).await?,
    }
    output::result(&format!(
        "table `{table}` is guarded by lock `{lock}` in {}",
        target.display()
    ))?;
    Ok(0)
}

/// Lists the guarded tables.
pub(crate) async fn guards(target: &Target, json: bool) -> Result<u8, Failure> {
    let guards = target.connect().await?.guarded_tables().await?;
    output::print(&match json {
        true => output::guards_json(&guards),
        false => output::guards_table(&guards),
    })?;
    Ok(0)
}

pub(crate) async fn unguard(target: &Target, table: &str) -> Result<u8, Failure> {
    let had_one = target.connect().await?.unguard_table(table).await?;
    output::result(&match had_one {
        true => format!(
            "table `{table}` is not guarded any more in {}",
            target.display()
        ),
        false => format!("table `{table}` had no guard in {}", target.display()),
    })?;
    Ok(0)
}
