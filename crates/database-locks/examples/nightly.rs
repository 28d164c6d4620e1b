//! A job that must not run twice: `cargo run --example nightly -- sqlite:/tmp/nightly.sqlite3`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use database_locks::blocking::Locks;

fn main() -> Result<(), database_locks::Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    let locks = Locks::connect(url)?;
    locks.migrate()?;

    let nightly = locks
        .lock("nightly")
        .ttl(Duration::from_secs(10))
        .metadata("what", "the report");
    match nightly.try_acquire()? {
        Some(guard) => {
            println!("running with token {}", guard.token());
            for info in locks.list()? {
                println!(
                    "{} is held by {}",
                    info.name,
                    info.holder.unwrap_or_default()
                );
            }
            guard.release()?;
        }
        None => println!("another process holds the lock"),
    }
    Ok(())
}
