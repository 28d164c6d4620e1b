//! Lists of locks as JSON: all of them, or one page for the admin page.
//!
//! A table may have a million rows. The core reads it in pages that no renewal waits for; what is
//! done with the rows is done here, without the GIL, and Python gets what it shows.

use std::cmp::Reverse;

use database_locks::{Error, ListFilter, LockInfo, Locks};

const STATES: [&str; 3] = ["held", "expired", "free"];
/// How many rows are written before others of the same thread have their turn.
const AT_ONCE: usize = 1_000;

async fn read(locks: &Locks, free: bool) -> Result<Vec<LockInfo>, Error> {
    let all = ListFilter::new();
    let filter = if free { all } else { all.not_free() };
    locks.list_filtered(&filter).await
}

/// A JSON array, in the order of names.
pub(crate) async fn list(locks: &Locks, free: bool) -> Result<String, Error> {
    Ok(array(&read(locks, free).await?).await)
}

async fn array(rows: &[LockInfo]) -> String {
    let mut text = String::from("[");
    for (at, info) in rows.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&info.to_json());
        // The thread that does this may be the one that drives renewals.
        if at % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    text.push(']');
    text
}

/// Which locks a page shows, and which page.
pub(crate) struct Wanted {
    /// Part of a name or a holder, in any case.
    pub(crate) text: String,
    /// `held`, `expired` or `free`; none: all.
    pub(crate) state: Option<String>,
    /// `age`: the longest held first; `-age`: the shortest; none: by state and name.
    pub(crate) order: Option<String>,
    /// From 1; one that there is not is the last.
    pub(crate) page: i64,
    pub(crate) rows: usize,
}

/// One page: those in use first, then by name, unless another order is asked for. How many there are of each state goes with it; of
/// those that are free, only where they were to be read.
pub(crate) async fn page(locks: &Locks, wanted: Wanted) -> Result<String, Error> {
    let state = wanted.state.as_deref();
    let free = state.is_none_or(|state| state == "free");
    let text = wanted.text.to_lowercase();
    let mut found = read(locks, free).await?;
    found.retain(|info| matches(info, &text));
    let count = |state| {
        found
            .iter()
            .filter(|info| info.state.as_str() == state)
            .count()
    };
    let counts = STATES.map(|state| match state {
        "free" if !free => "null".into(),
        _ => count(state).to_string(),
    });
    found.retain(|info| state.is_none_or(|state| state == info.state.as_str()));
    sort(&mut found, wanted.order.as_deref());
    let shown = rows_of(&found, wanted.page, wanted.rows);
    Ok(format!(
        r#"{{"held":{},"expired":{},"free":{},"total":{},"rows":{}}}"#,
        counts[0],
        counts[1],
        counts[2],
        found.len(),
        array(shown).await
    ))
}

/// Stable, so that names stay in order. What has no age comes last in either direction.
fn sort(found: &mut [LockInfo], order: Option<&str>) {
    match order {
        Some("age") => found.sort_by_key(|info| Reverse(info.held_for)),
        Some("-age") => {
            found.sort_by_key(|info| (info.held_for.is_none(), info.held_for));
        }
        _ => found.sort_by_key(|info| {
            STATES
                .iter()
                .position(|state| *state == info.state.as_str())
        }),
    }
}

fn matches(info: &LockInfo, text: &str) -> bool {
    let within = |said: &str| said.to_lowercase().contains(text);
    text.is_empty() || within(info.name.as_str()) || info.holder.as_deref().is_some_and(within)
}

fn rows_of(found: &[LockInfo], page: i64, rows: usize) -> &[LockInfo] {
    let mut pages = found.chunks(rows.max(1));
    let last = pages.len().saturating_sub(1);
    let at = usize::try_from(page.saturating_sub(1))
        .unwrap_or(last)
        .min(last);
    pages.nth(at).unwrap_or_default()
}
