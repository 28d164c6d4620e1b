//! A row of the benchmark that takes the locks of others: `bench-peer-rust KIND ADDRESS NAME`.
//!
//! It answers the lines of its standard input, as `crates/bench/src/taker.rs` describes them, each in a task
//! of tokio's default runtime.

use std::future::Future;
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

/// What each lock is granted for.
#[cfg(any(feature = "etcd", feature = "redis"))]
const TTL: Duration = Duration::from_secs(30);

trait Cycle: Send + 'static {
    fn acquire(&mut self) -> impl Future<Output = ()> + Send;
    fn release(&mut self) -> impl Future<Output = ()> + Send;
}

#[cfg(feature = "etcd")]
mod etcd {
    use etcd_client::{Client, LockOptions};

    use super::{Cycle, TTL};

    /// With a lease of its own for each grant, revoked to release it; or with one that is kept.
    pub struct Etcd {
        client: Client,
        name: String,
        kept: Option<i64>,
        lease: i64,
        key: Vec<u8>,
    }

    impl Etcd {
        pub async fn connect(address: &str, name: &str, keep: bool) -> Self {
            let mut client = Client::connect([address], None).await.expect("connects");
            let kept = match keep {
                true => {
                    let lease = client.lease_grant(3_600, None).await.expect("a lease");
                    Some(lease.id())
                }
                false => None,
            };
            Self { client, name: name.to_owned(), kept, lease: 0, key: Vec::new() }
        }
    }

    impl Cycle for Etcd {
        async fn acquire(&mut self) {
            self.lease = match self.kept {
                Some(lease) => lease,
                None => {
                    let lease = self.client.lease_grant(TTL.as_secs() as i64, None).await;
                    lease.expect("a lease").id()
                }
            };
            let options = LockOptions::new().with_lease(self.lease);
            let answer = self.client.lock(self.name.as_str(), Some(options)).await;
            self.key = answer.expect("acquires").key().to_vec();
        }

        async fn release(&mut self) {
            match self.kept {
                Some(_) => {
                    let key = std::mem::take(&mut self.key);
                    self.client.unlock(key).await.expect("releases");
                }
                // Its end deletes the key.
                None => {
                    self.client.lease_revoke(self.lease).await.expect("releases");
                }
            }
        }
    }
}

#[cfg(feature = "zookeeper")]
mod zookeeper {
    use zookeeper_client::{Acls, Client, CreateMode, LockOptions, LockPrefix, OwnedLockClient};

    use super::Cycle;

    /// The recipe: an ephemeral node in sequence, under a session that is kept.
    pub struct ZooKeeper {
        client: Client,
        folder: String,
        held: Option<OwnedLockClient>,
    }

    impl ZooKeeper {
        pub async fn connect(address: &str, name: &str) -> Self {
            let client = Client::connect(address).await.expect("connects");
            let folder = format!("/{}", name.replace('/', "-"));
            Self { client, folder, held: None }
        }
    }

    impl Cycle for ZooKeeper {
        async fn acquire(&mut self) {
            let prefix = LockPrefix::new_curator(&self.folder, "lock-").expect("a good prefix");
            let ancestors = CreateMode::Container.with_acls(Acls::anyone_all());
            let options = LockOptions::new(Acls::anyone_all()).with_ancestor_options(ancestors);
            let lock = self.client.lock(prefix, b"", options.expect("good options")).await;
            self.held = Some(lock.expect("acquires").into_owned());
        }

        async fn release(&mut self) {
            let held = self.held.take().expect("it is held");
            self.client.delete(held.lock_path(), None).await.expect("releases");
            // Its drop would delete it again, without waiting.
            std::mem::forget(held);
        }
    }
}

#[cfg(feature = "redis")]
mod redis {
    use rslock::{Lock, LockManager};

    use super::{Cycle, TTL};

    pub struct Redis {
        manager: LockManager,
        name: String,
        held: Option<Lock>,
    }

    impl Redis {
        pub fn new(address: &str, name: &str) -> Self {
            let manager = LockManager::new(vec![address]);
            Self { manager, name: name.to_owned(), held: None }
        }
    }

    impl Cycle for Redis {
        async fn acquire(&mut self) {
            let lock = self.manager.acquire_no_guard(self.name.as_str(), TTL).await;
            self.held = Some(lock.expect("acquires"));
        }

        async fn release(&mut self) {
            self.manager.unlock(&self.held.take().expect("it is held")).await;
        }
    }
}

/// The clock that all processes of the machine share.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

async fn carry_out<C: Cycle>(cycle: &mut C, line: &str) -> String {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("cycles", ms) => {
            let slice = Duration::from_millis(ms.parse().expect("milliseconds"));
            let (mut acquire, mut release) = (Vec::new(), Vec::new());
            let began = Instant::now();
            while began.elapsed() < slice || acquire.len() < 3 {
                let before = Instant::now();
                cycle.acquire().await;
                let between = Instant::now();
                cycle.release().await;
                acquire.push((between - before).as_nanos());
                release.push(between.elapsed().as_nanos());
            }
            format!("{{\"acquire\": {acquire:?}, \"release\": {release:?}}}")
        }
        ("count", number) => {
            for _ in 0..number.parse::<u32>().expect("a number") {
                let _ = std::os::unix::process::parent_id();
                cycle.acquire().await;
                let _ = std::os::unix::process::parent_id();
                cycle.release().await;
            }
            let _ = std::os::unix::process::parent_id();
            "done".to_owned()
        }
        (call, _) => {
            let before = now_ns();
            match call {
                "acquire" => cycle.acquire().await,
                _ => cycle.release().await,
            }
            format!("{before} {}", now_ns())
        }
    }
}

fn say(line: &str) {
    println!("{line}");
    // The one that asks may have ended.
    let _ = std::io::stdout().flush();
}

fn serve<C: Cycle>(what: &str, made: impl Future<Output = C>) {
    let runtime = Runtime::new().expect("a runtime can be made");
    let mut parts = Some(runtime.block_on(made));
    say(what);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let mut cycle = parts.take().expect("the task before gave it back");
        let task = runtime.spawn(async move {
            let said = carry_out(&mut cycle, &line).await;
            (cycle, said)
        });
        let (cycle, said) = runtime.block_on(task).expect("the task ends");
        parts = Some(cycle);
        say(&said);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, address, name] = &args[..] else { panic!("KIND ADDRESS NAME") };
    match kind.as_str() {
        #[cfg(feature = "etcd")]
        "etcd" => serve("etcd-client 0.21, gRPC", etcd::Etcd::connect(address, name, false)),
        #[cfg(feature = "etcd")]
        "etcd-shared" => serve("etcd-client 0.21, gRPC", etcd::Etcd::connect(address, name, true)),
        #[cfg(feature = "zookeeper")]
        "zookeeper" => {
            serve("zookeeper-client 0.11", zookeeper::ZooKeeper::connect(address, name));
        }
        #[cfg(feature = "redis")]
        "redis" => serve("rslock 0.10", async { redis::Redis::new(address, name) }),
        // The row is left out.
        other => eprintln!("bench-peer-rust: {other} was not built"),
    }
}
