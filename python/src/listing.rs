//! Lists of locks as JSON: all locks, or one page of the admin page.
//!
//! A table may have a million rows. They are filtered and sorted here, without the GIL, and Python
//! gets only the rows that it shows.

use std::cmp::Reverse;
use std::collections::HashMap;

use database_locks::{Error, ListFilter, LockInfo, LockName, Locks};

const STATES: [&str; 4] = ["held", "resting", "expired", "free"];
/// The number of rows that are written between two yields to the runtime.
const ROWS_AT_ONCE: usize = 1_000;

async fn read(locks: &Locks, free: bool) -> Result<Vec<LockInfo>, Error> {
    let all = ListFilter::new();
    let filter = if free { all } else { all.not_free() };
    locks.list_filtered(&filter).await
}

/// A JSON array, in the order of names.
pub(crate) async fn list(locks: &Locks, free: bool) -> Result<String, Error> {
    let rows = read(locks, free).await?;
    Ok(array(&rows, LockInfo::to_json).await)
}

async fn array(rows: &[LockInfo], to_json: impl Fn(&LockInfo) -> String) -> String {
    let mut text = String::from("[");
    for (at, info) in rows.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&to_json(info));
        // This may run on the thread that renews leases.
        if at % ROWS_AT_ONCE == ROWS_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    text.push(']');
    text
}

/// One page of a filtered, sorted list.
pub(crate) struct PageRequest {
    /// Part of a name or holder, case-insensitive.
    pub(crate) text: String,
    /// One of [`STATES`]; `None`: all.
    pub(crate) state: Option<String>,
    /// `age`: longest held first; `-age`: shortest held first; `None`: by state and name.
    pub(crate) order: Option<String>,
    /// From 1. A page that does not exist is the last one.
    pub(crate) page: i64,
    pub(crate) rows: usize,
}

/// Of each semaphore, how many permits are held, and how many its holders allow.
struct Permits(HashMap<LockName, (usize, u32)>);

impl Permits {
    fn of(rows: &[LockInfo]) -> Self {
        let mut counts = HashMap::<LockName, (usize, u32)>::new();
        for row in rows.iter().filter(|row| row.slot.is_some()) {
            let (held, of) = counts.entry(row.name.clone()).or_default();
            *held += usize::from(row.is_held());
            *of = row.permits.unwrap_or_default().max(*of);
        }
        Self(counts)
    }

    /// The row as JSON; that of a permit with the keys `held` and `of` of its semaphore.
    fn to_json(&self, row: &LockInfo) -> String {
        let text = row.to_json();
        let Some((held, of)) = row.slot.and_then(|_| self.0.get(&row.name)) else {
            return text;
        };
        let text = text.strip_suffix('}').unwrap_or(&text);
        format!("{text},\"held\":{held},\"of\":{of}}}")
    }
}

/// One page, by default locks in use first, then by name, and the number of locks in each state.
/// Free locks are counted only if the filter reads them.
pub(crate) async fn page(locks: &Locks, request: PageRequest) -> Result<String, Error> {
    let state = request.state.as_deref();
    let free = state.is_none_or(|state| state == "free");
    let text = request.text.to_lowercase();
    let mut found = read(locks, free).await?;
    let permits = Permits::of(&found);
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
    sort(&mut found, request.order.as_deref());
    let shown = rows_of(&found, request.page, request.rows);
    Ok(format!(
        r#"{{"held":{},"resting":{},"expired":{},"free":{},"total":{},"rows":{}}}"#,
        counts[0],
        counts[1],
        counts[2],
        counts[3],
        found.len(),
        array(shown, |row| permits.to_json(row)).await
    ))
}

/// A stable sort, which keeps names in order. Locks without an age come last in either direction.
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
    let within = |message: &str| message.to_lowercase().contains(text);
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
