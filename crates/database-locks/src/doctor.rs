//! Findings about the database of the locks, and how to fix them.
//!
//! ```
//! # use database_locks::Locks;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
//! # let locks = Locks::connect("memory:").await?;
//! for finding in locks.doctor().await?.findings {
//!     eprintln!("{}: {}; {}", finding.severity, finding.message, finding.fix);
//! }
//! # Ok(()) }
//! ```
//!
#![doc = include_str!("../docs/doctor.md")]

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::json;

use protocol::{BootInstant, Human};

/// What was examined, and what was found; see [`Locks::doctor`](crate::Locks::doctor).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What was examined and is fine, and what could not be examined.
    pub checks: Vec<Check>,
    /// What is wrong, errors first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// As JSON, the form of `dblock doctor --json`: an object of `checks` (area, seen, message) and
    /// `findings` (id, area, severity, message, fix).
    pub fn to_json(&self) -> String {
        let checks = self.checks.iter().map(|check| {
            json!({ "area": check.area, "seen": check.seen, "message": check.message }).to_string()
        });
        let findings = self.findings.iter().map(|found| {
            json!({
                "id": found.id, "area": found.area, "severity": found.severity.to_string(),
                "message": found.message, "fix": found.fix,
            })
            .to_string()
        });
        let list = |objects: Vec<String>| match objects.is_empty() {
            true => "[]".to_owned(),
            false => format!("[\n{}\n]", objects.join(",\n")),
        };
        format!(
            "{{\"checks\":{},\n\"findings\":{}}}",
            list(checks.collect()),
            list(findings.collect())
        )
    }
}

/// Something that was examined.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The subject in one word: `server`, `clock`, `rights`, ….
    pub area: &'static str,
    /// `false` if this user has no right to examine it.
    pub seen: bool,
    /// The state found, or why it could not be examined.
    pub message: String,
}

/// Something that is wrong, or could be better.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// A stable identifier: `table-missing`, ….
    pub id: &'static str,
    /// The subject, as in [`Check::area`].
    pub area: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and its consequence.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Locks cannot be used, or a promise is not kept.
    Error,
    /// Locks work and could do better.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A kind of finding: what all findings with one id have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kind {
    /// See [`Finding::id`].
    pub id: &'static str,
    /// See [`Finding::area`].
    pub area: &'static str,
    /// See [`Finding::severity`].
    pub severity: Severity,
    /// The consequence.
    pub impact: &'static str,
    /// See [`Finding::fix`]; `{table}` stands for the name of the table.
    pub fix: &'static str,
}

macro_rules! kinds {
    ($($name:ident = $id:literal, $area:literal, $severity:ident, $impact:literal, $fix:literal;)*) => {
        $(pub(crate) const $name: Kind = Kind {
            id: $id, area: $area, severity: Severity::$severity, impact: $impact, fix: $fix,
        };)*
        /// Everything that can be found.
        pub const KINDS: &[Kind] = &[$($name),*];
    };
}

// The same list is in `docs/doctor.md`.
kinds! {
    CLOCK_NOT_STEADY = "clock-not-steady", "clock", Error,
        "leases end by the database's clock; if that goes back or stands still, locks stay held \
         too long or are given away early",
        "have the server's clock slewed and never set (chrony, not ntpdate), and look for a \
         function or setting that replaces the server's own time";
    CLOCK_OFF = "clock-off", "clock", Warning,
        "locks are not affected, since they never compare two clocks, but displayed times do \
         not match this machine's logs",
        "synchronize both machines by NTP";
    RIGHTS_MISSING = "rights-missing", "rights", Error,
        "locks cannot be acquired, renewed or released",
        "as the owner of the table: GRANT SELECT, INSERT, UPDATE ON {table} to this user (and \
         DELETE if it prunes); on PostgreSQL also USAGE on its schema, and on the sequence of \
         its column id if there is one";
    NO_DELETE = "no-delete", "rights", Warning,
        "locks work, but `prune` cannot delete the rows of unused locks",
        "as the owner of the table: GRANT DELETE ON {table} to this user, or prune as another \
         user";
    TABLE_MISSING = "table-missing", "table", Error,
        "no lock can be acquired",
        "make it with `dblock init` or `locks.migrate()`; if it has another name or schema, \
         pass `--table SCHEMA.NAME`";
    TABLE_FORGETS = "table-forgets", "table", Error,
        "a crash of the server empties it, and every held lock becomes free",
        "ALTER TABLE {table} SET LOGGED; drop a temporary table and run `dblock init`";
    NOT_INNODB = "not-innodb", "table", Error,
        "no other engine locks single rows and survives a crash",
        "run `dblock init`, which alters it, or: ALTER TABLE {table} ENGINE = InnoDB";
    COLUMNS_MISSING = "columns-missing", "table", Error,
        "the table was made by django-database-locks 0.5 or an older version of this library; \
         no lock can be acquired",
        "run `dblock init` or `locks.migrate()`, which adds the columns; legacy programs can keep using \
         the table. A table in an SQLite file is not altered: use a new file";
    COLUMN_TYPE = "column-type", "table", Error,
        "statements fail, or compare values that were cut off or rounded",
        "ALTER TABLE {table}: give the column the type that `dblock init` gives it in a new \
         table";
    COLUMN_UNFILLED = "column-unfilled", "table", Error,
        "no lock with a new name can be made, since nothing gives that column a value",
        "ALTER TABLE {table}: give the column a default, allow null, or drop it";
    NAME_COLLATION = "name-collation", "table", Error,
        "names that differ only in case, accents or trailing spaces may be one lock",
        "MySQL and MariaDB: run `dblock init`, which alters it; elsewhere give the column name \
         a collation that compares byte for byte (PostgreSQL: \"C\", SQLite: BINARY)";
    NAME_NOT_UNIQUE = "name-not-unique", "table", Error,
        "two rows may have the same name, so one lock may have two holders, or acquiring a new \
         lock fails",
        "delete rows that share a name, then: CREATE UNIQUE INDEX name ON {table} (name)";
    INDEX_RENAMED = "index-renamed", "table", Error,
        "the statements name that index and fail without it",
        "run `dblock init`, which renames it to `name`";
    INDEX_ON_CHANGING = "index-on-changing", "table", Error,
        "each renewal has to update it, and such indexes are known to cause deadlocks",
        "drop it (DROP INDEX); only the unique index on name is needed";
    INDEX_UNUSED = "index-unused", "table", Warning,
        "no statement reads it, and each new lock has to update it",
        "drop it (DROP INDEX); only the unique index on name is needed";
    IDS_RUN_OUT = "ids-run-out", "table", Warning,
        "each new name uses up one id; when none is left, no lock with a new name can be made",
        "make the column id of {table} a bigint at a quiet time, since that rewrites the table \
         (prune it first): on PostgreSQL ALTER TABLE {table} ALTER COLUMN id TYPE bigint, and \
         ALTER SEQUENCE … AS bigint for a column made by serial; on MySQL and MariaDB ALTER \
         TABLE {table} MODIFY id bigint NOT NULL AUTO_INCREMENT";
    ROW_SECURITY = "row-security", "table", Error,
        "rows that a policy hides look like free locks and cannot be acquired",
        "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY, or connect as its owner or as a role \
         with BYPASSRLS";
    AUTOVACUUM_OFF = "autovacuum-off", "table", Warning,
        "each grant and renewal leaves a dead row, so the table grows and gets slow",
        "ALTER TABLE {table} RESET (autovacuum_enabled); or set autovacuum = on for the server";
    DEAD_ROWS = "dead-rows", "table", Warning,
        "each statement has to skip them to read a lock",
        "end long-running transactions (pg_stat_activity, by xact_start) and drop unused \
         replication slots, then: VACUUM {table}";
    NOT_FLUSHED = "not-flushed", "durability", Error,
        "a power cut or a crash of the machine may lose grants: the same token may then be \
         granted twice, and one lock may have two holders",
        "PostgreSQL: fsync = on; MySQL and MariaDB: innodb_flush_log_at_trx_commit = 1";
    BINLOG_NOT_FLUSHED = "binlog-not-flushed", "durability", Error,
        "after a power cut the server rolls back commits that are not in its binary log, among \
         them grants",
        "set sync_binlog = 1, or switch the binary log off if no replica reads it";
    TORN_PAGES = "torn-pages", "durability", Error,
        "a power cut may leave a page of the table half written and lose its locks",
        "PostgreSQL: full_page_writes = on; MySQL and MariaDB: innodb_doublewrite = ON. Ignore \
         this only if the file system writes whole pages, as ZFS does";
    BINLOG_STATEMENT = "binlog-statement", "durability", Error,
        "the server refuses to write locks (error 1665), since they cannot be replicated as \
         statements",
        "set binlog_format = ROW (or MIXED) for the server, and reconnect";
    COMMITS_ASYNC = "commits-async", "durability", Warning,
        "locks switch it on for each grant, but a crash may lose the work that you commit under \
         a lock",
        "ALTER ROLE … RESET synchronous_commit, or set it to on where the work matters";
    COMMITS_LOCAL = "commits-local", "durability", Warning,
        "a grant does not wait for the synchronous standby, so a failover to it may lose grants",
        "set synchronous_commit to on or remote_apply for this role";
    STANDBY_ASYNC = "standby-async", "replicas", Warning,
        "a failover to a standby that lags behind loses the latest grants: a lock may be \
         granted again while its former holder works on until its next renewal, and the same \
         token may be granted twice",
        "make one standby synchronous (PostgreSQL: synchronous_standby_names; MySQL and \
         MariaDB: semi-synchronous replication), or fence writes to the same database";
    WRITTEN_ELSEWHERE = "written-elsewhere", "replicas", Error,
        "logical replication copies rows after their commit: one lock may have a holder on each \
         side, and each side overwrites the grants of the other",
        "leave {table} out of publications and subscriptions, and let all programs lock on one \
         primary";
    CLUSTER_NOT_FLUSHED = "cluster-not-flushed", "durability", Warning,
        "one node that crashes recovers from the others, but a power cut of all nodes at once \
         may lose grants",
        "set innodb_flush_log_at_trx_commit = 1, unless the nodes share neither power nor \
         machine";
    CLUSTER_SMALL = "cluster-small", "cluster", Warning,
        "if one of two nodes fails or is cut off, the other is no majority, and no lock can be \
         acquired, renewed or released",
        "run at least three; with Galera the third may be an arbitrator (garbd)";
    CLUSTER_UNSEEN = "cluster-unseen", "cluster", Error,
        "a member that has left its group, or has lost most of the other members, cannot be \
         told from a working one: a lock may have a holder on each side",
        "GRANT SELECT ON performance_schema.replication_group_members to this user";
    CLUSTER_BEHIND = "cluster-behind", "cluster", Warning,
        "the node has not applied all that the others have committed: locks are safe, but tries \
         fail and renewals come late",
        "connect to a node that is in sync (Galera: wsrep_local_state = 4), and let a load \
         balancer check that";
    CLUSTER_PAUSED = "cluster-paused", "cluster", Warning,
        "while one node cannot keep up, commits on all nodes wait for it (flow control), \
         renewals too, and leases may expire",
        "find the slow node by wsrep_local_recv_queue_avg and wsrep_flow_control_sent; give it \
         a faster disk or more wsrep_slave_threads, and use a ttl longer than the pauses";
    CLUSTER_DDL = "cluster-ddl", "cluster", Warning,
        "`dblock init` would make or alter the table on this node alone",
        "SET GLOBAL wsrep_OSU_method = TOI before the table is made or altered";
    IDLE_TIMEOUT = "idle-timeout", "timeouts", Warning,
        "the server closes idle connections, and the next request has to connect again",
        "raise it to 60 s or more for this user, or switch it off";
    STATEMENT_TIMEOUT = "statement-timeout", "timeouts", Warning,
        "on a slow disk or a busy server it ends renewals that would have succeeded; they are \
         tried again, but the lease may expire",
        "raise it to 5 s or more for this user, or switch it off: each request has a deadline \
         of its own";
    ENCODING = "encoding", "settings", Warning,
        "a lock is refused if its name or holder has a character that the encoding lacks; all \
         else works",
        "use names and holders in its characters, or in ASCII; a database with encoding UTF8 \
         takes all";
    ISOLATION = "isolation", "settings", Warning,
        "each statement is a transaction by itself and needs no more than read committed; a \
         stricter level makes some fail and be tried again",
        "PostgreSQL: ALTER ROLE … SET default_transaction_isolation = 'read committed' for the \
         role of the locks";
    DISK_FULL = "disk-full", "file", Error,
        "no lock can be acquired, renewed or released until there is space",
        "free space on the disk of the file";
    FILE_SHARED = "file-shared", "file", Error,
        "file locks are unreliable there, and SQLite's shared memory does not reach other \
         machines: one lock may have two holders, or the file may be damaged",
        "keep the file on a disk of this machine; for several machines use PostgreSQL or MySQL";
    FILE_OPEN = "file-open", "file", Error,
        "every user who can write there can take and release every lock",
        "chmod o-w on it";
    LEASES_EXPIRED = "leases-expired", "locks", Warning,
        "their holders died, were cut off or are frozen, and no other client has acquired the \
         locks since; the next caller gets them",
        "find out what became of the holders (`dblock list`); `dblock release NAME --force` \
         marks such a lock as free";
    HELD_WITHOUT_END = "held-without-end", "locks", Warning,
        "only a release frees such a lock, not the death of its holder",
        "make sure that the holder is alive (`dblock list`); if not: `dblock release NAME \
         --force`";
    MANY_ROWS = "many-rows", "locks", Warning,
        "lists take long, and rows of names that are made up for each use are never deleted \
         automatically",
        "dblock prune --older-than 30d";
    OLD_WRITERS = "old-writers", "locks", Warning,
        "such holders rely on their own machines' clocks, renew leases that they have lost, and \
         notify no waiter of a release",
        "move the programs that still use django-database-locks 0.5 to this version";
}

/// All columns that the statements use, with their types.
pub(crate) const COLUMNS: [&str; 11] = [
    "id",
    "name",
    "locked_by",
    "expires_at",
    "token",
    "grant_id",
    "granted_until",
    "acquired_at",
    "renewed_at",
    "waiting_until",
    "metadata",
];

/// The minimum lifetime of idle connections.
pub(crate) const LEAST_IDLE: Duration = Duration::from_secs(60);
/// The timeout of a request. A server that cancels statements earlier interferes with it.
pub(crate) const LEAST_STATEMENT: Duration = protocol::REQUEST_TIMEOUT;
/// The number of rows from which the table counts as large.
const LARGE_TABLE: i64 = 100_000;

/// A column of the table.
pub(crate) struct Column {
    pub(crate) name: String,
    /// The type and what is required, if they differ: `integer, must be bigint`.
    pub(crate) unfit: Option<String>,
    /// NOT NULL without a default: an INSERT that does not name the column fails.
    pub(crate) unfilled: bool,
}

/// An index of the table.
pub(crate) struct Index {
    pub(crate) name: String,
    /// All columns and expressions of its definition.
    pub(crate) columns: Vec<String>,
    pub(crate) primary: bool,
    /// Whether it makes names unique.
    pub(crate) keeps_names: bool,
}

/// The number of locks in each state, with the name of one of them.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) rows: i64,
    pub(crate) held: i64,
    /// Expired for more than a minute.
    pub(crate) expired: (i64, Option<String>),
    /// Infinite leases acquired more than a day ago.
    pub(crate) endless: (i64, Option<String>),
    /// Held by legacy clients (django-database-locks 0.5).
    pub(crate) old: (i64, Option<String>),
}

/// One reading of the database's clock.
pub(crate) struct Beat {
    sent: BootInstant,
    took: Duration,
    /// This machine's wall clock and the database's, in microseconds since 1970.
    wall: i64,
    database: i64,
}

#[allow(
    clippy::disallowed_methods,
    reason = "only compared with the database's clock, to report a difference"
)]
fn wall() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}

impl Beat {
    /// Start, just before the query is sent.
    pub(crate) fn begin(now: BootInstant) -> Self {
        Self {
            sent: now,
            took: Duration::ZERO,
            wall: wall(),
            database: 0,
        }
    }

    /// End, with the database's answer.
    pub(crate) fn end(mut self, database: i64, now: BootInstant) -> Self {
        self.took = now - self.sent;
        self.database = database;
        self
    }
}

/// The median of the round trips.
pub(crate) fn round_trip(beats: &[Beat]) -> String {
    let mut took: Vec<Duration> = beats.iter().map(|beat| beat.took).collect();
    took.sort_unstable();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    format!("{:.1} ms a round trip", median.as_secs_f64() * 1e3)
}

/// A duration in milliseconds for people to read.
pub(crate) fn human(length: Duration) -> String {
    Human(length).to_string()
}

/// A report that is being written.
pub(crate) struct Notes {
    table: String,
    report: Report,
}

impl Notes {
    pub(crate) fn new(table: &str) -> Self {
        Self {
            table: table.into(),
            report: Report::default(),
        }
    }

    /// Record that an area has no problem.
    pub(crate) fn fine(&mut self, area: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.report.checks.push(Check {
            area,
            seen: true,
            message,
        });
    }

    /// Record how much of the id range is used.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn ids(&mut self, latest: i64, most: i64) {
        if latest > most / 2 {
            let what = format!("{latest} of {most} ids of {} are used", self.table);
            self.found(&IDS_RUN_OUT, what);
        }
    }

    /// Record that an area could not be examined.
    pub(crate) fn unseen(&mut self, area: &'static str, why: impl fmt::Display) {
        let message = format!("could not look: {why}");
        self.report.checks.push(Check {
            area,
            seen: false,
            message,
        });
    }

    /// Record a finding.
    pub(crate) fn found(&mut self, kind: &Kind, what: impl fmt::Display) {
        self.report.findings.push(Finding {
            id: kind.id,
            area: kind.area,
            severity: kind.severity,
            message: format!("{what}: {}", kind.impact),
            fix: kind.fix.replace("{table}", &self.table),
        });
    }

    /// Whether there are findings in this area.
    pub(crate) fn ill(&self, area: &str) -> bool {
        self.report.findings.iter().any(|found| found.area == area)
    }

    /// Record that an area has no problem, unless there are findings in it.
    pub(crate) fn otherwise_fine(&mut self, area: &'static str, message: impl Into<String>) {
        if !self.ill(area) {
            self.fine(area, message);
        }
    }

    /// Compare the database's clock with itself and with this machine's, from consecutive readings.
    pub(crate) fn clock(&mut self, beats: &[Beat]) {
        let steps = beats
            .windows(2)
            .map(|two| two[1].database - two[0].database);
        if let Some(back) = steps.clone().filter(|step| *step < 0).min() {
            let back = human(Duration::from_micros(back.unsigned_abs()));
            let what = format!("the database's clock went back by {back} between two reads");
            return self.found(&CLOCK_NOT_STEADY, what);
        }
        // A round trip takes more than a microsecond.
        if beats.len() > 1 && steps.sum::<i64>() == 0 {
            let what = format!(
                "the database's clock stood still during {} reads",
                beats.len()
            );
            return self.found(&CLOCK_NOT_STEADY, what);
        }
        let Some(best) = beats.iter().min_by_key(|beat| beat.took) else {
            return;
        };
        let half = i64::try_from(best.took.as_micros() / 2).unwrap_or(i64::MAX);
        let off = best.database - best.wall - half;
        let length = human(Duration::from_micros(off.unsigned_abs()));
        let way = match off {
            -999..1000 => return self.fine("clock", "the same as this machine's"),
            ..=-1000 => "behind",
            _ => "ahead of",
        };
        // When in the round trip the clock was read is unknown.
        if off.saturating_abs() - half > 1_000_000 {
            let what = format!("the database's clock is {length} {way} this machine's");
            self.found(&CLOCK_OFF, what);
        } else {
            self.fine("clock", format!("{length} {way} this machine's"));
        }
    }

    /// Compare the columns with those required. Returns whether the statements can use the table.
    pub(crate) fn columns(&mut self, found: &[Column]) -> bool {
        let missing: Vec<&str> = COLUMNS
            .into_iter()
            .filter(|name| !found.iter().any(|column| column.name == *name))
            .collect();
        if !missing.is_empty() {
            let what = format!("the table {} lacks {}", self.table, missing.join(", "));
            self.found(&COLUMNS_MISSING, what);
        }
        for column in found {
            if let Some(unfit) = &column.unfit {
                self.found(
                    &COLUMN_TYPE,
                    format!("the column {} is {unfit}", column.name),
                );
            }
            // The library's INSERT fills all of its own columns.
            let own = COLUMNS.contains(&&*column.name);
            if column.unfilled && (!own || ["id", "waiting_until"].contains(&&*column.name)) {
                let what = format!(
                    "the column {} must not be null and has no default",
                    column.name
                );
                self.found(&COLUMN_UNFILLED, what);
            }
        }
        missing.is_empty()
    }

    /// Check the required index, and look for superfluous ones.
    pub(crate) fn indexes(&mut self, found: &[Index]) {
        let needed = found.iter().position(|index| index.keeps_names);
        if needed.is_none() {
            let what = format!("no unique index keeps the names of {} apart", self.table);
            self.found(&NAME_NOT_UNIQUE, what);
        }
        for (at, index) in found.iter().enumerate() {
            if index.primary || Some(at) == needed {
                continue;
            }
            let changes = |column: &String| {
                COLUMNS.contains(&&**column) && !["id", "name"].contains(&&**column)
            };
            let on = index.columns.iter().find(|column| changes(column));
            match on {
                Some(on) => self.found(
                    &INDEX_ON_CHANGING,
                    format!("there is an index {} on {on}", index.name),
                ),
                None => self.found(
                    &INDEX_UNUSED,
                    format!("there is an index {} more", index.name),
                ),
            }
        }
    }

    /// Check the states of the locks.
    pub(crate) fn locks(&mut self, counts: &Counts) {
        let such = |(n, name): &(i64, Option<String>)| {
            let name = name.as_deref().unwrap_or_default();
            format!(
                "{n} lock{} (such as `{name}`)",
                if *n == 1 { "" } else { "s" }
            )
        };
        if counts.expired.0 > 0 {
            let what = format!(
                "the lease of {} ran out and was not released",
                such(&counts.expired)
            );
            self.found(&LEASES_EXPIRED, what);
        }
        if counts.endless.0 > 0 {
            let what = format!(
                "{} held without end for more than a day",
                such(&counts.endless)
            );
            self.found(&HELD_WITHOUT_END, what);
        }
        if counts.old.0 > 0 {
            let what = format!("{} held by django-database-locks 0.5", such(&counts.old));
            self.found(&OLD_WRITERS, what);
        }
        if counts.rows > LARGE_TABLE {
            self.found(
                &MANY_ROWS,
                format!("the table {} has {} rows", self.table, counts.rows),
            );
        }
        self.fine(
            "locks",
            format!("{} in the table, {} of them held", counts.rows, counts.held),
        );
    }

    pub(crate) fn into_report(self) -> Report {
        let mut report = self.report;
        report.findings.sort_by_key(|found| found.severity);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(readings: &[i64]) -> Vec<&'static str> {
        let mut notes = Notes::new("t");
        let at = wall();
        let beat = |reading: &i64| Beat {
            sent: BootInstant::ZERO,
            took: Duration::from_millis(2),
            wall: at,
            database: at + reading,
        };
        notes.clock(&readings.iter().map(beat).collect::<Vec<_>>());
        notes
            .into_report()
            .findings
            .into_iter()
            .map(|found| found.id)
            .collect()
    }

    #[test]
    fn a_clock_may_differ_by_a_second_but_not_go_back_or_stand() {
        assert!(clock(&[0, 1000, 2000]).is_empty());
        assert!(clock(&[900_000, 900_001]).is_empty());
        assert_eq!(clock(&[1_100_000, 1_100_001]), ["clock-off"]);
        assert_eq!(clock(&[-1_100_000, -1_099_000]), ["clock-off"]);
        assert_eq!(clock(&[0, 5, 4]), ["clock-not-steady"]);
        assert_eq!(clock(&[7, 7, 7]), ["clock-not-steady"]);
    }

    /// The headings are the ids, in order; below each are severity, impact and fix.
    #[test]
    fn the_documentation_lists_every_finding() {
        let text = include_str!("../docs/doctor.md");
        let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let sections: Vec<&str> = text.split("\n### ").skip(1).collect();
        assert_eq!(sections.len(), KINDS.len());
        for (section, kind) in sections.iter().zip(KINDS) {
            let means = format!(
                "`{}` {} ({}): {}. Fix: {}.",
                kind.id, kind.severity, kind.area, kind.impact, kind.fix
            )
            .replace("{table}", "database_locks_lock");
            assert_eq!(plain(section), means);
        }
    }
}
