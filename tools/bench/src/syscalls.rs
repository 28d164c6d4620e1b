//! What a cycle asks of the kernel, counted by `strace`: columns that no noise touches.
//!
//! The client calls `getppid` before each call and after the last; what its server syncs is put beside that
//! by the time at which it began.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_to_string;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use testkit::{Killable, time};

use crate::report::{Section, counted};
use crate::rows::{self, Row};
use crate::servers::Servers;
use crate::{Results, say};

/// How many cycles are watched, and how many come before them.
const CYCLES: u32 = 200;
const WARM_UP: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a system call is for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// fsync, fdatasync, sync_file_range and their kin.
    Sync,
    /// epoll_wait, poll and their kin.
    Poll,
    Socket,
    EventWrite,
    Futex,
    /// getrandom, uname, getpid.
    Identity,
    Other,
}

/// How many calls of each kind an acquire and a release make; those of the server are `Sync` alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    client: [BTreeMap<Kind, u32>; 2],
    server: [u32; 2],
    cycles: u32,
}

impl Counts {
    fn each(&self, count: u32) -> f64 {
        f64::from(count) / f64::from(self.cycles.max(1))
    }

    /// Of server and client: an acquire's, and a release's.
    pub(crate) fn syncs(&self) -> [f64; 2] {
        [0, 1].map(|phase| {
            let client = self.client[phase].get(&Kind::Sync).copied().unwrap_or(0);
            self.each(client + self.server[phase])
        })
    }

    /// Calls of the client in a cycle; without a kind, of all kinds.
    pub(crate) fn client(&self, kind: Option<Kind>) -> f64 {
        let both = self.client.iter().flatten();
        let these = both.filter(|(of, _)| kind.is_none_or(|kind| kind == **of));
        self.each(these.map(|(_, count)| count).sum())
    }

    fn total(&self, phase: usize) -> f64 {
        self.each(self.client[phase].values().sum())
    }
}

pub(crate) fn run(servers: &Servers, _: Duration, results: &mut Results) -> Section {
    let mut section = Section::default();
    for row in rows::all(servers) {
        match count(&row, servers) {
            Ok(Some(counts)) => results.counts.push((row.key, row.name, counts)),
            Ok(None) => {}
            Err(why) => {
                section.paragraph(format!("Not counted: {why}."));
                say(&why);
                break;
            }
        }
    }
    section.paragraph(format!(
        "System calls in {CYCLES} cycles, for each. Syncs are those of server and client together, beside all \
         other columns, which are the client's alone; a table of commits in SQLite is the client's file. `poll` is \
         `epoll_wait` and its kin, `socket` what reads or writes one, `identity` `getrandom`, `uname` and `getpid`. \
         Where two rows have the same calls and one takes longer, it is not the kernel's doing."
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
            &format!("system calls of a cycle beside those of the socket, {name}"),
            "none, but for one in four cycles (`current_thread`, `multi_thread`, blocking)",
            Some(each.join(", ")),
            found.iter().all(|calls| *calls <= 0.25),
        );
    }
}

/// `None` where the row does not start.
fn count(row: &Row, servers: &Servers) -> Result<Option<Counts>, String> {
    let Some(mut taker) = row.start(&format!("count {}", row.key)) else {
        return Ok(None);
    };
    let ask = format!("count {CYCLES}");
    taker.tell(&format!("count {WARM_UP}"));
    taker.hear(PATIENCE);
    let files = ["client", "server"].map(|name| servers.files.join(&format!("{name}.strace")));
    let mut traces = vec![trace(&[taker.pid()], &files[0].display().to_string())?];
    if let Some(server) = servers.pid(row.server) {
        traces.push(trace(&family(server), &files[1].display().to_string())?);
    }
    taker.tell(&ask);
    taker.hear(PATIENCE * 6);
    for trace in &mut traces {
        trace.signal(Signal::INT);
        trace.wait(PATIENCE);
    }
    let [client, server] = files.map(|file| {
        let text = read_to_string(&file).unwrap_or_default();
        let _ = std::fs::remove_file(file);
        text
    });
    Ok(Some(counted_in(&client, &server)))
}

/// `strace` on processes and all their threads, once it has hold of them.
fn trace(pids: &[u32], file: &str) -> Result<Killable, String> {
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
    let mut strace = Killable::spawn_command(&command);
    let held = || {
        pids.iter()
            .all(|pid| threads(*pid).iter().all(|thread| traced(*thread)))
    };
    match time::wait_until(PATIENCE, held) && strace.wait(Duration::ZERO).is_none() {
        true => Ok(strace),
        false => Err("strace is not there, or may not attach (ptrace)".to_owned()),
    }
}

fn threads(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}

fn traced(thread: u32) -> bool {
    let status = read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    // A thread that ended is nobody's.
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_none_or(|tracer| tracer.trim() != "0")
}

/// A process and all that it started.
fn family(of: u32) -> Vec<u32> {
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

/// A line of `strace`: when the call began, its name, and the rest. None for what ends a call, and for signals.
fn call(line: &str) -> Option<(f64, &str, &str)> {
    let (_, line) = line.trim_start().split_once(' ')?;
    let (at, line) = line.trim_start().split_once(' ')?;
    let (name, rest) = line.split_once('(')?;
    let named = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    named.then_some((at.parse().ok()?, name, rest))
}

fn kind(name: &str, rest: &str) -> Kind {
    let on = |what: &str| {
        rest.split(['>', ','])
            .next()
            .is_some_and(|fd| fd.contains(what))
    };
    match name {
        "fsync" | "fdatasync" | "sync_file_range" | "msync" | "syncfs" | "sync" => Kind::Sync,
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "poll" | "ppoll" | "select"
        | "pselect6" => Kind::Poll,
        "sendto" | "recvfrom" | "sendmsg" | "recvmsg" => Kind::Socket,
        "read" | "write" | "readv" | "writev" if on("socket:") => Kind::Socket,
        "write" if on("[eventfd]") => Kind::EventWrite,
        "futex" => Kind::Futex,
        "getrandom" | "uname" | "getpid" => Kind::Identity,
        _ => Kind::Other,
    }
}

fn counted_in(client: &str, server: &str) -> Counts {
    let marks: Vec<f64> = client
        .lines()
        .filter_map(call)
        .filter_map(|(at, name, _)| (name == "getppid").then_some(at))
        .collect();
    // The last mark ends the last cycle: what comes after it is the answer.
    let phase = |at: f64| {
        let before = marks.partition_point(|mark| *mark <= at);
        (before > 0 && before < marks.len()).then(|| (before - 1) % 2)
    };
    let mut counts = Counts {
        cycles: (marks.len() / 2) as u32,
        ..Counts::default()
    };
    for (at, name, rest) in client.lines().filter_map(call) {
        if let (Some(phase), true) = (phase(at), name != "getppid") {
            *counts.client[phase].entry(kind(name, rest)).or_default() += 1;
        }
    }
    for (at, name, rest) in server.lines().filter_map(call) {
        if let (Some(phase), Kind::Sync) = (phase(at), kind(name, rest)) {
            counts.server[phase] += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_belong_to_the_acquire_or_release_in_which_they_began() {
        let client = "\
            7 10.0 getppid() = 1\n\
            7 10.1 sendto(5<socket:[12]>, \"B\", 1, MSG_NOSIGNAL, NULL, 0) = 1\n\
            9 10.2 epoll_wait(3<anon_inode:[eventpoll]>,  <unfinished ...>\n\
            7 10.3 write(4<anon_inode:[eventfd]>, \"\\1\", 8) = 8\n\
            9 10.4 <... epoll_wait resumed>[], 1024, 5) = 0\n\
            7 10.5 getppid() = 1\n\
            7 10.6 read(5<socket:[12]>, \"C\", 8) = 1\n\
            7 10.7 fdatasync(6</tmp/a>) = 0\n\
            7 10.8 getppid() = 1\n\
            7 10.9 write(1<pipe:[3]>, \"done\", 4) = 4\n";
        let server = "3 10.25 fdatasync(5</tmp/b>) = 0\n3 10.65 pwrite64(5</tmp/b>, \"\", 0) = 0\n";
        let counts = counted_in(client, server);
        assert_eq!((counts.cycles, counts.syncs()), (1, [1.0, 1.0]));
        assert_eq!(
            (counts.total(0), counts.client(Some(Kind::EventWrite))),
            (3.0, 1.0)
        );
        assert_eq!(counts.client(Some(Kind::Socket)), 2.0);
    }
}
