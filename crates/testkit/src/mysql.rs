//! MariaDB servers, which stand in for MySQL.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

use crate::server::{Server, User, find_binary, on_a_free_port, require, succeeds};
use crate::sql::{LOCKER_PASSWORD, SqlError, Stranger, database_of, percent_encode};
use crate::tls::Certificate;

/// What the kernel sends the server when the test process ends. It leaves nothing behind
/// but its directory, and a frozen one is reached too.
const DEATHSIG: &str = "KILL";

/// A MariaDB server of a test's own, or the one that the tests of a binary share.
///
/// The superuser is `root`, who needs no password. The user `locker` needs
/// [`LOCKER_PASSWORD`], and may do anything to the databases of
/// [`fresh_database`](Self::fresh_database).
#[derive(Debug)]
pub struct MariaDb {
    pub(crate) server: Server,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) port: u16,
}

/// How to start a server: see [`MariaDb::options`].
#[derive(Clone, Debug)]
pub struct Options {
    fsync: bool,
    tls: Option<Certificate>,
    settings: Vec<String>,
}

impl Options {
    /// Wait for the disk at a commit. Off by default: the machine does not lose power
    /// during a test, and a killed server loses nothing that it has given the kernel.
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// The server's time zone as an offset, `+00:00` by default. Names would need tables
    /// that a new server does not have.
    #[must_use]
    pub fn time_zone(self, offset: &str) -> Self {
        self.set(&format!("default-time-zone={offset}"))
    }

    /// Offer TLS, with this certificate, and know users by those of its issuer.
    #[must_use]
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = Some(certificate.clone());
        self
    }

    /// Any setting, as in `innodb-lock-wait-timeout=1`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(format!("--{setting}"));
        self
    }

    /// Start the server and wait until it answers. `None`, and a line that says so, when
    /// there is none on this machine.
    ///
    /// # Panics
    ///
    /// When it is there and does not start, with the end of its log; or when it is not
    /// there and [required](require).
    pub fn start(self) -> Option<MariaDb> {
        let program = require("mariadb", "mariadbd", find_binary("mariadbd", &[]))?;
        Some(MariaDb::new(program, &self))
    }
}

impl MariaDb {
    /// Options for a server of a test's own.
    pub fn options() -> Options {
        Options {
            fsync: false,
            tls: None,
            settings: vec!["--default-time-zone=+00:00".into()],
        }
    }

    /// Start a server of a test's own, to be stopped, killed and frozen. `None` when there
    /// is none on this machine.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn start() -> Option<Self> {
        Self::options().start()
    }

    /// The server that all tests of this binary share. `None` when there is none on this
    /// machine.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<MariaDb>> = OnceLock::new();
        let shared =
            SHARED.get_or_init(|| Some(Self::new(find_binary("mariadbd", &[])?, &Self::options())));
        // Asked every time: each test that is skipped says so.
        require("mariadb", "mariadbd", shared.as_ref())
    }

    fn new(program: PathBuf, options: &Options) -> Self {
        let mut mariadb = Self::unlaunched(program, options);
        let data = mariadb.data();
        std::fs::create_dir(&data).expect("the directory is ours");
        mariadb.server.give(&data);
        mariadb.fill();
        mariadb.port = on_a_free_port(|port| {
            mariadb.port = port;
            mariadb.launch(&[])
        });
        mariadb.make_users();
        mariadb
    }

    /// One that does not run yet, and has neither data nor a port.
    pub(crate) fn unlaunched(program: PathBuf, options: &Options) -> Self {
        let server = Server::new("mariadb", User::for_server("mysql"), Signal::TERM);
        let mut mariadb = Self {
            server,
            program,
            args: Vec::new(),
            port: 0,
        };
        let at_commit = if options.fsync { 1 } else { 2 };
        let mut args = mariadb.places();
        args.extend([
            "--bind-address=127.0.0.1".into(),
            // Else `locker` at 127.0.0.1 would be `locker` at localhost, or whatever the
            // machine's resolver says after its timeout.
            "--skip-name-resolve".into(),
            "--max-connections=200".into(),
            format!("--innodb-flush-log-at-trx-commit={at_commit}"),
            format!("--socket={}", mariadb.socket().display()),
            format!("--pid-file={}", mariadb.server.dir().join("pid").display()),
        ]);
        args.extend(options.settings.iter().cloned());
        if let Some(certificate) = &options.tls {
            let server = &mariadb.server;
            certificate.write(server.dir(), |path| server.give(path));
            for (option, file) in [
                ("ssl-cert", "cert.pem"),
                ("ssl-key", "key.pem"),
                ("ssl-ca", "ca.pem"),
            ] {
                args.push(format!("--{option}={}", server.dir().join(file).display()));
            }
        }
        mariadb.args = args;
        mariadb
    }

    /// For what fills the data directory and for what serves it.
    fn places(&self) -> Vec<String> {
        vec![
            "--no-defaults".into(),
            format!("--datadir={}", self.data().display()),
            // A server that starts removes the temporary tables of all others from there.
            format!("--tmpdir={}", self.server.dir().display()),
            "--skip-log-bin".into(),
            "--innodb-log-file-size=8M".into(),
            "--innodb-buffer-pool-size=32M".into(),
        ]
    }

    /// Make the data of a new server.
    pub(crate) fn fill(&self) {
        let install = find_binary("mariadb-install-db", &[])
            .expect("mariadb-install-db comes with the server");
        let mut fill = self.places();
        fill.extend(
            [
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--innodb-flush-log-at-trx-commit=0",
            ]
            .map(String::from),
        );
        self.server.prepare(&install, &fill);
    }

    /// Start it on its port with some more arguments, and wait until it answers.
    ///
    /// # Errors
    ///
    /// The end of its log, when it does not.
    pub(crate) fn launch(&mut self, more: &[String]) -> Result<(), String> {
        let mut args = self.args.clone();
        args.push(format!("--port={}", self.port));
        args.extend(more.iter().cloned());
        let mut ready = self.client();
        ready.args(["--connect-timeout=10", "--execute=SELECT 1"]);
        self.server
            .launch(&self.program, &args, DEATHSIG, || succeeds(&mut ready))
    }

    /// Make `locker`, on a new server.
    pub(crate) fn make_users(&self) {
        // Nobody without a name: such a user of one host goes before `locker` of any.
        let mut admin = self.stranger("mysql");
        let anonymous = admin
            .run("SELECT Host FROM user WHERE User = ''")
            .expect("the table is there");
        for host in anonymous {
            admin
                .run(&format!("DROP USER ''@'{host}'"))
                .expect("root may drop a user");
        }
        for host in ["127.0.0.1", "localhost"] {
            let password = LOCKER_PASSWORD.replace('\'', "''");
            admin
                .run(&format!(
                    "CREATE USER locker@'{host}' IDENTIFIED BY '{password}'"
                ))
                .and_then(|_| admin.run(&format!("GRANT ALL ON `t\\_%`.* TO locker@'{host}'")))
                .expect("a new server has no user of that name");
        }
        admin.leave();
    }

    /// Where its data lies.
    pub fn data(&self) -> PathBuf {
        self.server.dir().join("data")
    }

    fn client(&self) -> Command {
        let program = find_binary("mariadb", &[]).unwrap_or_else(|| "mariadb".into());
        let mut command = Command::new(program);
        command.args([
            "--no-defaults",
            "--user=root",
            "--default-character-set=utf8mb4",
        ]);
        command.arg(format!("--socket={}", self.socket().display()));
        command
    }

    /// The port it listens on, of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.server.dir().join("sock")
    }

    /// The server itself: its process id and its log.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The URL of the database `mysql` as the superuser, over TCP.
    pub fn url(&self) -> String {
        self.url_of("mysql")
    }

    /// The URL of a database as the superuser, over TCP.
    pub fn url_of(&self, database: &str) -> String {
        format!(
            "mysql://root@127.0.0.1:{}/{}",
            self.port,
            database_of(database)
        )
    }

    /// The URL of a database as the superuser, over the Unix socket.
    pub fn socket_url(&self, database: &str) -> String {
        format!(
            "mysql://root@localhost/{}?socket={}",
            database_of(database),
            self.socket().display()
        )
    }

    /// The URL of a database as the user `locker`.
    pub fn locker_url(&self, database: &str) -> String {
        self.locker_url_with(database, LOCKER_PASSWORD)
    }

    /// The same with another password, a wrong one say.
    pub fn locker_url_with(&self, database: &str, password: &str) -> String {
        format!(
            "mysql://locker:{}@127.0.0.1:{}/{}",
            percent_encode(password),
            self.port,
            database_of(database)
        )
    }

    /// Make an empty database, which `locker` may use, and give its URL as the superuser.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub fn fresh_database(&self) -> String {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("t_{}", MADE.fetch_add(1, Ordering::Relaxed));
        self.query("mysql", &format!("CREATE DATABASE {name}"))
            .expect("a running server makes a database");
        self.url_of(&name)
    }

    /// Run SQL on a database, given by name or URL, as the superuser: its rows, one a line
    /// and columns apart by tabs.
    ///
    /// # Errors
    ///
    /// What the server answered instead.
    pub fn query(&self, database: &str, sql: &str) -> Result<String, SqlError> {
        self.stranger(database).run_once(sql)
    }

    /// Open a session on a database, given by name or URL, as the superuser.
    pub fn stranger(&self, database: &str) -> Stranger {
        Stranger::mariadb(self.client().arg(database_of(database)))
    }

    /// Stop the server: its clients are told that it ends.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Kill the server by SIGKILL.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Stop the server if it runs, and start it again with the same data and port.
    ///
    /// # Panics
    ///
    /// When it does not start, with the end of its log.
    pub fn restart(&mut self) {
        self.server.stop();
        self.launch(&[]).unwrap_or_else(|log| panic!("{log}"));
    }

    /// Freeze the server: connections are accepted, by the kernel, and nobody answers.
    pub fn freeze(&mut self) {
        self.server.freeze();
    }

    /// Let a frozen server go on.
    pub fn thaw(&mut self) {
        self.server.thaw();
    }
}
