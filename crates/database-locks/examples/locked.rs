//! Functions that run one at a time:
//! `DATABASE_LOCKS_URL=sqlite:/tmp/locked.sqlite3 cargo run --example locked`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use database_locks::{Error, Locks, locked};

/// Waits until no other process runs it. Without a `Result` to return it would panic if the
/// database cannot be reached.
#[locked("nightly report", ttl = "30s")]
async fn report() -> Result<(), Error> {
    println!("reporting");
    Ok(())
}

/// One lock for each invoice; the caller gets an error if another holder has it for longer than a
/// second.
#[locked(name = format!("invoice {id}"), wait = "1s")]
async fn send(id: u32) -> Result<u32, Error> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    println!("invoice {id} is sent");
    Ok(id)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    // Not needed if the environment names a database.
    if std::env::var_os("DATABASE_LOCKS_URL").is_none() {
        Locks::set_default(Locks::connect("memory:").await?);
    }
    Locks::get_default().await?.migrate().await?;

    report().await?;
    let (one, two, one_again) = tokio::join!(send(1), send(2), send(1));
    assert_eq!((one?, two?, one_again?), (1, 2, 1));
    // Waits for releases in the background before the process ends.
    Locks::get_default().await?.drain().await;
    Ok(())
}
