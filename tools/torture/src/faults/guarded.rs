//! The faults of a write to the guarded table.

use std::time::Duration;

use testkit::time::{now, sleep, wait_until};

use crate::lock_rows::Rows;
use crate::target::Target;
use crate::worker::GUARDED_COMMIT;
use crate::worker_process::WorkerProcess;

/// How long it may take until another process asks for the lock of a frozen one and is granted it: the
/// server may be down.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(40);
/// How long it may take until the COMMIT is sent.
const SENT_WITHIN: Duration = Duration::from_secs(10);
/// How long the other process may take to hear of its grant and to record it.
const RECORDED_WITHIN: Duration = Duration::from_millis(200);

/// Waits until the row shows a later grant than that with this token, or no longer than `within`.
pub(super) fn wait_for_race(token: i64, url: &str, within: Duration) {
    let begun = now();
    let left = || within.saturating_sub(begun.elapsed());
    let seen = Rows::connect(url)
        .and_then(|mut rows| rows.wait_for(&Target::guarded(), left(), |row| row.token > token));
    if !matches!(seen, Ok(Some(_))) {
        sleep(left());
    }
}

/// Waits until the row shows a later grant than that with this token, and until it was recorded.
pub(super) fn wait_for_take_over(token: i64, url: &str) -> Result<(), String> {
    let (begun, mut why) = (now(), String::new());
    while begun.elapsed() < TAKEN_OVER_WITHIN {
        let seen = Rows::connect(url).and_then(|mut rows| {
            let left = TAKEN_OVER_WITHIN.saturating_sub(begun.elapsed());
            rows.wait_for(&Target::guarded(), left, |row| row.token > token)
        });
        match seen {
            Ok(Some(_)) => {
                sleep(RECORDED_WITHIN);
                return Ok(());
            }
            Ok(None) => break,
            // Another fault has the server down.
            Err(error) => why = format!(": {error}"),
        }
        sleep(Duration::from_millis(100));
    }
    Err(format!("no other process was granted its lock{why}"))
}

/// Loses the reply to the COMMIT of a paused process, which goes on.
pub(super) fn lose_reply_to_commit(worker: &mut WorkerProcess) -> Result<(), String> {
    let hits = worker.network()?.faults_hit();
    worker.network()?.lose_reply_to(GUARDED_COMMIT);
    worker.resume();
    let network = worker.network()?;
    let hit = wait_until(SENT_WITHIN, || network.faults_hit() > hits);
    network.cancel_losses();
    match hit {
        true => Ok(()),
        false => Err("the COMMIT was not sent".into()),
    }
}
