//! The core under another name, and nothing of it in scope.

mod vendored {
    pub use database_locks as locks;
}

#[vendored::locks::locked("report", crate = crate::vendored::locks, ttl = "5s", wait = "0")]
async fn report() {}

#[vendored::locks::locked("report", crate = vendored::locks)]
fn blocking_report() -> Result<(), vendored::locks::Error> {
    Ok(())
}

fn main() {
    let _ = (report, blocking_report);
}
