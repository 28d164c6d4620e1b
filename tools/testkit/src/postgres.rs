//! PostgreSQL servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::programs::{find_binary, require};
use crate::server::{Server, User, on_a_free_port, succeeds};
use crate::sql::{LOCKER_PASSWORD, SqlError, SqlSession, database_of, percent_encode};
use crate::time;
use crate::tls::Certificate;

/// The signal that the kernel sends the server when the test process ends: an immediate shutdown.
/// After SIGKILL its shared memory would be left behind until the next boot.
const DEATHSIG: &str = "QUIT";

/// How long the server may take to read its configuration after it was told to.
const RELOAD_WITHIN: Duration = Duration::from_secs(30);

/// A PostgreSQL server for one test, or the one that the tests of a binary share.
///
/// The superuser is `postgres`, which needs no password. The user `locker` needs
/// [`LOCKER_PASSWORD`], by `scram-sha-256`, when coming over TCP.
#[derive(Debug)]
pub struct Postgres {
    pub(crate) server: Server,
    pub(crate) bin: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) port: u16,
}

/// How to start a server: see [`Postgres::options`].
#[derive(Clone, Debug)]
pub struct Options {
    version: Option<u32>,
    fsync: bool,
    tls: Option<Certificate>,
    settings: Vec<String>,
}

impl Options {
    /// Only this major version will do.
    #[must_use]
    pub fn version(mut self, major: u32) -> Self {
        self.version = Some(major);
        self
    }

    /// Waits for the disk at a commit. Off by default: the machine does not lose power
    /// during a test, and a killed server loses nothing that it has given the kernel.
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// The server's time zone, `UTC` by default.
    #[must_use]
    pub fn time_zone(self, name: &str) -> Self {
        self.set(&format!("timezone={name}"))
    }

    /// Offer TLS, with this certificate, and know users by those of its issuer.
    #[must_use]
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = Some(certificate.clone());
        self
    }

    /// Any setting, as in `deadlock_timeout=100ms`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Starts the server and waits until it answers. `None`, and a printed line, if
    /// there is no such server on this machine.
    ///
    /// # Panics
    ///
    /// If it is there and does not start, with the end of its log; or if it is not
    /// there and [required](require).
    pub fn start(self) -> Option<Postgres> {
        let engine = match self.version {
            Some(major) => format!("postgres{major}"),
            None => "postgres".into(),
        };
        let bin = require(&engine, &engine, find_bin(self.version))?;
        Some(Postgres::new(bin, &self))
    }
}

impl Postgres {
    /// Options for a server for one test.
    pub fn options() -> Options {
        Options {
            version: None,
            fsync: false,
            tls: None,
            settings: vec!["timezone=UTC".into()],
        }
    }

    /// Starts a server for one test, to be stopped, killed and frozen. `None` when there
    /// is none on this machine.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn start() -> Option<Self> {
        Self::options().start()
    }

    /// Starts a server of one major version, as [`start`](Self::start) does.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn start_version(major: u32) -> Option<Self> {
        Self::options().version(major).start()
    }

    /// The server that all tests of this binary share. `None` when there is none on this
    /// machine.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Some(Self::new(find_bin(None)?, &Self::options())));
        // Asked every time: each skipped test prints a line.
        require("postgres", "postgres", shared.as_ref())
    }

    /// Like [`shared`](Self::shared), with PostgreSQL 18.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared_18() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        Self::shared_version(18, &SHARED)
    }

    /// Like [`shared`](Self::shared), with PostgreSQL 12, the oldest that is supported.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared_12() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        Self::shared_version(12, &SHARED)
    }

    fn shared_version(
        major: u32,
        shared: &'static OnceLock<Option<Self>>,
    ) -> Option<&'static Self> {
        let start = || Some(Self::new(find_bin(Some(major))?, &Self::options()));
        let engine = format!("postgres{major}");
        require(&engine, &engine, shared.get_or_init(start).as_ref())
    }

    fn new(bin: PathBuf, options: &Options) -> Self {
        let mut server = Server::new("postgres", User::for_server("postgres"), Signal::INT);
        let data = server.dir().join("data");
        server.prepare(
            &bin.join("initdb"),
            &[
                "--no-sync",
                "--no-locale",
                "--encoding=UTF8",
                "--auth=trust",
                "--username=postgres",
            ]
            .map(String::from)
            .into_iter()
            .chain([format!("--pgdata={}", data.display())])
            .collect::<Vec<_>>(),
        );
        std::fs::write(
            data.join("pg_hba.conf"),
            "local all all trust\n\
             local replication all trust\n\
             host replication all 127.0.0.1/32 trust\n\
             host all locker 127.0.0.1/32 scram-sha-256\n\
             host all all 127.0.0.1/32 trust\n",
        )
        .expect("the server's directory can be written to");

        let mut settings = options.settings.clone();
        if let Some(certificate) = &options.tls {
            certificate.write(server.dir(), |path| server.give(path));
            settings.push("ssl=on".into());
            for (setting, file) in [
                ("ssl_cert_file", "cert.pem"),
                ("ssl_key_file", "key.pem"),
                ("ssl_ca_file", "ca.pem"),
            ] {
                settings.push(format!("{setting}={}/{file}", dir_of(&server)));
            }
        }
        let fsync = if options.fsync { "on" } else { "off" };
        let mut args = vec![
            "-D".into(),
            data.display().to_string(),
            "-k".into(),
            dir_of(&server),
        ];
        let common = [
            "listen_addresses=127.0.0.1".into(),
            "max_connections=600".into(),
            "password_encryption=scram-sha-256".into(),
            format!("fsync={fsync}"),
        ];
        for setting in common.into_iter().chain(settings) {
            args.extend(["-c".into(), setting]);
        }

        let port = on_a_free_port(|port| launch(&mut server, &bin, &args, port));
        let postgres = Self {
            server,
            bin,
            args,
            port,
        };
        postgres
            .query(
                "postgres",
                &format!(
                    "CREATE ROLE locker LOGIN PASSWORD {}",
                    quoted(LOCKER_PASSWORD)
                ),
            )
            .expect("a new server has no role of that name");
        postgres
    }

    /// The port it listens on, of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.server.dir()
    }

    /// The server itself: its process id and its log.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The directory of its programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The URL of the database `postgres` as the superuser, over TCP.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of a database as the superuser, over TCP.
    pub fn url_of(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{}",
            self.port,
            database_of(database)
        )
    }

    /// The URL of a database as the superuser, over the Unix socket.
    pub fn socket_url(&self, database: &str) -> String {
        let (name, dir) = (database_of(database), dir_of(&self.server));
        format!(
            "postgres:///{name}?host={dir}&port={}&user=postgres",
            self.port
        )
    }

    /// The URL of a database as the user `locker`, which owns what [`fresh_database`] made.
    ///
    /// [`fresh_database`]: Self::fresh_database
    pub fn locker_url(&self, database: &str) -> String {
        self.locker_url_with(database, LOCKER_PASSWORD)
    }

    /// Like [`locker_url`](Self::locker_url) with another password, for example a wrong one.
    pub fn locker_url_with(&self, database: &str, password: &str) -> String {
        format!(
            "postgres://locker:{}@127.0.0.1:{}/{}",
            percent_encode(password),
            self.port,
            database_of(database)
        )
    }

    /// Makes an empty database, whose owner is `locker`, and gives its URL as the superuser.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub fn fresh_database(&self) -> String {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("t_{}", MADE.fetch_add(1, Ordering::Relaxed));
        self.query("postgres", &format!("CREATE DATABASE {name} OWNER locker"))
            .expect("a running server makes a database");
        self.url_of(&name)
    }

    /// Runs SQL on a database, given by name or URL, as the superuser: its rows, one a line
    /// and columns apart by tabs.
    ///
    /// # Errors
    ///
    /// What the server answered instead.
    pub fn query(&self, database: &str, sql: &str) -> Result<String, SqlError> {
        self.sql_session(database).run_once(sql)
    }

    /// Opens a session on a database, given by name or URL, as the superuser.
    pub fn sql_session(&self, database: &str) -> SqlSession {
        let mut psql = client(&self.bin, "psql");
        SqlSession::psql(&mut psql, &self.socket_url(database))
    }

    /// Stops the server in order: it informs its clients.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Kills the server and its backends by SIGKILL.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Stops the server if it runs, and starts it again with the same data and port.
    ///
    /// # Panics
    ///
    /// If it does not start, with the end of its log.
    pub fn restart(&mut self) {
        self.server.stop();
        launch(&mut self.server, &self.bin, &self.args, self.port)
            .unwrap_or_else(|log| panic!("{log}"));
    }

    /// Has the server read its configuration files again, and waits until new sessions follow them.
    ///
    /// # Panics
    ///
    /// If it does not within half a minute.
    pub fn reload(&self) {
        let loaded = || {
            let at = self.query("postgres", "SELECT pg_conf_load_time()");
            at.expect("a running server knows")
        };
        let before = loaded();
        self.query("postgres", "SELECT pg_reload_conf()")
            .expect("the superuser may");
        let done = time::wait_until(RELOAD_WITHIN, || loaded() != before);
        assert!(
            done,
            "the configuration is not read within {RELOAD_WITHIN:?}"
        );
    }

    /// Freezes the server and its backends: the kernel accepts connections, which are not answered.
    pub fn freeze(&mut self) {
        self.server.freeze();
    }

    /// Let a frozen server go on.
    pub fn thaw(&mut self) {
        self.server.thaw();
    }
}

pub(crate) fn launch(
    server: &mut Server,
    bin: &Path,
    args: &[String],
    port: u16,
) -> Result<(), String> {
    let mut args = args.to_vec();
    args.extend(["-p".into(), port.to_string()]);
    let dir = dir_of(server);
    server.launch(&bin.join("postgres"), &args, DEATHSIG, || {
        // A query and not a connection: during recovery the port is open already.
        succeeds(
            client(bin, "psql")
                .args(["--no-psqlrc", "--username=postgres", "--dbname=postgres"])
                .args([
                    "--host",
                    &dir,
                    "--port",
                    &port.to_string(),
                    "--command=SELECT 1",
                ])
                .env("PGCONNECT_TIMEOUT", "10"),
        )
    })
}

fn client(bin: &Path, name: &str) -> Command {
    Command::new(find_binary(name, &[bin.to_path_buf()]).unwrap_or_else(|| name.into()))
}

pub(crate) fn dir_of(server: &Server) -> String {
    server.dir().display().to_string()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The directory of the programs of a version. When any will do, the one that `DBLOCK_PG_BIN` names,
/// or else the newest that Debian has.
fn find_bin(version: Option<u32>) -> Option<PathBuf> {
    let mut debian: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .map(|(major, path)| (major, path.join("bin")))
        .collect();
    debian.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    let debian = debian.into_iter().map(|(_, bin)| bin);

    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let named = |variable| {
        std::env::var_os(variable)
            .filter(|bin| !bin.is_empty())
            .map(PathBuf::from)
    };
    let others = ["DBLOCK_PG18_BIN", "DBLOCK_PG12_BIN"];

    named("DBLOCK_PG_BIN")
        .into_iter()
        .chain(debian)
        .chain(path)
        .chain(others.into_iter().filter_map(named))
        .filter(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file())
        .find(|bin| version.is_none() || major_version(bin) == version)
}

/// From `postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)`.
fn major_version(bin: &Path) -> Option<u32> {
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let message = String::from_utf8(output.stdout).ok()?;
    let version = message.split_once("(PostgreSQL) ")?.1;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}
