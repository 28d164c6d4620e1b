//! One of many processes leads: `cargo run --example leader -- sqlite:/tmp/leader.sqlite3`.
//!
//! Start it twice. One of them leads for five rounds and then steps down; the other takes its turn.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use database_locks::{Error, Locks};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    let locks = Locks::connect(url).await?;
    locks.migrate().await?;

    println!("waiting to lead");
    let guard = locks
        .lock("leader")
        .ttl(Duration::from_secs(10))
        .acquire()
        .await?;
    println!("leading with token {}", guard.token());
    for round in 1..=5 {
        tokio::select! {
            loss = guard.lost() => {
                println!("leader: {loss}");
                return Ok(());
            }
            () = tokio::time::sleep(Duration::from_millis(300)) => println!("round {round}"),
        }
    }
    guard.release().await?;
    println!("stepped down");
    Ok(())
}
