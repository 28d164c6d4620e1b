//! Where the database and the password come from, and what CMD inherits of it.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::{DBLOCK, Finished, Sandbox};
use testkit::sql::LOCKER_PASSWORD;
use testkit::{MariaDb, Postgres, promise};

/// The URL without its password, and its user and host.
fn parts(url: &str) -> (String, String, String) {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (login, place) = rest.split_once('@').expect("a user");
    let user = login.split(':').next().unwrap_or_default();
    let host = place.split(['/', '?']).next().unwrap_or_default();
    let open = format!("{scheme}://{user}@{place}");
    (open, user.to_owned(), host.to_owned())
}

fn file(sandbox: &Sandbox, name: &str, text: &str) -> std::path::PathBuf {
    let path = sandbox.path(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A `dblock run` whose CMD prints its environment, with `url` and `set`, and the sandbox as HOME.
fn run_env(sandbox: &Sandbox, url: &str, set: &[(&str, &str)]) -> Finished {
    let mut command: Command = sandbox.dblock(["run", "-n", "job", "--", "env"]);
    command
        .env("HOME", sandbox.path(""))
        .env("DATABASE_LOCKS_URL", url);
    command.envs(set.iter().copied());
    sandbox.start(&mut command).end()
}

fn make_table(sandbox: &Sandbox, url: &str) {
    let made = sandbox.run(["--url", url, "init"]);
    assert_eq!(made.code(), 0, "{made:?}");
}

fn assert_connected(done: &Finished) {
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(!done.out.contains(LOCKER_PASSWORD), "{done:?}");
}

#[test]
fn a_password_is_read_from_where_psql_reads_it() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let sandbox = Sandbox::new();
    let with_password = server.locker_url(&server.fresh_database());
    make_table(&sandbox, &with_password);
    let (url, user, host) = parts(&with_password);
    let (name, port) = host.rsplit_once(':').expect("a port");
    let database = url.rsplit('/').next().unwrap_or_default();
    let none = run_env(&sandbox, &url, &[]);
    assert!(none.only_line(69).contains("PGPASSWORD"), "{none:?}");
    let by_variable = run_env(&sandbox, &url, &[("PGPASSWORD", LOCKER_PASSWORD)]);
    assert_eq!(by_variable.code(), 0, "{by_variable:?}");

    let escaped = LOCKER_PASSWORD.replace(':', "\\:");
    let line = format!("{name}:{port}:{database}:{user}:{escaped}\n");
    let path = file(&sandbox, ".pgpass", &line);
    assert_connected(&run_env(&sandbox, &url, &[]));
    // Other users can read it: libpq ignores such a file.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(run_env(&sandbox, &url, &[]).code(), 69);
    std::fs::remove_file(&path).unwrap();

    let service = format!(
        "[app]\nhost={name}\nport={port}\ndbname={database}\nuser={user}\npassword={LOCKER_PASSWORD}\n"
    );
    file(&sandbox, ".pg_service.conf", &service);
    assert_connected(&run_env(&sandbox, "postgres://?service=app", &[]));
    assert_connected(&run_env(&sandbox, "postgres://", &[("PGSERVICE", "app")]));
    let wrong = run_env(
        &sandbox,
        &url.replacen('@', ":wrong@", 1),
        &[("PGSERVICE", "app")],
    );
    assert!(
        wrong.only_line(69).contains("28P01"),
        "the URL takes precedence: {wrong:?}"
    );
    promise("P14", "postgres");
}

#[test]
fn a_password_is_read_from_where_the_mariadb_client_reads_it() {
    let Some(server) = MariaDb::shared() else {
        return;
    };
    let sandbox = Sandbox::new();
    let with_password = server.locker_url(&server.fresh_database());
    make_table(&sandbox, &with_password);
    let (url, user, host) = parts(&with_password);
    let (name, port) = host.rsplit_once(':').expect("a port");
    let none = run_env(&sandbox, &url, &[]);
    assert!(none.only_line(69).contains("1045"), "{none:?}");
    let by_variable = run_env(&sandbox, &url, &[("MYSQL_PWD", LOCKER_PASSWORD)]);
    assert_eq!(by_variable.code(), 0, "{by_variable:?}");
    let options = format!(
        "[client]\nhost={name}\nport={port}\nuser={user}\npassword=wrong\n\
         [dblock]\npassword=\"{LOCKER_PASSWORD}\"\n"
    );
    file(&sandbox, ".my.cnf", &options);
    assert_connected(&run_env(&sandbox, &url, &[]));
    let database = url.rsplit('/').next().unwrap_or_default();
    assert_connected(&run_env(&sandbox, &format!("mysql:///{database}"), &[]));
    let wrong = run_env(&sandbox, &url.replacen('@', ":wrong@", 1), &[]);
    assert!(
        wrong.only_line(69).contains("1045"),
        "the URL takes precedence: {wrong:?}"
    );
    promise("P14", "mariadb");
}

#[test]
fn a_url_is_read_from_a_file_and_not_passed_to_cmd() {
    let sandbox = Sandbox::new();
    let url = format!("SQLITE://{}", sandbox.path("a.sqlite3").display());
    let path = file(&sandbox, "url", &format!("\n{url}\r\n"));
    let path = path.display().to_string();
    let given = sandbox.run(["--url-file", &path, "run", "job", "--", "env"]);
    assert_eq!((given.code(), &*given.err), (0, ""), "{given:?}");
    assert!(!given.out.contains("a.sqlite3"), "{given:?}");
    assert!(sandbox.path("a.sqlite3").exists());
    let mut by_variable = sandbox.dblock(["show", "job"]);
    by_variable.env("DATABASE_LOCKS_URL_FILE", &path);
    assert_eq!(sandbox.start(&mut by_variable).end().code(), 0);
    let two = sandbox
        .start(by_variable.env("DATABASE_LOCKS_URL", &url))
        .end();
    assert!(two.only_line(2).contains("only one database"), "{two:?}");
    let both = sandbox.run(["--url-file", &path, "--url", &url, "list"]);
    assert_eq!(both.code(), 2, "{both:?}");

    let missing = sandbox.run(["--url-file", "/no/such/file", "list"]);
    let message = missing.only_line(2);
    assert!(
        message.contains("has a file that cannot be read: /no/such/file"),
        "{message}"
    );
    let secret = file(
        &sandbox,
        "two",
        "postgres://u:hunter2@h/d\npostgres://u:hunter2@h/e\n",
    );
    let lines = sandbox.run(["--url-file", &secret.display().to_string(), "list"]);
    let message = lines.only_line(2);
    assert!(
        message.contains("line break") && !message.contains("hunter2"),
        "{message}"
    );
    let endless = sandbox.run(["--url-file", "/dev/zero", "list"]);
    assert!(
        endless.only_line(2).contains("larger than 64 KiB"),
        "{endless:?}"
    );
    let empty = sandbox.run(["--url-file", "/dev/null", "list"]);
    assert!(empty.only_line(2).contains("is empty"), "{empty:?}");
}

#[test]
fn a_url_may_come_from_a_pipe_that_can_be_read_once() {
    let sandbox = Sandbox::new();
    let url = format!("sqlite://{}", sandbox.path("a.sqlite3").display());
    for (command, message) in [
        (
            "init",
            "tables `database_locks_lock` and `database_locks_permit` are ready in the database of /dev/fd/",
        ),
        ("run -n job -- echo done", "done"),
        ("show job", "job"),
    ] {
        let script = format!("{DBLOCK} --url-file <(echo '{url}') {command}");
        let done = sandbox
            .start(sandbox.command("bash").args(["-c", &script]))
            .end();
        assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
        assert!(done.out.contains(message), "{done:?}");
    }
}

#[test]
fn a_password_file_that_is_ignored_is_reported_once() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let sandbox = Sandbox::new();
    let with_password = server.locker_url(&server.fresh_database());
    let (url, _, _) = parts(&with_password);
    let path = file(&sandbox, "pass", &format!("*:*:*:*:{LOCKER_PASSWORD}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let place = path.display().to_string();
    let done = run_env(&sandbox, &url, &[("PGPASSFILE", &place)]);
    let lines: Vec<&str> = done.err.lines().collect();
    let [warning, refusal] = &*lines else {
        panic!("not two lines: {done:?}");
    };
    assert_eq!(done.code(), 69, "{done:?}");
    assert!(
        warning.contains(&format!("password file {place} is skipped")),
        "{done:?}"
    );
    assert!(refusal.contains("password"), "{done:?}");
}

#[test]
fn the_table_is_that_of_the_option_or_else_of_the_environment() {
    let sandbox = Sandbox::new();
    let run = |args: &[&str]| {
        let mut command = sandbox.dblock(args);
        sandbox
            .start(command.env("DATABASE_LOCKS_TABLE", "mine"))
            .end()
    };
    let made = run(&["init"]);
    assert!(
        made.out
            .starts_with("tables `mine` and `mine_permit` are ready"),
        "{made:?}"
    );
    let other = run(&["--table", "yours", "init"]);
    assert!(
        other
            .out
            .starts_with("tables `yours` and `yours_permit` are ready"),
        "{other:?}"
    );
    let empty = sandbox
        .dblock(["list"])
        .env("DATABASE_LOCKS_TABLE", "")
        .output()
        .unwrap();
    assert_eq!(empty.status.code(), Some(2), "{empty:?}");
}

#[test]
fn only_init_run_and_acquire_create_the_sqlite_file() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("typo.sqlite3");
    let url = format!("sqlite:{}", path.display());
    for args in [
        &["list"][..],
        &["show", "job"],
        &["doctor"],
        &["prune", "--older-than", "1d"],
        &["release", "job", "--force"],
    ] {
        let done = sandbox.run([&["--url", &url], args].concat());
        let message = done.only_line(69);
        assert!(
            message.contains("there is no file") && message.contains("dblock init"),
            "{message}"
        );
        assert!(!path.exists(), "{args:?}");
    }
    for args in [
        &["init"][..],
        &["acquire", "job"],
        &["run", "job", "--", "true"],
    ] {
        assert_eq!(
            sandbox.run([&["--url", &url], args].concat()).code(),
            0,
            "{args:?}"
        );
        assert!(path.exists(), "{args:?}");
        std::fs::remove_file(&path).unwrap();
    }
}
