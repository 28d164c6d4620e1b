//! The controls: a small client on the same tables, whose variants have one mistake each. The
//! checker must find it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::sql::Sql;
use crate::target::{Kind, Mode, Target};
use crate::worker::{Breakpoint, Client, Commands};

mod semaphore;
mod shared;

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
    /// The commands of its process.
    pub commands: Arc<Commands>,
}

/// The row of a grant.
#[derive(Clone, Debug)]
struct Row {
    /// Its table and the condition that finds it: `TABLE WHERE …`.
    table: &'static str,
    key: String,
    /// Whether the row goes when it is released.
    is_deleted: bool,
}

impl Row {
    /// The row of a lock.
    fn of_lock(name: &str) -> Self {
        Self {
            table: LOCKS,
            key: format!("name = '{name}'"),
            is_deleted: false,
        }
    }

    /// A row of a semaphore or of a reader.
    fn of_permit(name: &str, slot: i64, is_deleted: bool) -> Self {
        Self {
            table: PERMITS,
            key: format!("name = '{name}' AND slot = {slot}"),
            is_deleted,
        }
    }
}

const LOCKS: &str = "database_locks_lock";
const PERMITS: &str = "database_locks_permit";

/// A grant.
struct Claim {
    row: Row,
    token: i64,
    slot: Option<u16>,
    /// When the statement was sent that took it.
    sent: u64,
}

/// A lock that the client holds, or believes that it holds.
#[derive(Debug)]
pub struct ControlGuard {
    client: ControlClient,
    row: Row,
    /// The fencing token.
    pub token: i64,
    /// The slot of a permit, if the client has slots.
    pub slot: Option<u16>,
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

    /// Takes a row if it is free, by one statement, because another client may take it before a
    /// second one. The token grows by `step`.
    async fn take(&self, sql: &mut Sql, row: Row, step: u8) -> Result<Option<Claim>, String> {
        let Times { now, end } = self.times();
        let (sent, process) = (clock::now(), &self.process);
        let (next, returning) = match self.url.starts_with("mysql:") {
            true => (format!("LAST_INSERT_ID(token + {step})"), ""),
            false => (format!("token + {step}"), " RETURNING token"),
        };
        let Row { table, key, .. } = &row;
        let taken = sql
            .run(&format!(
                "UPDATE {table} SET locked_by = '{process}', token = {next}, \
                 expires_at = {end} WHERE {key} \
                 AND (expires_at IS NULL OR expires_at <= {now}){returning}"
            ))
            .await?;
        let token = match taken.rows.first() {
            Some(row) => row.first().and_then(|token| token.parse().ok()),
            None => (taken.affected > 0 && taken.last_id > 0).then_some(taken.last_id),
        };
        let claim = |token| Claim {
            row,
            token,
            slot: None,
            sent,
        };
        Ok(token.map(claim))
    }

    /// Tries once.
    async fn try_once(
        &self,
        sql: &mut Sql,
        target: &Target,
        mode: Mode,
    ) -> Result<Option<Claim>, String> {
        match (mode, target.kind) {
            (Mode::Permit(limit), _) if self.client == Client::CountsThenEnters => {
                self.count_then_enter(sql, &target.name, limit).await
            }
            (Mode::Permit(limit), _) => self.take_a_slot(sql, &target.name, limit).await,
            (Mode::Shared, _) => self.enter_as_reader(sql, &target.name).await,
            (Mode::Exclusive, Kind::Shared) => self.enter_as_writer(sql, &target.name).await,
            (Mode::Exclusive, _) => self.take(sql, Row::of_lock(&target.name), 1).await,
        }
    }

    /// The moment between a look at what is free and the statement that takes it.
    async fn looked(&self, name: &str) {
        let what = format!("{name} 0");
        let commands = Arc::clone(&self.commands);
        commands.pause_at(Breakpoint::Looked, &what, || true).await;
    }

    /// Takes a lock by `connection` or a new one, or gives up after `wait`.
    pub async fn acquire(
        &self,
        mut connection: Option<Sql>,
        target: &Target,
        mode: Mode,
        wait: Option<Duration>,
    ) -> Option<ControlGuard> {
        let begun = testkit::time::now();
        loop {
            let mut sql = match connection.take() {
                Some(sql) => Some(sql),
                None => Sql::connect(&self.url).await.ok(),
            };
            if let Some(mut open) = sql.take() {
                match self.try_once(&mut open, target, mode).await {
                    Ok(Some(claim)) => {
                        let held = self.held(open, claim);
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

    fn held(&self, sql: Sql, claim: Claim) -> ControlGuard {
        let state = Arc::new(Mutex::new(State {
            trusted_until: self.trusted_until(claim.sent),
            lost: false,
        }));
        let Claim {
            row, token, slot, ..
        } = claim;
        let (client, of, shared) = (self.clone(), row.clone(), Arc::clone(&state));
        ControlGuard {
            client: self.clone(),
            row,
            token,
            slot,
            state,
            renewing: tokio::spawn(async move { client.renew(sql, &of, token, &shared).await }),
        }
    }

    async fn renew(&self, sql: Sql, row: &Row, token: i64, state: &Mutex<State>) {
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
            let Row { table, key, .. } = row;
            let renewed = sql
                .run(&format!(
                    "UPDATE {table} SET locked_by = '{process}', expires_at = {end} \
                     WHERE {key} AND {mine}"
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

    /// Gives a row back; whether it was still held.
    async fn give_back(&self, sql: &mut Sql, row: &Row, token: i64) -> Result<bool, String> {
        let Row {
            table,
            key,
            is_deleted,
        } = row;
        let change = match is_deleted {
            true => format!("DELETE FROM {table}"),
            false => format!("UPDATE {table} SET expires_at = NULL"),
        };
        let process = &self.process;
        let freed = sql
            .run(&format!(
                "{change} WHERE {key} AND locked_by = '{process}' AND token = {token}"
            ))
            .await?;
        Ok(freed.affected == 1)
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
        let process = &self.client.process;
        let Row { table, key, .. } = &self.row;
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
            "SELECT token FROM {table} WHERE {key} AND locked_by = '{process}'{token}{row_lock}"
        ))
    }

    /// Releases the lock; whether it was still held.
    pub async fn release(self) -> bool {
        self.renewing.abort();
        let Ok(mut sql) = Sql::connect(&self.client.url).await else {
            return false;
        };
        let freed = self.client.give_back(&mut sql, &self.row, self.token).await;
        freed.unwrap_or(false)
    }
}

impl Drop for ControlGuard {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}
