//! The server of one member: its arguments.

use std::path::Path;

use rustix::process::Signal;

use crate::mysql::{self, MySqlServer};

const GROUP_NAME: &str = "8a94f357-aab4-11df-86ab-c80aa9429562";

/// A member's server, which is not running yet.
pub(crate) fn unlaunched(
    mysqld: &Path,
    options: &mysql::Options,
    ports: &[u16],
    node: usize,
) -> MySqlServer {
    let mut server = MySqlServer::unlaunched(mysqld.to_path_buf(), options);
    // Several that end at once wait for each other.
    server.server.polite = Signal::KILL;
    let port = ports[node];
    let seeds: Vec<String> = ports.iter().map(|at| format!("127.0.0.1:{at}")).collect();
    server.port = port;
    server.args.extend([
        format!("--server-id={}", node + 1),
        "--log-bin=bin".into(),
        "--gtid-mode=ON".into(),
        "--enforce-gtid-consistency=ON".into(),
        "--report-host=127.0.0.1".into(),
        format!("--report-port={port}"),
        "--plugin-load-add=group_replication.so".into(),
    ]);
    let group = [
        ("group-name", GROUP_NAME.to_owned()),
        ("start-on-boot", "OFF".into()),
        // Over the port of clients: the other stack would listen on all interfaces.
        ("communication-stack", "MYSQL".into()),
        ("local-address", format!("127.0.0.1:{port}")),
        ("group-seeds", seeds.join(",")),
        ("single-primary-mode", "OFF".into()),
        ("enforce-update-everywhere-checks", "ON".into()),
        // A member that is silent for 5 s is expelled then, and not after 5 s more.
        ("member-expel-timeout", "0".into()),
    ];
    let settings = group.map(|(name, value)| format!("--loose-group-replication-{name}={value}"));
    server.args.extend(settings);
    server
}
