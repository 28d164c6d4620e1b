//! Standby servers, and a primary with a standby that can be promoted.

use std::time::Duration;

use rustix::process::Signal;

use crate::postgres::{Options, Postgres, dir_of, launch};
use crate::proxy::Proxy;
use crate::server::{Server, User, on_a_free_port};
use crate::sql::database_of;
use crate::time;

/// How long a standby may take to connect, to catch up, or to be promoted: a hundred times as long
/// as on an idle machine.
const WITHIN: Duration = Duration::from_secs(60);

/// Whether a commit waits for the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// A confirmed commit is on the standby too.
    Synchronous,
    /// A confirmed commit may be lost with the primary.
    Asynchronous,
}

/// A primary, and a standby that follows it through a wire that can be cut.
///
/// The test acts as the failover manager: it kills or freezes the primary and
/// [promotes](Pair::promote) the standby. Nothing keeps the old primary from coming back as it was.
#[derive(Debug)]
pub struct Pair {
    primary: Postgres,
    standby: Postgres,
    wire: Proxy,
}

impl Postgres {
    /// Starts a standby that follows this server, and cannot be written to.
    ///
    /// # Panics
    ///
    /// If it does not start, with the end of its log.
    pub fn standby(&self) -> Self {
        self.standby_at(self.port)
    }

    /// A standby with a copy of this server, which follows the server at `port`.
    fn standby_at(&self, port: u16) -> Self {
        let mut server = Server::new("standby", User::for_server("postgres"), Signal::INT);
        let data = server.dir().join("data").display().to_string();
        let copy = [
            format!("--pgdata={data}"),
            format!("--host={}", dir_of(&self.server)),
            format!("--port={}", self.port),
            "--username=postgres".into(),
            "--write-recovery-conf".into(),
            "--checkpoint=fast".into(),
            "--no-sync".into(),
        ];
        server.prepare(&self.bin.join("pg_basebackup"), &copy);
        let mut args = self.args.clone();
        // The arguments begin with `-D DATA -k SOCKETS`.
        (args[1], args[3]) = (data, dir_of(&server));
        let follows = format!(
            "primary_conninfo=host=127.0.0.1 port={port} user=postgres application_name=standby"
        );
        args.extend(["-c".into(), follows]);
        let port = on_a_free_port(|port| launch(&mut server, &self.bin, &args, port));
        let bin = self.bin.clone();
        Self {
            server,
            bin,
            args,
            port,
        }
    }
}

impl Pair {
    /// Starts both and waits until the standby follows. `None` when there is no such server on this
    /// machine.
    ///
    /// # Panics
    ///
    /// As [`Options::start`]; or if the standby does not follow.
    pub fn start(options: Options, commits: Commits) -> Option<Self> {
        let primary = options.start()?;
        let wire = Proxy::to("127.0.0.1", primary.port());
        let standby = primary.standby_at(wire.port());
        let pair = Self {
            primary,
            standby,
            wire,
        };
        let state = match commits {
            Commits::Asynchronous => "async",
            Commits::Synchronous => {
                // After the copy was made, so that the promoted standby waits for no standby.
                let sql = "ALTER SYSTEM SET synchronous_standby_names = '*'";
                for sql in [sql, "SELECT pg_reload_conf()"] {
                    pair.primary.query("postgres", sql).expect("it runs");
                }
                "sync"
            }
        };
        let sql = "SELECT state || ' ' || sync_state FROM pg_stat_replication";
        let follows = Ok(format!("streaming {state}"));
        assert!(
            time::wait_until(WITHIN, || pair.primary.query("postgres", sql) == follows),
            "the standby does not follow: {}",
            pair.standby.server().log_tail()
        );
        Some(pair)
    }

    /// The server that was the primary at the start.
    pub fn primary(&self) -> &Postgres {
        &self.primary
    }

    /// The first primary, to be killed, frozen and restarted as it was.
    pub fn primary_mut(&mut self) -> &mut Postgres {
        &mut self.primary
    }

    /// The server that was the standby at the start.
    pub fn standby(&self) -> &Postgres {
        &self.standby
    }

    /// The first standby, to be restarted.
    pub fn standby_mut(&mut self) -> &mut Postgres {
        &mut self.standby
    }

    /// The proxy between the primary and the standby.
    pub fn wire(&self) -> &Proxy {
        &self.wire
    }

    /// The URL at the one of the two that accepts writes, as the user `locker`.
    pub fn locker_url(&self, database: &str) -> String {
        let of_primary = self.primary.locker_url(database);
        let (user, _) = of_primary.rsplit_once('@').expect("a URL with a user");
        format!(
            "{user}@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=read-write",
            self.primary.port(),
            self.standby.port(),
            database_of(database)
        )
    }

    /// Waits until the standby has all that the primary has written.
    ///
    /// # Panics
    ///
    /// If it never does.
    pub fn catch_up(&self) {
        // Not the position of what is on disk: the commit of a release may get there half a second later.
        let primary = "SELECT pg_current_wal_insert_lsn()";
        let written = self.primary.query("postgres", primary).expect("it runs");
        let standby = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        assert!(
            time::wait_until(WITHIN, || {
                self.standby.query("postgres", &standby) == Ok("t".into())
            }),
            "the standby does not catch up"
        );
    }

    /// Cuts the standby off from later writes.
    pub fn part(&self) {
        self.wire.refuse(true);
        self.wire.cut();
    }

    /// Makes the standby a primary: it takes writes, with what has reached it, on a timeline of its
    /// own.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn promote(&self) {
        let promoted = self.standby.query("postgres", "SELECT pg_promote()");
        assert_eq!(
            promoted,
            Ok("t".into()),
            "{}",
            self.standby.server().log_tail()
        );
    }
}
