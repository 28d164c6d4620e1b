//! The databases that are tortured: a server, or a file, with the tables that the processes write to.

use std::path::PathBuf;
use std::time::Duration;

use testkit::galera::{Galera, NODES};
use testkit::tether::ScratchDir;
use testkit::{MariaDb, MySql, MySqlServer, Postgres, Proxy};

use crate::network::Network;
use crate::sql::Sql;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL, of the version that this machine has.
    Postgres,
    /// MariaDB.
    MariaDb,
    /// Oracle's MySQL.
    MySql,
    /// SQLite: a file for the locks, and one for what is written.
    Sqlite,
    /// Three nodes of MariaDB with Galera, one of whose clocks is five minutes ahead.
    Galera,
}

/// All of them.
pub const ENGINES: [Engine; 5] = [
    Engine::Postgres,
    Engine::MariaDb,
    Engine::MySql,
    Engine::Sqlite,
    Engine::Galera,
];

/// The node whose clock is wrong, and by how many seconds.
const WRONG_CLOCK: (usize, i64) = (2, 300);

impl Engine {
    /// By its word.
    pub fn of(word: &str) -> Option<Self> {
        ENGINES.into_iter().find(|engine| engine.as_str() == word)
    }

    /// As in `ENGINE=`.
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

/// A database of a run's own.
#[derive(Debug)]
pub struct Database {
    engine: Engine,
    home: Home,
    /// Where the locks are, without a proxy.
    pub url: String,
    /// Where the processes write, without a proxy.
    pub data: String,
}

#[derive(Debug)]
enum Home {
    Postgres(Postgres),
    /// Of either kind.
    MySql(MySqlServer),
    Folder(ScratchDir),
    Galera(Galera),
}

impl Database {
    /// Start the server, and make the tables. `None`, with a line that says so, where this machine has
    /// none.
    ///
    /// `controls`: the naive clients write to the file of the locks, since SQLite knows no lock of two.
    ///
    /// # Panics
    ///
    /// As the servers of testkit; and when the tables cannot be made.
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

    /// Which it is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The file of the locks, on SQLite.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.home {
            Home::Folder(folder) => Some(folder.join("locks.sqlite3")),
            _ => None,
        }
    }

    /// A network of one process's own, where there is a server; in a cluster it leads to two of the
    /// nodes, and the processes are spread over them.
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

    /// Wait until all that was written can be read.
    pub fn settle(&self) {
        if let Home::Galera(cluster) = &self.home {
            cluster.wait_until_healthy();
            // What a node was told last it may still be carrying out.
            testkit::time::sleep(Duration::from_secs(2));
        }
    }

    /// Kill a node, start it again after a while, and wait until it serves.
    ///
    /// # Errors
    ///
    /// When there was no such node, or it is the same process.
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

    /// Freeze a node, let it go on after a while, and wait until all serve.
    ///
    /// # Errors
    ///
    /// When there is no cluster.
    pub fn freeze_node(&mut self, node: usize, frozen_for: Duration) -> Result<(), String> {
        let cluster = self.cluster()?;
        cluster.freeze(node);
        testkit::time::sleep(frozen_for);
        cluster.thaw(node);
        cluster.wait_until_healthy();
        Ok(())
    }

    /// Cut a node off from the others, until it knows that it is and for a while longer.
    ///
    /// # Errors
    ///
    /// When there is no cluster.
    pub fn isolate_node(&mut self, node: usize, alone_for: Duration) -> Result<(), String> {
        let cluster = self.cluster()?;
        cluster.isolate(node);
        // It panics where that does not come.
        cluster.wait_until_cut_off(node);
        testkit::time::sleep(alone_for);
        cluster.rejoin(node);
        cluster.wait_until_healthy();
        Ok(())
    }

    /// Set the clock of the node that has one of its own.
    ///
    /// # Errors
    ///
    /// When there is no cluster.
    pub fn jump_node(&mut self) -> Result<(), String> {
        let (node, _) = WRONG_CLOCK;
        let cluster = self.cluster()?;
        let now = cluster.clock(node).ok_or("it does not tell the time")?;
        // It panics where the node does not go by it.
        cluster.set_clock(node, if now > 0 { -300 } else { 300 });
        Ok(())
    }

    fn cluster(&mut self) -> Result<&mut Galera, String> {
        match &mut self.home {
            Home::Galera(cluster) => Ok(cluster),
            _ => Err("there is no cluster".into()),
        }
    }

    /// Make the counters, and the table of what was committed in which order.
    ///
    /// # Errors
    ///
    /// What the database answered.
    pub async fn prepare(&self, locks: &[String]) -> Result<(), String> {
        let mut sql = Sql::connect(&self.data).await?;
        let statements = [
            // VARCHAR, and a name that is none of SQL's words, on every engine.
            "CREATE TABLE torture_counter (name varchar(50) PRIMARY KEY, value bigint NOT NULL, \
             writes bigint NOT NULL)",
            "CREATE TABLE torture_write (name varchar(50) NOT NULL, place bigint NOT NULL, \
             token bigint NOT NULL, write_id varchar(100) NOT NULL, PRIMARY KEY (name, place))",
        ];
        for statement in statements {
            sql.run(statement).await?;
        }
        for lock in locks {
            sql.run(&format!(
                "INSERT INTO torture_counter VALUES ('{lock}', 0, 0)"
            ))
            .await?;
        }
        Ok(())
    }

    /// Stop the server and start it again.
    pub fn restart(&mut self) {
        match &mut self.home {
            Home::Postgres(server) => server.restart(),
            Home::MySql(server) => server.restart(),
            Home::Folder(_) | Home::Galera(_) => {}
        }
    }

    /// Kill the server, leave it dead for a while, and start it again.
    pub fn kill_and_restart(&mut self, dead_for: Duration) {
        match &mut self.home {
            Home::Postgres(server) => server.kill(),
            Home::MySql(server) => server.kill(),
            Home::Folder(_) | Home::Galera(_) => {}
        }
        testkit::time::sleep(dead_for);
        self.restart();
    }

    /// Freeze the server, and let it go on after a while.
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

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        match &self.home {
            Home::Postgres(server) => server.server().pid(),
            Home::MySql(server) => server.server().pid(),
            Home::Folder(_) | Home::Galera(_) => None,
        }
    }
}
