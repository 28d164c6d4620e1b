//! Tests of precedence between URL, environment and files, without a server.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

mod mysql;

/// A home folder with these files, and an environment.
struct Home {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Home {
    fn new(files: &[(&str, u32, &str)], variables: &[(&'static str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, mode, text) in files {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            let mode = std::fs::Permissions::from_mode(*mode);
            std::fs::set_permissions(&path, mode).expect("set");
        }
        let home = folder.path().to_string_lossy().into_owned();
        let variables = variables
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let mut variables: Vec<_> = variables.collect();
        variables.push(("HOME", home));
        Self { folder, variables }
    }

    fn path(&self, name: &str) -> String {
        Path::join(self.folder.path(), name).display().to_string()
    }

    fn and(mut self, name: &'static str, value: String) -> Self {
        self.variables.push((name, value));
        self
    }

    fn look(&self, url: &str, open: bool, ask: Option<PasswordFn<'_>>) -> Result<Target, String> {
        let variable = |name: &str| {
            let set = self.variables.iter().find(|(known, _)| *known == name);
            set.map(|(_, value)| value.clone())
        };
        resolve(url, &Environment::new(&variable, open), ask).map_err(|why| match why {
            ResolveError::Config(error) => error.to_string(),
            ResolveError::Password(why) => why.to_string(),
        })
    }

    fn server(&self, url: &str) -> Server {
        of(self
            .look(url, true, None)
            .unwrap_or_else(|message| panic!("{url}: {message}")))
    }

    fn invalid(&self, url: &str) -> String {
        self.look(url, true, None).expect_err(url)
    }
}

fn of(target: Target) -> Server {
    match target {
        Target::Postgres(server) | Target::Mysql(server) => server,
        other => panic!("{other:?}"),
    }
}

/// `user password host database`, `-` where there is none.
fn shown(server: &Server) -> String {
    let hosts: Vec<_> = server.addresses.iter().map(Address::to_string).collect();
    let text = |text: Option<&str>| text.unwrap_or("-").to_owned();
    [
        text(server.user.as_deref()),
        text(server.password_at(0)),
        hosts.join(","),
        text(server.database.as_deref()),
    ]
    .join(" ")
}

const SERVICES: &str = "
# a comment
[other]
host=elsewhere
password=no
[app]
host=service.example
port=6000
user=of_service
password=from service
dbname=service_db
sslmode=require
keepalives=1
host=only the first counts
[last]
host=last.example
";
const PG_ALL: [(&str, &str); 5] = [
    ("PGHOST", "env.example"),
    ("PGPORT", "7000"),
    ("PGUSER", "of_env"),
    ("PGPASSWORD", "from env"),
    ("PGDATABASE", "env_db"),
];
const PGPASS: &str = "# a comment
h:5432:other:u:no
h:5432:d:u:from\\:file\\\\
*:7000:*:of_env:any host
localhost:5432:d:u:socket
h2:*:d:u:second
";

#[test]
fn postgres_the_url_comes_first_then_the_service_the_environment_and_the_file() {
    let files = [
        (".pg_service.conf", 0o644, SERVICES),
        (".pgpass", 0o600, PGPASS),
    ];
    let bare = Home::new(&files, &[]);
    let full = Home::new(&files, &PG_ALL);
    for (home, url, expected) in [
        (&full, "postgres://u:p@h:5433/d", "u p h:5433 d"),
        // To libpq a port of the environment is that of a host without one, whichever source names
        // the host.
        (&full, "postgres://u:p@h/d", "u p h:7000 d"),
        (&full, "postgres://u@h:5432/d", "u from env h:5432 d"),
        (
            &full,
            "postgres://",
            "of_env from env env.example:7000 env_db",
        ),
        (
            &full,
            "postgres://:5000",
            "of_env from env env.example:5000 env_db",
        ),
        (
            &full,
            "postgres://?service=app",
            "of_service from service service.example:6000 service_db",
        ),
        (&full, "postgres://u:p@h/d?service=app", "u p h:6000 d"),
        (
            &full,
            "postgres://?service=last&password=x",
            "of_env x last.example:7000 env_db",
        ),
        (&bare, "postgres://u@h/d", "u from:file\\ h:5432 d"),
        // As with libpq, an empty one counts as none.
        (&bare, "postgres://u:@h/d", "u from:file\\ h:5432 d"),
        (&bare, "postgres://u@h/e", "u - h:5432 e"),
        (&bare, "postgres://u@h:5433/d", "u - h:5433 d"),
        (
            &bare,
            "postgres://of_env@x:7000",
            "of_env any host x:7000 -",
        ),
        (
            &bare,
            "postgres://u@/d?host=/var/run/postgresql",
            "u socket /var/run/postgresql/.s.PGSQL.5432 d",
        ),
    ] {
        assert_eq!(shown(&home.server(url)), expected, "{url}");
    }
    let two = bare.server("postgres://u@h,h2/d");
    assert_eq!(two.password_at(0), Some("from:file\\"));
    assert_eq!(two.password_at(1), Some("second"), "each host has its own");
    let named = Home::new(&files, &[("PGSERVICE", "app")]);
    assert!(shown(&named.server("postgres://")).starts_with("of_service"));
    let of_service = named.server("postgres://");
    assert_eq!(
        of_service.tls,
        bare.server("postgres://h?sslmode=require").tls
    );
}

#[test]
fn a_function_for_the_password_comes_after_the_url_and_before_the_rest() {
    let home = Home::new(&[(".my.cnf", 0o600, "[client]\npassword=no\n")], &PG_ALL);
    let ask = || Ok("asked".to_owned());
    for (url, expected) in [
        ("postgres://u:p@h/d", "p"),
        ("postgres://u@h/d?password=p", "p"),
        ("postgres://u@h/d", "asked"),
        ("mysql://u:p@h/d", "p"),
        ("mysql://u@h/d", "asked"),
    ] {
        let server = of(home.look(url, true, Some(&ask)).expect(url));
        assert_eq!(server.password_at(0), Some(expected), "{url}");
    }
    let fails = || Err("the token service is down".into());
    let message = home
        .look("mysql://u@h/d", true, Some(&fails))
        .expect_err("failed");
    assert_eq!(message, "the token service is down");
    assert!(
        home.look("mysql://u:p@h/d", true, Some(&fails)).is_ok(),
        "it is not asked"
    );
}

#[test]
fn what_the_environment_sets_of_a_session_and_of_tls_is_taken() {
    let home = Home::new(
        &[],
        &[
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", "/ca.pem"),
            ("PGAPPNAME", "nightly"),
            (
                "PGOPTIONS",
                "-c search_path=app -c geqo=off --database_locks.ticket=x -d 3",
            ),
            ("PGCONNECT_TIMEOUT", "900"),
        ],
    );
    let server = home.server("postgres://h/d");
    assert_eq!(
        server.settings.start_up().as_deref(),
        Some("-c search_path=app")
    );
    assert_eq!(server.application.as_deref(), Some("nightly"));
    assert_eq!(
        server.connect_timeout,
        Some(std::time::Duration::from_secs(60))
    );
    let url = "postgres://h/d?sslmode=verify-full&sslrootcert=/ca.pem";
    assert_eq!(server.tls, Home::new(&[], &[]).server(url).tls);
    let own = home.server("postgres://h/d?search_path=mine&application_name=a&sslmode=disable");
    assert_eq!(
        own.settings.start_up().as_deref(),
        Some("-c search_path=mine")
    );
    assert_eq!(own.application.as_deref(), Some("a"));
    assert_eq!(
        own.tls,
        Home::new(&[], &[])
            .server("postgres://h/d?sslmode=disable")
            .tls
    );
}

#[test]
fn a_complaint_names_the_variable_or_service_and_not_the_url() {
    let files = [(
        ".pg_service.conf",
        0o644,
        "[app]\nhost=h\nrequire_auth=none\n",
    )];
    for (variables, url, start) in [
        (
            &[("PGSSLMODE", "hunter2")][..],
            "postgres://h",
            "`PGSSLMODE` has an unknown value",
        ),
        (
            &[("PGPORT", "hunter2")],
            "postgres://h",
            "`PGPORT` has a port that is no number",
        ),
        (
            &[],
            "postgres://?service=none",
            "`service` has no definition of `none`; define it in",
        ),
        (
            &[],
            "postgres://?service=app",
            "`service` has the option `require_auth`, which locks",
        ),
    ] {
        let message = Home::new(&files, variables).invalid(url);
        assert!(message.starts_with(start), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn what_the_url_says_is_right_whatever_stands_elsewhere() {
    let bad = "[client]\nssl-mode=hunter2\nport=x\nsocket=relative\n";
    let variables = [
        ("PGSSLMODE", "x"),
        ("PGPORT", "x"),
        ("PGCONNECT_TIMEOUT", "x"),
    ];
    let home = Home::new(&[(".my.cnf", 0o600, bad)], &variables);
    let options = "sslmode=require&connect_timeout=5";
    for url in ["postgres://u@h:1/d", "mysql://u@h:1/d"] {
        assert_eq!(
            shown(&home.server(&format!("{url}?{options}"))),
            "u - h:1 d"
        );
        assert!(home.invalid(url).contains("has an unknown"), "{url}");
    }
}

#[test]
fn a_password_of_a_file_may_be_another_one_the_next_time() {
    let files = [
        (
            ".pg_service.conf",
            0o644,
            "[app]\npassword=p\n[none]\nhost=h\n",
        ),
        (".pgpass", 0o600, "file:*:*:*:p\n"),
        (".my.cnf", 0o600, "[client]\npassword=p\n"),
    ];
    let home = Home::new(&files, &[]);
    let bare = Home::new(&[], &[("PGPASSWORD", "p"), ("MYSQL_PWD", "p")]);
    for (home, url, expected) in [
        (&home, "postgres://u@file", true),
        (&home, "postgres://u@h?service=app", true),
        (&home, "mysql://u@h/d", true),
        (&home, "postgres://u@h?service=none", false),
        (&home, "postgres://u:p@file?service=app", false),
        (&home, "mysql://u:p@h/d", false),
        (&bare, "postgres://u@h", false),
        (&bare, "mysql://u@h/d", false),
    ] {
        assert_eq!(home.server(url).password_of_file, expected, "{url}");
    }
}

#[test]
fn a_file_of_passwords_that_others_can_read_is_passed_over() {
    let line = "h:5432:d:u:secret\n";
    for (mode, expected) in [
        (0o600, Some("secret")),
        (0o400, Some("secret")),
        (0o640, None),
        (0o604, None),
        (0o620, None),
    ] {
        let home = Home::new(&[(".pgpass", mode, line)], &[]);
        let server = home.server("postgres://u@h/d");
        assert_eq!(server.password_at(0), expected, "{mode:o}");
    }
    let home = Home::new(&[("elsewhere", 0o600, line)], &[]);
    let path = home.path("elsewhere");
    let by_url = home.server(&format!("postgres://u@h/d?passfile={path}"));
    assert_eq!(by_url.password_at(0), Some("secret"));
    let by_variable = home.and("PGPASSFILE", path).server("postgres://u@h/d");
    assert_eq!(by_variable.password_at(0), Some("secret"));
}

#[test]
fn without_the_environment_only_what_the_url_names_is_looked_up() {
    let files = [
        (".pg_service.conf", 0o644, SERVICES),
        (".pgpass", 0o600, "*:*:*:*:no\n"),
        (".my.cnf", 0o600, "[client]\npassword=no\n"),
        ("pass", 0o600, "*:*:*:*:named\n"),
    ];
    let home = Home::new(&files, &PG_ALL).and("MYSQL_PWD", "no".into());
    let closed = |url: &str| shown(&of(home.look(url, false, None).expect(url)));
    assert_eq!(closed("postgres://u@h/d"), "u - h:5432 d");
    assert_eq!(closed("mysql://u@h/d"), "u - h:3306 d");
    let service = closed("postgres://?service=app");
    assert_eq!(
        service,
        "of_service from service service.example:6000 service_db"
    );
    let named = format!("postgres://u@h/d?passfile={}", home.path("pass"));
    assert_eq!(closed(&named), "u named h:5432 d");
}
