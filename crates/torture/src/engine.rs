//! The databases that are tortured: a server, or a file, with the tables that the processes write to.

use std::path::PathBuf;
use std::time::Duration;

use testkit::tether::ScratchDir;
use testkit::{MariaDb, Postgres, Proxy};

use crate::store::Sql;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL, of the version that this machine has.
    Postgres,
    /// MariaDB.
    MariaDb,
    /// SQLite: a file for the locks, and one for what is written.
    Sqlite,
}

/// All of them.
pub const ENGINES: [Engine; 3] = [Engine::Postgres, Engine::MariaDb, Engine::Sqlite];

impl Engine {
    /// By its word.
    pub fn of(word: &str) -> Option<Self> {
        ENGINES.into_iter().find(|engine| engine.word() == word)
    }

    /// As in `ENGINE=`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mariadb",
            Self::Sqlite => "sqlite",
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
    MariaDb(MariaDb),
    Folder(ScratchDir),
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
                (Home::MariaDb(server), url)
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

    /// A proxy of one process's own, where there is a server.
    pub fn proxy(&self) -> Option<Proxy> {
        (self.engine != Engine::Sqlite).then(|| Proxy::to_url(&self.url))
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
            Home::MariaDb(server) => server.restart(),
            Home::Folder(_) => {}
        }
    }

    /// Kill the server, leave it dead for a while, and start it again.
    pub fn kill_and_restart(&mut self, dead_for: Duration) {
        match &mut self.home {
            Home::Postgres(server) => server.kill(),
            Home::MariaDb(server) => server.kill(),
            Home::Folder(_) => {}
        }
        testkit::time::sleep(dead_for);
        self.restart();
    }

    /// Freeze the server, and let it go on after a while.
    pub fn freeze(&mut self, frozen_for: Duration) {
        match &mut self.home {
            Home::Postgres(server) => server.freeze(),
            Home::MariaDb(server) => server.freeze(),
            Home::Folder(_) => {}
        }
        testkit::time::sleep(frozen_for);
        match &mut self.home {
            Home::Postgres(server) => server.thaw(),
            Home::MariaDb(server) => server.thaw(),
            Home::Folder(_) => {}
        }
    }

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        match &self.home {
            Home::Postgres(server) => server.server().pid(),
            Home::MariaDb(server) => server.server().pid(),
            Home::Folder(_) => None,
        }
    }
}
