//! The table of all findings.

use crate::doctor::report::Severity;

/// A kind of finding: the parts that all findings with one id share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kind {
    /// See [`Finding::id`](crate::doctor::Finding::id).
    pub id: &'static str,
    /// See [`Finding::area`](crate::doctor::Finding::area).
    pub area: &'static str,
    /// See [`Finding::severity`](crate::doctor::Finding::severity).
    pub severity: Severity,
    /// The consequence.
    pub impact: &'static str,
    /// See [`Finding::fix`](crate::doctor::Finding::fix); `{table}` stands for the name of the
    /// table.
    pub fix: &'static str,
}

macro_rules! kinds {
    ($($name:ident = $id:literal, $area:literal, $severity:ident, $impact:literal, $fix:literal;)*) => {
        $(pub(crate) const $name: Kind = Kind {
            id: $id, area: $area, severity: Severity::$severity, impact: $impact, fix: $fix,
        };)*
        /// All kinds of findings.
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
    PERMITS_MISSING = "permits-missing", "table", Warning,
        "locks work, but no permit of a semaphore can be acquired",
        "make it with `dblock init` or `locks.migrate()`";
    PERMITS_RIGHTS = "permits-rights", "rights", Warning,
        "locks work, but semaphores or shared locks do not",
        "as the owner of the table: GRANT SELECT, INSERT, UPDATE ON {table} to this user, and \
         DELETE if it shares locks or prunes; on PostgreSQL also USAGE on the sequence of its column id if there \
         is one";
    PERMITS_UNFIT = "permits-unfit", "table", Error,
        "no permit of a semaphore can be acquired, or one permit may have two holders",
        "while no permit is held (`dblock list`): DROP TABLE {table}, run `dblock init` or \
         `locks.migrate()`, and set the limits of operators again (`dblock limit`)";
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
        "drop it (DROP INDEX); only the unique index on name (of permits: on name and slot) is needed";
    INDEX_UNUSED = "index-unused", "table", Warning,
        "no statement reads it, and each new lock has to update it",
        "drop it (DROP INDEX); only the unique index on name (of permits: on name and slot) is needed";
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
        "find out what became of the holders (`dblock list`); the next acquire ends the warning, or \
         `dblock prune` if no program uses the lock any more";
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
    GUARD_INCOMPLETE = "guard-incomplete", "guards", Error,
        "writes by transactions that do not hold the lock pass, or may pass",
        "dblock guard TABLE --lock NAME once more, as the owner of the table: it creates and enables \
         what is missing. If the guard is not wanted: dblock unguard TABLE";
    GUARD_BYPASSED = "guard-bypassed", "guards", Warning,
        "the server fires no trigger of the guarded table for such a write, so that its rows change \
         without the lock",
        "a cascade of a foreign key: guard the parent by the same lock, or make the key RESTRICT. A \
         table of which the guarded one is a part: guard that other table by the same lock. A foreign \
         table that is a part: detach it";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The headings are the ids, in order; below each are severity, impact and fix.
    #[test]
    fn the_documentation_lists_every_finding() {
        let text = include_str!("../../docs/doctor.md");
        let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let sections: Vec<&str> = text.split("\n### ").skip(1).collect();
        assert_eq!(sections.len(), KINDS.len());
        for (section, kind) in sections.iter().zip(KINDS) {
            let means = format!(
                "`{}` {} ({}): {}. Fix: {}.",
                kind.id, kind.severity, kind.area, kind.impact, kind.fix
            )
            .replace(
                "{table}",
                match kind.id.starts_with("permits-") {
                    true => "database_locks_permit",
                    false => "database_locks_lock",
                },
            );
            assert_eq!(plain(section), means);
        }
    }
}
