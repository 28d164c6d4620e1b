//! The parts that all servers share: a process in its own directory, on a free port, as a user that
//! is not root.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cleanup::{self, ScratchDir};
use crate::process::{children_of, state_of};
use crate::time;

/// How long a server may take to start: a hundred times as long as on an idle machine.
const START_WITHIN: Duration = Duration::from_secs(90);

/// How long a server may take to end politely before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How long the kernel may take to carry out a signal that cannot be refused.
const SIGNAL_WITHIN: Duration = Duration::from_secs(10);

/// Ports tried for a server. Below 32768, where the kernel takes the ports of outgoing
/// connections from: one of those on a stopped server's port would make a restart fail.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A port of 127.0.0.1 that was free a moment ago.
///
/// # Panics
///
/// If no such port is found.
pub fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(PORTS))
        .take(1000)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of a thousand ports is free")
}

/// The user of a server process.
#[derive(Clone, Copy, Debug)]
pub struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// `None`, the current user, unless that is root. For root the user `name`, or `nobody`,
    /// because PostgreSQL and MariaDB refuse to run as root.
    ///
    /// # Panics
    ///
    /// If the current user is root and the machine has neither user.
    pub fn for_server(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = [name, "nobody"]
            .iter()
            .find_map(|name| lookup(&passwd, name));
        Some(user.unwrap_or_else(|| panic!("no user {name} to run the server as")))
    }
}

fn lookup(passwd: &str, name: &str) -> Option<User> {
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2);
    Some(User {
        uid: ids.next()?.parse().ok()?,
        gid: ids.next()?.parse().ok()?,
    })
}

/// A server process and its directory. Ended and removed on drop.
#[derive(Debug)]
pub struct Server {
    engine: &'static str,
    /// Declared before `dir`, which is removed when the process no longer writes there.
    process: Process,
    dir: ScratchDir,
    user: Option<User>,
    pub(crate) polite: Signal,
    /// Put into its environment.
    pub(crate) env: Vec<(String, String)>,
}

/// The process and its children.
#[derive(Debug, Default)]
struct Process {
    child: Option<Child>,
    frozen: Vec<u32>,
}

impl Server {
    /// A server that is not running yet, to be asked to end by the signal `polite`.
    pub(crate) fn new(engine: &'static str, user: Option<User>, polite: Signal) -> Self {
        let dir = ScratchDir::new(engine);
        let server = Self {
            engine,
            process: Process::default(),
            dir,
            user,
            polite,
            env: Vec::new(),
        };
        server.give(server.dir());
        server
    }

    /// Makes its user the owner of a file or directory.
    pub(crate) fn give(&self, path: &Path) {
        if let Some(user) = self.user {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
                .expect("root can give a file away");
        }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.child.as_ref().map(Child::id)
    }

    /// Runs a program to its end, as the server's user in its directory; its output.
    ///
    /// # Panics
    ///
    /// If it fails, with its output.
    pub(crate) fn prepare(&self, program: &Path, args: &[String]) -> String {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        let output = self.in_place(&mut command).output();
        match output {
            Ok(output) if output.status.success() => {
                let message = [output.stdout, output.stderr].concat();
                String::from_utf8_lossy(&message).into_owned()
            }
            Ok(output) => panic!(
                "{} failed: {}\n{}{}",
                program.display(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            ),
            Err(error) => panic!("cannot run {}: {error}", program.display()),
        }
    }

    /// Starts the server and waits until `ready` succeeds.
    ///
    /// `deathsig` is what the kernel sends it when the test process ends.
    ///
    /// # Errors
    ///
    /// The end of its log, when it ended instead or did not answer in time.
    pub(crate) fn launch(
        &mut self,
        program: &Path,
        args: &[String],
        deathsig: &str,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .and_then(|log| Ok((log.try_clone()?, log)))
            .expect("the log can be written");
        let mut command = cleanup::command(program, deathsig);
        // Its own process group: Ctrl-C ends the tests, which end the server.
        command
            .args(args)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.0)
            .stderr(log.1)
            .process_group(0);
        self.in_place(&mut command);
        let child = cleanup::spawn(command)
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        self.process.child = Some(child);

        let outcome = time::poll(START_WITHIN, || {
            let child = self.process.child.as_mut().expect("put there just now");
            match child.try_wait() {
                Ok(None) if ready() => Some(Ok(())),
                Ok(None) => None,
                Ok(Some(status)) => Some(Err(format!("{} ended: {status}", self.engine))),
                Err(error) => Some(Err(format!("{}: {error}", self.engine))),
            }
        });
        outcome
            .unwrap_or_else(|| Err(format!("{} not ready in {START_WITHIN:?}", self.engine)))
            .map_err(|what| {
                self.process.kill();
                format!("{what}\n{}", self.log_tail())
            })
    }

    fn in_place<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir(self.dir.path());
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// The last lines it logged.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Shuts it down properly.
    pub(crate) fn stop(&mut self) {
        self.process.stop(self.polite);
    }

    /// Kills it and its children at once, as a power failure would.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Freezes it and its children: connections stay open, and nothing is answered.
    pub(crate) fn freeze(&mut self) {
        self.process.freeze();
    }

    /// Thaws a frozen process.
    pub(crate) fn thaw(&mut self) {
        self.process.thaw();
    }
}

impl Process {
    fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn stop(&mut self, polite: Signal) {
        self.thaw();
        let Some(child) = self.child.as_mut() else {
            return;
        };
        // An error means that it has ended already.
        let _ = kill_process(Pid::from_child(child), polite);
        let ended = time::wait_until(STOP_WITHIN, || !matches!(child.try_wait(), Ok(None)));
        if ended {
            self.child = None;
        } else {
            self.kill();
        }
    }

    fn kill(&mut self) {
        // First frozen, so that none starts another while the list is made.
        self.freeze();
        let Some(mut child) = self.child.take() else {
            return;
        };
        // An error means that it has ended already.
        let _ = child.kill();
        let _ = child.wait();
        // PostgreSQL's would notice by themselves, but only after what they are doing;
        // and until then a restart fails on shared memory that is in use.
        for pid in &self.frozen {
            signal(*pid, Signal::KILL);
        }
        let gone = |pid: &u32| matches!(state_of(*pid), None | Some('Z' | 'X'));
        time::wait_until(SIGNAL_WITHIN, || self.frozen.iter().all(gone));
        self.frozen.clear();
    }

    fn freeze(&mut self) {
        let Some(pid) = self.pid() else { return };
        self.stop_one(pid);
        // Until no new one is found: the parent may have started one meanwhile.
        loop {
            let new: Vec<u32> = children_of(pid)
                .into_iter()
                .filter(|child| !self.frozen.contains(child))
                .collect();
            if new.is_empty() {
                return;
            }
            for child in new {
                self.stop_one(child);
                self.frozen.push(child);
            }
        }
    }

    /// Returns when it is stopped, since a signal takes effect when the process is next
    /// scheduled: a test that went on at once might still get an answer.
    fn stop_one(&self, pid: u32) {
        signal(pid, Signal::STOP);
        time::wait_until(SIGNAL_WITHIN, || {
            matches!(state_of(pid), None | Some('T' | 't' | 'Z' | 'X'))
        });
    }

    fn thaw(&mut self) {
        for pid in self.frozen.drain(..) {
            signal(pid, Signal::CONT);
        }
        if let Some(pid) = self.pid() {
            signal(pid, Signal::CONT);
        }
    }
}

/// Signals a child of a running or frozen server. Its pid is not reused meanwhile, because the
/// server has not reaped it.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // An error means that it has ended already.
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Calls `start` until it succeeds, a few times if a port that was free is in use by then.
///
/// # Panics
///
/// With the log of another failure.
pub(crate) fn on_free_ports<T>(mut start: impl FnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    for _ in 0..5 {
        match start() {
            Ok(started) => return started,
            Err(log) if log.to_ascii_lowercase().contains("in use") => last = log,
            Err(log) => panic!("{log}"),
        }
    }
    panic!("no ports stay free\n{last}")
}

/// Like [`on_free_ports`] for one port, which is returned.
pub(crate) fn on_a_free_port(mut launch: impl FnMut(u16) -> Result<(), String>) -> u16 {
    on_free_ports(|| {
        let port = free_port();
        launch(port).map(|()| port)
    })
}

/// Whether a short-lived program succeeds.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status
        .unwrap_or_else(|_: io::Error| std::process::ExitStatus::from_raw(1))
        .success()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_looked_up_by_its_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\nmysqlx:x:7:7::/:/bin/sh\nmysql:x:104:105:a,b:/:\n";
        let user = lookup(passwd, "mysql").expect("the line is there");
        assert_eq!((user.uid, user.gid), (104, 105));
        assert!(lookup(passwd, "postgres").is_none());
    }

    #[test]
    fn a_free_port_is_outside_the_range_of_outgoing_connections() {
        assert!(free_port() < 32_768);
    }
}
