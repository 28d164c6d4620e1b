//! Servers of MySQL and MariaDB.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

use crate::programs::{find_binary, require};
use crate::server::{Server, User, on_a_free_port, succeeds};
use crate::sql::{LOCKER_PASSWORD, SqlError, SqlSession, database_of, percent_encode};
use crate::template;

mod options;

pub use options::{Flavor, Options};

/// The signal that the kernel sends the server when the test process ends. It reaches a frozen
/// server too; only the directory is left behind.
const DEATHSIG: &str = "KILL";

/// MySQL's own counters take 200 MB and half of the time of a start by default.
const FEWER_COUNTERS: [&str; 9] = [
    "--performance-schema-digests-size=0",
    "--performance-schema-events-statements-history-long-size=0",
    "--performance-schema-events-transactions-history-long-size=0",
    "--performance-schema-events-waits-history-long-size=0",
    "--performance-schema-events-stages-history-long-size=0",
    "--performance-schema-error-size=0",
    "--performance-schema-max-memory-classes=0",
    "--performance-schema-max-program-instances=0",
    "--table-open-cache=200",
];

/// A server of MySQL or MariaDB: for one test, or the one that the tests of a binary share.
///
/// The superuser is `root`, which needs no password. The user `locker` needs
/// [`LOCKER_PASSWORD`], and may do anything to the databases of
/// [`fresh_database`](Self::fresh_database).
#[derive(Debug)]
pub struct MySqlServer {
    flavor: Flavor,
    pub(crate) server: Server,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) port: u16,
}

/// Starts servers of MariaDB.
#[derive(Clone, Copy, Debug)]
pub struct MariaDb;

/// Starts servers of Oracle's MySQL.
#[derive(Clone, Copy, Debug)]
pub struct MySql;

macro_rules! starts {
    ($kind:ident) => {
        impl $kind {
            /// Options for a server for one test.
            pub fn options() -> Options {
                Options::new(Flavor::$kind)
            }

            /// Starts a server for one test, to be stopped, killed and frozen. `None` when there
            /// is none on this machine.
            ///
            /// # Panics
            ///
            /// As [`Options::start`].
            pub fn start() -> Option<MySqlServer> {
                Self::options().start()
            }

            /// The server that all tests of this binary share. `None` when there is none on this
            /// machine.
            ///
            /// # Panics
            ///
            /// As [`Options::start`].
            pub fn shared() -> Option<&'static MySqlServer> {
                static SHARED: OnceLock<Option<MySqlServer>> = OnceLock::new();
                let flavor = Flavor::$kind;
                let shared = SHARED
                    .get_or_init(|| Some(MySqlServer::new(flavor.program()?, &Self::options())));
                // Asked every time: each skipped test prints a line.
                require(flavor.engine(), flavor.binary(), shared.as_ref())
            }
        }
    };
}

starts!(MariaDb);
starts!(MySql);

impl Options {
    /// Starts the server and waits until it answers. `None`, and a printed line, if
    /// there is none on this machine.
    ///
    /// # Panics
    ///
    /// If it is there and does not start, with the end of its log; or if it is not
    /// there and [required](require).
    pub fn start(self) -> Option<MySqlServer> {
        Some(MySqlServer::new(self.flavor.required_program()?, &self))
    }
}

impl MySqlServer {
    fn new(program: PathBuf, options: &Options) -> Self {
        let mut server = Self::unlaunched(program, options);
        server.fill();
        server.port = on_a_free_port(|port| {
            server.port = port;
            server.launch(&[])
        });
        server
    }

    /// One that does not run yet, and has neither data nor a port.
    pub(crate) fn unlaunched(program: PathBuf, options: &Options) -> Self {
        let flavor = options.flavor;
        let server = Server::new(flavor.engine(), User::for_server("mysql"), Signal::TERM);
        let mut this = Self {
            flavor,
            server,
            program,
            args: Vec::new(),
            port: 0,
        };
        let at_commit = if options.fsync { 1 } else { 2 };
        let mut args = this.places();
        args.extend(this.common());
        args.extend([
            "--bind-address=127.0.0.1".into(),
            "--max-connections=600".into(),
            format!("--innodb-flush-log-at-trx-commit={at_commit}"),
        ]);
        if flavor == Flavor::MySql && options.tls.is_none() {
            args.push("--tls-version=".into());
        }
        if flavor == Flavor::MySql && !options.fsync {
            // Otherwise each CREATE TABLE waits for the disk several times, and a group at each
            // commit.
            args.extend(["--innodb-flush-method=nosync", "--sync-binlog=0"].map(String::from));
        }
        args.extend(options.settings.iter().cloned());
        if let Some(certificate) = &options.tls {
            let server = &this.server;
            certificate.write(server.dir(), |path| server.give(path));
            for (option, file) in [
                ("ssl-cert", "cert.pem"),
                ("ssl-key", "key.pem"),
                ("ssl-ca", "ca.pem"),
            ] {
                args.push(format!("--{option}={}", server.dir().join(file).display()));
            }
        }
        this.args = args;
        this
    }

    /// The arguments of the programs that fill the data directory and that serve it.
    fn places(&self) -> Vec<String> {
        let log_size = match self.flavor {
            Flavor::MariaDb => "--innodb-log-file-size=8M",
            Flavor::MySql => "--innodb-redo-log-capacity=8M",
        };
        vec![
            "--no-defaults".into(),
            format!("--datadir={}", self.data().display()),
            // A starting server removes the temporary tables of all servers of the same directory.
            format!("--tmpdir={}", self.server.dir().display()),
            "--skip-log-bin".into(),
            log_size.into(),
            "--innodb-buffer-pool-size=32M".into(),
        ]
    }

    /// The arguments of each program that serves it.
    fn common(&self) -> Vec<String> {
        let mut args = vec![
            // Otherwise the resolver of the machine would turn 127.0.0.1 into a name, after its
            // timeout.
            "--skip-name-resolve".into(),
            format!("--socket={}", self.socket().display()),
            format!("--pid-file={}", self.server.dir().join("pid").display()),
        ];
        if self.flavor == Flavor::MySql {
            args.extend(FEWER_COUNTERS.map(String::from));
            args.extend([
                "--mysqlx=OFF".into(),
                // The compiled-in directory does not exist.
                "--secure-file-priv=NULL".into(),
            ]);
            // The server may be unpacked rather than installed.
            let home = self.program.ancestors().nth(2).unwrap_or(Path::new("/"));
            let plugins = home.join("root/usr/lib/mysql/plugin");
            if plugins.is_dir() {
                args.push(format!("--plugin-dir={}", plugins.display()));
            }
        }
        args
    }

    /// Fills the data directory of a new server, with the users of the tests.
    pub(crate) fn fill(&self) {
        let data = self.data();
        template::copy(&self.template(), &data, &self.server);
        // Each server generates its own identity.
        let _ = std::fs::remove_file(data.join("auto.cnf"));
    }

    /// A data directory of this version, which takes seconds and is made once on a machine.
    fn template(&self) -> PathBuf {
        let (program, flavor) = (&self.program, self.flavor);
        static MADE: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
        let made = &MADE[usize::from(flavor == Flavor::MySql)];
        made.get_or_init(|| {
            template::of(flavor.engine(), program, |save| {
                let mut first = Self::unlaunched(program.clone(), &Options::new(flavor));
                let data = first.data();
                std::fs::create_dir(&data).expect("the directory can be written to");
                first.server.give(&data);
                first.initialize();
                first.args = first.places();
                first.args.extend(first.common());
                first.args.push("--skip-networking".into());
                first.launch(&[]).unwrap_or_else(|log| panic!("{log}"));
                first.make_users();
                first.stop();
                save(&data);
            })
        })
        .clone()
    }

    fn initialize(&self) {
        let mut args = self.places();
        if self.flavor == Flavor::MySql {
            args.push("--initialize-insecure".into());
            self.server.prepare(&self.program, &args);
            return;
        }
        let install = find_binary("mariadb-install-db", &[])
            .expect("mariadb-install-db comes with the server");
        args.extend(
            [
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--innodb-flush-log-at-trx-commit=0",
            ]
            .map(String::from),
        );
        self.server.prepare(&install, &args);
    }

    /// Starts it on its port with some more arguments, and waits until it answers.
    ///
    /// # Errors
    ///
    /// The end of its log, when it does not.
    pub(crate) fn launch(&mut self, more: &[String]) -> Result<(), String> {
        let mut args = self.args.clone();
        args.push(format!("--port={}", self.port));
        args.extend(more.iter().cloned());
        let (mut ready, socket) = (self.client(), self.socket());
        ready.args(["--connect-timeout=10", "--execute=SELECT 1"]);
        // A killed server leaves its socket. The new one makes its socket when it is about to
        // answer; to start a client before that only slows it down.
        let _ = std::fs::remove_file(&socket);
        self.server.launch(&self.program, &args, DEATHSIG, || {
            socket.exists() && succeeds(&mut ready)
        })
    }

    /// Makes `locker` and permits `root` over TCP, on a new server.
    fn make_users(&self) {
        // A user without a name at one host would take precedence over `locker` at any host.
        let mut admin = self.sql_session("mysql");
        let anonymous = admin
            .run("SELECT Host FROM user WHERE User = ''")
            .expect("the table is there");
        for host in anonymous {
            admin
                .run(&format!("DROP USER ''@'{host}'"))
                .expect("root may drop a user");
        }
        let root = "root@'127.0.0.1'";
        admin
            .run(&format!("CREATE USER IF NOT EXISTS {root}"))
            .and_then(|_| admin.run(&format!("GRANT ALL ON *.* TO {root} WITH GRANT OPTION")))
            .expect("root may make a user");
        for host in ["127.0.0.1", "localhost"] {
            let password = LOCKER_PASSWORD.replace('\'', "''");
            admin
                .run(&format!(
                    "CREATE USER locker@'{host}' IDENTIFIED BY '{password}'"
                ))
                .and_then(|_| admin.run(&format!("GRANT ALL ON `t\\_%`.* TO locker@'{host}'")))
                .expect("a new server has no user of that name");
        }
        admin.close();
    }

    /// MariaDB or MySQL.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Its data directory.
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

    /// Like [`locker_url`](Self::locker_url) with another password, for example a wrong one.
    pub fn locker_url_with(&self, database: &str, password: &str) -> String {
        format!(
            "mysql://locker:{}@127.0.0.1:{}/{}",
            percent_encode(password),
            self.port,
            database_of(database)
        )
    }

    /// Makes an empty database, which `locker` may use, and gives its URL as the superuser.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub fn fresh_database(&self) -> String {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("t_{}", MADE.fetch_add(1, Ordering::Relaxed));
        self.query("mysql", &format!("CREATE DATABASE {name}"))
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
        SqlSession::mariadb(self.client().arg(database_of(database)))
    }

    /// Stops the server in order: it informs its clients.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Kills the server by SIGKILL.
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
        self.launch(&[]).unwrap_or_else(|log| panic!("{log}"));
    }

    /// Freezes the server: the kernel accepts connections, and nothing is answered.
    pub fn freeze(&mut self) {
        self.server.freeze();
    }

    /// Let a frozen server go on.
    pub fn thaw(&mut self) {
        self.server.thaw();
    }
}
