//! Values of processes, read from `/proc`.

use std::collections::BTreeSet;
use std::fs::read_to_string;

/// Resident memory of a process, in KiB.
pub(crate) fn memory_kib(pid: u32) -> u64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "VmRSS:")
}

/// The number behind `name` in a file of /proc.
pub(crate) fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

/// CPU time of a process, in seconds.
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
    // `/proc` counts in hundredths of a second (USER_HZ), whatever the kernel's tick rate.
    (ticks(11) + ticks(12)) / 100.0
}

/// The threads of a process.
pub(crate) fn threads(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether a tracer is attached to a thread, or the thread has ended.
pub(crate) fn is_traced(thread: u32) -> bool {
    let status = read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_none_or(|tracer| tracer.trim() != "0")
}

/// A process and all processes that it started.
pub(crate) fn descendants(of: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(u32, u32)> = processes
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let stat = read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut family = BTreeSet::from([of]);
    loop {
        let children = parents.iter().filter(|(_, parent)| family.contains(parent));
        let larger: BTreeSet<u32> = family
            .iter()
            .copied()
            .chain(children.map(|(pid, _)| *pid))
            .collect();
        if larger.len() == family.len() {
            return family.into_iter().collect();
        }
        family = larger;
    }
}
