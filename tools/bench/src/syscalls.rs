//! The system calls of a cycle, counted by `strace`: unlike times, they do not depend on the load.
//!
//! The client marks its trace by a `getppid` before each call and after the last. A sync of the
//! server belongs to the acquire or release during which it began.

use std::fs::read_to_string;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use testkit::{ChildProcess, time};

use crate::cases::{self, Case};
use crate::console::progress;
use crate::proc::{descendants, is_traced, threads};
use crate::report::{Section, counted};
use crate::results::Results;
use crate::servers::Servers;
use crate::strace::{self, Counts, Kind};

/// The cycles that are traced, and those before them.
const CYCLES: u32 = 200;
const WARM_UP: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(servers: &Servers, _: Duration, results: &mut Results) -> Section {
    let mut section = Section::default();
    for case in cases::all(servers) {
        match count(&case, servers) {
            Ok(Some(counts)) => results.counts.push((case.key, case.name, counts)),
            Ok(None) => {}
            Err(why) => {
                section.paragraph(format!("Not counted: {why}."));
                progress(&why);
                break;
            }
        }
    }
    section.paragraph(format!(
        "System calls of one cycle, the average of {CYCLES}. The syncs are those of client and server together; \
         all other columns count the calls of the client alone. SQLite has no server: the client makes all its \
         syncs. `poll` counts `epoll_wait`, `poll` and `select`; `socket` counts reads from and writes to a \
         socket; `identity` counts `getrandom`, `uname` and `getpid`."
    ));
    let rows = results.counts.iter().map(|(_, name, counts)| {
        let [acquire, release] = counts.syncs();
        let kinds = [
            Kind::Poll,
            Kind::Socket,
            Kind::EventWrite,
            Kind::Futex,
            Kind::Identity,
            Kind::Other,
        ];
        let mut row = vec![name.clone(), counted(acquire), counted(release)];
        row.extend([0, 1].map(|phase| counted(counts.total(phase))));
        row.extend(kinds.map(|kind| counted(counts.client(Some(kind)))));
        row
    });
    let rows: Vec<_> = rows.collect();
    let head = [
        "",
        "syncs: acquire",
        "release",
        "client: acquire",
        "release",
        "poll",
        "socket",
        "eventfd write",
        "futex",
        "identity",
        "other",
    ];
    section.table(&head, &rows);
    goals(&mut section, results);
    section
}

fn goals(section: &mut Section, results: &Results) {
    let counts = |key: &str| {
        let found = results.counts.iter().find(|(of, ..)| of == key);
        found.map(|(_, _, counts)| counts)
    };
    let shown =
        |[acquire, release]: [f64; 2]| format!("{} and {}", counted(acquire), counted(release));
    let near = |[acquire, release]: [f64; 2], most: [f64; 2]| {
        acquire < most[0] + 0.1 && release < most[1] + 0.1
    };
    for (name, key, most) in [
        ("PostgreSQL", "postgres", Some([1.0, 0.0])),
        ("MariaDB", "mariadb", Some([1.0, 1.0])),
        ("MySQL", "mysql", None),
        ("SQLite", "sqlite", None),
    ] {
        let baseline = counts(&format!("{key}/blocking/baseline"));
        let Some(most) = most.or(baseline.map(Counts::syncs)) else {
            continue;
        };
        let runtimes =
            ["current", "multi", "blocking"].map(|runtime| counts(&format!("{key}/{runtime}")));
        let worst = runtimes.into_iter().flatten().map(Counts::syncs);
        let worst = worst.reduce(|one, other| [one[0].max(other[0]), one[1].max(other[1])]);
        let goal = match key {
            "postgres" | "mariadb" => format!("{} and {}", most[0], most[1]),
            _ => format!("those of two bare commits: {}", shown(most)),
        };
        section.goal(
            &format!("fdatasync calls of an acquire and of a release, {name}"),
            &goal,
            worst.map(shown),
            worst.is_some_and(|worst| near(worst, most)),
        );
    }
    let beside = [Kind::EventWrite, Kind::Futex, Kind::Identity, Kind::Other];
    for (name, key) in [
        ("PostgreSQL", "postgres"),
        ("MariaDB", "mariadb"),
        ("MySQL", "mysql"),
    ] {
        let of = |runtime: &str| {
            let counts = counts(&format!("{key}/{runtime}"))?;
            Some(
                beside
                    .map(|kind| counts.client(Some(kind)))
                    .iter()
                    .sum::<f64>(),
            )
        };
        let Some(found) = ["current", "multi", "blocking"]
            .into_iter()
            .map(of)
            .collect::<Option<Vec<f64>>>()
        else {
            continue;
        };
        let each: Vec<String> = found.iter().map(|calls| counted(*calls)).collect();
        section.goal(
            &format!("system calls of a cycle other than those of the socket, {name}"),
            "at most one in four cycles (`current_thread`, `multi_thread`, blocking)",
            Some(each.join(", ")),
            found.iter().all(|calls| *calls <= 0.25),
        );
    }
}

/// `None` if the case does not start.
fn count(case: &Case, servers: &Servers) -> Result<Option<Counts>, String> {
    let Some(mut child) = case.start(&format!("count {}", case.key)) else {
        return Ok(None);
    };
    let ask = format!("count {CYCLES}");
    child.send(&format!("count {WARM_UP}"));
    child.receive(PATIENCE);
    let files = ["client", "server"].map(|name| servers.files.join(&format!("{name}.strace")));
    let mut traces = vec![trace(&[child.pid()], &files[0].display().to_string())?];
    if let Some(server) = servers.pid(case.server) {
        traces.push(trace(
            &descendants(server),
            &files[1].display().to_string(),
        )?);
    }
    child.send(&ask);
    child.receive(PATIENCE * 6);
    for trace in &mut traces {
        trace.signal(Signal::INT);
        trace.wait(PATIENCE);
    }
    let [client, server] = files.map(|file| {
        let text = read_to_string(&file).unwrap_or_default();
        let _ = std::fs::remove_file(file);
        text
    });
    Ok(Some(strace::count(&client, &server)))
}

/// Attaches `strace` to processes, and waits until it traces all their threads.
fn trace(pids: &[u32], file: &str) -> Result<ChildProcess, String> {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec strace \"$@\" 2>/dev/null",
        "sh",
        "-f",
        "-y",
        "-ttt",
        "-o",
        file,
    ]);
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    let mut strace = ChildProcess::spawn_command(&command);
    let attached = || {
        pids.iter()
            .all(|pid| threads(*pid).iter().all(|thread| is_traced(*thread)))
    };
    match time::wait_until(PATIENCE, attached) && strace.wait(Duration::ZERO).is_none() {
        true => Ok(strace),
        false => Err("strace is not there, or may not attach (ptrace)".to_owned()),
    }
}
