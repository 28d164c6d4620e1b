//! The rows of the tables of cycles, system calls and hand-overs: which there are, and how each is started.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::servers::{Engine, Servers, database};
use crate::taker::Taker;
use crate::{baseline, say};

/// One row. Its key is `engine/runtime`, with `/baseline` behind it for what that is compared with.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) name: String,
    /// The server that it asks, by the names of [`Servers::pid`].
    pub(crate) server: &'static str,
    program: PathBuf,
    args: Vec<String>,
}

impl Row {
    /// A process of this row that takes the lock of that name.
    pub(crate) fn start(&self, lock: &str) -> Option<Taker> {
        if !self.program.exists() {
            say(&format!(
                "left out: {}, no {}",
                self.name,
                self.program.display()
            ));
            return None;
        }
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg(lock);
        Taker::start(&self.name, &command)
    }

    /// Those that are measured right after each other: a row and what it is compared with.
    pub(crate) fn group(&self) -> &str {
        let end = self.key.match_indices('/').nth(1).map(|(at, _)| at);
        end.map_or(&self.key, |end| &self.key[..end])
    }
}

/// A runtime's name in keys, and in tables.
const RUNTIMES: [(&str, &str); 3] = [
    ("current", "async, `current_thread`"),
    ("multi", "async, `multi_thread`"),
    ("blocking", "blocking"),
];

/// Makes rows, each of them in the databases of one run.
struct Maker {
    root: PathBuf,
    places: Value,
}

impl Maker {
    fn worker(&self, key: &str, name: &str, server: &'static str, args: [&str; 3]) -> Row {
        Row {
            key: key.to_owned(),
            name: name.to_owned(),
            server,
            program: std::env::current_exe().expect("a program has a path"),
            args: ["worker", "row"]
                .iter()
                .chain(&args)
                .map(|arg| (*arg).to_owned())
                .collect(),
        }
    }

    fn python(&self, key: &str, kind: &str, name: &str, server: &'static str) -> Row {
        let environment = if kind.starts_with("old") {
            "bench-old"
        } else {
            "bench"
        };
        Row {
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
                self.places.to_string(),
            ],
        }
    }

    fn rust(&self, key: &str, kind: &str, name: &str, server: &'static str, url: String) -> Row {
        Row {
            key: key.to_owned(),
            name: name.to_owned(),
            server,
            program: self.root.join("target/peers/release/bench-peer-rust"),
            args: vec![kind.to_owned(), url],
        }
    }

    /// The rows of this library on one engine, each beside its baseline.
    fn engine(&self, engine: &Engine, servers: &Servers) -> Vec<Row> {
        let (key, url) = (engine.key, engine.url.as_str());
        let at = engine.name;
        let mut rows = Vec::new();
        for (runtime, shown) in RUNTIMES {
            let row = |more: &str, name: String, kind: &str, url: &str| {
                let key = format!("{key}/{runtime}{more}");
                self.worker(&key, &name, engine.key, [kind, runtime, url])
            };
            rows.push(row("", format!("**{at}**, {shown}"), "subject", url));
            let bare = format!("two bare commits on {at}, {shown}");
            match key {
                // A file is asked by the thread that calls, whatever its runtime.
                "sqlite" if runtime != "blocking" => {}
                "sqlite" => {
                    let file = servers.files.join("baseline.sqlite3").display().to_string();
                    rows.push(row("/baseline", bare, "baseline", &file));
                }
                _ => rows.push(row("/baseline", bare, "baseline", url)),
            }
            if runtime == "multi" && key != "sqlite" {
                let name = format!("{at}, {shown}, auto-renew off");
                rows.push(row("/off", name, "subject-off", url));
            }
        }
        let name = format!("**{at}**, from Python");
        rows.push(self.python(
            &format!("{key}/python"),
            &format!("subject-{key}"),
            &name,
            key,
        ));
        rows
    }
}

/// Every row that the servers of this machine allow.
pub(crate) fn all(servers: &Servers) -> Vec<Row> {
    let engines = servers.engines();
    let make = Maker {
        root: crate::root(),
        places: places(servers, &engines),
    };
    let mut rows = Vec::new();
    for engine in &engines {
        rows.extend(make.engine(engine, servers));
    }
    let url = |key: &str| {
        engines
            .iter()
            .find(|engine| engine.key == key)
            .map(|engine| &engine.url)
    };
    if let Some(url) = url("postgres") {
        let python = |key: &str, kind: &str, name: &str| make.python(key, kind, name, "postgres");
        rows.push(make.worker(
            "advisory",
            "`pg_advisory_lock`, prepared, tokio-postgres",
            "postgres",
            ["advisory", "multi", url],
        ));
        rows.extend([
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
        rows.push(make.python(
            "getlock",
            "getlock",
            "`GET_LOCK` on MariaDB, mysqlclient",
            "mariadb",
        ));
    }
    if let Some(server) = &servers.etcd {
        let url = format!("127.0.0.1:{}", server.port);
        let rust =
            |key: &str, kind: &str, name: &str| make.rust(key, kind, name, "etcd", url.clone());
        rows.push(rust("etcd", "etcd", "etcd, a lease of its own"));
        rows.push(rust("etcd-shared", "etcd-shared", "etcd, one lease kept"));
    }
    if let Some(server) = &servers.zookeeper {
        let url = format!("127.0.0.1:{}", server.port);
        rows.push(make.rust("zookeeper", "zookeeper", "ZooKeeper", "zookeeper", url));
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
        rows.push(make.rust(key, "redis", &format!("{name}, rslock"), key, url));
        let python = format!("{name}, redis-py");
        rows.push(make.python(&format!("{key}/python"), key, &python, key));
    }
    rows
}

/// Where `peers.py` finds everything, and what it needs there.
fn places(servers: &Servers, engines: &[Engine]) -> Value {
    let mut places = json!({"baseline": baseline::python_statements("python")});
    for engine in engines {
        // The table.
        drop(crate::subject::connected(
            &crate::worker::current_thread(),
            &engine.url,
        ));
        places[engine.key] = engine.url.clone().into();
        servers.run_sql(engine, &baseline::schema(engine.key));
    }
    if let (Some(server), Some(engine)) = (&servers.postgres, servers.postgres()) {
        servers.run_sql(&engines[0], "INSERT INTO baseline (name) VALUES ('python')");
        places["postgres_dir"] = server.socket_dir().display().to_string().into();
        places["postgres_port"] = server.port().into();
        places["postgres_db"] = database(&engines[0].url).into();
        // Its table has the same name.
        places["old_db"] = database(&engine.url).into();
    }
    if let (Some(server), Some(engine)) = (&servers.mariadb, servers.mariadb()) {
        places["mariadb_socket"] = server.socket().display().to_string().into();
        places["mariadb_db"] = database(&engine.url).into();
    }
    for (key, server) in [
        ("redis", &servers.redis),
        ("redis-always", &servers.redis_always),
    ] {
        if let Some(server) = server {
            places[key] = server.socket().display().to_string().into();
        }
    }
    places
}
