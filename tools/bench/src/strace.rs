//! Reads the output of `strace`: which system calls an acquire and a release make.

use std::collections::BTreeMap;

/// The purpose of a system call.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// fsync, fdatasync, sync_file_range and the like.
    Sync,
    /// epoll_wait, poll and the like.
    Poll,
    Socket,
    EventWrite,
    Futex,
    /// getrandom, uname, getpid.
    Identity,
    Other,
}

/// How many calls of each kind an acquire and a release make. Of the server only `Sync` is counted.
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

    /// The syncs of client and server: of an acquire, and of a release.
    pub(crate) fn syncs(&self) -> [f64; 2] {
        [0, 1].map(|phase| {
            let client = self.client[phase].get(&Kind::Sync).copied().unwrap_or(0);
            self.each(client + self.server[phase])
        })
    }

    /// The calls of the client in a cycle: of one kind, or of all.
    pub(crate) fn client(&self, kind: Option<Kind>) -> f64 {
        let both = self.client.iter().flatten();
        let these = both.filter(|(of, _)| kind.is_none_or(|kind| kind == **of));
        self.each(these.map(|(_, count)| count).sum())
    }

    pub(crate) fn total(&self, phase: usize) -> f64 {
        self.each(self.client[phase].values().sum())
    }
}

/// Parses a line of `strace`: when the call began, its name, and the rest. `None` for a signal and
/// for the end of an interrupted call.
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

/// Counts the calls between the marks of the client's trace, and the syncs of the server's.
pub(crate) fn count(client: &str, server: &str) -> Counts {
    let marks: Vec<f64> = client
        .lines()
        .filter_map(call)
        .filter_map(|(at, name, _)| (name == "getppid").then_some(at))
        .collect();
    // The last mark ends the last cycle; the calls after it write the answer.
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
        let counts = count(client, server);
        assert_eq!((counts.cycles, counts.syncs()), (1, [1.0, 1.0]));
        assert_eq!(
            (counts.total(0), counts.client(Some(Kind::EventWrite))),
            (3.0, 1.0)
        );
        assert_eq!(counts.client(Some(Kind::Socket)), 2.0);
    }
}
