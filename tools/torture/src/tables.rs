//! The tables of a run: made before it, and read after it.

use std::collections::BTreeMap;

use database_locks::Locks;

use crate::check::{GuardedRow, Row};
use crate::engine::{Database, Engine};
use crate::sql::Sql;
use crate::target::{Kind, Target};
use crate::worker::Client;

/// The guarded table. It is only added to, and nothing but its guard keeps two writers apart: a row
/// that both change would, on a cluster.
pub const GUARDED: &str = "torture_guarded";

/// Makes the tables and the guard.
///
/// # Panics
///
/// If they cannot be made.
pub async fn prepare(database: &Database, targets: &[Target], client: Client) {
    let all = Locks::connect(&database.url).await.expect("it was started");
    all.migrate().await.expect("the table can be made");
    make(database, targets)
        .await
        .expect("the tables can be made");
    for target in targets.iter().filter(|t| t.kind == Kind::Guarded) {
        if client != Client::Unguarded {
            let guarded = all.guard_table(GUARDED, &target.name).await;
            guarded.expect("the table can be guarded");
        }
    }
    if !client.is_library() {
        let mut sql = Sql::connect(&database.url).await.expect("it was started");
        for row in targets.iter().flat_map(rows_of) {
            sql.run(&row).await.expect("the table was made");
        }
    } else if targets.iter().any(|t| t.kind == Kind::Shared) {
        slow_readers(database).await.expect("a trigger can be made");
    }
    if let Some(data) = database.data.strip_prefix("sqlite://") {
        // In WAL mode a writer delays the others less.
        let file = rusqlite::Connection::open(data).expect("it was made");
        file.pragma_update(None, "journal_mode", "wal")
            .expect("WAL");
    }
}

/// Makes the counters, and the tables that record the writes.
async fn make(database: &Database, targets: &[Target]) -> Result<(), String> {
    let mut sql = Sql::connect(&database.data).await?;
    let statements = [
        // Types and names that every engine accepts.
        "CREATE TABLE torture_counter (name varchar(50) PRIMARY KEY, value bigint NOT NULL, \
         writes bigint NOT NULL)",
        "CREATE TABLE torture_write (name varchar(50) NOT NULL, place bigint NOT NULL, \
         token bigint NOT NULL, write_id varchar(100) NOT NULL, PRIMARY KEY (name, place))",
        "CREATE TABLE torture_guarded (write_id varchar(100) PRIMARY KEY, token bigint NOT NULL, \
         older bigint)",
    ];
    for statement in statements {
        sql.run(statement).await?;
    }
    for resource in targets.iter().flat_map(Target::resources) {
        sql.run(&format!(
            "INSERT INTO torture_counter VALUES ('{resource}', 0, 0)"
        ))
        .await?;
    }
    Ok(())
}

/// Has some inserts of a reader's row pause after they have read the lock's row, for a fifth of a
/// lease at most: a writer may come and go in between. On SQLite none can.
async fn slow_readers(database: &Database) -> Result<(), String> {
    let statements: &[&str] = match database.engine() {
        Engine::Sqlite => &[],
        Engine::Postgres => &[
            "CREATE FUNCTION torture_pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF random() < 0.3 THEN PERFORM pg_sleep(0.3 * random()); END IF; \
             RETURN NEW; END $$",
            "CREATE TRIGGER torture_pause BEFORE INSERT ON database_locks_permit \
             FOR EACH ROW WHEN (NEW.slot <= -2) EXECUTE FUNCTION torture_pause()",
        ],
        Engine::MariaDb | Engine::MySql | Engine::Galera => &[
            "CREATE TRIGGER torture_pause BEFORE INSERT ON database_locks_permit \
               FOR EACH ROW BEGIN IF NEW.slot <= -2 AND RAND() < 0.3 THEN \
               DO SLEEP(0.3 * RAND()); END IF; END",
        ],
    };
    let mut sql = Sql::connect(&database.url).await?;
    for statement in statements {
        sql.run(statement).await?;
    }
    Ok(())
}

/// The statements that make the rows of a target: the controls make none.
fn rows_of(target: &Target) -> Vec<String> {
    let name = &target.name;
    match target.kind {
        Kind::Semaphore(permits) => (0..permits)
            .map(|slot| {
                format!("INSERT INTO database_locks_permit (name, slot) VALUES ('{name}', {slot})")
            })
            .collect(),
        Kind::Lock | Kind::Shared | Kind::Guarded => {
            vec![format!(
                "INSERT INTO database_locks_lock (name) VALUES ('{name}')"
            )]
        }
    }
}

/// What the writes of a run left behind.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// The writes in fenced transactions, in their order.
    pub rows: Vec<Row>,
    /// The writes to the guarded table.
    pub guarded: Vec<GuardedRow>,
    /// The counters.
    pub counters: BTreeMap<String, i64>,
}

/// Reads it.
///
/// # Errors
///
/// The error of the database.
pub async fn left_behind(data: &str) -> Result<Left, String> {
    let mut sql = Sql::connect(data).await?;
    let number = |text: &String| text.parse().map_err(|_| format!("no number: {text}"));
    let rows = sql
        .run("SELECT name, place, token, write_id FROM torture_write ORDER BY name, place")
        .await?;
    let row = |row: &Vec<String>| {
        Ok::<_, String>(Row {
            lock: row[0].clone(),
            place: number(&row[1])?,
            token: number(&row[2])?,
            id: row[3].clone(),
        })
    };
    let guarded = sql
        .run("SELECT write_id, token, older FROM torture_guarded ORDER BY token, write_id")
        .await?;
    let guarded_row = |row: &Vec<String>| {
        Ok::<_, String>(GuardedRow {
            id: row[0].clone(),
            token: number(&row[1])?,
            older: number(&row[2])?,
        })
    };
    let counters = sql.run("SELECT name, value FROM torture_counter").await?;
    let counter = |row: &Vec<String>| Ok::<_, String>((row[0].clone(), number(&row[1])?));
    Ok(Left {
        rows: rows.rows.iter().map(row).collect::<Result<_, _>>()?,
        guarded: guarded
            .rows
            .iter()
            .map(guarded_row)
            .collect::<Result<_, _>>()?,
        counters: counters
            .rows
            .iter()
            .map(counter)
            .collect::<Result<_, _>>()?,
    })
}
