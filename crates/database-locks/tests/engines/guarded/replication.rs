//! Replication into a guarded table: what is applied has been checked where it was written.

use std::time::Duration;

use database_locks::{LockGuard, Locks};
use testkit::time::wait_until;
use testkit::{MariaDb, MySql, MySqlServer, Postgres};

use super::{TIMEOUT, ledger};

const WITHIN: Duration = Duration::from_secs(60);

const TABLES: [&str; 2] = [
    "CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL)",
    "CREATE TABLE source (id int PRIMARY KEY, amount int NOT NULL)",
];

type Run<'a> = Box<dyn Fn(&str) -> Result<String, String> + 'a>;

/// A server with a database of which `invoices` is guarded.
struct Side<'a> {
    run: Run<'a>,
    /// What shows a ticket to one transaction, and what ends it.
    show: fn(&str, &str) -> String,
}

impl<'a> Side<'a> {
    fn of_postgres(server: &'a Postgres, url: &'a str) -> Self {
        Self {
            run: Box::new(move |sql| server.query(url, sql).map_err(|error| error.to_string())),
            show: |ticket, sql| {
                format!(
                    "BEGIN; SELECT set_config('database_locks.ticket', '{ticket}', true) \
                     \\g /dev/null\n{sql}; COMMIT"
                )
            },
        }
    }

    fn of_mysql(server: &'a MySqlServer, url: &'a str) -> Self {
        Self {
            run: Box::new(move |sql| server.query(url, sql).map_err(|error| error.to_string())),
            show: |ticket, sql| {
                format!("SET @database_locks_ticket = '{ticket}'; BEGIN; {sql}; COMMIT")
            },
        }
    }

    #[track_caller]
    fn sql(&self, sql: &str) -> String {
        (self.run)(sql).expect(sql)
    }

    #[track_caller]
    fn write(&self, guard: &LockGuard, sql: &str) {
        self.sql(&(self.show)(&guard.ticket().to_string(), sql));
    }

    #[track_caller]
    fn is_refused(&self, sql: &str) {
        let refused = (self.run)(sql).expect_err(sql);
        assert!(refused.contains("is guarded by lock"), "{sql}: {refused}");
    }

    fn rows(&self, table: &str) -> Result<String, String> {
        (self.run)(&format!("SELECT * FROM {table} ORDER BY 1, 2"))
    }

    /// Waits until the other side has the same rows.
    #[track_caller]
    fn reaches(&self, other: &Self, table: &str, state: &dyn Fn() -> String) {
        let rows = self.rows(table).unwrap();
        assert!(
            wait_until(WITHIN, || other.rows(table).as_ref() == Ok(&rows)),
            "{table}: {rows:?} is not {:?}: {}",
            other.rows(table),
            state()
        );
    }
}

/// Each kind of write by the holder of the lock. The replica has what the primary has after each.
fn is_applied(
    primary: &Side<'_>,
    replica: &Side<'_>,
    guard: &LockGuard,
    state: &dyn Fn() -> String,
) {
    for write in [
        "INSERT INTO invoices VALUES (3, 30), (4, 40)",
        "UPDATE invoices SET amount = amount + 1 WHERE id > 1",
        "DELETE FROM invoices WHERE id = 3",
        "INSERT INTO invoices SELECT id + 10, amount FROM source",
    ] {
        primary.is_refused(write);
        primary.write(guard, write);
        primary.reaches(replica, "invoices", state);
        replica.is_refused("UPDATE invoices SET amount = 0");
    }
}

mod on_postgres {
    use super::*;

    const PARTS: &str = "CREATE TABLE events (id int, part int, PRIMARY KEY (id, part)) \
                         PARTITION BY LIST (part); \
                         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)";

    /// Guards both tables; the partition 2 is added later, and has the row trigger alone.
    async fn guarded(server: &Postgres, url: &str) -> Locks {
        let locks = Locks::connect(url).await.unwrap();
        locks.migrate().await.unwrap();
        for table in TABLES.iter().chain([&PARTS]) {
            server.query(url, table).unwrap();
        }
        locks.guard_table("invoices", "ledger").await.unwrap();
        locks.guard_table("events", "ledger").await.unwrap();
        let later = "CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2)";
        server.query(url, later).unwrap();
        locks
    }

    /// Both sides are guarded, each by its own locks. The first copy of the tables, rows, and
    /// TRUNCATE are applied; other clients of the subscriber are refused.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "make prove"]
    async fn logical_replication_applies_to_a_guarded_table() {
        let options = Postgres::options().set("wal_level=logical");
        let (Some(publisher), Some(subscriber)) = (options.start(), Postgres::start()) else {
            return;
        };
        let (from, to) = (publisher.fresh_database(), subscriber.fresh_database());
        let locks = guarded(&publisher, &from).await;
        let theirs = guarded(&subscriber, &to).await;
        let primary = Side::of_postgres(&publisher, &from);
        let replica = Side::of_postgres(&subscriber, &to);
        let guard = ledger(&locks).await;
        primary.sql("INSERT INTO source VALUES (1, 1), (2, 2)");
        primary.write(&guard, "INSERT INTO invoices VALUES (1, 10), (2, 20)");
        primary.write(&guard, "INSERT INTO events VALUES (1, 1), (2, 2)");
        // Where the server knows it, by way of the root.
        let version: u32 = primary.sql("SHOW server_version_num").parse().unwrap();
        let via_root = match version >= 130_000 {
            true => "events",
            false => "events_1, events_2",
        };
        primary.sql(&format!(
            "CREATE PUBLICATION p FOR TABLE invoices, source, {via_root}"
        ));
        let database = from.rsplit('/').next().unwrap();
        replica.sql(&format!(
            "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres \
             dbname={database}' PUBLICATION p",
            publisher.port()
        ));
        let state = || subscriber.server().log_tail();
        for table in ["source", "invoices", "events"] {
            primary.reaches(&replica, table, &state);
        }
        is_applied(&primary, &replica, &guard, &state);
        for (table, write) in [
            ("events", "INSERT INTO events VALUES (3, 1), (4, 2)"),
            ("events", "UPDATE events SET id = id + 10"),
            ("events", "TRUNCATE events_2"),
            ("events", "TRUNCATE events"),
            ("invoices", "TRUNCATE invoices"),
        ] {
            primary.write(&guard, write);
            primary.reaches(&replica, table, &state);
        }
        // The grant of the publisher opens nothing here, where its lock is another one.
        let ticket = guard.ticket().to_string();
        let write = "INSERT INTO invoices VALUES (7, 7)";
        replica.is_refused(&(replica.show)(&ticket, write));
        let here = ledger(&theirs).await;
        replica.write(&here, write);
        replica.sql("DROP SUBSCRIPTION s");
    }
}

mod on_mysql {
    use super::*;
    use testkit::mysql::Options;

    /// What one server calls otherwise than the other.
    struct Words {
        follow: fn(u16) -> String,
        start: &'static str,
        state: &'static str,
    }

    const MARIADB: Words = Words {
        follow: |port| {
            format!(
                "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, \
                 MASTER_USER = 'root'"
            )
        },
        start: "START SLAVE",
        state: "SHOW SLAVE STATUS",
    };
    const MYSQL: Words = Words {
        follow: |port| {
            format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, \
                 SOURCE_USER = 'root', SOURCE_SSL = 0"
            )
        },
        start: "START REPLICA",
        state: "SHOW REPLICA STATUS",
    };

    fn options(options: Options, id: u8, format: &str) -> Options {
        options
            .set("log-bin=binlog")
            .set("relay-log=relay")
            .set(&format!("server-id={id}"))
            .set(&format!("binlog-format={format}"))
    }

    /// The variables that statements in the binary log come with.
    fn shown_in_the_log(server: &MySqlServer, url: &str) -> usize {
        let logs = server.query(url, "SHOW BINARY LOGS").unwrap();
        let mut shown = 0;
        for log in logs.lines() {
            let log = log.split('\t').next().unwrap();
            let events = server.query(url, &format!("SHOW BINLOG EVENTS IN '{log}'"));
            shown += events.unwrap().matches("@`database_locks_ticket`").count();
        }
        shown
    }

    /// The replica has all from the binary log: tables, triggers, and the rows of the locks.
    async fn a_replica_applies(new: fn() -> Options, words: Words, format: &str) -> Option<usize> {
        let primary = options(new(), 1, format).start()?;
        let replica = options(new(), 2, format).start()?;
        let url = primary.fresh_database();
        let database = url.rsplit('/').next().unwrap();
        let (here, there) = (
            Side::of_mysql(&primary, &url),
            Side::of_mysql(&replica, database),
        );
        let admin = Side::of_mysql(&replica, "mysql");
        admin.sql(&(words.follow)(primary.port()));
        admin.sql(words.start);
        let state = || admin.sql(words.state) + &replica.server().log_tail();

        let locks = Locks::connect(&url).await.unwrap();
        locks.migrate().await.unwrap();
        TABLES.iter().for_each(|table| drop(here.sql(table)));
        locks.guard_table("invoices", "ledger").await.unwrap();
        here.sql("INSERT INTO source VALUES (1, 1), (2, 2)");
        here.reaches(&there, "source", &state);
        // Several grants, and renewals in between.
        for _ in 0..3 {
            let guard = ledger(&locks).await;
            here.write(&guard, "INSERT INTO invoices VALUES (1, 10), (2, 20)");
            guard.extend(TIMEOUT).await.unwrap();
            is_applied(&here, &there, &guard, &state);
            here.write(&guard, "DELETE FROM invoices");
            here.reaches(&there, "invoices", &state);
            guard.release().await.unwrap();
        }
        let guard = ledger(&locks).await;
        here.write(&guard, "INSERT INTO invoices VALUES (1, 10)");
        here.reaches(&there, "invoices", &state);
        here.sql("TRUNCATE invoices");
        here.reaches(&there, "invoices", &state);
        let locks_table = "database_locks_lock";
        here.reaches(&there, locks_table, &state);
        // A replica that becomes the primary: the grant is there, and the guard.
        let write = "INSERT INTO invoices VALUES (7, 7)";
        there.is_refused(write);
        there.write(&guard, write);
        // Rows are applied whatever the replica knows of the lock. Of a statement it fires the triggers.
        there.sql("UPDATE database_locks_lock SET grant_id = NULL");
        here.write(&guard, "INSERT INTO invoices VALUES (8, 8)");
        if format == "ROW" {
            let applied = || there.sql("SELECT COUNT(*) FROM invoices WHERE id = 8") == "1";
            assert!(wait_until(WITHIN, applied), "{}", state());
        } else {
            let stopped = || admin.sql(words.state).contains("\t1644\t");
            assert!(wait_until(WITHIN, stopped), "{}", state());
        }
        Some(shown_in_the_log(&primary, &url))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "make prove"]
    async fn a_replica_of_mariadb_applies_rows_to_a_guarded_table() {
        let shown = a_replica_applies(MariaDb::options, MARIADB, "ROW").await;
        assert_eq!(shown.unwrap_or(0), 0);
    }

    /// As documented, the ticket stands in the log.
    fn is_in_the_log(shown: Option<usize>) {
        assert!(shown.is_none_or(|shown| shown > 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "make prove"]
    async fn a_replica_of_mariadb_applies_a_mixed_log_to_a_guarded_table() {
        is_in_the_log(a_replica_applies(MariaDb::options, MARIADB, "MIXED").await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "make prove"]
    async fn a_replica_of_mysql_applies_rows_to_a_guarded_table() {
        let shown = a_replica_applies(MySql::options, MYSQL, "ROW").await;
        assert_eq!(shown.unwrap_or(0), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "make prove"]
    async fn a_replica_of_mysql_applies_a_mixed_log_to_a_guarded_table() {
        is_in_the_log(a_replica_applies(MySql::options, MYSQL, "MIXED").await);
    }
}
