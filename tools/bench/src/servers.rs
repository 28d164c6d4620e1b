//! The servers that are measured: each with its own defaults except for the settings below, and
//! with every commit flushed to disk.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testkit::cleanup::ScratchDir;
use testkit::mysql::Options;
use testkit::programs::find_binary;
use testkit::server::free_port;
use testkit::{ChildProcess, MariaDb, MySql, MySqlServer, Postgres, time};

use crate::console::progress;

/// MariaDB's own defaults, where the test kit sets less: with a small log it often waits for page
/// writes.
const MARIADB: [&str; 2] = ["innodb-buffer-pool-size=128M", "innodb-log-file-size=96M"];

/// MySQL's own defaults, where the test kit sets less: the binary log is on, and each commit waits
/// for its flush (`sync_binlog` is 1 by default).
const MYSQL: [&str; 13] = [
    "log-bin=binlog",
    "innodb-buffer-pool-size=128M",
    "innodb-redo-log-capacity=100M",
    "table-open-cache=4000",
    "performance-schema-digests-size=-1",
    "performance-schema-events-statements-history-long-size=-1",
    "performance-schema-events-transactions-history-long-size=-1",
    "performance-schema-events-waits-history-long-size=-1",
    "performance-schema-events-stages-history-long-size=-1",
    "performance-schema-error-size=5814",
    "performance-schema-max-memory-classes=470",
    "performance-schema-max-program-instances=-1",
    "max-connections=200",
];

/// The servers that run.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) postgres: Option<Postgres>,
    pub(crate) mariadb: Option<MySqlServer>,
    pub(crate) mysql: Option<MySqlServer>,
    pub(crate) etcd: Option<Peer>,
    pub(crate) zookeeper: Option<Peer>,
    pub(crate) redis: Option<Peer>,
    pub(crate) redis_always: Option<Peer>,
    pub(crate) files: ScratchDir,
}

/// The server of another lock service; its data is on the same filesystem as that of the databases.
#[derive(Debug)]
pub(crate) struct Peer {
    process: ChildProcess,
    folder: ScratchDir,
    pub(crate) port: u16,
    pub(crate) version: String,
    /// Its settings, for the reader.
    pub(crate) settings: &'static str,
}

impl Peer {
    /// `None` if the program is missing or does not listen within twenty seconds.
    fn start(
        program: &str,
        settings: &'static str,
        version: String,
        args: impl Fn(&str, u16) -> Vec<String>,
    ) -> Option<Self> {
        let program = find_binary(program, &[])?;
        let (folder, port) = (ScratchDir::new("peer"), free_port());
        // Its log stays out of the report. With `exec` the process keeps its id.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" >log 2>&1", "sh"]);
        command.arg(program);
        command.args(args(&folder.path().display().to_string(), port));
        command.current_dir(folder.path());
        let process = ChildProcess::spawn_command(&command);
        let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        time::wait_until(Duration::from_secs(20), listens).then_some(Self {
            process,
            folder,
            port,
            version,
            settings,
        })
    }

    fn etcd() -> Option<Self> {
        let version = output_of("etcd", &["--version"]);
        let version = version.split_whitespace().nth(2).unwrap_or("?").to_owned();
        let peers = format!("http://127.0.0.1:{}", free_port());
        let settings = "one member, fsync of each entry (its default), TCP on loopback";
        Self::start("etcd", settings, version, |folder, port| {
            let clients = format!("http://127.0.0.1:{port}");
            let args = [
                ("data-dir", format!("{folder}/data")),
                ("listen-client-urls", clients.clone()),
                ("advertise-client-urls", clients),
                ("listen-peer-urls", peers.clone()),
                ("initial-advertise-peer-urls", peers.clone()),
                ("initial-cluster", format!("default={peers}")),
            ];
            args.map(|(name, value)| format!("--{name}={value}")).into()
        })
    }

    fn zookeeper() -> Option<Self> {
        let jar = "/usr/share/java/zookeeper.jar";
        // Debian links it under a name with its version too.
        let jars = std::fs::read_dir(Path::new(jar).parent()?).ok()?.flatten();
        let version = jars.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let version = name.strip_prefix("zookeeper-")?.strip_suffix(".jar")?;
            version
                .starts_with(|digit: char| digit.is_ascii_digit())
                .then(|| version.to_owned())
        });
        let version = version.min().filter(|_| Path::new(jar).exists())?;
        let settings = "one server, forceSync=yes (its default), TCP on loopback";
        Self::start("java", settings, version, |folder, port| {
            let args = [
                "-Xmx256m",
                "-Dzookeeper.admin.enableServer=false",
                "-cp",
                jar,
                "org.apache.zookeeper.server.ZooKeeperServerMain",
                &port.to_string(),
                folder,
            ];
            args.map(str::to_owned).into()
        })
    }

    fn redis(always: bool) -> Option<Self> {
        let version = output_of("redis-server", &["--version"]);
        let version = version
            .split_whitespace()
            .nth(2)
            .unwrap_or("?")
            .trim_start_matches("v=");
        let settings = match always {
            true => "appendonly=yes, appendfsync=always, save=\"\", Unix socket",
            false => "appendonly=no, save=\"\", Unix socket",
        };
        Self::start(
            "redis-server",
            settings,
            version.to_owned(),
            |folder, port| {
                let appendonly = if always { "yes" } else { "no" };
                let args = [
                    ("port", port.to_string()),
                    ("bind", "127.0.0.1".to_owned()),
                    ("save", String::new()),
                    ("appendonly", appendonly.to_owned()),
                    ("appendfsync", "always".to_owned()),
                    ("unixsocket", format!("{folder}/redis.sock")),
                ];
                let args = args.map(|(name, value)| [format!("--{name}"), value]);
                args.concat()
            },
        )
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }
}

/// The output of a program.
fn output_of(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// An engine of this library, with an empty database.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    /// The prefix of the keys of its cases, and its name in `peers.py`.
    pub(crate) key: &'static str,
    /// Its name in tables.
    pub(crate) name: &'static str,
    /// The URL by the Unix socket, or of the file.
    pub(crate) url: String,
    /// The URL over TCP if it has a server; the wire counter needs it.
    pub(crate) tcp: Option<String>,
}

/// Starts a server that flushes each commit, if this machine has it.
fn with_fsync(options: Options, settings: &[&str]) -> Option<MySqlServer> {
    let options = options.fsync(true);
    let set = |options: Options, setting: &&str| options.set(setting);
    settings.iter().fold(options, set).start()
}

impl Servers {
    pub(crate) fn start() -> Self {
        let servers = Self {
            postgres: Postgres::options().fsync(true).start(),
            mariadb: with_fsync(MariaDb::options(), &MARIADB),
            mysql: with_fsync(MySql::options(), &MYSQL),
            etcd: Peer::etcd(),
            zookeeper: Peer::zookeeper(),
            redis: Peer::redis(false),
            redis_always: Peer::redis(true),
            files: ScratchDir::new("bench"),
        };
        for (name, there) in [
            ("PostgreSQL", servers.postgres.is_some()),
            ("MariaDB", servers.mariadb.is_some()),
            (
                "MySQL (its mysqld is where DBLOCK_MYSQLD says)",
                servers.mysql.is_some(),
            ),
            ("etcd", servers.etcd.is_some()),
            ("ZooKeeper", servers.zookeeper.is_some()),
            (
                "Redis",
                servers.redis.is_some() && servers.redis_always.is_some(),
            ),
        ] {
            if !there {
                progress(&format!("left out, it is not on this machine: {name}"));
            }
        }
        servers
    }

    /// The engines, each with an empty database.
    pub(crate) fn engines(&self) -> Vec<Engine> {
        let file = Some(self.sqlite());
        [self.postgres(), self.mariadb(), self.mysql(), file]
            .into_iter()
            .flatten()
            .collect()
    }

    pub(crate) fn postgres(&self) -> Option<Engine> {
        let server = self.postgres.as_ref()?;
        let tcp = server.fresh_database();
        Some(Engine {
            key: "postgres",
            name: "PostgreSQL",
            url: server.socket_url(database(&tcp)),
            tcp: Some(format!("{tcp}?sslmode=disable")),
        })
    }

    pub(crate) fn mariadb(&self) -> Option<Engine> {
        Some(Engine::of("mariadb", "MariaDB", self.mariadb.as_ref()?))
    }

    pub(crate) fn mysql(&self) -> Option<Engine> {
        Some(Engine::of("mysql", "MySQL", self.mysql.as_ref()?))
    }

    /// The process of a server, by the keys of engines and cases; SQLite has none.
    pub(crate) fn pid(&self, key: &str) -> Option<u32> {
        let peer = |peer: &Option<Peer>| peer.as_ref().map(|peer| peer.process.pid());
        match key {
            "postgres" => self.postgres.as_ref()?.server().pid(),
            "mariadb" => self.mariadb.as_ref()?.server().pid(),
            "mysql" => self.mysql.as_ref()?.server().pid(),
            "etcd" => peer(&self.etcd),
            "zookeeper" => peer(&self.zookeeper),
            "redis" => peer(&self.redis),
            "redis-always" => peer(&self.redis_always),
            _ => None,
        }
    }

    /// Runs `sql` in the database of an engine. On SQLite does nothing: the baseline makes its own
    /// table.
    pub(crate) fn run_sql(&self, engine: &Engine, sql: &str) {
        let name = database(&engine.url);
        let done = match engine.key {
            "postgres" => self.postgres.as_ref().map(|server| server.query(name, sql)),
            "mariadb" => self.mariadb.as_ref().map(|server| server.query(name, sql)),
            "mysql" => self.mysql.as_ref().map(|server| server.query(name, sql)),
            _ => None,
        };
        if let Some(done) = done {
            done.expect("the statement runs");
        }
    }

    pub(crate) fn sqlite(&self) -> Engine {
        let file = self.files.join(&format!("{:x}.sqlite3", fastrand::u64(..)));
        Engine {
            key: "sqlite",
            name: "SQLite",
            url: format!("sqlite://{}", file.display()),
            tcp: None,
        }
    }
}

impl Engine {
    /// An empty database on that server.
    fn of(key: &'static str, name: &'static str, server: &MySqlServer) -> Self {
        let tcp = server.fresh_database();
        Self {
            key,
            name,
            url: server.socket_url(database(&tcp)),
            tcp: Some(format!("{tcp}?sslmode=disable")),
        }
    }
}

/// The name of the database in a URL.
pub(crate) fn database(url: &str) -> &str {
    // The options may contain slashes.
    let place = url.split('?').next().unwrap_or_default();
    place.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::database;

    #[test]
    fn the_database_of_a_url_is_found_behind_a_socket_too() {
        let found = [
            "postgres:///t_1?host=/tmp/x&port=5",
            "mysql://root@localhost/t_1?socket=/tmp/x/sock",
            "postgres://me@127.0.0.1:5/t_1",
        ];
        assert_eq!(found.map(database), ["t_1"; 3]);
    }
}
