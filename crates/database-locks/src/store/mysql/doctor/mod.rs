//! The examination of the server, the user and the table. Plain reads, which need no special
//! rights.

mod cluster;
mod table;

use std::time::Duration;

use mysql_async::Params;
use mysql_async::prelude::FromRow;

use crate::doctor::{self, Report};
use crate::store::api::StoreError;
use crate::store::doctor::{CLOCK_READINGS, ClockReading, Limit, ReportBuilder, round_trip};
use crate::store::mysql::connection::session::{Session, typed};
use crate::store::mysql::connection::settings::Settings;
use protocol::Human;

const CLOCK: &str = "SELECT {clock}";

const SETTINGS: &str = "
    SHOW VARIABLES WHERE Variable_name IN
        ('version', 'log_bin', 'sync_binlog', 'binlog_format', 'innodb_doublewrite',
         'innodb_flush_log_at_trx_commit', 'wait_timeout', 'max_statement_time',
         'max_execution_time')";

const STATUS: &str = "
    SHOW STATUS WHERE Variable_name IN
        ('Ssl_version', 'Rpl_semi_sync_master_clients', 'Rpl_semi_sync_source_clients')";

/// The replicas that read the binary log. Threads of other users are visible only with the right
/// PROCESS. The last column counts all threads: none are shown if the performance schema is off.
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
/// On MySQL from 8.0.22 on, where the other one is deprecated.
const READERS_OF_MYSQL: &str = readers!("performance_schema.processlist");

impl Session {
    /// Examine everything.
    pub(crate) async fn examine(&mut self) -> Result<Report, StoreError> {
        let mut report = ReportBuilder::new(self.server.table.as_str());
        let mut readings = Vec::with_capacity(CLOCK_READINGS);
        for _ in 0..CLOCK_READINGS {
            let reading = ClockReading::begin();
            let now = self.rows_as(CLOCK, Params::Empty).await?;
            readings.push(reading.end(now.first().copied().unwrap_or_default()));
        }
        let settings = self.settings(&[SETTINGS, STATUS]).await?;
        let version = settings.get("version");
        let product = if self.mariadb { "MariaDB" } else { "MySQL" };
        let number = version
            .trim_start_matches("5.5.5-")
            .split('-')
            .next()
            .unwrap_or_default();
        let tls = Some(settings.get("ssl_version")).filter(|tls| !tls.is_empty());
        let role = match (self.cluster, self.single_primary) {
            (None, false) => "primary",
            (None, true) => "primary of a group",
            (Some(_), _) => "one primary of several",
        };
        let (tls, trip) = (tls.unwrap_or("no TLS"), round_trip(&readings));
        report.fine(
            "server",
            format!("{product} {number}, {role}, {tls}, {trip}"),
        );
        self.cluster(&mut report).await?;
        report.clock(&readings);
        let usable = self.table(&mut report).await?;
        if usable {
            report.turn_to_permits(&self.server.table.clone());
            self.table(&mut report).await?;
        }
        durability(&settings, self.cluster.is_some(), &mut report);
        self.replicas(&settings, &mut report).await?;
        timeouts(&settings, &mut report);
        if usable {
            let guards = self.guarded_tables().await?;
            report.guards(&guards);
        }
        Ok(report.into_report())
    }

    /// Run a query. If the server refuses it, the area is recorded as unseen and there are no rows.
    async fn try_query<T: FromRow>(
        &mut self,
        area: &'static str,
        statement: &'static str,
        report: &mut ReportBuilder,
    ) -> Result<Vec<T>, StoreError> {
        match self.rows(report.of(), statement, Params::Empty).await {
            Ok(rows) => Ok(typed(rows)),
            Err(StoreError::Rejected { source, .. }) => {
                report.unseen(area, source);
                Ok(Vec::new())
            }
            Err(failure) => Err(failure),
        }
    }

    async fn replicas(
        &mut self,
        settings: &Settings,
        report: &mut ReportBuilder,
    ) -> Result<(), StoreError> {
        if !settings.on("log_bin") {
            report.fine("replicas", "there is no binary log, and so no replica");
            return Ok(());
        }
        let mut found: Vec<(u64, u64, u64)> = Vec::new();
        if !self.mariadb {
            match self.rows_as(READERS_OF_MYSQL, Params::Empty).await {
                Ok(rows) => found = rows,
                Err(StoreError::Rejected { .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        if found.first().is_none_or(|(.., threads)| *threads == 0) {
            found = self.try_query("replicas", READERS, report).await?;
        }
        let Some(&(may_look, replicas, _)) = found.first() else {
            return Ok(());
        };
        let waited_for = settings
            .number("rpl_semi_sync_master_clients")
            .or(settings.number("rpl_semi_sync_source_clients"))
            .is_some_and(|clients| clients > 0.0);
        if may_look == 0 {
            report.unseen(
                "replicas",
                "GRANT PROCESS ON *.* to see who reads the binary log",
            );
        } else if replicas > 0 && !waited_for {
            let what =
                format!("replicas ({replicas}) read the binary log, and no commit waits for one");
            report.found(&doctor::STANDBY_ASYNC, what);
        } else {
            report.fine("replicas", format!("{replicas} are connected"));
        }
        Ok(())
    }
}

fn durability(settings: &Settings, cluster: bool, report: &mut ReportBuilder) {
    let flush = "innodb_flush_log_at_trx_commit";
    if settings.is_not(flush, "1") {
        let kind = match cluster {
            false => &doctor::NOT_FLUSHED,
            true => &doctor::CLUSTER_NOT_FLUSHED,
        };
        report.found(kind, settings.shown(flush));
    }
    if matches!(
        settings.get("innodb_doublewrite"),
        "OFF" | "DETECT_ONLY" | "0"
    ) {
        report.found(&doctor::TORN_PAGES, settings.shown("innodb_doublewrite"));
    }
    if settings.on("log_bin") {
        if settings.is_not("sync_binlog", "1") {
            report.found(&doctor::BINLOG_NOT_FLUSHED, settings.shown("sync_binlog"));
        }
        if settings.get("binlog_format") == "STATEMENT" {
            report.found(&doctor::BINLOG_STATEMENT, settings.shown("binlog_format"));
        }
    }
    report.durability();
}

/// In seconds; of MySQL's `max_execution_time`, which holds for SELECT only, milliseconds.
fn timeouts(settings: &Settings, report: &mut ReportBuilder) {
    let limits = [
        ("wait_timeout", 1.0, Limit::Idle),
        ("max_statement_time", 1.0, Limit::Statement),
        ("max_execution_time", 1e-3, Limit::Statement),
    ];
    report.limits(limits.into_iter().filter_map(|(name, unit, limit)| {
        let number = settings.number(name).filter(|number| *number > 0.0)?;
        let length = Duration::try_from_secs_f64(number * unit).ok()?;
        Some((limit, length, format!("{name} is {}", Human(length))))
    }));
}
