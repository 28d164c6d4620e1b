//! `dblock guard`, `dblock unguard`, and `dblock run --pgoptions`, which opens the guard to every
//! program on libpq.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use testkit::{PgBouncer, Postgres, TestDb, promise, time};

use crate::support::{DBLOCK, Finished, Running, Sandbox, TIMEOUT};

/// A table `invoices` and the commands on its database.
struct Shop {
    sandbox: Sandbox,
    db: TestDb,
}

impl Shop {
    fn new(db: Option<TestDb>) -> Option<Self> {
        // The test kit has reported that this is skipped.
        let shop = Self {
            sandbox: Sandbox::new(),
            db: db?,
        };
        shop.ok(&["init"]);
        shop.db
            .sql("CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL)");
        shop.db.sql("INSERT INTO invoices VALUES (1, 10)");
        Some(shop)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.command(DBLOCK);
        command.args(args).env("DATABASE_LOCKS_URL", &self.db.url);
        command.env_remove("PGOPTIONS");
        command
    }

    fn start(&self, args: &[&str]) -> Running {
        self.sandbox.start(&mut self.command(args))
    }

    fn run(&self, args: &[&str]) -> Finished {
        self.start(args).end()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code(), 0, "{done:?}");
        done.out
    }

    fn total(&self) -> String {
        self.db.sql("SELECT sum(amount) FROM invoices")
    }

    /// A client that runs one statement, as words of a command.
    fn psql<'a>(&'a self, psql: &'a Path, sql: &'a str) -> [&'a str; 6] {
        let psql = psql.to_str().expect("text");
        [psql, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]
    }
}

fn psql() -> PathBuf {
    Postgres::shared().expect("a server").bin().join("psql")
}

fn tables_are_guarded_listed_and_unguarded(db: Option<TestDb>) {
    let Some(shop) = Shop::new(db) else { return };
    let engine = shop.db.engine;
    let done = shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    assert!(
        done.starts_with("table `invoices` is guarded by lock `ledger` in "),
        "{done}"
    );
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let mut session = shop.db.sql_session();
    let refused = session
        .run("UPDATE invoices SET amount = 1")
        .expect_err("it is refused")
        .to_string();
    assert!(
        refused.contains("table invoices is guarded by lock \"ledger\""),
        "{refused}"
    );

    assert_eq!(
        shop.ok(&["guard"]),
        "TABLE     GUARD   LOCK    PROBLEM\ninvoices  intact  ledger  -\n"
    );
    assert_eq!(
        shop.ok(&["guard", "--json"]),
        "[\n{\"table\":\"invoices\",\"lock\":\"ledger\",\"intact\":true,\"gaps\":[],\"bypasses\":[]}\n]\n"
    );
    let report = shop.run(&["doctor"]).out;
    assert!(
        report.contains("intact: invoices by the lock \"ledger\""),
        "{report}"
    );
    let other = shop.run(&["guard", "invoices", "--lock", "bank"]);
    assert!(
        other
            .only_line(69)
            .contains("guarded by the lock \"ledger\" already"),
        "{other:?}"
    );
    let missing = shop.run(&["guard", "no_such", "--lock", "ledger"]);
    assert!(
        missing.only_line(69).contains("there is no table no_such"),
        "{missing:?}"
    );

    let done = shop.ok(&["unguard", "invoices"]);
    assert!(
        done.starts_with("table `invoices` is not guarded any more"),
        "{done}"
    );
    let done = shop.ok(&["unguard", "invoices"]);
    assert!(done.starts_with("table `invoices` had no guard"), "{done}");
    session
        .run("UPDATE invoices SET amount = 1")
        .expect("it is not guarded");
    assert_eq!(shop.ok(&["guard", "--json"]), "[]\n");
    promise("P16", engine);
}

#[test]
fn tables_are_guarded_on_postgres() {
    tables_are_guarded_listed_and_unguarded(TestDb::postgres());
}

#[test]
fn tables_are_guarded_on_mariadb() {
    tables_are_guarded_listed_and_unguarded(TestDb::mariadb());
}

#[test]
fn tables_are_guarded_on_mysql() {
    tables_are_guarded_listed_and_unguarded(TestDb::mysql());
}

#[test]
fn an_sqlite_file_guards_no_tables_and_says_why() {
    let sandbox = Sandbox::new();
    let refused = sandbox.run(["guard", "invoices", "--lock", "ledger"]);
    let line = refused.only_line(69);
    assert!(
        line.contains("no trigger of a table can read them"),
        "{line}"
    );
    let refused = sandbox.run(["run", "--pgoptions", "ledger", "--", "touch", "ran"]);
    let line = refused.only_line(2);
    assert!(
        line.contains("--pgoptions is for locks in PostgreSQL, and these are in sqlite"),
        "{line}"
    );
    assert!(!sandbox.path("ran").exists());
    for usage in [
        &["guard", "invoices"][..],
        &["guard", "--lock", "x"],
        &["unguard"],
        &["guard", "--allow-cascades"],
    ] {
        assert_eq!(sandbox.run(usage).code(), 2, "{usage:?}");
    }
}

/// psql writes under the lock, and neither without it nor without the option.
#[test]
fn psql_writes_under_the_lock_without_a_changed_line() {
    let Some(shop) = Shop::new(TestDb::postgres()) else {
        return;
    };
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let psql = psql();
    let write = [
        &shop.psql(&psql, "UPDATE invoices SET amount = amount + 1")[..],
        &[&shop.db.url],
    ]
    .concat();
    let under =
        |options: &[&str]| shop.run(&[&["run"], options, &["ledger", "--"], &write].concat());
    let refused = under(&[]);
    assert!(
        refused
            .err
            .contains("is guarded by lock \"ledger\", held by"),
        "{refused:?}"
    );
    assert_eq!(shop.total(), "10");
    let done = under(&["--pgoptions"]);
    assert_eq!(done.code(), 0, "{done:?}");
    assert_eq!(shop.total(), "11");
    // Of another lock, and a permit of a semaphore, whose token no guard knows.
    let other = shop.run(&[&["run", "--pgoptions", "bank", "--"], &write[..]].concat());
    assert!(other.err.contains("is guarded by lock"), "{other:?}");
    let permit = under(&["--pgoptions", "--limit", "2"]);
    assert_eq!(permit.code(), 2, "{permit:?}");
    assert!(
        permit
            .err
            .contains("'--pgoptions' cannot be used with '--limit"),
        "{permit:?}"
    );
    // Several locks, nested runs, and a leader.
    let both = shop.run(&[&["run", "--pgoptions", "bank", "ledger", "--"], &write[..]].concat());
    assert_eq!(both.code(), 0, "{both:?}");
    let inner = [&[DBLOCK, "run", "--pgoptions", "bank", "--"], &write[..]].concat();
    let nested = shop.run(&[&["run", "--pgoptions", "ledger", "--"], &inner[..]].concat());
    assert_eq!(nested.code(), 0, "{nested:?}");
    assert_eq!(shop.total(), "13");
    promise("P16", "postgres");
}

/// The options that were there stay, with their quoting.
#[test]
fn what_stands_in_pgoptions_is_kept() {
    let Some(shop) = Shop::new(TestDb::postgres()) else {
        return;
    };
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let psql = psql();
    let show = "UPDATE invoices SET amount = amount; SHOW work_mem; SHOW my.text";
    let words = [
        &["run", "--pgoptions", "ledger", "--"],
        &shop.psql(&psql, show)[..],
        &[&shop.db.url],
    ];
    let mut command = shop.command(&words.concat());
    command.env("PGOPTIONS", "-c work_mem=77MB -c my.text=a\\ b\\\\c");
    let done = shop.sandbox.start(&mut command).end();
    assert_eq!(done.out, "77MB\na b\\c\n", "{done:?}");
}

/// A client of the database in a shell, which reads statements; it shows the grant first.
fn shell_client(db: &TestDb) -> (String, &'static str) {
    if !db.is_mysql_like() {
        // By PGOPTIONS.
        return (format!("{} -Xq '{}'", psql().display(), db.url), "");
    }
    let (_, at) = db.url.split_once('@').expect("a user");
    let (host, name) = at.split_once('/').expect("a database");
    let (host, port) = host.split_once(':').expect("a port");
    let client = format!("mariadb --no-defaults --skip-ssl -uroot -h{host} -P{port} {name}");
    (client, "SET @database_locks_ticket = '$DBLOCK_TICKET';")
}

/// Of nothing but the environment of `dblock run`, and not without that.
fn a_client_of_the_database_writes_under_the_lock(db: Option<TestDb>) {
    let Some(shop) = Shop::new(db) else { return };
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let (client, show) = shell_client(&shop.db);
    let write = "UPDATE invoices SET amount = amount + 1;";
    for (show, total) in [("", "10"), (show, "11")] {
        let script = format!("echo \"{show} {write}\" | {client}");
        let done = shop.run(&["run", "ledger", "--", "sh", "-c", &script]);
        let refused = done.err.contains("is guarded by lock");
        assert_eq!(refused, total == "10", "{done:?}");
        assert_eq!(shop.total(), total, "{done:?}");
    }
    promise("P16", shop.db.engine);
}

#[test]
fn a_client_of_mariadb_writes_under_the_lock() {
    a_client_of_the_database_writes_under_the_lock(TestDb::mariadb());
}

#[test]
fn a_client_of_mysql_writes_under_the_lock() {
    a_client_of_the_database_writes_under_the_lock(TestDb::mysql());
}

/// A holder that is frozen past its lease, and thawed: its late write is refused.
fn a_late_write_of_a_frozen_holder_is_refused(db: Option<TestDb>) {
    let Some(shop) = Shop::new(db) else { return };
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    // A connection that was opened in time, and its statement that comes late.
    let (client, show) = shell_client(&shop.db);
    let script = format!(
        "(echo \"{show}\"; touch begun; while [ ! -e go ]; do sleep 0.05; done; \
          echo 'UPDATE invoices SET amount = 1000;') \
         | {client} > late 2>&1"
    );
    let options = [
        "run",
        "--ttl",
        "6s",
        "--grace",
        "500ms",
        "--on-lost",
        "ignore",
    ];
    let pgoptions: &[&str] = match shop.db.is_mysql_like() {
        true => &[],
        false => &["--pgoptions"],
    };
    let words = ["ledger", "--", "sh", "-c", &script];
    let holder = shop.start(&[&options[..], pgoptions, &words].concat());
    shop.sandbox.wait_for("begun");
    holder.signal(Signal::STOP);
    let next = shop.run(&["run", "--wait", "30s", "ledger", "--", "true"]);
    assert_eq!(next.code(), 0, "{next:?}");
    let successor = shop.start(&[
        "run",
        "ledger",
        "--",
        "sh",
        "-c",
        "while [ ! -e done ]; do sleep 0.05; done",
    ]);
    assert!(time::wait_until(TIMEOUT, || {
        shop.run(&["show", "ledger", "--json"])
            .out
            .contains("\"state\":\"held\"")
    }));
    shop.sandbox.touch("go");
    let refused = || {
        let late = shop.sandbox.read("late");
        late.contains("is guarded by lock \"ledger\", ")
    };
    assert!(
        time::wait_until(TIMEOUT, refused),
        "{}",
        shop.sandbox.read("late")
    );
    holder.signal(Signal::CONT);
    shop.sandbox.touch("done");
    assert_eq!(successor.end().code(), 0);
    holder.end();
    assert_eq!(shop.total(), "10");
    promise("P16", shop.db.engine);
}

#[test]
fn a_late_write_of_a_frozen_holder_is_refused_on_postgres() {
    a_late_write_of_a_frozen_holder_is_refused(TestDb::postgres());
}

#[test]
fn a_late_write_of_a_frozen_holder_is_refused_on_mariadb() {
    a_late_write_of_a_frozen_holder_is_refused(TestDb::mariadb());
}

#[test]
fn a_late_write_of_a_frozen_holder_is_refused_on_mysql() {
    a_late_write_of_a_frozen_holder_is_refused(TestDb::mysql());
}

/// Its transaction stays open after its lease. The operator is told which session that is.
#[test]
fn a_frozen_holder_with_an_open_transaction_is_named_to_whom_it_keeps_out() {
    let Some(shop) = Shop::new(TestDb::postgres()) else {
        return;
    };
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let psql = psql();
    let script = format!(
        "(echo 'BEGIN; UPDATE invoices SET amount = 1000; SELECT pg_backend_pid();'; \
          while [ ! -e go ]; do sleep 0.05; done) | {} -XqAt '{}' > session",
        psql.display(),
        shop.db.url
    );
    let ttl = ["run", "--pgoptions", "--ttl", "6s", "--grace", "500ms"];
    let holder = shop.start(&[&ttl[..], &["ledger", "--", "sh", "-c", &script]].concat());
    let session = || shop.sandbox.read("session").trim().to_owned();
    shop.sandbox.wait_for("session");
    assert!(time::wait_until(TIMEOUT, || !session().is_empty()));
    holder.signal(Signal::STOP);
    assert!(time::wait_until(TIMEOUT, || {
        shop.run(&["show", "ledger"]).out.contains("expired")
    }));
    let named = |done: &Finished| {
        let line = done.only_line(75);
        let pid = format!("the session of pid {} (user postgres, psql", session());
        assert!(
            line.contains(&pid) && line.contains("in a transaction for "),
            "{line}"
        );
    };
    named(&shop.run(&["release", "ledger", "--force"]));
    named(&shop.run(&["run", "-n", "ledger", "--", "true"]));
    named(&shop.run(&["run", "--wait", "3s", "ledger", "--", "true"]));
    // A wait without end says so too, after ten seconds.
    let waiting = shop.start(&["run", "ledger", "--", "true"]);
    assert!(time::wait_until(TIMEOUT, || waiting
        .stderr()
        .contains("a transaction keeps its row locked")));
    shop.db
        .sql(&format!("SELECT pg_terminate_backend({})", session()));
    assert_eq!(waiting.end().code(), 0);
    shop.sandbox.touch("go");
    holder.signal(Signal::CONT);
    holder.end();
    assert_eq!(shop.total(), "10");
    promise("P16", "postgres");
}

/// A program in C that knows nothing of locks.
#[test]
fn a_program_in_another_language_writes_under_the_lock() {
    const PROGRAM: &str = r#"
#include <stdio.h>
#include <libpq-fe.h>
int main(int argc, char **argv) {
    PGconn *c = PQconnectdb(argv[1]);
    PGresult *r = PQexec(c, "INSERT INTO invoices VALUES (2, 5)");
    if (PQresultStatus(r) == PGRES_COMMAND_OK) return 0;
    fprintf(stderr, "%s %s", PQresultErrorField(r, PG_DIAG_SQLSTATE), PQerrorMessage(c));
    return 1;
}
"#;
    let Some(shop) = Shop::new(TestDb::postgres()) else {
        return;
    };
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let (source, program) = (shop.sandbox.path("p.c"), shop.sandbox.path("p"));
    std::fs::write(&source, PROGRAM).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-I/usr/include/postgresql", "-o"])
        .arg(&program)
        .arg(&source)
        .arg("-lpq");
    if !compiler.output().is_ok_and(|made| made.status.success()) {
        testkit::require("libpq", "cc with libpq", None::<()>);
        return;
    }
    let program = program.to_str().unwrap();
    let refused = shop.run(&["run", "ledger", "--", program, &shop.db.url]);
    assert!(refused.err.starts_with("DL001 "), "{refused:?}");
    let done = shop.run(&["run", "--pgoptions", "ledger", "--", program, &shop.db.url]);
    assert_eq!(done.code(), 0, "{done:?}");
    assert_eq!(shop.total(), "15");
}

/// pg_restore of the data alone.
#[test]
fn pg_restore_writes_under_the_lock() {
    let Some(shop) = Shop::new(TestDb::postgres()) else {
        return;
    };
    let bin = Postgres::shared().unwrap().bin();
    let (dump, restore) = (bin.join("pg_dump"), bin.join("pg_restore"));
    let file = shop.sandbox.path("dump").display().to_string();
    let mut dump = Command::new(dump);
    dump.args(["-Fc", "-t", "invoices", "-f", &file, "-d", &shop.db.url]);
    assert!(dump.status().unwrap().success());
    shop.db.sql("DELETE FROM invoices");
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let restore = restore.display().to_string();
    let words = [
        "ledger",
        "--",
        &restore,
        "--data-only",
        "-d",
        &shop.db.url,
        &file,
    ];
    let refused = shop.run(&[&["run"], &words[..]].concat());
    assert!(refused.err.contains("is guarded by lock"), "{refused:?}");
    let done = shop.run(&[&["run", "--pgoptions"], &words[..]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
    assert_eq!(shop.total(), "10");
}

/// The first lines of the page, as a new user types them.
#[test]
fn the_lines_to_try_on_the_page_do_what_they_say() {
    const PAGE: &str = include_str!("../../../../docs/guarded-tables.md");
    let Some(db) = TestDb::postgres() else {
        return;
    };
    let (_, script) = PAGE
        .split_once("<!-- A test runs these. -->\n```sh\n")
        .expect("the mark");
    let (script, _) = script.split_once("```").expect("its end");
    let script = script.replace("postgres://postgres@localhost/app", &db.url);
    let sandbox = Sandbox::new();
    let mut shell = sandbox.command("bash");
    let bin = Postgres::shared().unwrap().bin().display();
    let dblock = Path::new(DBLOCK).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap_or_default();
    shell
        .args(["-xc", &script])
        .env("PATH", format!("{bin}:{dblock}:{path}"));
    let done = sandbox.start(&mut shell).end();
    assert_eq!(done.code(), 0, "{done:?}");
    let refusal = "ERROR:  table invoices is guarded by lock \"ledger\", which is free";
    assert_eq!(done.err.matches(refusal).count(), 1, "{done:?}");
    assert_eq!(done.out.matches("INSERT 0 1").count(), 1, "{done:?}");
    assert!(
        done.out.contains("intact: invoices by the lock \"ledger\""),
        "{done:?}"
    );
    assert!(done.out.contains("is not guarded any more"), "{done:?}");
}

/// A pooler refuses the options or drops them. In neither case is the table written to.
#[test]
fn behind_a_pooler_the_write_is_refused() {
    let Some(shop) = Shop::new(TestDb::postgres()) else {
        return;
    };
    let Some(strict) = PgBouncer::shared() else {
        return;
    };
    let server = Postgres::shared().unwrap();
    let lenient = PgBouncer::start(server, &["ignore_startup_parameters = options"]).unwrap();
    shop.ok(&["guard", "invoices", "--lock", "ledger"]);
    let psql = psql();
    let sql = "UPDATE invoices SET amount = 0";
    for (pooler, answer) in [
        (strict, "unsupported startup parameter"),
        (&lenient, "is guarded by lock"),
    ] {
        let url = pooler.url(&shop.db.url);
        let words = [
            &["run", "--pgoptions", "ledger", "--"],
            &shop.psql(&psql, sql)[..],
            &[&*url],
        ];
        let refused = shop.run(&words.concat());
        assert!(refused.err.contains(answer), "{refused:?}");
    }
    // There the transaction shows the grant itself.
    let url = strict.url(&shop.db.url);
    let script = format!(
        "{} -Xq -v ON_ERROR_STOP=1 -v grant=\"$DBLOCK_GRANT\" '{url}' <<'SQL'\n\
         BEGIN; SELECT set_config('database_locks.ticket', :'grant', true) \\g /dev/null\n\
         UPDATE invoices SET amount = 12; COMMIT;\nSQL",
        psql.display()
    );
    let done = shop.run(&["run", "ledger", "--", "sh", "-c", &script]);
    assert_eq!(done.code(), 0, "{done:?}");
    assert_eq!(shop.total(), "12");
    promise("P16", "pgbouncer");
}
