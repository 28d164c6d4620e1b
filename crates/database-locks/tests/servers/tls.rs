//! Encrypted connections, and servers whose identity is verified, or is not what the client
//! expects.

use std::fmt::Display;
use std::path::Path;
use std::sync::OnceLock;

use database_locks::{Error, Locks};
use testkit::mysql::Options;
use testkit::tls::Authority;
use testkit::{MariaDb, MySql, MySqlServer, Postgres, Proxy, assert_error_contains, promise};

/// A server with TLS, whose certificate is for `localhost` and not for 127.0.0.1; and two CAs.
struct TestDb {
    engine: &'static str,
    /// Of a user with a password, at localhost.
    url: String,
    right: Authority,
    wrong: Authority,
    _server: Box<dyn Send + Sync>,
}

impl TestDb {
    fn postgres() -> Option<&'static Self> {
        static LAB: OnceLock<Option<TestDb>> = OnceLock::new();
        let db = LAB.get_or_init(|| {
            let (right, wrong) = authorities();
            let certificate = right.certify(&["localhost"]);
            let server = Postgres::options().tls(&certificate).start()?;
            let url = server.locker_url(&server.fresh_database());
            Some(Self::new("postgres", &url, right, wrong, server))
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
        let (right, wrong) = authorities();
        let certificate = right.certify(&["localhost"]);
        let server = options.tls(&certificate).start()?;
        let url = server.locker_url(&server.fresh_database());
        let engine = server.flavor().engine();
        Some(Self::new(engine, &url, right, wrong, server))
    }

    fn new(
        engine: &'static str,
        url: &str,
        right: Authority,
        wrong: Authority,
        server: impl Send + Sync + 'static,
    ) -> Self {
        Self {
            engine,
            url: url.replace("@127.0.0.1:", "@localhost:"),
            right,
            wrong,
            _server: Box::new(server),
        }
    }

    fn with(&self, options: impl Display) -> String {
        format!("{}?{options}", self.url)
    }

    /// The same server, called by its address.
    fn by_address(&self, options: impl Display) -> String {
        self.with(options).replace("@localhost:", "@127.0.0.1:")
    }

    async fn connects(&self, url: &str) {
        let locks = Locks::connect(url).await;
        let locks = locks.unwrap_or_else(|error| panic!("{url}: {}", error.chain()));
        locks.migrate().await.expect("makes the table");
        let guard = locks.lock("job").acquire().await.expect("free");
        guard.release().await.expect("still held");
    }
}

fn authorities() -> (Authority, Authority) {
    (Authority::new("the right CA"), Authority::new("another CA"))
}

async fn refused(url: &str, words: &[&str]) {
    let error = Locks::connect(url).await.expect_err(url);
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert_error_contains(&error, words);
}

fn roots(file: &Path) -> String {
    format!("sslrootcert={}", file.display())
}

async fn a_certificate_of_the_right_ca_and_name_is_accepted(db: &TestDb) {
    let roots = roots(&db.right.file());
    for mode in [
        "sslmode=verify-full&",
        "sslmode=verify-ca&",
        "sslmode=require&",
        "",
    ] {
        db.connects(&db.with(format!("{mode}{roots}"))).await;
    }
}

async fn verify_ca_accepts_a_certificate_for_another_host(db: &TestDb) {
    let roots = roots(&db.right.file());
    for mode in [
        "sslmode=verify-ca&",
        "sslmode=require&",
        "sslmode=prefer&",
        "",
    ] {
        db.connects(&db.by_address(format!("{mode}{roots}"))).await;
    }
}

async fn a_certificate_for_another_host_is_refused_by_verify_full(db: &TestDb) {
    let options = format!("sslmode=verify-full&{}", roots(&db.right.file()));
    let words = [
        "127.0.0.1:",
        "its TLS certificate is for localhost, not for 127.0.0.1",
        "sslmode=verify-ca",
    ];
    refused(&db.by_address(options), &words).await;
    promise("P14", db.engine);
}

/// Not even `prefer` goes on without TLS then.
async fn a_certificate_of_an_unknown_ca_is_refused(db: &TestDb) {
    let words = ["localhost:", "unknown CA", "sslrootcert="];
    for mode in ["verify-full", "verify-ca", "require", "prefer"] {
        let options = format!("sslmode={mode}&{}", roots(&db.wrong.file()));
        refused(&db.with(options), &words).await;
    }
    promise("P14", db.engine);
}

async fn without_sslrootcert_the_roots_of_this_machine_count(db: &TestDb) {
    for options in [
        "sslmode=verify-full",
        "sslmode=verify-ca",
        "sslrootcert=system",
    ] {
        let error = Locks::connect(db.with(options)).await.expect_err(options);
        match &error {
            Error::Rejected { .. } => {
                assert_error_contains(&error, &["unknown CA", "sslrootcert="])
            }
            // A machine without trusted roots.
            _ => assert_error_contains(&error, &["no root certificates", "sslrootcert="]),
        }
    }
}

async fn without_verification_any_certificate_is_accepted(db: &TestDb) {
    for options in ["", "sslmode=prefer", "sslmode=allow", "sslmode=require"] {
        db.connects(&db.by_address(options)).await;
    }
}

/// By what passes on the line.
async fn connections_are_encrypted_unless_tls_is_disabled(db: &TestDb) {
    let roots = roots(&db.right.file());
    let checked = format!("sslmode=verify-ca&{roots}");
    for (options, readable) in [
        ("sslmode=disable", true),
        ("", false),
        ("sslmode=prefer", false),
        ("sslmode=require", false),
        (&checked, false),
    ] {
        let url = db.by_address(options);
        let proxy = Proxy::to_url(&url);
        // Both servers are asked for it first of all.
        proxy.watch_for("version");
        db.connects(&proxy.url(&url)).await;
        assert!(proxy.counts().chunks_up > 4);
        assert_eq!(proxy.count("version") > 0, readable, "{options}");
    }
    promise("P14", db.engine);
}

async fn a_file_without_certificates_is_refused_before_any_server_is_asked(db: &TestDb) {
    let proxy = Proxy::to_url(&db.by_address(""));
    let empty = db.right.file().with_file_name("empty.pem");
    std::fs::write(&empty, "nothing\n").unwrap();
    let missing = db.right.file().with_file_name("missing.pem");
    for (file, why) in [(&empty, "no certificate"), (&missing, "No such file")] {
        let url = proxy.url(&db.with(roots(file)));
        let error = Locks::connect(url).await.expect_err("refused");
        assert!(
            matches!(error, Error::Config { setting: "url", .. }),
            "{error:?}"
        );
        let name = file.file_name().unwrap().to_string_lossy();
        assert_error_contains(&error, &["sslrootcert", &name, why]);
    }
    assert_eq!(proxy.counts().connections, 0);
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
            a_certificate_of_the_right_ca_and_name_is_accepted,
            verify_ca_accepts_a_certificate_for_another_host,
            a_certificate_for_another_host_is_refused_by_verify_full,
            a_certificate_of_an_unknown_ca_is_refused,
            without_sslrootcert_the_roots_of_this_machine_count,
            without_verification_any_certificate_is_accepted,
            connections_are_encrypted_unless_tls_is_disabled,
            a_file_without_certificates_is_refused_before_any_server_is_asked,
        );
    )* };
}
on!(postgres, mariadb, mysql);

/// A password that is bound to the TLS connection is of no use to a machine in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_can_bind_the_password_to_the_connection() {
    let Some(db) = TestDb::postgres() else { return };
    db.connects(&db.with("sslmode=require&channel_binding=require"))
        .await;
    refused(
        &db.with("sslmode=disable&channel_binding=require"),
        &["channel binding"],
    )
    .await;
}

/// The errors tell a server without TLS from one with a bad certificate; `prefer` accepts both.
async fn without_tls(engine: &'static str, url: &str) {
    for options in ["", "?sslmode=prefer", "?sslmode=disable"] {
        let connected = Locks::connect(format!("{url}{options}")).await;
        assert!(connected.is_ok(), "{options}: {connected:?}");
    }
    let at = url
        .rsplit_once('@')
        .and_then(|(_, rest)| rest.split_once('/'));
    let at = at.map_or("", |(at, _)| at);
    let authority = Authority::new("a CA");
    let checked = format!("sslmode=verify-full&{}", roots(&authority.file()));
    for options in ["sslmode=require", &checked] {
        let words = [at, "the server offers no TLS", "sslmode=disable"];
        refused(&format!("{url}?{options}"), &words).await;
    }
    promise("P14", engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_postgres_without_tls_says_so() {
    if let Some(server) = Postgres::shared() {
        without_tls("postgres", &server.locker_url(&server.fresh_database())).await;
    }
}

async fn without_tls_on(options: Options) {
    if let Some(server) = options.start() {
        let url = server.locker_url(&server.fresh_database());
        without_tls(server.flavor().engine(), &url).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_mariadb_without_tls_says_so() {
    without_tls_on(MariaDb::options().set("skip-ssl")).await;
}

/// The first login of a user goes by the server's RSA key, the next ones by what it remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_mysql_without_tls_says_so() {
    without_tls_on(MySql::options()).await;
}

/// The server requires TLS, and the hint of the error names the option.
async fn tls_is_required(options: Options) {
    let certificate = Authority::new("a CA").certify(&["localhost"]);
    let options = options.tls(&certificate);
    if let Some(server) = options.set("require-secure-transport=ON").start() {
        let url = server.locker_url(&server.fresh_database());
        refused(&format!("{url}?sslmode=disable"), &["sslmode=require"]).await;
        drop(Locks::connect(url).await.expect("prefers TLS"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_mariadb_that_requires_tls_says_so() {
    tls_is_required(MariaDb::options()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_mysql_that_requires_tls_says_so() {
    tls_is_required(MySql::options()).await;
}

/// MySQL never gets a password in clear text: over TCP it is encrypted with a key that the server
/// sends, until the server remembers the user; then a digest will do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_takes_a_password_with_and_without_tls_and_over_a_socket() {
    let Some(server) = MySql::options().set("tls-version=TLSv1.2,TLSv1.3").start() else {
        return;
    };
    let url = server.locker_url(&server.fresh_database());
    let plugin = "SELECT plugin FROM user WHERE user = 'locker' AND host = '127.0.0.1'";
    assert_eq!(
        server.query("mysql", plugin).unwrap(),
        "caching_sha2_password"
    );
    let socket = testkit::sql::percent_encode(&server.socket().display().to_string());
    let over_socket = url.replace(&format!("127.0.0.1:{}", server.port()), &socket);
    for way in [
        format!("{url}?sslmode=disable"),
        format!("{url}?sslmode=require"),
        over_socket,
    ] {
        // A flush empties the server's cache of logins.
        server.query("mysql", "FLUSH PRIVILEGES").unwrap();
        for known in ["for the first time", "again"] {
            let locks = Locks::connect(&way).await;
            let locks = locks.unwrap_or_else(|error| panic!("{known}: {}", error.chain()));
            locks.migrate().await.expect("makes the table");
            let guard = locks.lock("job").acquire().await.expect("free");
            guard.release().await.expect("still held");
        }
        let wrong = way.replace(
            &testkit::sql::percent_encode(testkit::sql::LOCKER_PASSWORD),
            "hunter2",
        );
        refused(&wrong, &["Access denied", "check user name and password"]).await;
    }
    promise("P14", "mysql");
}

/// A Unix socket cannot be tapped, so there is no TLS on it in any mode, as with libpq.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_goes_without_tls() {
    let postgres = Postgres::shared().map(|server| server.socket_url(&server.fresh_database()));
    let of = |server: &MySqlServer| server.socket_url(&server.fresh_database());
    let all = [postgres, MariaDb::shared().map(of), MySql::shared().map(of)];
    for url in all.into_iter().flatten() {
        drop(
            Locks::connect(format!("{url}&sslmode=require"))
                .await
                .expect("connects"),
        );
    }
}
