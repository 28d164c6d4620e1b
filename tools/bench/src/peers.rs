//! The table of peers: the cost of a lock, and which failures of its server it survives.

use crate::report::{counted, digits, median_with_range, table};
use crate::results::Results;

const CRASH: &str = "crash and power cut";
const NOTHING: &str = "**nothing**: gone with its connection";
const MEMORY: &str = "**nothing**: a restart forgets it";

/// The cases of the table by key, and which failures of the server the lock survives.
const ROWS: [(&str, &str); 19] = [
    ("postgres/multi", CRASH),
    ("postgres/python", CRASH),
    ("mariadb/multi", CRASH),
    ("mysql/multi", CRASH),
    ("sqlite/blocking", CRASH),
    ("etcd", CRASH),
    ("etcd-shared", CRASH),
    ("zookeeper", CRASH),
    ("redis-always", CRASH),
    ("redis-always/python", CRASH),
    ("redis", MEMORY),
    ("redis/python", MEMORY),
    ("advisory", NOTHING),
    ("pglock", NOTHING),
    ("getlock", NOTHING),
    ("old", CRASH),
    ("old/off", CRASH),
    ("postgres/multi/baseline", "(no lock)"),
    ("mysql/multi/baseline", "(no lock)"),
];

pub(crate) fn text(results: &Results) -> String {
    let mut rows = Vec::new();
    for (key, survives) in ROWS {
        let Some(measured) = results.cycles.get(key) else {
            continue;
        };
        let counts = results
            .counts
            .iter()
            .find(|(of, ..)| of == key)
            .map(|(_, _, counts)| counts);
        let syncs = counts.map(|counts| counts.syncs().map(counted));
        let handover = results.handovers.get(key);
        let name =
            match measured.description.starts_with("Rust, ") || measured.description == "Python" {
                true => measured.name.clone(),
                false => format!("{} ({})", measured.name, measured.description),
            };
        rows.push(vec![
            name,
            median_with_range(&measured.all.cycles()),
            handover.map_or(String::new(), |ms| digits(*ms)),
            syncs.map_or(String::new(), |[acquire, release]| {
                format!("{acquire} + {release}")
            }),
            counts.map_or(String::new(), |counts| counted(counts.client(None))),
            survives.to_owned(),
        ]);
    }
    let head = [
        "",
        "acquire + release, ms",
        "hand-over, ms",
        "syncs",
        "system calls",
        "the lock survives its server's",
    ];
    table(&head, &rows)
}
