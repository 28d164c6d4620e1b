//! Writes to a guarded table, as of a client that knows nothing of fences: a transaction of its own, in
//! which it shows a ticket or none. It does not ask whether it still holds the lock.

use torture::history::{Shown, What};
use torture::sql::Sql;
use torture::tables::GUARDED;
use torture::target::{Kind, Target};
use torture::worker::{Breakpoint, GUARDED_COMMIT};

use crate::state::{Guard, Held, Ticket, Worker};
use crate::write::Failure;

/// How often a write under a grant is tried if it fails before its COMMIT.
const ATTEMPTS: usize = 2;

/// What a write shows.
pub(crate) enum Show<'a> {
    /// The ticket of the grant that it is made under.
    Held(&'a Ticket),
    /// The ticket of an earlier grant.
    Outdated(&'a Ticket),
    Nothing,
}

impl Show<'_> {
    fn shown(&self) -> Shown {
        match self {
            Self::Held(_) => Shown::Held,
            Self::Outdated(_) => Shown::Outdated,
            Self::Nothing => Shown::Nothing,
        }
    }

    fn ticket(&self) -> Option<&Ticket> {
        match self {
            Self::Held(ticket) | Self::Outdated(ticket) => Some(ticket),
            Self::Nothing => None,
        }
    }

    /// The statement that shows it. The user variable of MySQL outlives the transaction, so that the
    /// ticket of an earlier one is removed.
    fn statement(&self, data: &Sql) -> Option<String> {
        let text = self.ticket().map(|ticket| &ticket.text);
        match (data, text) {
            (Sql::Postgres(_), Some(text)) => Some(format!(
                "SELECT set_config('database_locks.ticket', '{text}', true)"
            )),
            (Sql::MySql(_), Some(text)) => Some(format!("SET @database_locks_ticket = '{text}'")),
            (Sql::MySql(_), None) => Some("SET @database_locks_ticket = NULL".to_owned()),
            (Sql::Postgres(_), None) | (Sql::Sqlite(_), _) => None,
        }
    }
}

impl Worker {
    /// The ticket of a grant of the guarded table's lock.
    pub(crate) fn ticket(&self, held: &Held<'_>) -> Option<Ticket> {
        match held.guard {
            Guard::Library(guard) if held.target.kind == Kind::Guarded => Some(Ticket {
                request: held.request,
                token: guard.token().get(),
                text: guard.ticket().to_string(),
            }),
            _ => None,
        }
    }

    /// Keeps the ticket of a grant that has ended; writes with it at times, if it was released.
    pub(crate) async fn keep_outdated(&self, ticket: Ticket, released: bool) {
        if released && self.chance(40) {
            self.write_guarded(&Show::Outdated(&ticket)).await;
        }
        *self.outdated.borrow_mut() = Some(ticket);
    }

    /// Writes under the grant; at times also without a ticket, or with an outdated one.
    pub(crate) async fn write_guarded_as_holder(&self, held: &Held<'_>) {
        if self.chance(15) {
            self.write_guarded(&Show::Nothing).await;
        }
        let outdated = self.outdated.borrow_mut().take();
        if let Some(ticket) = outdated {
            if self.chance(15) {
                self.write_guarded(&Show::Outdated(&ticket)).await;
            }
            *self.outdated.borrow_mut() = Some(ticket);
        }
        if let Some(ticket) = self.ticket(held) {
            self.write_guarded(&Show::Held(&ticket)).await;
        }
    }

    /// Writes to the guarded table if there is one, and records how that ended.
    pub(crate) async fn write_guarded(&self, show: &Show<'_>) {
        let mut targets = self.settings.targets.iter();
        if targets.all(|target| target.kind != Kind::Guarded) {
            return;
        }
        let attempts = match show {
            Show::Held(_) => ATTEMPTS,
            Show::Outdated(_) | Show::Nothing => 1,
        };
        for _ in 0..attempts {
            let data = self.data.borrow_mut().take();
            let mut data = match data {
                Some(data) => Ok(data),
                None => Sql::connect(&self.settings.data).await,
            };
            let write = Write::new(self, show);
            let done = match &mut data {
                Ok(data) => write.run(data).await,
                Err(why) => Err(Failure::Failed(why.clone())),
            };
            let id = write.id.clone();
            match done {
                Ok(()) => self.record(What::Committed { id }),
                Err(Failure::Refused(why)) => {
                    self.record(What::Refused { id, why });
                    if let Ok(open) = &mut data
                        && open.run("ROLLBACK").await.is_err()
                    {
                        return;
                    }
                }
                // Dropping the connection rolls its transaction back.
                Err(Failure::Failed(why)) => {
                    self.record(What::Failed { id, why });
                    if write.committing.get() || self.commands.stopped() {
                        return;
                    }
                    continue;
                }
            }
            *self.data.borrow_mut() = data.ok();
            return;
        }
    }
}

/// One attempt of a write.
struct Write<'a> {
    worker: &'a Worker,
    show: &'a Show<'a>,
    id: String,
    /// Whether the COMMIT was sent, so that the outcome of a failure is unknown.
    committing: std::cell::Cell<bool>,
}

impl<'a> Write<'a> {
    fn new(worker: &'a Worker, show: &'a Show<'a>) -> Self {
        worker.writes.set(worker.writes.get() + 1);
        let id = format!("{} {}", worker.settings.process, worker.writes.get());
        let request = show.ticket().map(|ticket| ticket.request);
        worker.record(What::Guarded {
            request: request.unwrap_or(worker.requests.get()),
            id: id.clone(),
            shown: show.shown(),
        });
        Self {
            worker,
            show,
            id,
            committing: false.into(),
        }
    }

    async fn run(&self, data: &mut Sql) -> Result<(), Failure> {
        let (id, token) = (&self.id, self.token());
        data.run("BEGIN").await?;
        if let Some(statement) = self.show.statement(data) {
            data.run(&statement).await?;
        }
        self.pause(Breakpoint::Shown).await;
        let insert = format!("INSERT INTO {GUARDED} (write_id, token) VALUES ('{id}', {token})");
        data.run(&insert).await.map_err(refusal)?;
        // What earlier grants have written must all be there now.
        let count = format!("SELECT COUNT(*) FROM {GUARDED} WHERE token > 0 AND token < {token}");
        let older = data.run(&count).await?;
        let older = older.rows.first().and_then(|row| row.first());
        let older: i64 = older
            .and_then(|count| count.parse().ok())
            .ok_or("no count".to_owned())?;
        let update = format!("UPDATE {GUARDED} SET older = {older} WHERE write_id = '{id}'");
        data.run(&update).await.map_err(refusal)?;
        self.pause(Breakpoint::Written).await;
        self.committing.set(true);
        self.worker.record(What::Committing { id: id.clone() });
        data.run(GUARDED_COMMIT).await.map_err(refusal)?;
        Ok(())
    }

    /// The token of the grant that it is made under.
    fn token(&self) -> i64 {
        match self.show {
            Show::Held(ticket) => ticket.token,
            Show::Outdated(_) | Show::Nothing => 0,
        }
    }

    /// A moment in the transaction of a holder.
    async fn pause(&self, breakpoint: Breakpoint) {
        let Show::Held(ticket) = self.show else {
            return;
        };
        let name = &Target::guarded().name;
        let what = format!("{name} {}", ticket.token);
        let commands = &self.worker.commands;
        if !commands.pause_at(breakpoint, &what, || true).await {
            tokio::time::sleep(self.worker.between(0, 15)).await;
        }
    }
}

/// The answer of a trigger of a guard, on every engine, or another failure.
fn refusal(why: String) -> Failure {
    match why.contains("is guarded by lock") {
        true => Failure::Refused(why),
        false => Failure::Failed(why),
    }
}
