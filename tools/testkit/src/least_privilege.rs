//! Users with exactly the privileges of `SECURITY.md`.

use database_locks::Locks;

use crate::test_db::TestDb;

const SECURITY: &str = include_str!("../../../SECURITY.md");

/// The statements of `SECURITY.md` with this beginning, with the user and the database replaced.
fn statements(begin: &str, user: &str, database: &str) -> Vec<String> {
    let found: Vec<String> = SECURITY
        .lines()
        .filter(|line| line.starts_with(begin))
        .map(|line| line.replace("app@'%'", "app"))
        .map(|line| line.replace(" TO app;", &format!(" TO {user};")))
        .map(|line| line.replace(" shop.", &format!(" {database}.")))
        .collect();
    assert!(!found.is_empty(), "SECURITY.md: nothing begins `{begin}`");
    found
}

impl TestDb {
    /// A PostgreSQL database with the table, for a user with the least rights.
    pub async fn postgres_least() -> Option<Self> {
        Self::postgres()?.with_the_least("postgres", &[]).await
    }

    /// Like [`postgres_least`](Self::postgres_least), with the `id` that Django before 4.1 made.
    pub async fn postgres_serial() -> Option<Self> {
        let change = [
            "ALTER TABLE database_locks_lock ALTER id DROP IDENTITY",
            "CREATE SEQUENCE database_locks_lock_id_seq OWNED BY database_locks_lock.id",
            "ALTER TABLE database_locks_lock
                 ALTER id SET DEFAULT nextval('database_locks_lock_id_seq')",
        ];
        Self::postgres()?.with_the_least("serial", &change).await
    }

    /// A MariaDB database with the table, for a user with the least rights.
    pub async fn mariadb_least() -> Option<Self> {
        Self::mariadb()?.with_the_least("mysql", &[]).await
    }

    /// A MySQL database with the table, for a user with the least rights.
    pub async fn mysql_least() -> Option<Self> {
        Self::mysql()?.with_the_least("mysql", &[]).await
    }

    async fn with_the_least(mut self, of: &str, change: &[&str]) -> Option<Self> {
        let locks = Locks::connect(&self.url).await.expect("connects");
        locks.migrate().await.expect("makes the table");
        drop(locks);
        let database = self.database().to_owned();
        let clerk = format!("clerk_{database}");
        for statement in change {
            self.sql(statement);
        }
        let (user, mut grants) = match of {
            "mysql" => {
                let user = format!("{clerk}@'127.0.0.1'");
                self.sql(&format!("CREATE USER {user}"));
                let mut grants = Vec::new();
                for rights in ["SELECT, INSERT, UPDATE", "SELECT, INSERT, UPDATE, DELETE"] {
                    let tables = format!("GRANT {rights} ON shop.");
                    grants.extend(statements(&tables, &user, &database));
                }
                (user, grants)
            }
            _ => {
                self.sql(&format!("CREATE ROLE {clerk} LOGIN"));
                self.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC");
                let mut grants = statements("GRANT USAGE ON SCHEMA", &clerk, "");
                for rights in ["SELECT, INSERT, UPDATE", "SELECT, INSERT, UPDATE, DELETE"] {
                    let tables = format!("GRANT {rights} ON database_locks_");
                    grants.extend(statements(&tables, &clerk, ""));
                }
                (clerk.clone(), grants)
            }
        };
        if of == "serial" {
            grants.extend(statements("GRANT USAGE ON SEQUENCE", &user, ""));
        }
        for grant in grants {
            self.sql(&grant);
        }
        let (admin, rest) = self.url.split_once("://").map(|(scheme, rest)| {
            let (_, at) = rest.split_once('@').expect("a user in the URL");
            (scheme.to_owned(), at.to_owned())
        })?;
        self.url = format!("{admin}://{clerk}@{rest}");
        Some(self)
    }
}
