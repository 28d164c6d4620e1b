//! What it ran on.

use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

use testkit::tether::ScratchDir;

use crate::servers::Servers;

/// Resident memory of a process, in KiB.
pub(crate) fn memory_kib(pid: u32) -> u64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "VmRSS:")
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

/// What a process has used of the processors, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which stands in parentheses, user and system time are fields 12 and 13.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    // Linux tells them in hundredths, whatever its own ticks are.
    (ticks(11) + ticks(12)) / 100.0
}

/// One, five and fifteen minutes.
pub(crate) fn load() -> String {
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    text.lines().next().unwrap_or("not there").trim().to_owned()
}

/// The kind of filesystem that holds a path: the longest mount point wins.
pub(crate) fn filesystem(path: &Path) -> String {
    let mounts = read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let around = fields.filter(|fields| fields.len() > 2 && path.starts_with(fields[1]));
    around
        .max_by_key(|fields| fields[1].len())
        .map_or_else(|| "unknown".to_owned(), |fields| fields[2].to_owned())
}

/// Rows of a table: what, and its value.
pub(crate) fn facts(servers: &Servers, load_before: &str) -> Vec<Vec<String>> {
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = field(&memory, "MemTotal:") / 1024 / 1024;
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = ScratchDir::new("where");
    let mut rows = vec![
        ("processor", format!("{model}, {cores} cores")),
        ("memory", format!("{memory} GiB")),
        ("kernel", kernel.trim().to_owned()),
        ("filesystem of all data", filesystem(folder.path())),
        (
            "load average when it began, and when it ended",
            format!("{load_before}; {}", load()),
        ),
        (
            "database-locks",
            format!("{}, release build", env!("CARGO_PKG_VERSION")),
        ),
        ("Rust", first_line("rustc", &["--version"])),
        ("Python", first_line("python3", &["--version"])),
        ("SQLite (built in)", rusqlite::version().to_owned()),
    ];
    if let Some(server) = &servers.postgres {
        let ask = |sql: &str| {
            server
                .query("postgres", sql)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let set = "SELECT string_agg(name || '=' || current_setting(name), ', ' ORDER BY name) FROM pg_settings \
            WHERE name IN ('fsync', 'synchronous_commit', 'shared_buffers', 'max_connections', \
            'wal_sync_method', 'autovacuum', 'autovacuum_naptime')";
        rows.push(("PostgreSQL", ask("SHOW server_version")));
        rows.push(("its settings", ask(set)));
    }
    for (name, server, schema) in [
        ("MariaDB", &servers.mariadb, "information_schema"),
        ("MySQL", &servers.mysql, "performance_schema"),
    ] {
        let Some(server) = server else {
            rows.push((name, "left out: not on this machine".to_owned()));
            continue;
        };
        let ask = |sql: &str| {
            server
                .query("mysql", sql)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let set = format!(
            "SELECT GROUP_CONCAT(LOWER(variable_name), '=', variable_value ORDER BY 1 SEPARATOR ', ') \
             FROM {schema}.global_variables WHERE variable_name IN \
             ('innodb_flush_log_at_trx_commit', 'innodb_flush_method', 'innodb_buffer_pool_size', \
             'innodb_log_file_size', 'innodb_redo_log_capacity', 'log_bin', 'sync_binlog', 'max_connections')"
        );
        rows.push((name, ask("SELECT VERSION()")));
        rows.push(("its settings", ask(&set)));
    }
    for (name, peer) in [
        ("etcd", &servers.etcd),
        ("ZooKeeper", &servers.zookeeper),
        ("Redis", &servers.redis),
        ("Redis, `appendfsync always`", &servers.redis_always),
    ] {
        let Some(peer) = peer else {
            rows.push((name, "left out: not on this machine".to_owned()));
            continue;
        };
        rows.push((name, peer.version.clone()));
        rows.push(("its settings", peer.settings.to_owned()));
    }
    let peers = crate::root().join("target/python");
    for (environment, what) in [("bench", "Python packages"), ("bench-old", "those of 0.5")] {
        let python = peers.join(environment).join("bin/python");
        let list = "import importlib.metadata as m; print(', '.join(sorted(f'{d.name} {d.version}' for d in \
            m.distributions() if d.name.lower() in {'django', 'psycopg', 'psycopg2-binary', 'mysqlclient', \
            'redis', 'hiredis', 'django-pglock', 'django-database-locks'})))";
        if let Some(python) = python.to_str() {
            rows.push((what, first_line(python, &["-c", list])));
        }
    }
    rows.into_iter()
        .map(|(what, value)| vec![what.to_owned(), value])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_of_a_run_say_that_each_server_waits_for_its_logs() {
        let servers = Servers::start();
        let facts = facts(&servers, "");
        let postgres = servers.postgres.is_some();
        let (mariadb, mysql) = (servers.mariadb.is_some(), servers.mysql.is_some());
        let of = |name: &str| {
            let at = facts.iter().position(|row| row[0] == name);
            at.map(|at| facts[at + 1][1].as_str()).unwrap_or_default()
        };
        for (name, there, expected) in [
            ("PostgreSQL", postgres, "fsync=on"),
            ("MariaDB", mariadb, "innodb_flush_log_at_trx_commit=1"),
            ("MySQL", mysql, "innodb_flush_log_at_trx_commit=1"),
            ("MySQL", mysql, "log_bin=ON"),
            ("MySQL", mysql, "sync_binlog=1"),
        ] {
            assert_eq!(of(name).contains(expected), there, "{name}: {}", of(name));
        }
    }
}
