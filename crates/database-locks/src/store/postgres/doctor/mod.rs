//! The examination of the server, the role and the table. Plain reads, which need no special
//! rights.

mod examination;
mod table;

use std::collections::HashMap;
use std::time::Duration;

use self::examination::Examination;
use super::connection::session::Session;
use crate::doctor::{self, Report};
use crate::store::connect::table::Table;
use crate::store::doctor::{CLOCK_READINGS, ClockReading, Limit, ReportBuilder, round_trip};
use crate::store::postgres::error::ServerError;
use crate::store::postgres::statements::guarded_table::guarded_tables;
use protocol::Human;

const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now";

/// The settings, in PostgreSQL's own units: milliseconds for all times here.
const SETTINGS: &str = "
SELECT name, setting, source
  FROM pg_settings
 WHERE name IN ('server_version', 'fsync', 'full_page_writes', 'synchronous_commit',
                'statement_timeout', 'idle_session_timeout', 'synchronous_standby_names',
                'server_encoding')";

/// TLS of this connection; behind a pooler, of the pooler's connection to the server.
const TLS: &str =
    "SELECT coalesce(version, 'no TLS') AS tls FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Standbys: synchronous, asynchronous, and hidden from this role. Without subscribers of logical
/// replication and running backups.
const STANDBYS: &str = "
SELECT count(*) FILTER (WHERE r.sync_state <> 'async') AS safe,
       count(*) FILTER (WHERE r.sync_state = 'async') AS lagging,
       count(*) FILTER (WHERE r.sync_state IS NULL) AS hidden
  FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
 WHERE s.slot_type IS DISTINCT FROM 'logical' AND r.state IS DISTINCT FROM 'backup'";

/// Examine everything.
pub(crate) async fn examine(session: &Session, table: &Table) -> Result<Report, ServerError> {
    let mut examination = Examination {
        session,
        table,
        report: ReportBuilder::new(table.as_str()),
    };
    let mut readings = Vec::with_capacity(CLOCK_READINGS);
    for _ in 0..CLOCK_READINGS {
        let reading = ClockReading::begin();
        let rows = session.query(CLOCK, &[]).await?;
        readings.push(reading.end(rows.first().map_or(Ok(0), |row| row.try_get("now"))?));
    }
    let mut settings = HashMap::new();
    for row in session.query(SETTINGS, &[]).await? {
        let value = (row.try_get("setting")?, row.try_get("source")?);
        settings.insert(row.try_get("name")?, value);
    }
    let settings = Settings(settings);
    examination.server(&settings, &readings).await?;
    examination.report.clock(&readings);
    let usable = examination.table().await?;
    if usable {
        examination.locks().await?;
        examination.report.turn_to_permits(table);
        if examination.table().await? {
            examination.locks().await?;
        }
    }
    examination.durability(&settings).await?;
    timeouts(&settings, &mut examination.report);
    encoding(&settings, &mut examination.report);
    if usable {
        let guards = guarded_tables(session, table).await?;
        examination.report.guards(&guards);
    }
    Ok(examination.report.into_report())
}

/// Values by name, with their sources.
struct Settings(HashMap<String, (String, String)>);

impl Settings {
    /// Empty if this version does not have the setting.
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |(value, _)| value)
    }

    /// Name, value and source, for people.
    fn shown(&self, name: &str, value: &str) -> String {
        let source = self.0.get(name).map_or("", |(_, source)| source);
        format!("{name} is {value} (as set by: {source})")
    }

    /// A time limit; `None` if it is off.
    fn limit(&self, name: &str) -> Option<Duration> {
        let millis = self.get(name).parse().ok().filter(|millis| *millis > 0);
        millis.map(Duration::from_millis)
    }
}

impl Examination<'_> {
    async fn server(
        &mut self,
        settings: &Settings,
        readings: &[ClockReading],
    ) -> Result<(), ServerError> {
        let version = settings
            .get("server_version")
            .split(' ')
            .next()
            .unwrap_or_default();
        let tls: String = match self.session.query(TLS, &[]).await?.first() {
            Some(row) => row.try_get("tls")?,
            None => "no TLS".into(),
        };
        let unprepared = "not directly but through a pooler, a proxy or a translated address, so no \
                          statement is prepared";
        let way = match (self.session.is_unpooled, self.session.backend) {
            (true, _) => format!("no pooler, {tls}"),
            (false, Some(_)) => format!("{unprepared}; waiters are woken all the same"),
            (false, None) => format!("{unprepared}, and waiters poll"),
        };
        let message = format!(
            "PostgreSQL {version}, primary, {way}, {}",
            round_trip(readings)
        );
        self.report.fine("server", message);
        Ok(())
    }

    async fn durability(&mut self, settings: &Settings) -> Result<(), ServerError> {
        for (name, kind) in [
            ("fsync", doctor::NOT_FLUSHED),
            ("full_page_writes", doctor::TORN_PAGES),
        ] {
            if settings.get(name) == "off" {
                self.report.found(&kind, settings.shown(name, "off"));
            }
        }
        let Some(rows) = self.try_query("replicas", STANDBYS, &[]).await? else {
            return Ok(());
        };
        let count = |of: &str| rows.first().map_or(Ok(0), |row| row.try_get::<_, i64>(of));
        let (safe, lagging, hidden) = (count("safe")?, count("lagging")?, count("hidden")?);
        // Visible also to a role that may not see the standbys.
        let waits = !settings.get("synchronous_standby_names").is_empty();
        let commit = "synchronous_commit";
        if settings.get(commit) == "local" && (safe > 0 || hidden > 0 && waits) {
            let what = settings.shown(commit, "local");
            self.report.found(&doctor::COMMITS_LOCAL, what);
        }
        self.report.durability();
        if hidden > 0 && !waits {
            let what = format!(
                "{}, or as many backups that are under way, and synchronous_standby_names is empty: \
                 all of them are asynchronous",
                standbys(hidden, "")
            );
            self.report.found(&doctor::STANDBY_ASYNC, what);
        } else if hidden > 0 {
            let right = "GRANT pg_monitor to see whether they are synchronous";
            let are = if hidden == 1 { "is" } else { "are" };
            let there = format!("there {are} {}", standbys(hidden, ""));
            let why = format!("{there}, but this role sees no more: {right}");
            self.report.unseen("replicas", why);
        } else if lagging > 0 && safe == 0 {
            let what = match lagging {
                1 => "1 standby, which is asynchronous".into(),
                _ => format!("{lagging} standbys, and all of them are asynchronous"),
            };
            self.report.found(&doctor::STANDBY_ASYNC, what);
        } else {
            let message = match (safe, lagging) {
                (0, _) => "no standby is connected".into(),
                (_, 0) => standbys(safe, "synchronous "),
                _ => format!(
                    "{}, and {}: promote none of those",
                    standbys(safe, "synchronous "),
                    standbys(lagging, "asynchronous ")
                ),
            };
            self.report.fine("replicas", message);
        }
        Ok(())
    }
}

/// `1 synchronous standby`, `2 standbys`.
fn standbys(number: i64, of: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {of}standby{plural}")
}

fn encoding(settings: &Settings, report: &mut ReportBuilder) {
    let encoding = settings.get("server_encoding");
    let message = format!("the encoding of the database is {encoding}");
    match encoding {
        "UTF8" | "" => report.fine("settings", message),
        _ => report.found(&doctor::ENCODING, message),
    }
}

fn timeouts(settings: &Settings, report: &mut ReportBuilder) {
    let limits = [
        ("idle_session_timeout", Limit::Idle),
        ("statement_timeout", Limit::Statement),
    ];
    report.limits(limits.into_iter().filter_map(|(name, limit)| {
        let length = settings.limit(name)?;
        let shown = settings.shown(name, &Human(length).to_string());
        Some((limit, length, shown))
    }));
}
