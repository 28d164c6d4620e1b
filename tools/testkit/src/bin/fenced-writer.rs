//! A process that writes under a lock, which tests freeze and kill.
//!
//! `fenced-writer URL NAME TTL_MS HOW [FILE]` takes the lock, prints `held TOKEN`, waits for a
//! line, writes its token into the table `data` (on SQLite in FILE, else in the database of the
//! lock) in a transaction, and prints `wrote`, or `refused` and the reason. HOW is
//!
//! - `fenced`: by the fence of the guard;
//! - `statement`: by the plain statement, which it takes from the guard before it prints `held`;
//! - `shown`: without a fence; its transaction shows its ticket to guarded tables;
//! - `unfenced`: without a fence; it checks `is_held` before it prints `held`;
//! - `attribute`: the same in a function with `#[locked]`, which has no guard; its token is 0;
//! - `open`: as `fenced`, and it prints `open` and waits for another line before it commits.
#![allow(clippy::print_stdout, reason = "the answers go to standard output")]

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use database_locks::{Fence, FenceFailure, LockGuard, Locks, OpenFence, ParamStyle, locked};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, TxOpts};
use tokio_postgres::NoTls;

type Done<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [url, name, ttl, how, rest @ ..] = args.as_slice() else {
        panic!("bad arguments: {args:?}");
    };
    let writer = Writer {
        ttl: Duration::from_millis(ttl.parse().expect("a number")),
        url,
        name,
        how,
    };
    let done = match url.split(':').next() {
        _ if *how == "attribute" => writer.attribute().await,
        Some("postgres") => writer.postgres().await,
        Some("mysql") => writer.mysql().await,
        _ => writer.sqlite(rest.first().expect("a file")).await,
    };
    match done {
        Ok(()) => say("wrote"),
        Err(error) => say(&format!("refused: {error}")),
    }
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().expect("the test reads");
}

fn wait_for_line() {
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a line");
}

struct Writer<'a> {
    url: &'a str,
    name: &'a str,
    ttl: Duration,
    how: &'a str,
}

/// The result of the fence statement.
async fn check_rows(guard: &LockGuard, fence: &Fence, rows: u64) -> Done<()> {
    match fence.passes(rows) {
        true => Ok(()),
        false => Err(guard.fence_failed(FenceFailure::NoRow).await.into()),
    }
}

impl Writer<'_> {
    /// Takes the lock, prints that, and waits for a line.
    async fn held(&self) -> Done<(Locks, LockGuard, Fence)> {
        let locks = Locks::connect(self.url).await?;
        let guard = locks.lock(self.name).ttl(self.ttl).acquire().await?;
        let fence = guard.fence_statement()?;
        assert!(guard.is_held());
        say(&format!("held {}", guard.token()));
        wait_for_line();
        Ok((locks, guard, fence))
    }

    async fn attribute(&self) -> Done<()> {
        #[locked(name = name, ttl = ttl, via = locks)]
        async fn write(locks: &Locks, url: &str, name: &str, ttl: Duration) -> Done<()> {
            let update = "UPDATE data SET writer = -1";
            if url.starts_with("postgres:") {
                let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
                tokio::spawn(connection);
                say("held 0");
                wait_for_line();
                client.execute(update, &[]).await?;
            } else {
                let mut connection = Conn::new(Opts::from_url(url)?).await?;
                say("held 0");
                wait_for_line();
                connection.query_drop(update).await?;
            }
            Ok(())
        }
        let locks = Locks::connect(self.url).await?;
        write(&locks, self.url, self.name, self.ttl).await
    }

    fn opened(&self, open: &OpenFence) {
        let _ = open;
        if self.how == "open" {
            say("open");
            wait_for_line();
        }
    }

    async fn postgres(&self) -> Done<()> {
        let (mut client, connection) = tokio_postgres::connect(self.url, NoTls).await?;
        tokio::spawn(connection);
        let (_locks, guard, fence) = self.held().await?;
        let mut tx = client.transaction().await?;
        let open = match self.how {
            "unfenced" => None,
            "shown" => {
                let show = "SELECT set_config('database_locks.ticket', $1, true)";
                tx.query(show, &[&guard.ticket().to_string()]).await?;
                None
            }
            "statement" => {
                let sql = fence.sql(ParamStyle::Numbered).expect("a statement");
                let (name, token, grant) = fence.params();
                let rows = tx.query(&sql, &[&name, &token, &grant]).await?;
                check_rows(&guard, &fence, rows.len() as u64).await?;
                None
            }
            _ => Some(guard.fence(&mut tx).await?),
        };
        tx.execute("UPDATE data SET writer = $1", &[&guard.token().get()])
            .await?;
        if let Some(open) = &open {
            self.opened(open);
        }
        tx.commit().await?;
        drop(open);
        guard.release().await.ok();
        Ok(())
    }

    async fn mysql(&self) -> Done<()> {
        let mut connection = Conn::new(Opts::from_url(self.url)?).await?;
        let (_locks, guard, fence) = self.held().await?;
        let mut tx = connection.start_transaction(TxOpts::default()).await?;
        let open = match self.how {
            "unfenced" => None,
            "shown" => {
                let show = "SET @database_locks_ticket = ?";
                tx.exec_drop(show, (guard.ticket().to_string(),)).await?;
                None
            }
            "statement" => {
                let before = fence.before(ParamStyle::Question).expect("a statement");
                tx.exec_drop(before, fence.params()).await?;
                check_rows(&guard, &fence, tx.affected_rows()).await?;
                let sql = fence.sql(ParamStyle::Question).expect("a statement");
                tx.exec_drop(sql, fence.params()).await?;
                check_rows(&guard, &fence, tx.affected_rows()).await?;
                None
            }
            _ => Some(guard.fence(&mut tx).await?),
        };
        tx.exec_drop("UPDATE data SET writer = ?", (guard.token().get(),))
            .await?;
        if let Some(open) = &open {
            self.opened(open);
        }
        tx.commit().await?;
        drop(open);
        guard.release().await.ok();
        Ok(())
    }

    async fn sqlite(&self, file: &str) -> Done<()> {
        let mut connection = rusqlite::Connection::open(file)?;
        let (_locks, guard, _) = self.held().await?;
        let mut tx = connection.transaction()?;
        let open = match self.how {
            "unfenced" => None,
            _ => Some(guard.fence(&mut tx).await?),
        };
        tx.execute("UPDATE data SET writer = ?1", [guard.token().get()])?;
        if let Some(open) = &open {
            self.opened(open);
        }
        tx.commit()?;
        drop(open);
        guard.release().await.ok();
        Ok(())
    }
}
