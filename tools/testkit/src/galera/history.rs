//! A node's position in the history of its cluster, as its data directory records it.

use std::path::Path;

use crate::mysql::MySqlServer;
use crate::template;

/// The position of a node that has shut down properly.
pub(crate) fn position_in(data: &Path) -> Option<String> {
    let state = std::fs::read_to_string(data.join("grastate.dat")).ok()?;
    let value = |key: &str| {
        let line = state.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim().to_owned())
    };
    Some(format!("{}:{}", value("uuid:")?, value("seqno:")?))
}

/// The position of a node that has ended in any way, by a crash for one.
pub(crate) fn recovered(mariadb: &MySqlServer) -> Option<String> {
    let position = position_in(&mariadb.data())?;
    if !position.ends_with(":-1") {
        return Some(position);
    }
    let mut args = mariadb.args.clone();
    args.push("--wsrep-recover".into());
    let message = mariadb.server.prepare(&mariadb.program, &args);
    let found = message.lines().rev().find_map(|line| {
        let (_, position) = line.split_once("WSREP: Recovered position: ")?;
        Some(position.trim().to_owned())
    });
    found.filter(|position| !position.ends_with(":-1"))
}

/// Copies the data of a node that does not run to another.
pub(crate) fn copy(data: &Path, node: &MySqlServer) {
    let to = node.data();
    template::copy(data, &to, &node.server);
    // Files that identify one node.
    for own in ["galera.cache", "gvwstate.dat"] {
        // A node need not have each of them.
        let _ = std::fs::remove_file(to.join(own));
    }
    let state = to.join("grastate.dat");
    let text = std::fs::read_to_string(&state).expect("the first node wrote it");
    let text = text.replace("safe_to_bootstrap: 1", "safe_to_bootstrap: 0");
    std::fs::write(&state, text).expect("the directory can be written to");
}
