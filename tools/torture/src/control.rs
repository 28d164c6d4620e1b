//! A small client on the same table, written as one would at first: the controls. Each variant is wrong
//! in one thing, and the checker has to find it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::sql::Sql;
use crate::worker::Client;

/// How long a naive waiter sleeps between two tries.
const POLL: Duration = Duration::from_millis(40);

/// One client.
#[derive(Clone, Debug)]
pub struct ControlClient {
    /// In what it is wrong.
    pub client: Client,
    /// Where the locks are.
    pub url: String,
    /// Who it is.
    pub who: String,
    /// The length of its leases.
    pub ttl: Duration,
}

/// A lock that it holds, or thinks it does.
#[derive(Debug)]
pub struct ControlGuard {
    naive: ControlClient,
    name: String,
    /// The fencing number.
    pub token: i64,
    state: Arc<Mutex<State>>,
    renewing: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    trusted_until: u64,
    lost: bool,
}

/// The end of a lease and the present moment, as the statements write them.
struct Times {
    now: String,
    end: String,
}

impl ControlClient {
    fn margin(&self) -> u64 {
        self.ttl.as_micros() as u64 / 10
    }

    /// The moment until which it trusts what was asked at `sent` and is answered now.
    fn trusted_until(&self, sent: u64) -> u64 {
        let from = match self.client {
            Client::TrustFromReply => clock::now(),
            _ => sent,
        };
        from + self.ttl.as_micros() as u64 - self.margin()
    }

    fn times(&self) -> Times {
        let ms = self.ttl.as_millis();
        let (now, end) = match self.url.split(':').next() {
            Some("postgres") => (
                "clock_timestamp()".to_owned(),
                format!("interval '{ms} ms'"),
            ),
            Some("mysql") => (
                "UTC_TIMESTAMP(6)".to_owned(),
                format!("INTERVAL {} MICROSECOND", ms * 1000),
            ),
            _ => {
                let seconds = self.ttl.as_secs_f64();
                let now = "strftime('%Y-%m-%d %H:%M:%f', 'now')".to_owned();
                let end = format!("strftime('%Y-%m-%d %H:%M:%f', 'now', '+{seconds:.3} seconds')");
                return self.by_own_clock(Times { now, end });
            }
        };
        let end = format!("{now} + {end}");
        self.by_own_clock(Times { now, end })
    }

    /// The mistake of one of them: its own clock in the place of the database's, for what has ended.
    fn by_own_clock(&self, times: Times) -> Times {
        if self.client != Client::ClientClock {
            return times;
        }
        let skew = clock::skew();
        let now = match self.url.split(':').next() {
            Some("postgres") => format!("{} + interval '{skew} s'", times.now),
            Some("mysql") => format!("{} + INTERVAL {skew} SECOND", times.now),
            _ => format!("strftime('%Y-%m-%d %H:%M:%f', 'now', '{skew} seconds')"),
        };
        Times { now, ..times }
    }

    /// One try.
    async fn try_once(&self, sql: &mut Sql, name: &str) -> Result<Option<(i64, u64)>, String> {
        let Times { now, end } = self.times();
        let (sent, who) = (clock::now(), &self.who);
        // In one statement: another client may have the row before a second one comes to it.
        let (next, returning) = match self.url.starts_with("mysql:") {
            true => ("LAST_INSERT_ID(token + 1)", ""),
            false => ("token + 1", " RETURNING token"),
        };
        let taken = sql
            .run(&format!(
                "UPDATE database_locks_lock SET locked_by = '{who}', token = {next}, \
                 expires_at = {end} WHERE name = '{name}' \
                 AND (expires_at IS NULL OR expires_at <= {now}){returning}"
            ))
            .await?;
        let token = match taken.rows.first() {
            Some(row) => row.first().and_then(|token| token.parse().ok()),
            None => (taken.affected > 0 && taken.last_id > 0).then_some(taken.last_id),
        };
        Ok(token.map(|token| (token, self.trusted_until(sent))))
    }

    /// Take a lock by that connection or a new one, or give up after `wait`.
    pub async fn acquire(
        &self,
        mut connection: Option<Sql>,
        name: &str,
        wait: Option<Duration>,
    ) -> Option<ControlGuard> {
        let begun = testkit::time::now();
        loop {
            let mut sql = match connection.take() {
                Some(sql) => Some(sql),
                None => Sql::connect(&self.url).await.ok(),
            };
            if let Some(mut open) = sql.take() {
                match self.try_once(&mut open, name).await {
                    Ok(Some((token, until))) => {
                        let held = self.held(open, name, token, until);
                        // One of them does not ask how late it is.
                        if self.client == Client::HandsOutEnded || held.trusted_for().is_some() {
                            return Some(held);
                        }
                        held.release().await;
                    }
                    Ok(None) => connection = Some(open),
                    Err(_) => {}
                }
            }
            if wait.is_some_and(|wait| begun.elapsed() >= wait) {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn held(&self, sql: Sql, name: &str, token: i64, trusted_until: u64) -> ControlGuard {
        let lost = false;
        let state = Arc::new(Mutex::new(State {
            trusted_until,
            lost,
        }));
        let (naive, of, shared) = (self.clone(), name.to_owned(), Arc::clone(&state));
        ControlGuard {
            naive: self.clone(),
            name: name.to_owned(),
            token,
            state,
            renewing: tokio::spawn(async move { naive.renew(sql, &of, token, &shared).await }),
        }
    }

    async fn renew(&self, sql: Sql, name: &str, token: i64, state: &Mutex<State>) {
        let mut connection = Some(sql);
        let who = &self.who;
        loop {
            tokio::time::sleep(self.ttl / 3).await;
            let mut sql = match connection.take() {
                Some(sql) => sql,
                None => match Sql::connect(&self.url).await {
                    Ok(sql) => sql,
                    Err(_) => continue,
                },
            };
            let Times { now, end } = self.times();
            let mine = match self.client {
                Client::RenewalAcquires => {
                    format!("(locked_by = '{who}' OR expires_at IS NULL OR expires_at <= {now})")
                }
                _ => format!("locked_by = '{who}' AND token = {token} AND expires_at > {now}"),
            };
            let sent = clock::now();
            let renewed = sql
                .run(&format!(
                    "UPDATE database_locks_lock SET locked_by = '{who}', expires_at = {end} \
                     WHERE name = '{name}' AND {mine}"
                ))
                .await;
            let Ok(renewed) = renewed else { continue };
            connection = Some(sql);
            let mut state = lock(state);
            match renewed.affected {
                0 if self.client != Client::RenewalAcquires => {
                    state.lost = true;
                    return;
                }
                0 => {}
                _ => state.trusted_until = state.trusted_until.max(self.trusted_until(sent)),
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ControlGuard {
    /// For how long it would go on without an answer; `None`: it has lost the lock.
    pub fn trusted_for(&self) -> Option<Duration> {
        let mut state = lock(&self.state);
        let left = state.trusted_until.saturating_sub(clock::now());
        if left == 0 {
            // Two of them believe in what comes later.
            let waits = [Client::RenewalAcquires, Client::TrustFromReply];
            state.lost |= !waits.contains(&self.naive.client);
        }
        (!state.lost).then_some(Duration::from_micros(left))
    }

    /// The end of trust.
    pub fn trusted_until(&self) -> u64 {
        lock(&self.state).trusted_until
    }

    /// The statement that keeps the row for the transaction; it finds one row where the lock is held.
    pub fn fence(&self) -> Option<String> {
        let (name, who) = (&self.name, &self.naive.who);
        let row_lock = match self.naive.url.starts_with("sqlite:") {
            true => "",
            false => " FOR UPDATE",
        };
        let token = match self.naive.client {
            Client::Unfenced => return None,
            // The row has another holder's token after such a renewal.
            Client::RenewalAcquires => String::new(),
            _ => format!(" AND token = {}", self.token),
        };
        Some(format!(
            "SELECT token FROM database_locks_lock WHERE name = '{name}' AND locked_by = '{who}'\
             {token}{row_lock}"
        ))
    }

    /// Give it back.
    pub async fn release(self) -> bool {
        self.renewing.abort();
        let (name, who, token) = (&self.name, &self.naive.who, self.token);
        let Ok(mut sql) = Sql::connect(&self.naive.url).await else {
            return false;
        };
        sql.run(&format!(
            "UPDATE database_locks_lock SET expires_at = NULL WHERE name = '{name}' \
             AND locked_by = '{who}' AND token = {token}"
        ))
        .await
        .is_ok_and(|answer| answer.affected == 1)
    }
}

impl Drop for ControlGuard {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}
