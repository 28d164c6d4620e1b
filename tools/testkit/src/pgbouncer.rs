//! PgBouncer, which hands out connections to a PostgreSQL server by transaction.

use std::process::Command;
use std::sync::OnceLock;

use rustix::process::Signal;

use crate::postgres::Postgres;
use crate::programs::{find_binary, require};
use crate::server::{Server, User, on_a_free_port, succeeds};
use crate::sql::{LOCKER_PASSWORD, database_of};

/// What the kernel sends it when the test process ends.
const DEATHSIG: &str = "KILL";

/// A PgBouncer in front of a server, in transaction mode.
///
/// The users are those of [`Postgres`], and none needs a password. All of them share a few
/// connections to each database, so that another client would meet what a session leaves behind.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    program: std::path::PathBuf,
    port: u16,
}

impl PgBouncer {
    /// Starts one in front of `postgres`, with more settings: `server_reset_query_always=1`. `None`
    /// when there is none on this machine.
    ///
    /// # Panics
    ///
    /// If it is there and does not start, with the end of its log; or if it is not there and
    /// [required](require).
    pub fn start(postgres: &Postgres, settings: &[&str]) -> Option<Self> {
        let program = require("pgbouncer", "pgbouncer", find_binary("pgbouncer", &[]))?;
        Some(Self::new(program, postgres, settings))
    }

    /// The one that all tests of this binary share, in front of [`Postgres::shared`]. `None` when
    /// there is no such server on this machine.
    ///
    /// # Panics
    ///
    /// As [`PgBouncer::start`].
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<PgBouncer>> = OnceLock::new();
        let postgres = Postgres::shared()?;
        let start = || Some(Self::new(find_binary("pgbouncer", &[])?, postgres, &[]));
        require("pgbouncer", "pgbouncer", SHARED.get_or_init(start).as_ref())
    }

    fn new(program: std::path::PathBuf, postgres: &Postgres, settings: &[&str]) -> Self {
        let mut server = Server::new("pgbouncer", User::for_server("postgres"), Signal::TERM);
        let write = |name: &str, text: String| {
            let file = server.dir().join(name);
            std::fs::write(&file, text).expect("the directory can be written to");
            server.give(&file);
        };
        write(
            "users",
            format!("\"postgres\" \"\"\n\"locker\" \"{LOCKER_PASSWORD}\"\n"),
        );
        let dir = server.dir().display().to_string();
        let more: String = settings.iter().map(|one| format!("{one}\n")).collect();
        write(
            "common.ini",
            format!(
                "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 unix_socket_dir =\nauth_type = trust\nauth_file = {dir}/users\n\
                 pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 1000\n\
                 admin_users = postgres\n{more}",
                postgres.socket_dir().display(),
                postgres.port(),
            ),
        );
        let port = on_a_free_port(|port| launch(&mut server, &program, port));
        Self {
            server,
            program,
            port,
        }
    }

    /// The port it listens on, of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database of the server behind it, given by name or URL, as the superuser.
    pub fn url(&self, database: &str) -> String {
        let (port, name) = (self.port, database_of(database));
        format!("postgres://postgres@127.0.0.1:{port}/{name}")
    }

    /// From now on stand in front of another server. Clients stay connected.
    ///
    /// # Panics
    ///
    /// If it does not take the new address.
    pub fn lead_to(&self, postgres: &Postgres) {
        let file = self.server.dir().join("common.ini");
        let text = std::fs::read_to_string(&file).expect("it was written");
        let (_, rest) = text.split_once("[pgbouncer]").expect("it has settings");
        let (dir, port) = (postgres.socket_dir().display(), postgres.port());
        let text = format!("[databases]\n* = host={dir} port={port}\n[pgbouncer]{rest}");
        std::fs::write(&file, text).expect("the directory can be written to");
        let reload = ["--dbname=pgbouncer", "--command=RELOAD"];
        assert!(
            succeeds(&mut psql(self.port, &reload)),
            "it does not reload"
        );
    }

    /// The process itself: its id and its log.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Stops it: its clients are cut off.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Freezes it: the kernel accepts connections, and nothing is answered.
    pub fn freeze(&mut self) {
        self.server.freeze();
    }

    /// Thaws a frozen process.
    pub fn thaw(&mut self) {
        self.server.thaw();
    }

    /// Kills it by SIGKILL; the server behind it lives on.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Stops it if it runs, and starts it again on the same port.
    ///
    /// # Panics
    ///
    /// If it does not start, with the end of its log.
    pub fn restart(&mut self) {
        self.server.stop();
        launch(&mut self.server, &self.program, self.port).unwrap_or_else(|log| panic!("{log}"));
    }
}

/// The port stands in a file of its own, since it may be another one at the next try.
fn launch(server: &mut Server, program: &std::path::Path, port: u16) -> Result<(), String> {
    let file = server.dir().join("pgbouncer.ini");
    let text = format!(
        "%include {}\nlisten_port = {port}\n",
        server.dir().join("common.ini").display()
    );
    std::fs::write(&file, text).map_err(|error| error.to_string())?;
    server.give(&file);
    server.launch(program, &[file.display().to_string()], DEATHSIG, || {
        succeeds(&mut psql(
            port,
            &["--dbname=postgres", "--command=SELECT 1"],
        ))
    })
}

fn psql(port: u16, args: &[&str]) -> Command {
    let mut command = Command::new(find_binary("psql", &[]).unwrap_or_else(|| "psql".into()));
    command
        .args(["--no-psqlrc", "--host=127.0.0.1", "--username=postgres"])
        .args(["--port", &port.to_string()])
        .args(args)
        .env("PGCONNECT_TIMEOUT", "10");
    command
}
