//! The examination of the file and its place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::{Connection, Row};

use crate::doctor::{self, Report};
use crate::store::api::StoreError;
use crate::store::connect::table::{Rows, Table};
use crate::store::doctor::{
    CLOCK_READINGS, ClockReading, Column, Counts, Index, ReportBuilder, round_trip,
};
use crate::store::sqlite::connection::worker::Worker;

/// Less free space than this is soon used up by the journal alone.
const LEAST_SPACE: u64 = 1 << 20;

const COLUMNS: &str = "
    SELECT name, \"notnull\" AND dflt_value IS NULL AND pk = 0 AS unfilled FROM pragma_table_info(?1, ?2)";

/// Indexes, with their columns; whether one tells rows apart (unique, not partial, on the name and
/// the column `?3`); and its collation.
const INDEXES: &str = "
    SELECT i.name AS name, i.origin = 'pk' AS pk,
           i.\"unique\" AND NOT i.partial AND count(*) = 1 + (?3 <> 'name')
               AND min(x.name) = 'name' AND max(x.name) = ?3 AS keeps_names,
           group_concat(ifnull(x.name, ''))
               || ifnull((SELECT ',' || sql FROM sqlite_schema s
                           WHERE s.type = 'index' AND s.name = i.name AND i.partial), '') AS columns,
           max(x.coll) AS collation
      FROM pragma_index_list(?1, ?2) i, pragma_index_xinfo(i.name) x
     WHERE x.key
     GROUP BY i.name
     ORDER BY i.seq";

const COUNTS: &str = "
    SELECT count(*), count(*) FILTER (WHERE expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
                                        AND NOT rests),
           count(*) FILTER (WHERE expires_at <=
                            strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 minute') AND NOT rests),
           min(name) FILTER (WHERE expires_at <=
                             strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 minute') AND NOT rests),
           count(*) FILTER (WHERE expires_at LIKE '9999-12-31 00:00:00%' AND acquired_at <=
                            strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 day')),
           min(name) FILTER (WHERE expires_at LIKE '9999-12-31 00:00:00%' AND acquired_at <=
                             strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 day')),
           count(*) FILTER (WHERE expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
                              AND granted_until IS NOT expires_at),
           min(name) FILTER (WHERE expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
                               AND granted_until IS NOT expires_at)
      FROM (SELECT *, grant_id IS NULL AND granted_until IS expires_at AS rests
              FROM {table}{? WHERE slot >= 0?})";

/// Examine everything.
pub(crate) fn examine(worker: &mut Worker, table: &Table) -> Result<Report, StoreError> {
    let path = worker.database.path.clone();
    let mut report = ReportBuilder::new(table.as_str());
    worker.with(|session| {
        let connection = session.connection;
        server(connection, &mut report)?;
        file(&path, &mut report);
        durability(&path, &mut report);
        if self::table(connection, &mut report)? {
            locks(connection, &table.fill(COUNTS), &mut report)?;
            report.turn_to_permits(table);
            if self::table(connection, &mut report)? {
                locks(
                    connection,
                    &table.fill_in(Rows::Permits, COUNTS),
                    &mut report,
                )?;
            }
        }
        Ok(())
    })?;
    Ok(report.into_report())
}

fn server(connection: &Connection, report: &mut ReportBuilder) -> rusqlite::Result<()> {
    let mut readings = Vec::with_capacity(CLOCK_READINGS);
    for _ in 0..CLOCK_READINGS {
        let reading = ClockReading::begin();
        let tables = "SELECT count(*) FROM sqlite_schema";
        readings.push(reading.end(connection.query_row(tables, [], |row| row.get(0))?));
    }
    let (version, trip) = (rusqlite::version(), round_trip(&readings));
    report.fine("server", format!("SQLite {version}, {trip}"));
    report.fine("clock", "this machine's own");
    Ok(())
}

/// File systems that are shared with other machines or programs, by their type in `statfs`.
fn shared_file_system(magic: u64) -> Option<&'static str> {
    Some(match magic & 0xffff_ffff {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB (CIFS)",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9p",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x5346_414f => "AFS",
        0x786f_4256 => "VirtualBox shared folders",
        _ => return None,
    })
}

/// The name of a file system in memory.
#[cfg(target_os = "linux")]
fn in_memory(path: &Path) -> Option<&'static str> {
    match rustix::fs::statfs(path).ok()?.f_type as u64 & 0xffff_ffff {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &Path) -> Option<&'static str> {
    None
}

fn file(path: &Path, report: &mut ReportBuilder) {
    let shown = path.display();
    #[cfg(target_os = "linux")]
    match rustix::fs::statfs(path) {
        Ok(at) => {
            if let Some(system) = shared_file_system(at.f_type as u64) {
                report.found(&doctor::FILE_SHARED, format!("{shown} lies on {system}"));
            }
        }
        Err(error) => report.unseen("file", error),
    }
    if let Ok(at) = rustix::fs::statvfs(path) {
        space(path, at.f_bavail.saturating_mul(at.f_frsize), report);
    }
    let folder = path.parent().unwrap_or(path);
    for place in [path, folder] {
        if rustix::fs::access(place, rustix::fs::Access::WRITE_OK).is_err() {
            let what = format!(
                "this user may not write {}: make the file and its folder writable",
                place.display()
            );
            report.found(&doctor::RIGHTS_MISSING, what);
        }
    }
    let mode = |path: &Path| fs::metadata(path).map_or(0, |found| found.mode());
    if mode(path) & 0o002 != 0 {
        report.found(
            &doctor::FILE_OPEN,
            format!("{shown} may be written by everybody"),
        );
    }
    // With the sticky bit other users cannot put another file in the place of this one.
    if mode(folder) & 0o1002 == 0o0002 {
        let what = format!(
            "the folder {} may be written by everybody",
            folder.display()
        );
        report.found(&doctor::FILE_OPEN, what);
    }
    report.otherwise_fine(
        "file",
        format!("{shown}, on this machine, closed to other users"),
    );
}

/// Record too little free space beside the file.
fn space(path: &Path, left: u64, report: &mut ReportBuilder) {
    if left < LEAST_SPACE {
        let what = format!("{left} bytes are left beside {}", path.display());
        report.found(&doctor::DISK_FULL, what);
    }
}

/// Each connection sets `journal_mode` and `synchronous` itself.
fn durability(path: &Path, report: &mut ReportBuilder) {
    // A restart of the machine also ends all holders, since they run on it, and tokens continue by
    // the clock.
    let message = match in_memory(path) {
        Some(system) => format!(
            "the file is kept in memory ({system}): a restart of the machine ends the locks together \
             with their holders"
        ),
        None => "a grant is on disk before it is answered".to_owned(),
    };
    report.fine("durability", message);
}

fn table(connection: &Connection, report: &mut ReportBuilder) -> rusqlite::Result<bool> {
    let table = report.table().to_owned();
    let (schema, name) = table.split_once('.').unwrap_or(("main", &table));
    let which = [name, schema];
    let key = match report.of() {
        Rows::Locks => "name",
        Rows::Permits => "slot",
    };
    let column = |row: &Row<'_>| {
        Ok(Column {
            name: row.get("name")?,
            mismatch: None,
            unfilled: row.get("unfilled")?,
        })
    };
    let mut statement = connection.prepare(COLUMNS)?;
    let columns = statement
        .query_map(which, column)?
        .collect::<Result<Vec<_>, _>>()?;
    if columns.is_empty() {
        report.found(&doctor::TABLE_MISSING, format!("there is no table {table}"));
        return Ok(false);
    }
    let complete = report.columns(&columns);
    let mut indexes = Vec::new();
    let mut statement = connection.prepare(INDEXES)?;
    let mut rows = statement.query([name, schema, key])?;
    while let Some(row) = rows.next()? {
        let (keeps_names, words): (bool, String) = (row.get("keeps_names")?, row.get("columns")?);
        let words = words.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        indexes.push(Index {
            name: row.get("name")?,
            primary: row.get("pk")?,
            keeps_names,
            columns: words.map(str::to_owned).collect(),
        });
        let collation: String = row.get("collation")?;
        if keeps_names && collation != "BINARY" {
            let what = format!("the collation of the column name is {collation}");
            report.found(&doctor::NAME_COLLATION, what);
        }
    }
    report.indexes(&indexes);
    report.shape();
    Ok(complete)
}

fn locks(
    connection: &Connection,
    counts: &str,
    report: &mut ReportBuilder,
) -> rusqlite::Result<()> {
    let counts = connection.query_row(counts, [], |row| {
        Ok(Counts {
            rows: row.get(0)?,
            held: row.get(1)?,
            expired: (row.get(2)?, row.get(3)?),
            infinite: (row.get(4)?, row.get(5)?),
            legacy: (row.get(6)?, row.get(7)?),
        })
    })?;
    report.locks(&counts);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(report: ReportBuilder) -> Vec<&'static str> {
        report
            .into_report()
            .findings
            .into_iter()
            .map(|found| found.id)
            .collect()
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_found() {
        let mut report = ReportBuilder::new("t");
        let path = Path::new("locks.sqlite3");
        space(path, LEAST_SPACE, &mut report);
        assert_eq!(ids(report).len(), 0);
        let mut report = ReportBuilder::new("t");
        space(path, 4096, &mut report);
        assert_eq!(ids(report), ["disk-full"]);
    }

    /// A test cannot mount such file systems.
    #[test]
    fn a_file_system_of_the_network_is_known_by_its_number() {
        for (magic, shared) in [
            (0x6969, true),
            (0xff53_4d42, true),
            // Where the type is a signed one.
            (0xffff_ffff_ff53_4d42, true),
            (0x6573_5546, true),
            (0xef53, false),
            (0x0102_1994, false),
            (0x9123_683e, false),
        ] {
            assert_eq!(shared_file_system(magic).is_some(), shared, "{magic:x}");
        }
        let mut report = ReportBuilder::new("t");
        report.found(&doctor::FILE_SHARED, "on NFS");
        assert_eq!(ids(report), ["file-shared"]);
    }
}
