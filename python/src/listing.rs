//! Lists of locks as JSON: all locks, or one page of the admin page.
//!
//! A table may have a million rows. They are filtered and sorted here, without the GIL, and Python
//! gets only the rows that it shows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use database_locks::__listing::{limit_state, limit_to_json};
use database_locks::{Error, ListFilter, LockInfo, LockName, Locks};

const STATES: [&str; 5] = ["held", "resting", "expired", "paused", "free"];
/// The number of rows that are written between two yields to the runtime.
const ROWS_AT_ONCE: usize = 1_000;

/// A line of a list.
enum Row {
    /// A lock or a permit.
    Lock(Box<LockInfo>),
    /// A semaphore with the limit of an operator: one that is paused, or none of whose permits is
    /// listed.
    Limit(LockName, u32),
}

impl Row {
    fn name(&self) -> &LockName {
        match self {
            Self::Lock(info) => &info.name,
            Self::Limit(name, _) => name,
        }
    }

    fn state(&self) -> &'static str {
        match self {
            Self::Lock(info) => info.state.as_str(),
            Self::Limit(_, limit) => limit_state(*limit),
        }
    }

    fn held_for(&self) -> Option<Duration> {
        match self {
            Self::Lock(info) => info.held_for,
            Self::Limit(..) => None,
        }
    }

    fn matches(&self, text: &str) -> bool {
        let within = |message: &str| message.to_lowercase().contains(text);
        let holder = match self {
            Self::Lock(info) => info.holder.as_deref(),
            Self::Limit(..) => None,
        };
        text.is_empty() || within(self.name().as_str()) || holder.is_some_and(within)
    }
}

/// The rows in the order of names, those of [`Row::Limit`] last; and what is known of semaphores.
async fn read(locks: &Locks, free: bool) -> Result<(Vec<Row>, Permits), Error> {
    let all = ListFilter::new();
    let filter = if free { all } else { all.not_free() };
    let limits = locks.limits().await?;
    let found = locks.list_filtered(&filter).await?;
    let permits = Permits::of(&found, limits);
    let mut rows: Vec<Row> = found.into_iter().map(|it| Row::Lock(it.into())).collect();
    for (name, limit) in &permits.limits {
        if *limit == 0 || free && !permits.counts.contains_key(name) {
            rows.push(Row::Limit(name.clone(), *limit));
        }
    }
    Ok((rows, permits))
}

/// A JSON array.
pub(crate) async fn list(locks: &Locks, free: bool) -> Result<String, Error> {
    let (rows, permits) = read(locks, free).await?;
    Ok(array(&rows, |row| permits.to_json(row, false)).await)
}

/// The shared holders of a lock, dead ones among them: a JSON array.
pub(crate) async fn shared(locks: &Locks, name: &str) -> Result<String, Error> {
    let rows = locks.show_shared(name).await?;
    let rows: Vec<String> = rows.iter().map(LockInfo::to_json).collect();
    Ok(format!("[{}]", rows.join(",")))
}

async fn array(rows: &[Row], to_json: impl Fn(&Row) -> String) -> String {
    let mut text = String::from("[");
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&to_json(row));
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

/// What is known of semaphores.
struct Permits {
    /// How many permits are held, and how many the holders allow.
    counts: HashMap<LockName, (usize, u32)>,
    /// The limits of operators.
    limits: BTreeMap<LockName, u32>,
}

impl Permits {
    fn of(rows: &[LockInfo], limits: BTreeMap<LockName, u32>) -> Self {
        let mut counts = HashMap::<LockName, (usize, u32)>::new();
        for row in rows.iter().filter(|row| row.slot.is_some()) {
            let (held, of) = counts.entry(row.name.clone()).or_default();
            *held += usize::from(row.is_held());
            *of = row.permits.unwrap_or_default().max(*of);
        }
        Self { counts, limits }
    }

    /// The row as JSON; that of a permit with the key `limit`. With `counts` those of semaphores have
    /// the keys `held` and `of`, too.
    fn to_json(&self, row: &Row, counts: bool) -> String {
        let name = row.name();
        let limit = self.limits.get(name);
        let mut text = match row {
            Row::Lock(info) if info.slot.is_none() => return info.to_json(),
            Row::Lock(info) => {
                let limit = limit.map_or("null".to_owned(), u32::to_string);
                with(&info.to_json(), &format!("\"limit\":{limit}"))
            }
            Row::Limit(_, limit) => limit_to_json(name, *limit),
        };
        if counts {
            let (held, callers) = self.counts.get(name).copied().unwrap_or_default();
            let of = limit.copied().unwrap_or(callers);
            text = with(&text, &format!("\"held\":{held},\"of\":{of}"));
        }
        text
    }
}

/// The object with more fields.
fn with(object: &str, fields: &str) -> String {
    let object = object.strip_suffix('}').unwrap_or(object);
    format!("{object},{fields}}}")
}

/// One page, by default locks in use first, then by name, and the number of locks in each state.
/// Free locks are counted only if the filter reads them.
pub(crate) async fn page(locks: &Locks, request: PageRequest) -> Result<String, Error> {
    let state = request.state.as_deref();
    let free = state.is_none_or(|state| state == "free");
    let text = request.text.to_lowercase();
    let (mut found, permits) = read(locks, free).await?;
    found.retain(|row| row.matches(&text));
    let count = |state| found.iter().filter(|row| row.state() == state).count();
    let counts = STATES.map(|state| match state {
        "free" if !free => "null".into(),
        _ => count(state).to_string(),
    });
    found.retain(|row| state.is_none_or(|state| state == row.state()));
    sort(&mut found, request.order.as_deref());
    let shown = rows_of(&found, request.page, request.rows);
    Ok(format!(
        r#"{{"held":{},"resting":{},"expired":{},"paused":{},"free":{},"total":{},"rows":{}}}"#,
        counts[0],
        counts[1],
        counts[2],
        counts[3],
        counts[4],
        found.len(),
        array(shown, |row| permits.to_json(row, true)).await
    ))
}

/// A stable sort, which keeps names in order. Locks without an age come last in either direction.
fn sort(found: &mut [Row], order: Option<&str>) {
    match order {
        Some("age") => found.sort_by_key(|row| Reverse(row.held_for())),
        Some("-age") => {
            found.sort_by_key(|row| (row.held_for().is_none(), row.held_for()));
        }
        _ => found.sort_by_key(|row| STATES.iter().position(|state| *state == row.state())),
    }
}

fn rows_of(found: &[Row], page: i64, rows: usize) -> &[Row] {
    let mut pages = found.chunks(rows.max(1));
    let last = pages.len().saturating_sub(1);
    let at = usize::try_from(page.saturating_sub(1))
        .unwrap_or(last)
        .min(last);
    pages.nth(at).unwrap_or_default()
}
