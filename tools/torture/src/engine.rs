//! The databases under test: a server, a cluster or a file, with the tables of the processes.

use std::path::PathBuf;
use std::time::Duration;

use testkit::cleanup::ScratchDir;
use testkit::galera::{Galera, NODES};
use testkit::{MariaDb, MySql, MySqlServer, Postgres, Proxy};

use crate::network::Network;

/// The kinds of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL, of the version that this machine has.
    Postgres,
    /// MariaDB.
    MariaDb,
    /// Oracle's MySQL.
    MySql,
    /// SQLite: one file for the locks, and one for the writes.
    Sqlite,
    /// Three nodes of MariaDB with Galera, one of whose clocks is five minutes ahead.
    Galera,
}

/// All engines.
pub const ENGINES: [Engine; 5] = [
    Engine::Postgres,
    Engine::MariaDb,
    Engine::MySql,
    Engine::Sqlite,
    Engine::Galera,
];

/// The node whose clock is wrong, and the seconds by which it is ahead.
const WRONG_CLOCK: (usize, i64) = (2, 300);

impl Engine {
    /// The engine of a name.
    pub fn of(word: &str) -> Option<Self> {
        ENGINES.into_iter().find(|engine| engine.as_str() == word)
    }

    /// Whether its tables can be guarded.
    pub fn has_guards(self) -> bool {
        self != Self::Sqlite
    }

    /// Its name, as in `ENGINE=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mariadb",
            Self::MySql => "mysql",
            Self::Sqlite => "sqlite",
            Self::Galera => "galera",
        }
    }
}

/// The database of one run.
#[derive(Debug)]
pub struct Database {
    engine: Engine,
    home: Home,
    /// The URL of the locks, without a proxy.
    pub url: String,
    /// The URL of the tables of writes, without a proxy.
    pub data: String,
}

#[derive(Debug)]
enum Home {
    Postgres(Postgres),
    /// MariaDB or MySQL.
    MySql(MySqlServer),
    Folder(ScratchDir),
    Galera(Galera),
}

impl Database {
    /// Starts the server. `None`, and a printed line, if this machine does not have it.
    ///
    /// `controls`: on SQLite the control clients write to the file of the locks, because a
    /// transaction locks only one file.
    ///
    /// # Panics
    ///
    /// As the servers of the test kit.
    pub fn start(engine: Engine, controls: bool) -> Option<Self> {
        let (home, url) = match engine {
            Engine::Postgres => {
                let server = Postgres::start()?;
                let url = server.fresh_database();
                (Home::Postgres(server), url)
            }
            Engine::MariaDb => {
                let server = MariaDb::start()?;
                let url = server.fresh_database();
                (Home::MySql(server), url)
            }
            Engine::MySql => {
                let server = MySql::start()?;
                let url = server.fresh_database();
                (Home::MySql(server), url)
            }
            Engine::Galera => {
                let (node, ahead) = WRONG_CLOCK;
                let cluster = Galera::options().clock(node, ahead).start()?;
                let url = cluster.fresh_database();
                (Home::Galera(cluster), url)
            }
            Engine::Sqlite => {
                let folder = ScratchDir::new("torture");
                let url = format!("sqlite://{}", folder.join("locks.sqlite3").display());
                (Home::Folder(folder), url)
            }
        };
        let data = match &home {
            Home::Folder(folder) if !controls => {
                format!("sqlite://{}", folder.join("data.sqlite3").display())
            }
            _ => url.clone(),
        };
        Some(Self {
            engine,
            home,
            url,
            data,
        })
    }

    /// Its engine.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The file of the locks; SQLite only.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.home {
            Home::Folder(folder) => Some(folder.join("locks.sqlite3")),
            _ => None,
        }
    }

    /// The network of one process, if there is a server. In a cluster it leads to two nodes; the
    /// processes are spread over the nodes.
    pub fn network(&self, process: usize) -> Option<Network> {
        match &self.home {
            Home::Folder(_) => None,
            Home::Galera(cluster) => {
                let nodes = [process % NODES, (process + 1) % NODES];
                let proxy = |node| Proxy::to_url(&cluster.url_at(node, &self.url));
                Some(Network::new(nodes.map(proxy).into()))
            }
            _ => Some(Network::new(vec![Proxy::to_url(&self.url)])),
        }
    }

    /// The URL of the locks, in a cluster at another node than that of the writes of a process.
    pub fn url_beside(&self, process: usize) -> String {
        match &self.home {
            Home::Galera(cluster) => cluster.url_at((process + 1) % NODES, &self.url),
            _ => self.url.clone(),
        }
    }

    /// Waits until all writes can be read.
    pub fn settle(&self) {
        if let Home::Galera(cluster) = &self.home {
            cluster.wait_until_healthy();
            // A node may still apply the latest writes of the others.
            testkit::time::sleep(Duration::from_secs(2));
        }
    }

    /// Kills a node, starts it again after a while, and waits until it serves.
    ///
    /// # Errors
    ///
    /// If the node did not run, or is the same process.
    pub fn kill_node(&mut self, node: usize, dead_for: Duration) -> Result<(), String> {
        let cluster = self.cluster()?;
        let before = cluster.node(node).server().pid();
        cluster.kill(node);
        testkit::time::sleep(dead_for);
        cluster.start_node(node);
        let after = cluster.node(node).server().pid();
        cluster.wait_until_healthy();
        match before.is_some() && before != after {
            true => Ok(()),
            false => Err("it is the same server".into()),
        }
    }

    /// Freezes a node, thaws it after a while, and waits until all serve.
    ///
    /// # Errors
    ///
    /// If there is no cluster.
    pub fn freeze_node(&mut self, node: usize, frozen_for: Duration) -> Result<(), String> {
        let cluster = self.cluster()?;
        cluster.freeze(node);
        testkit::time::sleep(frozen_for);
        cluster.thaw(node);
        cluster.wait_until_healthy();
        Ok(())
    }

    /// Cuts a node off from the others, until it has noticed and for a while longer.
    ///
    /// # Errors
    ///
    /// If there is no cluster.
    pub fn isolate_node(&mut self, node: usize, alone_for: Duration) -> Result<(), String> {
        let cluster = self.cluster()?;
        cluster.isolate(node);
        cluster.wait_until_cut_off(node);
        testkit::time::sleep(alone_for);
        cluster.rejoin(node);
        cluster.wait_until_healthy();
        Ok(())
    }

    /// Jumps the clock of the node whose clock is wrong.
    ///
    /// # Errors
    ///
    /// If there is no cluster.
    pub fn jump_node(&mut self) -> Result<(), String> {
        let (node, _) = WRONG_CLOCK;
        let cluster = self.cluster()?;
        let now = cluster.clock(node).ok_or("it does not tell the time")?;
        cluster.set_clock(node, if now > 0 { -300 } else { 300 });
        Ok(())
    }

    fn cluster(&mut self) -> Result<&mut Galera, String> {
        match &mut self.home {
            Home::Galera(cluster) => Ok(cluster),
            _ => Err("there is no cluster".into()),
        }
    }

    /// Stops the server and starts it again.
    pub fn restart(&mut self) {
        match &mut self.home {
            Home::Postgres(server) => server.restart(),
            Home::MySql(server) => server.restart(),
            Home::Folder(_) | Home::Galera(_) => {}
        }
    }

    /// Kills the server, and starts it again after a while.
    pub fn kill_and_restart(&mut self, dead_for: Duration) {
        match &mut self.home {
            Home::Postgres(server) => server.kill(),
            Home::MySql(server) => server.kill(),
            Home::Folder(_) | Home::Galera(_) => {}
        }
        testkit::time::sleep(dead_for);
        self.restart();
    }

    /// Freezes the server, and thaws it after a while.
    pub fn freeze(&mut self, frozen_for: Duration) {
        match &mut self.home {
            Home::Postgres(server) => server.freeze(),
            Home::MySql(server) => server.freeze(),
            Home::Folder(_) | Home::Galera(_) => {}
        }
        testkit::time::sleep(frozen_for);
        match &mut self.home {
            Home::Postgres(server) => server.thaw(),
            Home::MySql(server) => server.thaw(),
            Home::Folder(_) | Home::Galera(_) => {}
        }
    }

    /// The process id of the server.
    pub fn pid(&self) -> Option<u32> {
        match &self.home {
            Home::Postgres(server) => server.server().pid(),
            Home::MySql(server) => server.server().pid(),
            Home::Folder(_) | Home::Galera(_) => None,
        }
    }
}
