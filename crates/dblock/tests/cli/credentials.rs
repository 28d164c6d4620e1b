//! Where the database and the password come from, and what CMD gets of it.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::{DBLOCK, Done, Lab};
use testkit::sql::LOCKER_PASSWORD;
use testkit::{MariaDb, Postgres, promise};

/// The URL without its password; user, password and place of it.
fn parts(url: &str) -> (String, String, String) {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (login, place) = rest.split_once('@').expect("a user");
    let user = login.split(':').next().unwrap_or_default();
    let host = place.split(['/', '?']).next().unwrap_or_default();
    let open = format!("{scheme}://{user}@{place}");
    (open, user.to_owned(), host.to_owned())
}

fn file(lab: &Lab, name: &str, text: &str) -> std::path::PathBuf {
    let path = lab.path(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// `dblock run`, whose CMD tells its whole environment, with a home folder that has nothing else.
fn runs(lab: &Lab, url: &str, set: &[(&str, &str)]) -> Done {
    let mut command: Command = lab.dblock(["run", "-n", "job", "--", "env"]);
    command
        .env("HOME", lab.path(""))
        .env("DATABASE_LOCKS_URL", url);
    command.envs(set.iter().copied());
    lab.start(&mut command).end()
}

fn make_table(lab: &Lab, url: &str) {
    let made = lab.run(["--url", url, "init"]);
    assert_eq!(made.code(), 0, "{made:?}");
}

fn let_in(done: &Done) {
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(!done.out.contains(LOCKER_PASSWORD), "{done:?}");
}

#[test]
fn a_password_comes_from_where_the_clients_of_postgres_look() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let lab = Lab::new();
    let with_password = server.locker_url(&server.fresh_database());
    make_table(&lab, &with_password);
    let (url, user, host) = parts(&with_password);
    let (name, port) = host.rsplit_once(':').expect("a port");
    let database = url.rsplit('/').next().unwrap_or_default();
    let none = runs(&lab, &url, &[]);
    assert!(none.refused(69).contains("PGPASSWORD"), "{none:?}");
    let by_variable = runs(&lab, &url, &[("PGPASSWORD", LOCKER_PASSWORD)]);
    assert_eq!(by_variable.code(), 0, "{by_variable:?}");

    let escaped = LOCKER_PASSWORD.replace(':', "\\:");
    let line = format!("{name}:{port}:{database}:{user}:{escaped}\n");
    let path = file(&lab, ".pgpass", &line);
    let_in(&runs(&lab, &url, &[]));
    // Others can read it: as libpq has it, it is no secret then.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(runs(&lab, &url, &[]).code(), 69);
    std::fs::remove_file(&path).unwrap();

    let service = format!(
        "[app]\nhost={name}\nport={port}\ndbname={database}\nuser={user}\npassword={LOCKER_PASSWORD}\n"
    );
    file(&lab, ".pg_service.conf", &service);
    let_in(&runs(&lab, "postgres://?service=app", &[]));
    let_in(&runs(&lab, "postgres://", &[("PGSERVICE", "app")]));
    let wrong = runs(
        &lab,
        &url.replacen('@', ":wrong@", 1),
        &[("PGSERVICE", "app")],
    );
    assert!(
        wrong.refused(69).contains("28P01"),
        "what the URL says wins: {wrong:?}"
    );
    promise("P14", "postgres");
}

#[test]
fn a_password_comes_from_where_the_clients_of_mariadb_look() {
    let Some(server) = MariaDb::shared() else {
        return;
    };
    let lab = Lab::new();
    let with_password = server.locker_url(&server.fresh_database());
    make_table(&lab, &with_password);
    let (url, user, host) = parts(&with_password);
    let (name, port) = host.rsplit_once(':').expect("a port");
    let none = runs(&lab, &url, &[]);
    assert!(none.refused(69).contains("1045"), "{none:?}");
    let by_variable = runs(&lab, &url, &[("MYSQL_PWD", LOCKER_PASSWORD)]);
    assert_eq!(by_variable.code(), 0, "{by_variable:?}");
    let options = format!(
        "[client]\nhost={name}\nport={port}\nuser={user}\npassword=wrong\n\
         [dblock]\npassword=\"{LOCKER_PASSWORD}\"\n"
    );
    file(&lab, ".my.cnf", &options);
    let_in(&runs(&lab, &url, &[]));
    let database = url.rsplit('/').next().unwrap_or_default();
    let_in(&runs(&lab, &format!("mysql:///{database}"), &[]));
    let wrong = runs(&lab, &url.replacen('@', ":wrong@", 1), &[]);
    assert!(
        wrong.refused(69).contains("1045"),
        "what the URL says wins: {wrong:?}"
    );
    promise("P14", "mariadb");
}

#[test]
fn a_url_stands_in_a_file_which_cmd_does_not_get() {
    let lab = Lab::new();
    let url = format!("SQLITE://{}", lab.path("a.sqlite3").display());
    let path = file(&lab, "url", &format!("\n{url}\r\n"));
    let path = path.display().to_string();
    let given = lab.run(["--url-file", &path, "run", "job", "--", "env"]);
    assert_eq!((given.code(), &*given.err), (0, ""), "{given:?}");
    assert!(!given.out.contains("a.sqlite3"), "{given:?}");
    assert!(lab.path("a.sqlite3").exists());
    let mut by_variable = lab.dblock(["show", "job"]);
    by_variable.env("DATABASE_LOCKS_URL_FILE", &path);
    assert_eq!(lab.start(&mut by_variable).end().code(), 0);
    let two = lab.start(by_variable.env("DATABASE_LOCKS_URL", &url)).end();
    assert!(two.refused(2).contains("two databases"), "{two:?}");
    let both = lab.run(["--url-file", &path, "--url", &url, "list"]);
    assert_eq!(both.code(), 2, "{both:?}");

    let missing = lab.run(["--url-file", "/no/such/file", "list"]);
    let said = missing.refused(2);
    assert!(
        said.contains("has a file that cannot be read: /no/such/file"),
        "{said}"
    );
    let secret = file(
        &lab,
        "two",
        "postgres://u:hunter2@h/d\npostgres://u:hunter2@h/e\n",
    );
    let lines = lab.run(["--url-file", &secret.display().to_string(), "list"]);
    let said = lines.refused(2);
    assert!(
        said.contains("line break") && !said.contains("hunter2"),
        "{said}"
    );
    let endless = lab.run(["--url-file", "/dev/zero", "list"]);
    assert!(
        endless.refused(2).contains("larger than 64 KiB"),
        "{endless:?}"
    );
    let empty = lab.run(["--url-file", "/dev/null", "list"]);
    assert!(empty.refused(2).contains("is empty"), "{empty:?}");
}

#[test]
fn a_url_may_come_through_a_pipe_which_can_be_read_once() {
    let lab = Lab::new();
    let url = format!("sqlite://{}", lab.path("a.sqlite3").display());
    for (command, said) in [
        (
            "init",
            "table `database_locks_lock` is ready in the database of /dev/fd/",
        ),
        ("run -n job -- echo done", "done"),
        ("show job", "job"),
    ] {
        let script = format!("{DBLOCK} --url-file <(echo '{url}') {command}");
        let done = lab.start(lab.command("bash").args(["-c", &script])).end();
        assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
        assert!(done.out.contains(said), "{done:?}");
    }
}

#[test]
fn a_file_of_passwords_that_is_passed_over_is_told_once() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let lab = Lab::new();
    let with_password = server.locker_url(&server.fresh_database());
    let (url, _, _) = parts(&with_password);
    let path = file(&lab, "pass", &format!("*:*:*:*:{LOCKER_PASSWORD}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let place = path.display().to_string();
    let done = runs(&lab, &url, &[("PGPASSFILE", &place)]);
    let lines: Vec<&str> = done.err.lines().collect();
    let [warning, refusal] = &*lines else {
        panic!("not two lines: {done:?}");
    };
    assert_eq!(done.code(), 69, "{done:?}");
    assert!(
        warning.contains(&format!("password file {place} is passed over")),
        "{done:?}"
    );
    assert!(refusal.contains("password"), "{done:?}");
}

#[test]
fn a_table_is_named_by_the_environment_unless_an_option_names_it() {
    let lab = Lab::new();
    let run = |args: &[&str]| {
        let mut command = lab.dblock(args);
        lab.start(command.env("DATABASE_LOCKS_TABLE", "mine")).end()
    };
    let made = run(&["init"]);
    assert!(made.out.starts_with("table `mine` is ready"), "{made:?}");
    let other = run(&["--table", "yours", "init"]);
    assert!(other.out.starts_with("table `yours` is ready"), "{other:?}");
    let empty = lab
        .dblock(["list"])
        .env("DATABASE_LOCKS_TABLE", "")
        .output()
        .unwrap();
    assert_eq!(empty.status.code(), Some(2), "{empty:?}");
}

#[test]
fn only_what_takes_or_makes_a_lock_makes_a_file() {
    let lab = Lab::new();
    let path = lab.path("typo.sqlite3");
    let url = format!("sqlite:{}", path.display());
    for args in [
        &["list"][..],
        &["show", "job"],
        &["doctor"],
        &["prune", "--older-than", "1d"],
        &["release", "job", "--force"],
    ] {
        let done = lab.run([&["--url", &url], args].concat());
        let said = done.refused(69);
        assert!(
            said.contains("there is no file") && said.contains("dblock init"),
            "{said}"
        );
        assert!(!path.exists(), "{args:?}");
    }
    for args in [
        &["init"][..],
        &["acquire", "job"],
        &["run", "job", "--", "true"],
    ] {
        assert_eq!(
            lab.run([&["--url", &url], args].concat()).code(),
            0,
            "{args:?}"
        );
        assert!(path.exists(), "{args:?}");
        std::fs::remove_file(&path).unwrap();
    }
}
