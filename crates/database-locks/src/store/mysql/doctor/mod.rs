//! What may be wrong with a server, a user or the table. Plain reads, which need no special rights.

mod cluster;
mod settings;
mod table;

use std::collections::HashMap;
use std::time::Duration;

use mysql_async::Params;
use mysql_async::prelude::FromRow;

use self::settings::{Settings, rows};

use crate::doctor::{self, Beat, Notes, Report};
use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::mysql::connection::session::Session;

/// How often the clock is asked: often enough for a median and for a step to be seen.
const BEATS: usize = 7;

const CLOCK: &str = "
    SELECT TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))";

const SETTINGS: &str = "
    SHOW VARIABLES WHERE Variable_name IN
        ('version', 'log_bin', 'sync_binlog', 'binlog_format', 'innodb_doublewrite',
         'innodb_flush_log_at_trx_commit', 'wait_timeout', 'max_statement_time',
         'max_execution_time')";

const STATUS: &str = "
    SHOW STATUS WHERE Variable_name IN
        ('Ssl_version', 'Rpl_semi_sync_master_clients', 'Rpl_semi_sync_source_clients')";

/// Replicas that read the binary log; of other users only those with this right see them. The last
/// column counts all threads: none are shown where the performance schema is off.
macro_rules! readers {
    ($processes:literal) => {
        concat!(
            "
    SELECT (SELECT COUNT(*) FROM information_schema.user_privileges
             WHERE privilege_type = 'PROCESS'),
           COUNT(IF(command LIKE 'Binlog Dump%', 1, NULL)), COUNT(*)
      FROM ",
            $processes
        )
    };
}

const READERS: &str = readers!("information_schema.processlist");
/// On MySQL, which calls the other deprecated; from 8.0.22 on.
const READERS_OF_MYSQL: &str = readers!("performance_schema.processlist");

impl Session {
    /// Look at everything.
    pub(crate) async fn examine(&mut self) -> Result<Report, StoreError> {
        let table = self.server.table.as_str().to_owned();
        let mut notes = Notes::new(&table);
        let mut beats = Vec::with_capacity(BEATS);
        for _ in 0..BEATS {
            let beat = Beat::begin(clock::now());
            let told = self.rows(CLOCK, Params::Empty).await?;
            beats.push(beat.end(rows(told).first().map_or(0, |(told,)| *told), clock::now()));
        }
        let mut settings: HashMap<String, String> = HashMap::new();
        for statement in [SETTINGS, STATUS] {
            settings.extend(rows::<(String, String)>(
                self.rows(statement, Params::Empty).await?,
            ));
        }
        let settings = Settings(settings);
        let version = settings.get("version");
        let product = if version.contains("MariaDB") {
            "MariaDB"
        } else {
            "MySQL"
        };
        let number = version
            .trim_start_matches("5.5.5-")
            .split('-')
            .next()
            .unwrap_or_default();
        let tls = Some(settings.get("Ssl_version")).filter(|tls| !tls.is_empty());
        let role = match (self.cluster, self.single_primary) {
            (None, false) => "primary",
            (None, true) => "primary of a group",
            (Some(_), _) => "one primary of several",
        };
        let (tls, trip) = (tls.unwrap_or("no TLS"), doctor::round_trip(&beats));
        notes.fine(
            "server",
            format!("{product} {number}, {role}, {tls}, {trip}"),
        );
        self.cluster(&mut notes).await?;
        notes.clock(&beats);
        let usable = self.rights(&table, &mut notes).await? && self.table(&mut notes).await?;
        durability(&settings, self.cluster.is_some(), &mut notes);
        self.replicas(&settings, &mut notes).await?;
        timeouts(&settings, &mut notes);
        if usable {
            self.locks(&mut notes).await?;
        }
        Ok(notes.into_report())
    }

    /// Rows; none where the server refuses to tell, which is noted.
    async fn ask<T: FromRow>(
        &mut self,
        area: &'static str,
        statement: &'static str,
        notes: &mut Notes,
    ) -> Result<Vec<T>, StoreError> {
        match self.rows(statement, Params::Empty).await {
            Ok(found) => Ok(rows(found)),
            Err(StoreError::Rejected { source, .. }) => {
                notes.unseen(area, source);
                Ok(Vec::new())
            }
            Err(failure) => Err(failure),
        }
    }

    async fn replicas(&mut self, settings: &Settings, notes: &mut Notes) -> Result<(), StoreError> {
        if !settings.on("log_bin") {
            notes.fine("replicas", "there is no binary log, and so no replica");
            return Ok(());
        }
        let mut found: Vec<(u64, u64, u64)> = Vec::new();
        if !self.mariadb {
            match self.rows(READERS_OF_MYSQL, Params::Empty).await {
                Ok(told) => found = rows(told),
                Err(StoreError::Rejected { .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        if found.first().is_none_or(|(.., threads)| *threads == 0) {
            found = self.ask("replicas", READERS, notes).await?;
        }
        let Some(&(may_look, replicas, _)) = found.first() else {
            return Ok(());
        };
        let waited_for = settings
            .number("Rpl_semi_sync_master_clients")
            .or(settings.number("Rpl_semi_sync_source_clients"))
            .is_some_and(|clients| clients > 0.0);
        if may_look == 0 {
            notes.unseen(
                "replicas",
                "GRANT PROCESS ON *.* to see who reads the binary log",
            );
        } else if replicas > 0 && !waited_for {
            let what =
                format!("replicas ({replicas}) read the binary log, and no commit waits for one");
            notes.found(&doctor::STANDBY_ASYNC, what);
        } else {
            notes.fine("replicas", format!("{replicas} are connected"));
        }
        Ok(())
    }
}

fn durability(settings: &Settings, cluster: bool, notes: &mut Notes) {
    let flush = "innodb_flush_log_at_trx_commit";
    if settings.is_not(flush, "1") {
        let kind = match cluster {
            false => &doctor::NOT_FLUSHED,
            true => &doctor::CLUSTER_NOT_FLUSHED,
        };
        notes.found(kind, settings.shown(flush));
    }
    if matches!(
        settings.get("innodb_doublewrite"),
        "OFF" | "DETECT_ONLY" | "0"
    ) {
        notes.found(&doctor::TORN_PAGES, settings.shown("innodb_doublewrite"));
    }
    if settings.on("log_bin") {
        if settings.is_not("sync_binlog", "1") {
            notes.found(&doctor::BINLOG_NOT_FLUSHED, settings.shown("sync_binlog"));
        }
        if settings.get("binlog_format") == "STATEMENT" {
            notes.found(&doctor::BINLOG_STATEMENT, settings.shown("binlog_format"));
        }
    }
    let message = "a commit is on disk before it is answered, and pages are written whole";
    notes.otherwise_fine("durability", message);
}

/// In seconds; of MySQL's `max_execution_time`, milliseconds, which holds for SELECT only.
fn timeouts(settings: &Settings, notes: &mut Notes) {
    let limits = [
        (
            "wait_timeout",
            1.0,
            doctor::LEAST_IDLE,
            doctor::IDLE_TIMEOUT,
        ),
        (
            "max_statement_time",
            1.0,
            doctor::LEAST_STATEMENT,
            doctor::STATEMENT_TIMEOUT,
        ),
        (
            "max_execution_time",
            1e-3,
            doctor::LEAST_STATEMENT,
            doctor::STATEMENT_TIMEOUT,
        ),
    ];
    for (name, unit, least, kind) in limits {
        let limit = settings.number(name).filter(|limit| *limit > 0.0);
        let limit = limit.and_then(|limit| Duration::try_from_secs_f64(limit * unit).ok());
        if let Some(limit) = limit.filter(|limit| *limit < least) {
            notes.found(&kind, format!("{name} is {}", doctor::human(limit)));
        }
    }
    notes.otherwise_fine(
        "timeouts",
        "the server lets connections be idle and statements take time",
    );
}
