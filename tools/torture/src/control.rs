//! The controls: a small client on the same table, whose variants have one mistake each. The
//! checker must find it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::sql::Sql;
use crate::worker::Client;

/// The poll interval.
const POLL: Duration = Duration::from_millis(40);

/// A client.
#[derive(Clone, Debug)]
pub struct ControlClient {
    /// Its mistake.
    pub client: Client,
    /// The database of the locks.
    pub url: String,
    /// Its name.
    pub process: String,
    /// The length of its leases.
    pub ttl: Duration,
}

/// A lock that the client holds, or believes that it holds.
#[derive(Debug)]
pub struct ControlGuard {
    client: ControlClient,
    name: String,
    /// The fencing token.
    pub token: i64,
    state: Arc<Mutex<State>>,
    renewing: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    trusted_until: u64,
    lost: bool,
}

/// SQL expressions of the present and of the end of a lease.
struct Times {
    now: String,
    end: String,
}

impl ControlClient {
    fn margin(&self) -> u64 {
        self.ttl.as_micros() as u64 / 10
    }

    /// The end of trust of a request that was sent at `sent` and is answered now.
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
                return self.by_client_clock(Times { now, end });
            }
        };
        let end = format!("{now} + {end}");
        self.by_client_clock(Times { now, end })
    }

    /// The mistake of [`Client::ClientClock`]: expiry by the client's clock.
    fn by_client_clock(&self, times: Times) -> Times {
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

    /// Tries once: the token and the end of trust.
    async fn try_once(&self, sql: &mut Sql, name: &str) -> Result<Option<(i64, u64)>, String> {
        let Times { now, end } = self.times();
        let (sent, process) = (clock::now(), &self.process);
        // One statement, because another client may take the row before a second one.
        let (next, returning) = match self.url.starts_with("mysql:") {
            true => ("LAST_INSERT_ID(token + 1)", ""),
            false => ("token + 1", " RETURNING token"),
        };
        let taken = sql
            .run(&format!(
                "UPDATE database_locks_lock SET locked_by = '{process}', token = {next}, \
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

    /// Takes a lock by `connection` or a new one, or gives up after `wait`.
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
                        // The mistake of `HandsOutEnded`.
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
        let (client, of, shared) = (self.clone(), name.to_owned(), Arc::clone(&state));
        ControlGuard {
            client: self.clone(),
            name: name.to_owned(),
            token,
            state,
            renewing: tokio::spawn(async move { client.renew(sql, &of, token, &shared).await }),
        }
    }

    async fn renew(&self, sql: Sql, name: &str, token: i64, state: &Mutex<State>) {
        let mut connection = Some(sql);
        let process = &self.process;
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
                    format!(
                        "(locked_by = '{process}' OR expires_at IS NULL OR expires_at <= {now})"
                    )
                }
                _ => format!("locked_by = '{process}' AND token = {token} AND expires_at > {now}"),
            };
            let sent = clock::now();
            let renewed = sql
                .run(&format!(
                    "UPDATE database_locks_lock SET locked_by = '{process}', expires_at = {end} \
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
    /// How long the lease is trusted without another answer; `None` if the lock is lost.
    pub fn trusted_for(&self) -> Option<Duration> {
        let mut state = lock(&self.state);
        let left = state.trusted_until.saturating_sub(clock::now());
        if left == 0 {
            // The mistakes of two variants: trust comes back.
            let waits = [Client::RenewalAcquires, Client::TrustFromReply];
            state.lost |= !waits.contains(&self.client.client);
        }
        (!state.lost).then_some(Duration::from_micros(left))
    }

    /// The end of trust.
    pub fn trusted_until(&self) -> u64 {
        lock(&self.state).trusted_until
    }

    /// The statement of the fence: it locks the row, and returns one row if the lock is held.
    pub fn fence(&self) -> Option<String> {
        let (name, process) = (&self.name, &self.client.process);
        let row_lock = match self.client.url.starts_with("sqlite:") {
            true => "",
            false => " FOR UPDATE",
        };
        let token = match self.client.client {
            Client::Unfenced => return None,
            // After such a renewal the row has the token of another holder.
            Client::RenewalAcquires => String::new(),
            _ => format!(" AND token = {}", self.token),
        };
        Some(format!(
            "SELECT token FROM database_locks_lock WHERE name = '{name}' AND locked_by = '{process}'\
             {token}{row_lock}"
        ))
    }

    /// Releases the lock; whether it was still held.
    pub async fn release(self) -> bool {
        self.renewing.abort();
        let (name, process, token) = (&self.name, &self.client.process, self.token);
        let Ok(mut sql) = Sql::connect(&self.client.url).await else {
            return false;
        };
        sql.run(&format!(
            "UPDATE database_locks_lock SET expires_at = NULL WHERE name = '{name}' \
             AND locked_by = '{process}' AND token = {token}"
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
