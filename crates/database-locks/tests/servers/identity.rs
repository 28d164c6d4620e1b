//! Servers that know their users by a certificate.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use database_locks::{Error, Locks};
use testkit::cleanup::ScratchDir;
use testkit::mysql::Options;
use testkit::tls::Authority;
use testkit::{MariaDb, MySql, Postgres, assert_error_contains, promise};

/// A server that lets `locker` in with a certificate of the right CA only.
struct TestDb {
    engine: &'static str,
    url: String,
    right: Authority,
    wrong: Authority,
    _server: Box<dyn Send + Sync>,
}

impl TestDb {
    fn postgres() -> Option<&'static Self> {
        static LAB: OnceLock<Option<TestDb>> = OnceLock::new();
        let db = LAB.get_or_init(|| {
            let right = Authority::new("the right CA");
            let certificate = right.certify(&["localhost"]);
            let server = Postgres::options().tls(&certificate).start()?;
            let url = server.locker_url(&server.fresh_database());
            let rules = "local all all trust\nhostssl all locker 127.0.0.1/32 cert\n";
            std::fs::write(server.server().dir().join("data/pg_hba.conf"), rules).unwrap();
            server.reload();
            Some(Self::new("postgres", &url, right, server))
        });
        db.as_ref()
    }

    fn mariadb() -> Option<&'static Self> {
        static LAB: OnceLock<Option<TestDb>> = OnceLock::new();
        let db = LAB.get_or_init(|| Self::of(MariaDb::options()));
        db.as_ref()
    }

    fn mysql() -> Option<&'static Self> {
        static LAB: OnceLock<Option<TestDb>> = OnceLock::new();
        let db = LAB.get_or_init(|| Self::of(MySql::options()));
        db.as_ref()
    }

    fn of(options: Options) -> Option<Self> {
        let right = Authority::new("the right CA");
        let certificate = right.certify(&["localhost"]);
        let server = options.tls(&certificate).start()?;
        let url = server.locker_url(&server.fresh_database());
        for host in ["127.0.0.1", "localhost"] {
            let rule = format!("ALTER USER locker@'{host}' REQUIRE X509");
            server.query("mysql", &rule).unwrap();
        }
        let engine = server.flavor().engine();
        Some(Self::new(engine, &url, right, server))
    }

    fn new(
        engine: &'static str,
        url: &str,
        right: Authority,
        server: impl Send + Sync + 'static,
    ) -> Self {
        Self {
            engine,
            url: url.replace("@127.0.0.1:", "@localhost:"),
            right,
            wrong: Authority::new("another CA"),
            _server: Box::new(server),
        }
    }

    fn with(&self, options: &str) -> String {
        format!("{}?{options}", self.url)
    }
}

fn options([certificate, key]: &[PathBuf; 2]) -> String {
    format!("sslcert={}&sslkey={}", certificate.display(), key.display())
}

fn assert_message(error: &Error, words: &[&str]) {
    assert_error_contains(error, words);
    for shown in [error.chain(), format!("{error:?}")] {
        assert!(
            !shown.contains("BEGIN"),
            "the key, or a part of it: {shown}"
        );
    }
}

async fn config(url: &str, words: &[&str]) {
    let error = Locks::builder(url).connect_lazy().expect_err(url);
    assert!(
        matches!(error, Error::Config { setting: "url", .. }),
        "{error:?}"
    );
    assert_message(&error, words);
}

async fn a_client_certificate_of_the_right_ca_is_accepted(db: &TestDb) {
    let dir = ScratchDir::new("identity");
    let files = db.right.certify_user("locker").save(dir.path());
    let roots = format!("sslrootcert={}", db.right.file().display());
    let by_mysql = options(&files)
        .replace("sslcert", "ssl-cert")
        .replace("sslkey", "ssl-key");
    let mut all = vec![
        options(&files),
        format!("sslmode=require&{}", options(&files)),
        format!("sslmode=verify-full&{roots}&{}", options(&files)),
    ];
    if db.engine != "postgres" {
        all.push(by_mysql);
    }
    for options in all {
        let url = db.with(&options);
        let locks = Locks::connect(&url).await;
        let locks = locks.unwrap_or_else(|error| panic!("{options}: {}", error.chain()));
        locks.migrate().await.unwrap();
        let guard = locks.lock("job").acquire().await.unwrap();
        guard.release().await.unwrap();
        assert!(!format!("{locks:?}").contains("PRIVATE"), "{locks:?}");
    }
}

async fn the_error_without_a_client_certificate_names_the_options(db: &TestDb) {
    let error = Locks::connect(db.with("sslmode=require"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert_message(&error, &["localhost:", "certificate", "sslcert"]);
    promise("P14", db.engine);
}

async fn a_client_certificate_of_another_ca_is_refused(db: &TestDb) {
    let dir = ScratchDir::new("identity");
    let files = db.wrong.certify_user("locker").save(dir.path());
    let url = db.with(&format!("sslmode=require&{}", options(&files)));
    let error = Locks::connect(url).await.unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert_message(
        &error,
        &["does not accept our client certificate", "sslcert="],
    );
    promise("P14", db.engine);
}

/// Errors about files name the file and show nothing of its content.
async fn bad_files_are_refused_before_any_server_is_asked(db: &TestDb) {
    let (dir, other) = (ScratchDir::new("identity"), ScratchDir::new("identity"));
    let files = db.right.certify_user("locker").save(dir.path());
    let [certificate, key] = &files;
    let [_, others_key] = db.right.certify_user("locker").save(other.path());
    let url = |certificate: &Path, key: &Path| {
        db.with(&options(&[certificate.to_owned(), key.to_owned()]))
    };
    let write = |name: &str, text: &str| {
        let path = other.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let nothing = write("nothing.pem", "nothing\n");
    let broken = write(
        "broken.pem",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    );
    let begin = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
    let locked = write(
        "locked.pem",
        &format!("{begin}\nAAAA\n{}\n", begin.replace("BEGIN", "END")),
    );
    let missing = other.join("missing.pem");
    for (certificate, key, words) in [
        (&missing, key, ["sslcert", "missing.pem", "No such file"]),
        (&nothing, key, ["sslcert", "nothing.pem", "no certificate"]),
        (
            certificate,
            &missing,
            ["sslkey", "missing.pem", "No such file"],
        ),
        (
            certificate,
            &nothing,
            ["sslkey", "nothing.pem", "no private key"],
        ),
        (certificate, &broken, ["sslkey", "broken.pem", "of no kind"]),
        (certificate, &locked, ["sslkey", "locked.pem", "encrypted"]),
        (
            certificate,
            &others_key,
            ["sslkey", "key.pem", "not the key to that certificate"],
        ),
    ] {
        config(&url(certificate, key), &words).await;
    }
    for mode in [0o604, 0o602, 0o660] {
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(mode)).unwrap();
        config(
            &url(certificate, key),
            &["sslkey", "key.pem", "chmod", &format!("{mode:04o}")],
        )
        .await;
    }
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o400)).unwrap();
    drop(
        Locks::builder(url(certificate, key))
            .connect_lazy()
            .unwrap(),
    );

    let alone = format!("sslcert={}", certificate.display());
    config(&db.with(&alone), &["sslcert", "no sslkey"]).await;
    let alone = format!("sslkey={}", key.display());
    config(&db.with(&alone), &["sslkey", "no sslcert"]).await;
    let never = format!("sslmode=disable&{}", options(&files));
    config(&db.with(&never), &["client certificate", "sslmode=disable"]).await;
    promise("P14", db.engine);
}

macro_rules! on {
    ($engine:ident: $($test:ident),* $(,)?) => {
        mod $engine {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if let Some(db) = super::TestDb::$engine() {
                        super::$test(db).await;
                    }
                }
            )*
        }
    };
    ($($engine:ident),*) => { $(
        on!($engine:
            a_client_certificate_of_the_right_ca_is_accepted,
            the_error_without_a_client_certificate_names_the_options,
            a_client_certificate_of_another_ca_is_refused,
            bad_files_are_refused_before_any_server_is_asked,
        );
    )* };
}
on!(postgres, mariadb, mysql);
