//! What a client computes in a cycle: a profile by `perf`, as text. Of the time in which it waits, which is most
//! of a cycle, it shows nothing; the table of system calls does.

use std::path::Path;
use std::process::{Command, Stdio};

use testkit::server::find_binary;

use crate::servers::Servers;
use crate::{say, subject};

/// How long each engine is profiled, in milliseconds.
const LENGTH: &str = "5000";
/// Samples a second; no multiple of what else is done so many times a second.
const FREQUENCY: &str = "1999";

/// Profile cycles on each engine, and write a file for each.
///
/// # Errors
///
/// What is missing for it, or that `perf` failed.
pub(crate) fn run(folder: &Path) -> Result<(), String> {
    let perf = find_binary("perf", &[])
        .ok_or("there is no `perf`: install it (Debian: linux-perf), and try again")?;
    std::fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let program = std::env::current_exe().map_err(|why| why.to_string())?;
    let servers = Servers::start();
    for engine in servers.engines() {
        drop(subject::connected(
            &crate::worker::current_thread(),
            &engine.url,
        ));
        let data = servers.files.join(&format!("{}.perf", engine.key));
        let file = folder.join(format!("{}.txt", engine.key));
        let mut record = Command::new(&perf);
        record.args(["record", "--quiet", "-e", "cpu-clock", "-F", FREQUENCY]);
        record
            .args(["--call-graph", "fp", "-o"])
            .arg(&data)
            .arg("--")
            .arg(&program);
        record.args(["worker", "profile", &engine.url, LENGTH]);
        let mut report = Command::new(&perf);
        report
            .args(["report", "--stdio", "--no-children", "-g", "caller", "-i"])
            .arg(&data);
        report.arg("-o").arg(&file);
        for command in [&mut record, &mut report] {
            let done = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
            if !done.is_ok_and(|status| status.success()) {
                return Err("`perf` failed: it may want root, or a lower \
                    /proc/sys/kernel/perf_event_paranoid"
                    .to_owned());
            }
        }
        say(&format!("written: {}", file.display()));
    }
    Ok(())
}
