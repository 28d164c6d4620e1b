//! Guarded tables: triggers that refuse a write in a transaction that does not hold the lock.

use std::collections::BTreeSet;

use mysql_async::params;

use super::guarded_table_body::{Body, EVENTS, create_trigger, quoted, trigger_name};
use super::guarded_table_error::{explained, unless_whole};
use super::guarded_table_target::Target;
use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::error::is_code;
use protocol::{GuardCommand, LockName};

/// How many names are tried for a trigger. Its name may be that of another one, for example of a
/// table that was renamed.
const NAMES: u32 = 9;

/// A trigger of a guard.
pub(super) struct Trigger {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) event: String,
    pub(super) body: String,
    /// The lock that it asks for.
    pub(super) lock: Option<LockName>,
}

fn events(triggers: &[Trigger]) -> BTreeSet<&str> {
    triggers.iter().map(|one| &*one.event).collect()
}

/// Whether a guard that refuses these events refuses all.
fn is_whole(covered: &BTreeSet<&str>) -> bool {
    EVENTS.iter().all(|event| covered.contains(event))
}

fn refuse_other_locks(triggers: &[Trigger], command: &GuardCommand) -> Result<(), StoreError> {
    let mut locks = triggers.iter().filter_map(|one| one.lock.as_ref());
    match locks.find(|other| **other != command.lock) {
        Some(other) => Err(StoreError::rejected(
            format!(
                "{} is guarded by the lock \"{other}\" already",
                command.table
            ),
            Some("remove that guard first: `dblock unguard`"),
        )),
        None => Ok(()),
    }
}

impl Session {
    const TRIGGERS: &str = "
        SELECT event_object_schema, event_object_table, trigger_name, event_manipulation,
               action_statement
          FROM information_schema.triggers
         WHERE (:schema IS NULL OR event_object_schema = :schema AND event_object_table = :table)
           AND action_timing = 'BEFORE'
           AND LEFT(action_statement, CHAR_LENGTH(:label)) = :label
         ORDER BY event_object_schema, event_object_table, trigger_name";

    /// Put a table under guard.
    pub(crate) async fn guard_table(&mut self, command: &GuardCommand) -> Result<(), StoreError> {
        // The table of locks has to be there and fit.
        self.check_table().await?;
        let target = self.target(&command.table).await?;
        self.check_target(&target)?;
        let _turn = self.take_turn_to_guard(&target).await?;
        let found = self.triggers_of(&target).await?;
        refuse_other_locks(&found, command)?;
        if !command.allow_cascades {
            self.refuse_cascades(&target, &command.lock).await?;
        }
        let body = self.guard_body(&target, &command.lock);
        self.may_check().await?;
        // This connection has no other use.
        let home = format!("USE {}", quoted(&target.schema));
        self.execute_unprepared(&home).await?;
        let mut created = Vec::new();
        let whole = self.create_missing(command, &target, &found, &body, &mut created);
        let found = match whole.await {
            Ok(found) => found,
            Err(failure) => {
                let failure = explained(failure, &target.schema, &target.name);
                let is_whole = self.take_back(&target.schema, &found, created).await;
                return Err(unless_whole(failure, is_whole, &target.name));
            }
        };
        // Drop those of an earlier version, and further copies.
        for event in EVENTS {
            let mut of_event: Vec<_> = found.iter().filter(|one| one.event == event).collect();
            if let Some(kept) = of_event.iter().position(|one| one.body == body) {
                of_event.remove(kept);
                for spare in of_event {
                    self.drop_trigger(&target.schema, &spare.name).await?;
                }
            }
        }
        Ok(())
    }

    /// One client at a time guards a table or removes its guard, which takes several statements. The
    /// session of this user lock runs nothing else: while it has the lock, MariaDB leaves tables that are
    /// being altered out of what it reads from `information_schema`.
    const TAKE_TURN_TO_GUARD: &str =
        "SELECT GET_LOCK(CONCAT('database_locks guard ', CRC32(CONCAT(:schema, '.', :table))), 2)";

    /// The session, and the user lock with it, ends soon if this machine loses power; but not before a
    /// guard is made.
    const TURN_ENDS: &str = "SET wait_timeout = 60";

    async fn take_turn_to_guard(&self, target: &Target) -> Result<Session, StoreError> {
        let mut turn = Session::open(&self.server).await?;
        turn.execute_unprepared(Self::TURN_ENDS).await?;
        let these = params! { "schema" => &target.schema, "table" => &target.name };
        let taken = turn.rows_as(Self::TAKE_TURN_TO_GUARD, these).await;
        match taken.as_deref() {
            Ok([Some(1)]) => Ok(turn),
            Ok(_) => {
                let name = &target.name;
                let why = format!("another client guards {name}, or removes its guard");
                Err(StoreError::Contention(why.into()))
            }
            // A cluster may refuse it, where it would be a lock of one node alone.
            Err(StoreError::Rejected { source, .. }) => {
                tracing::debug!(
                    "other clients may guard {} meanwhile: {source}",
                    target.name
                );
                Ok(turn)
            }
            Err(_) => taken.map(|_| turn),
        }
    }

    /// Create the triggers that are not among those that were `found`, and answer which there are
    /// then. Another client that guards the table meanwhile, at another node of a cluster, finds
    /// these triggers or has its own found here.
    async fn create_missing(
        &mut self,
        command: &GuardCommand,
        target: &Target,
        found: &[Trigger],
        body: &str,
        created: &mut Vec<(&'static str, String)>,
    ) -> Result<Vec<Trigger>, StoreError> {
        let table = &target.name;
        let is_there = |found: &[Trigger], event: &str| {
            let mut of_event = found.iter().filter(|one| one.event == event);
            of_event.any(|one| one.body == body)
        };
        for event in EVENTS {
            let mut is_there_now = is_there(found, event);
            let mut attempt = 0;
            while !is_there_now {
                let statement = create_trigger(table, event, attempt, body);
                match self.execute_unprepared(&statement).await {
                    Ok(()) => {
                        created.push((event, trigger_name(table, event, attempt)));
                        is_there_now = true;
                    }
                    // There is a trigger of that name: of another table, or one that another client
                    // has just created.
                    Err(failure) if is_code(&failure, &[1359]) && attempt + 1 < NAMES => {
                        attempt += 1;
                        let found = self.triggers_of(target).await?;
                        refuse_other_locks(&found, command)?;
                        is_there_now = is_there(&found, event);
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
        let all = self.triggers_of(target).await?;
        refuse_other_locks(&all, command)?;
        if EVENTS.iter().all(|event| is_there(&all, event)) {
            return Ok(all);
        }
        // It dropped what it had created, since it could not create all.
        let why = format!("another client that guarded {table} gave up meanwhile");
        Err(StoreError::Contention(why.into()))
    }

    /// Drop the triggers that were created before one could not be: half a guard would refuse writes
    /// by chance. Answers whether the table has a whole guard or none, as far as is known: on a busy
    /// table this fails for the same reason. What was `found` stays, since it is not known why it is
    /// not whole.
    async fn take_back(
        &mut self,
        schema: &str,
        found: &[Trigger],
        created: Vec<(&str, String)>,
    ) -> bool {
        let mut covered = events(found);
        for (event, name) in created {
            if self.drop_trigger(schema, &name).await.is_err() {
                covered.insert(event);
            }
        }
        covered.is_empty() || is_whole(&covered)
    }

    /// Remove the guard of a table.
    pub(crate) async fn unguard_table(&mut self, table: &str) -> Result<bool, StoreError> {
        let target = self.target(table).await?;
        let _turn = self.take_turn_to_guard(&target).await?;
        let found = self.triggers_of(&target).await?;
        let Target { schema, name, .. } = &target;
        for (at, trigger) in found.iter().enumerate() {
            if let Err(failure) = self.drop_trigger(schema, &trigger.name).await {
                let failure = explained(failure, schema, name);
                let is_whole = is_whole(&events(&found[at..]));
                return Err(unless_whole(failure, is_whole, name));
            }
        }
        Ok(!found.is_empty())
    }

    /// The table of locks as the triggers of a schema name it: without a schema if it is in the same
    /// one, so that a dump can be restored under another name.
    fn locks_name(&self, schema: &str, own_schema: &str) -> String {
        let (of, table) = match self.server.table.as_str().split_once('.') {
            Some((of, table)) => (of, table),
            None => (own_schema, self.server.table.as_str()),
        };
        match of == schema {
            true => quoted(table),
            false => format!("{}.{}", quoted(of), quoted(table)),
        }
    }

    pub(super) fn guard_body(&self, target: &Target, lock: &LockName) -> String {
        let body = Body {
            guard: &self.server.table.guard(),
            locks: &self.locks_name(&target.schema, &target.own_schema),
            collation: self.collation(),
            mariadb: self.mariadb,
            cluster: self.cluster.is_some(),
        };
        body.text(&target.name, lock.as_str())
    }

    /// The triggers run with the rights of this user, so it has to be allowed what they do.
    async fn may_check(&mut self) -> Result<(), StoreError> {
        let probe = match (self.cluster, self.mariadb) {
            (Some(_), _) => "UPDATE {table} SET renewed_at = renewed_at WHERE id < 0",
            (None, true) => "SELECT id FROM {table} WHERE id < 0 LOCK IN SHARE MODE",
            (None, false) => "SELECT id FROM {table} WHERE id < 0 FOR SHARE",
        };
        let probe = self.fill(Rows::Locks, probe);
        self.execute_unprepared(&probe).await
    }

    async fn drop_trigger(&mut self, schema: &str, name: &str) -> Result<(), StoreError> {
        let trigger = format!("{}.{}", quoted(schema), quoted(name));
        let drop = format!("DROP TRIGGER IF EXISTS {trigger}");
        self.execute_unprepared(&drop).await
    }

    async fn triggers_of(&mut self, target: &Target) -> Result<Vec<Trigger>, StoreError> {
        let of = (&*target.schema, &*target.name);
        self.triggers(Some(of), &target.own_schema).await
    }

    /// The triggers of guards by this table of locks, of one table or of all. A table of locks of the
    /// same name in another schema has the same label.
    pub(super) async fn triggers(
        &mut self,
        of: Option<(&str, &str)>,
        own_schema: &str,
    ) -> Result<Vec<Trigger>, StoreError> {
        let label = format!("{}: BEGIN", self.server.table.guard());
        let these = params! {
            "schema" => of.map(|(schema, _)| schema), "table" => of.map(|(_, table)| table),
            "label" => label,
        };
        let rows: Vec<(String, String, String, String, String)> =
            self.rows_as(Self::TRIGGERS, these).await?;
        let found = rows
            .into_iter()
            .map(|(schema, table, name, event, body)| Trigger {
                lock: Body::lock_in(&body),
                schema,
                table,
                name,
                event,
                body,
            });
        let ours = |trigger: &Trigger| {
            let locks = self.locks_name(&trigger.schema, own_schema);
            trigger.body.contains(&format!(" {locks} l "))
        };
        Ok(found
            .filter(|found| of.is_none_or(|(_, table)| found.table == table))
            .filter(ours)
            .collect())
    }
}
