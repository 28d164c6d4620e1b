//! The limit of a wait, which ends it whatever the database does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::progress::{Progress, locked, locker_in_the_way, report, wait_error};
use super::request::AcquireRequest;
use crate::client::Client;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{BootInstant, LockName, Slot, Version, WaitExtension};

/// How often a wait that was extended past its limit checks whether the extension still applies.
const EXTENSION_CHECK: Duration = Duration::from_millis(20);

/// When a wait that began then reaches its limit.
pub(super) fn limit_of(request: &AcquireRequest, began: BootInstant) -> Option<BootInstant> {
    let limit = request.wait.filter(|wait| !wait.is_zero());
    limit.map(|limit| began + limit)
}

/// Run an acquisition of these locks, or of a permit, until its wait limit, even if the database does
/// not answer. `op` names it in errors.
pub(super) async fn until_limit<T>(
    client: &Arc<Client>,
    request: &AcquireRequest,
    names: Vec<LockName>,
    began: BootInstant,
    progress: &Mutex<Progress>,
    work: impl Future<Output = Result<Option<T>, Error>>,
    op: impl FnOnce() -> String,
) -> Result<Option<T>, Error> {
    if request.is_single_try() {
        return work.await;
    }
    let mut end = limit_of(request, began);
    {
        let mut work = std::pin::pin!(work);
        let mut report = std::pin::pin!(report(client, request, &names, progress));
        let mut extensions: HashMap<(LockName, Slot), WaitExtension<Version>> = HashMap::new();
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                never = &mut report => match never {},
                () = sleep_until_end(end) => {}
            }
            let now = clock::now();
            let (of_request, slot) = request.key();
            let name = locked(progress).name.clone();
            let key = (name.unwrap_or(of_request), slot);
            let extension = extensions.entry(key.clone()).or_default();
            match extension.until(&client.observations, &key, now) {
                // The extension may end early, so it is checked again after [`EXTENSION_CHECK`].
                Some(until) => end = Some(until.min(now + EXTENSION_CHECK)),
                None => break,
            }
        }
    }
    let locker = locker_in_the_way(client, &names, progress).await;
    let mut progress = std::mem::take(&mut *locked(progress));
    let unexplained = progress.holder.is_none() && progress.failure.is_none();
    if let Some(by) = client.store.blocked_by().filter(|_| unexplained) {
        progress.failure = Some(StoreError::cannot_serve(format!("blocked by {by}")));
    }
    if let Some((name, session)) = locker {
        (progress.name, progress.row_locker) = (Some(name), Some(session));
    }
    let waited = clock::now() - began;
    Err(wait_error(request, op(), waited, progress))
}

async fn sleep_until_end(end: Option<BootInstant>) {
    match end {
        Some(end) => clock::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
