//! The cases of the tables of cycles, system calls and hand-overs, and how each is started.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::child::Child;
use crate::console::progress;
use crate::drive::current_thread;
use crate::servers::{Engine, Servers, database};
use crate::settings::repository;
use crate::{baseline, subject};

/// One case: a kind of lock on a server and a runtime. Its key is `engine/runtime`, and
/// `engine/runtime/baseline` for the case that it is compared with.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) key: String,
    pub(crate) name: String,
    /// Its server, by the names of [`Servers::pid`].
    pub(crate) server: &'static str,
    program: PathBuf,
    args: Vec<String>,
}

impl Case {
    /// Starts a process of this case for the lock of that name.
    pub(crate) fn start(&self, lock: &str) -> Option<Child> {
        if !self.program.exists() {
            progress(&format!(
                "left out: {}, no {}",
                self.name,
                self.program.display()
            ));
            return None;
        }
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg(lock);
        Child::start(&self.name, &command)
    }

    /// The group of a case and its baseline, which are measured right after each other.
    pub(crate) fn group(&self) -> &str {
        let end = self.key.match_indices('/').nth(1).map(|(at, _)| at);
        end.map_or(&self.key, |end| &self.key[..end])
    }
}

/// The runtimes: the name in keys, and in tables.
const RUNTIMES: [(&str, &str); 3] = [
    ("current", "async, `current_thread`"),
    ("multi", "async, `multi_thread`"),
    ("blocking", "blocking"),
];

/// Makes cases in the databases of one run.
struct Builder {
    root: PathBuf,
    locations: Value,
}

impl Builder {
    fn worker(&self, key: &str, name: &str, server: &'static str, args: [&str; 3]) -> Case {
        Case {
            key: key.to_owned(),
            name: name.to_owned(),
            server,
            program: std::env::current_exe().expect("a program has a path"),
            args: ["worker", "case"]
                .iter()
                .chain(&args)
                .map(|arg| (*arg).to_owned())
                .collect(),
        }
    }

    fn python(&self, key: &str, kind: &str, name: &str, server: &'static str) -> Case {
        let environment = if kind.starts_with("old") {
            "bench-old"
        } else {
            "bench"
        };
        Case {
            key: key.to_owned(),
            name: name.to_owned(),
            server,
            program: self
                .root
                .join(format!("target/python/{environment}/bin/python")),
            args: vec![
                self.root
                    .join("tools/bench/peers/peers.py")
                    .display()
                    .to_string(),
                kind.to_owned(),
                self.locations.to_string(),
            ],
        }
    }

    fn rust(&self, key: &str, kind: &str, name: &str, server: &'static str, url: String) -> Case {
        Case {
            key: key.to_owned(),
            name: name.to_owned(),
            server,
            program: self.root.join("target/peers/release/bench-peer-rust"),
            args: vec![kind.to_owned(), url],
        }
    }

    /// The cases of this library on one engine, each with its baseline.
    fn engine(&self, engine: &Engine, servers: &Servers) -> Vec<Case> {
        let (key, url) = (engine.key, engine.url.as_str());
        let at = engine.name;
        let mut cases = Vec::new();
        for (runtime, shown) in RUNTIMES {
            let case = |more: &str, name: String, kind: &str, url: &str| {
                let key = format!("{key}/{runtime}{more}");
                self.worker(&key, &name, engine.key, [kind, runtime, url])
            };
            cases.push(case("", format!("**{at}**, {shown}"), "subject", url));
            let bare = format!("two bare commits on {at}, {shown}");
            match key {
                // SQLite runs on the calling thread in every runtime: one baseline is enough.
                "sqlite" if runtime != "blocking" => {}
                "sqlite" => {
                    let file = servers.files.join("baseline.sqlite3").display().to_string();
                    cases.push(case("/baseline", bare, "baseline", &file));
                }
                _ => cases.push(case("/baseline", bare, "baseline", url)),
            }
            if runtime == "multi" && key != "sqlite" {
                let name = format!("{at}, {shown}, auto-renew off");
                cases.push(case("/off", name, "subject-off", url));
            }
        }
        let name = format!("**{at}**, from Python");
        cases.push(self.python(
            &format!("{key}/python"),
            &format!("subject-{key}"),
            &name,
            key,
        ));
        cases
    }
}

/// All cases for which this machine has the servers.
pub(crate) fn all(servers: &Servers) -> Vec<Case> {
    let engines = servers.engines();
    let build = Builder {
        root: repository(),
        locations: locations(servers, &engines),
    };
    let mut cases = Vec::new();
    for engine in &engines {
        cases.extend(build.engine(engine, servers));
    }
    let url = |key: &str| {
        engines
            .iter()
            .find(|engine| engine.key == key)
            .map(|engine| &engine.url)
    };
    if let Some(url) = url("postgres") {
        let python = |key: &str, kind: &str, name: &str| build.python(key, kind, name, "postgres");
        cases.push(build.worker(
            "advisory",
            "`pg_advisory_lock`, prepared, tokio-postgres",
            "postgres",
            ["advisory", "multi", url],
        ));
        cases.extend([
            python(
                "postgres/python/baseline",
                "baseline",
                "two bare commits on PostgreSQL, psycopg",
            ),
            python("pglock", "pglock", "django-pglock (`pg_advisory_lock`)"),
            python(
                "old",
                "old-postgres",
                "django-database-locks 0.5, PostgreSQL",
            ),
            python(
                "old/off",
                "old-postgres-off",
                "django-database-locks 0.5, auto-renew off",
            ),
        ]);
    }
    if url("mariadb").is_some() {
        cases.push(build.python(
            "getlock",
            "getlock",
            "`GET_LOCK` on MariaDB, mysqlclient",
            "mariadb",
        ));
    }
    if let Some(server) = &servers.etcd {
        let url = format!("127.0.0.1:{}", server.port);
        let rust =
            |key: &str, kind: &str, name: &str| build.rust(key, kind, name, "etcd", url.clone());
        cases.push(rust("etcd", "etcd", "etcd, a lease of its own"));
        cases.push(rust("etcd-shared", "etcd-shared", "etcd, one lease kept"));
    }
    if let Some(server) = &servers.zookeeper {
        let url = format!("127.0.0.1:{}", server.port);
        cases.push(build.rust("zookeeper", "zookeeper", "ZooKeeper", "zookeeper", url));
    }
    for (key, name, server) in [
        (
            "redis-always",
            "Redis, `appendfsync always`",
            &servers.redis_always,
        ),
        ("redis", "Redis, nothing on the disk", &servers.redis),
    ] {
        let Some(server) = server else { continue };
        let url = format!("redis+unix://{}", server.socket().display());
        cases.push(build.rust(key, "redis", &format!("{name}, rslock"), key, url));
        let python = format!("{name}, redis-py");
        cases.push(build.python(&format!("{key}/python"), key, &python, key));
    }
    cases
}

/// What `peers.py` needs: where the servers are, and the baseline's statements.
fn locations(servers: &Servers, engines: &[Engine]) -> Value {
    let mut locations = json!({"baseline": baseline::python_statements("python")});
    for engine in engines {
        drop(subject::connected(&current_thread(), &engine.url));
        locations[engine.key] = engine.url.clone().into();
        servers.run_sql(engine, &baseline::schema(engine.key));
    }
    if let (Some(server), Some(engine)) = (&servers.postgres, servers.postgres()) {
        servers.run_sql(&engines[0], "INSERT INTO baseline (name) VALUES ('python')");
        locations["postgres_dir"] = server.socket_dir().display().to_string().into();
        locations["postgres_port"] = server.port().into();
        locations["postgres_db"] = database(&engines[0].url).into();
        // Its table has the same name as that of this library.
        locations["old_db"] = database(&engine.url).into();
    }
    if let (Some(server), Some(engine)) = (&servers.mariadb, servers.mariadb()) {
        locations["mariadb_socket"] = server.socket().display().to_string().into();
        locations["mariadb_db"] = database(&engine.url).into();
    }
    for (key, server) in [
        ("redis", &servers.redis),
        ("redis-always", &servers.redis_always),
    ] {
        if let Some(server) = server {
            locations[key] = server.socket().display().to_string().into();
        }
    }
    locations
}
