//! Takes locks of the crates `distributed-lock-*` and answers as `peers.py` does:
//! `bench-peer-rust postgres|redis URL`.

use std::io::Write;
use std::time::{Duration, Instant};

use distributed_lock_core::traits::{DistributedLock, LockHandle, LockProvider};
use distributed_lock_postgres::PostgresLockProvider;
use distributed_lock_redis::RedisLockProvider;

async fn serve<L: DistributedLock>(lock: L) {
    let mut answer = String::from("distributed-lock 0.2");
    loop {
        println!("{answer}");
        std::io::stdout().flush().expect("somebody listens");
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let slice: u64 = line.split_whitespace().last().and_then(|ms| ms.parse().ok()).unwrap_or(1);
        let (mut acquire, mut release) = (Vec::new(), Vec::new());
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(slice) {
            let t0 = Instant::now();
            let handle = lock.acquire(None).await.expect("acquires");
            let t1 = Instant::now();
            handle.release().await.expect("releases");
            acquire.push((t1 - t0).as_nanos());
            release.push(t1.elapsed().as_nanos());
        }
        answer = format!("{{\"acquire\": {acquire:?}, \"release\": {release:?}}}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args[1].as_str() {
        "postgres" => {
            let provider = PostgresLockProvider::new(args[2].as_str()).await.expect("connects");
            serve(provider.create_lock("bench")).await;
        }
        "redis" => {
            let provider = RedisLockProvider::new(args[2].as_str()).await.expect("connects");
            serve(provider.create_lock("bench")).await;
        }
        other => panic!("no backend {other}"),
    }
}
