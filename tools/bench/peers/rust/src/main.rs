//! A case of the benchmark on the locks of other projects: `bench-peer-rust KIND ADDRESS NAME`.
//!
//! It answers the requests on its standard input, as `tools/bench/src/child.rs` describes them,
//! each in a task of tokio's default runtime.

#[path = "../../../src/serve.rs"]
mod serve;

#[cfg(any(feature = "etcd", feature = "redis"))]
use std::time::Duration;

use crate::serve::serve_in_tasks;

/// The lease of each grant.
#[cfg(any(feature = "etcd", feature = "redis"))]
const TTL: Duration = Duration::from_secs(30);

#[cfg(feature = "etcd")]
mod etcd {
    use etcd_client::{Client, LockOptions};

    use crate::TTL;
    use crate::serve::Cycle;

    /// Each grant has a lease of its own, whose revocation releases it; or all share one lease.
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
            Self {
                client,
                name: name.to_owned(),
                kept,
                lease: 0,
                key: Vec::new(),
            }
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
                // The end of the lease deletes the key.
                None => {
                    self.client
                        .lease_revoke(self.lease)
                        .await
                        .expect("releases");
                }
            }
        }
    }
}

#[cfg(feature = "zookeeper")]
mod zookeeper {
    use zookeeper_client::{Acls, Client, CreateMode, LockOptions, LockPrefix, OwnedLockClient};

    use crate::serve::Cycle;

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
            Self {
                client,
                folder,
                held: None,
            }
        }
    }

    impl Cycle for ZooKeeper {
        async fn acquire(&mut self) {
            let prefix = LockPrefix::new_curator(&self.folder, "lock-").expect("a good prefix");
            let ancestors = CreateMode::Container.with_acls(Acls::anyone_all());
            let options = LockOptions::new(Acls::anyone_all()).with_ancestor_options(ancestors);
            let lock = self
                .client
                .lock(prefix, b"", options.expect("good options"))
                .await;
            self.held = Some(lock.expect("acquires").into_owned());
        }

        async fn release(&mut self) {
            let held = self.held.take().expect("it is held");
            self.client
                .delete(held.lock_path(), None)
                .await
                .expect("releases");
            // Its drop would delete it again, without waiting.
            std::mem::forget(held);
        }
    }
}

#[cfg(feature = "redis")]
mod redis {
    use rslock::{Lock, LockManager};

    use crate::TTL;
    use crate::serve::Cycle;

    pub struct Redis {
        manager: LockManager,
        name: String,
        held: Option<Lock>,
    }

    impl Redis {
        pub fn new(address: &str, name: &str) -> Self {
            let manager = LockManager::new(vec![address]);
            Self {
                manager,
                name: name.to_owned(),
                held: None,
            }
        }
    }

    impl Cycle for Redis {
        async fn acquire(&mut self) {
            let lock = self.manager.acquire_no_guard(self.name.as_str(), TTL).await;
            self.held = Some(lock.expect("acquires"));
        }

        async fn release(&mut self) {
            self.manager
                .unlock(&self.held.take().expect("it is held"))
                .await;
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, address, name] = &args[..] else {
        panic!("KIND ADDRESS NAME")
    };
    match kind.as_str() {
        #[cfg(feature = "etcd")]
        "etcd" => serve_in_tasks(
            "etcd-client 0.21, gRPC",
            etcd::Etcd::connect(address, name, false),
        ),
        #[cfg(feature = "etcd")]
        "etcd-shared" => serve_in_tasks(
            "etcd-client 0.21, gRPC",
            etcd::Etcd::connect(address, name, true),
        ),
        #[cfg(feature = "zookeeper")]
        "zookeeper" => {
            serve_in_tasks(
                "zookeeper-client 0.11",
                zookeeper::ZooKeeper::connect(address, name),
            );
        }
        #[cfg(feature = "redis")]
        "redis" => serve_in_tasks("rslock 0.10", async { redis::Redis::new(address, name) }),
        // The row is left out.
        other => eprintln!("bench-peer-rust: {other} was not built"),
    }
}
