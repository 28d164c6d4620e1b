//! The machine and the versions of everything that was measured.

use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

use testkit::SqlError;
use testkit::cleanup::ScratchDir;

use crate::proc::field;
use crate::servers::Servers;
use crate::settings::repository;

/// The load average of one, five and fifteen minutes.
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

/// One row of the table of facts: what, and its value.
type Fact = (&'static str, String);

const MISSING: &str = "left out: not on this machine";

/// The rows of the table of facts.
pub(crate) fn facts(servers: &Servers, load_before: &str) -> Vec<Vec<String>> {
    let mut facts = hardware(load_before);
    facts.extend(databases(servers));
    for (name, peer) in [
        ("etcd", &servers.etcd),
        ("ZooKeeper", &servers.zookeeper),
        ("Redis", &servers.redis),
        ("Redis, `appendfsync always`", &servers.redis_always),
    ] {
        let Some(peer) = peer else {
            facts.push((name, MISSING.to_owned()));
            continue;
        };
        facts.push((name, peer.version.clone()));
        facts.push(("its settings", peer.settings.to_owned()));
    }
    facts.extend(python_packages());
    facts
        .into_iter()
        .map(|(what, value)| vec![what.to_owned(), value])
        .collect()
}

fn hardware(load_before: &str) -> Vec<Fact> {
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
    vec![
        ("processor", format!("{model}, {cores} cores")),
        ("memory", format!("{memory} GiB")),
        ("kernel", kernel.trim().to_owned()),
        ("filesystem of all data", filesystem(folder.path())),
        (
            "load average before and after",
            format!("{load_before}; {}", load()),
        ),
        (
            "database-locks",
            format!("{}, release build", env!("CARGO_PKG_VERSION")),
        ),
        ("Rust", first_line("rustc", &["--version"])),
        ("Python", first_line("python3", &["--version"])),
        ("SQLite (built in)", rusqlite::version().to_owned()),
    ]
}

fn databases(servers: &Servers) -> Vec<Fact> {
    let mut facts = Vec::new();
    let trimmed = |answer: Result<String, SqlError>| answer.unwrap_or_default().trim().to_owned();
    if let Some(server) = &servers.postgres {
        let ask = |sql: &str| trimmed(server.query("postgres", sql));
        let set = "SELECT string_agg(name || '=' || current_setting(name), ', ' ORDER BY name) FROM pg_settings \
            WHERE name IN ('fsync', 'synchronous_commit', 'shared_buffers', 'max_connections', \
            'wal_sync_method', 'autovacuum', 'autovacuum_naptime')";
        facts.push(("PostgreSQL", ask("SHOW server_version")));
        facts.push(("its settings", ask(set)));
    } else {
        facts.push(("PostgreSQL", MISSING.to_owned()));
    }
    for (name, server, schema) in [
        ("MariaDB", &servers.mariadb, "information_schema"),
        ("MySQL", &servers.mysql, "performance_schema"),
    ] {
        let Some(server) = server else {
            facts.push((name, MISSING.to_owned()));
            continue;
        };
        let ask = |sql: &str| trimmed(server.query("mysql", sql));
        let set = format!(
            "SELECT GROUP_CONCAT(LOWER(variable_name), '=', variable_value ORDER BY 1 SEPARATOR ', ') \
             FROM {schema}.global_variables WHERE variable_name IN \
             ('innodb_flush_log_at_trx_commit', 'innodb_flush_method', 'innodb_buffer_pool_size', \
             'innodb_log_file_size', 'innodb_redo_log_capacity', 'log_bin', 'sync_binlog', 'max_connections')"
        );
        facts.push((name, ask("SELECT VERSION()")));
        facts.push(("its settings", ask(&set)));
    }
    facts
}

fn python_packages() -> Vec<Fact> {
    let environments = repository().join("target/python");
    let list = "import importlib.metadata as m; print(', '.join(sorted(f'{d.name} {d.version}' for d in \
        m.distributions() if d.name.lower() in {'django', 'psycopg', 'psycopg2-binary', 'mysqlclient', \
        'redis', 'hiredis', 'django-pglock', 'django-database-locks'})))";
    [
        ("bench", "Python packages"),
        ("bench-old", "Python packages of legacy"),
    ]
    .into_iter()
    .filter_map(|(environment, what)| {
        let python = environments.join(environment).join("bin/python");
        Some((what, first_line(python.to_str()?, &["-c", list])))
    })
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
