//! The servers that are measured, each at its own defaults but for what is said here, and with every
//! commit on the disk.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testkit::server::{find_binary, free_port};
use testkit::tether::ScratchDir;
use testkit::{Killable, MariaDb, MySqlServer, Postgres, time};

/// MariaDB's own defaults, where the tests' servers have less: with a small log it waits for its pages again
/// and again.
pub(crate) const MARIADB: [&str; 2] = ["innodb-buffer-pool-size=128M", "innodb-log-file-size=96M"];

/// What runs, and where.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) postgres: Option<Postgres>,
    pub(crate) mariadb: Option<MySqlServer>,
    pub(crate) redis: Option<Redis>,
    pub(crate) files: ScratchDir,
}

/// A Redis server that writes nothing to the disk: the fastest that it can be.
#[derive(Debug)]
pub(crate) struct Redis {
    _process: Killable,
    folder: ScratchDir,
    pub(crate) port: u16,
    pub(crate) version: String,
}

impl Redis {
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    fn start() -> Option<Self> {
        let program = find_binary("redis-server", &[])?;
        let version = Command::new(&program).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&version.stdout);
        let version = version.split_whitespace().nth(2).unwrap_or("?");
        let folder = ScratchDir::new("redis");
        let port = free_port();
        let mut command = Command::new(program);
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(folder.join("redis.sock"))
            .current_dir(folder.path());
        let process = Killable::spawn_command(&command);
        let redis = Self {
            _process: process,
            folder,
            port,
            version: version.trim_start_matches("v=").to_owned(),
        };
        time::wait_until(Duration::from_secs(10), || redis.socket().exists()).then_some(redis)
    }
}

/// An engine of this library, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    /// As it is called in tables.
    pub(crate) name: &'static str,
    /// By the shortest way: a Unix socket.
    pub(crate) url: String,
    /// Over TCP, where there is a server: what is counted passes there.
    pub(crate) tcp: Option<String>,
}

impl Servers {
    pub(crate) fn start() -> Self {
        Self {
            postgres: Postgres::options().fsync(true).start(),
            mariadb: MARIADB
                .iter()
                .fold(MariaDb::options().fsync(true), |options, setting| {
                    options.set(setting)
                })
                .start(),
            redis: Redis::start(),
            files: ScratchDir::new("bench"),
        }
    }

    /// The engines with an empty database each.
    pub(crate) fn engines(&self) -> Vec<Engine> {
        [self.postgres(), self.mariadb(), Some(self.sqlite())]
            .into_iter()
            .flatten()
            .collect()
    }

    pub(crate) fn postgres(&self) -> Option<Engine> {
        let server = self.postgres.as_ref()?;
        let tcp = server.fresh_database();
        Some(Engine {
            name: "PostgreSQL",
            url: server.socket_url(database(&tcp)),
            tcp: Some(format!("{tcp}?sslmode=disable")),
        })
    }

    pub(crate) fn mariadb(&self) -> Option<Engine> {
        let server = self.mariadb.as_ref()?;
        let tcp = server.fresh_database();
        Some(Engine {
            name: "MariaDB",
            url: self.mariadb_socket_url(database(&tcp))?,
            tcp: Some(format!("{tcp}?sslmode=disable")),
        })
    }

    pub(crate) fn sqlite(&self) -> Engine {
        let file = self.files.join(&format!("{:x}.sqlite3", fastrand::u64(..)));
        Engine {
            name: "SQLite",
            url: format!("sqlite://{}", file.display()),
            tcp: None,
        }
    }

    fn mariadb_socket_url(&self, database: &str) -> Option<String> {
        let socket = self.mariadb_socket()?;
        Some(format!(
            "mysql://root@localhost/{database}?socket={}",
            socket.display()
        ))
    }

    pub(crate) fn mariadb_socket(&self) -> Option<PathBuf> {
        Some(self.mariadb.as_ref()?.server().dir().join("sock"))
    }
}

/// The name of the database in a URL.
pub(crate) fn database(url: &str) -> &str {
    // A path in the options has slashes too.
    let place = url.split('?').next().unwrap_or_default();
    place.rsplit('/').next().unwrap_or_default()
}

/// The driver's own options for a database on that server, by its socket.
pub(crate) fn postgres_config(server: &Postgres, database: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(server.socket_dir())
        .port(server.port())
        .user("postgres")
        .dbname(database);
    config
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_database_of_a_url_is_found_behind_a_socket_too() {
        let found = [
            "postgres:///t_1?host=/tmp/x&port=5",
            "mysql://root@localhost/t_1?socket=/tmp/x/sock",
            "postgres://me@127.0.0.1:5/t_1",
        ];
        assert_eq!(found.map(super::database), ["t_1"; 3]);
    }
}
