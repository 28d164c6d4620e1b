//! `dblock limit NAME N`

use database_locks::LockName;

use crate::cli::Limit;
use crate::exit::Failure;
use crate::output;
use crate::target::Target;

pub(crate) async fn limit(target: &Target, name: &LockName, limit: Limit) -> Result<u8, Failure> {
    let locks = target.connect().await?;
    let before = locks.show_semaphore(name.as_str()).await?;
    let is_new = before.limit.is_none() && before.permits.is_empty();
    if is_new && limit.0.is_none() {
        output::notice(&format!(
            "there is no semaphore `{name}`, so nothing was changed"
        ));
        return Ok(0);
    }
    locks.set_limit(name.as_str(), limit.0).await?;
    let held = locks.show_semaphore(name.as_str()).await?.held();
    output::notice(&match limit.0 {
        None => format!("semaphore `{name}` has no limit in the database: each caller's counts"),
        // Perhaps the name is misspelt.
        Some(limit) if is_new => format!(
            "semaphore `{name}` {}, a new setting: no permit of that name was acquired so far",
            match limit {
                0 => "is paused".to_owned(),
                limit => format!("has the limit {limit}"),
            }
        ),
        Some(0) => format!("semaphore `{name}` is paused; {}", permits_held(held)),
        Some(limit) => format!(
            "semaphore `{name}` has the limit {limit}; {}",
            permits_held(held)
        ),
    });
    Ok(0)
}

/// `1 permit is held`, `2 permits are held`.
pub(super) fn permits_held(held: usize) -> String {
    match held {
        1 => "1 permit is held".to_owned(),
        _ => format!("{held} permits are held"),
    }
}
