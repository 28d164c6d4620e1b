//! A state folder of its own for each test, and the real command in it.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own, and needs a part of this"
)]
#![allow(
    unreachable_pub,
    reason = "a module of a crate that has no public face"
)]

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use testkit::tether::ScratchDir;
use testkit::time;

pub const DBLOCK: &str = env!("CARGO_BIN_EXE_dblock");

/// Longer than anything that a test waits for should take, on a machine with a lot else to do.
pub const SOON: Duration = Duration::from_secs(60);

/// A state folder, and a working folder for what commands write.
pub struct Lab(ScratchDir);

impl Lab {
    pub fn new() -> Self {
        Self(ScratchDir::new("cli"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The file that is used without a URL.
    pub fn database(&self) -> PathBuf {
        self.path("state/dblock/locks.sqlite3")
    }

    /// Any command, with the folders of this lab.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("XDG_STATE_HOME", self.path("state"))
            .env_remove("DATABASE_LOCKS_URL")
            .env_remove("DATABASE_LOCKS_URL_FILE")
            .env_remove("DATABASE_LOCKS_TABLE")
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    pub fn dblock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command(DBLOCK);
        command.args(args);
        command
    }

    /// Start it; what it prints goes to files, which a process that lives on cannot keep open for us.
    pub fn start(&self, command: &mut Command) -> Running {
        let made = tempfile::NamedTempFile::new_in(self.0.path()).expect("a file");
        let (_, out) = made.keep().expect("kept");
        let err = out.with_extension("err");
        command.stdout(File::create(&out).expect("a file"));
        command.stderr(File::create(&err).expect("a file"));
        let child = command.spawn().expect("starts");
        Running {
            child,
            out,
            err,
            ended: None,
        }
    }

    /// `dblock run …`, with a script for `sh` as CMD, once that has begun.
    pub fn start_run(&self, options: &[&str], name: &str, script: &str) -> Running {
        let begun = format!("begun.{name}");
        let _ = std::fs::remove_file(self.path(&begun));
        let script = format!("{script}\n");
        let whole = script.replacen("BEGUN", &format!("touch {begun}"), 1);
        let args = [&["run"], options, &[name, "--", "sh", "-c", &whole]].concat();
        let running = self.start(&mut self.dblock(args));
        self.wait_for(&begun);
        running
    }

    /// Run it to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Done {
        self.start(&mut self.dblock(args)).end()
    }

    /// Wait until there is such a file.
    #[track_caller]
    pub fn wait_for(&self, name: &str) {
        let there = time::wait_until(SOON, || self.path(name).exists());
        assert!(there, "{name} never came");
    }

    pub fn touch(&self, name: &str) {
        File::create(self.path(name)).expect("a file");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Whether somebody has it.
    pub fn is_held(&self, name: &str) -> bool {
        let shown = self.run(["show", name, "--json"]);
        shown.out.contains(r#""state":"held""#)
    }
}

/// How it ended, and what it said.
#[derive(Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// Assert how it ended; answers with what it said on stderr, one line.
    #[track_caller]
    pub fn refused(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("dblock: "), "{self:?}");
        &self.err
    }

    /// The same where CMD may have said something as well: a shell that its `sleep` was terminated.
    #[track_caller]
    pub fn ended(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        let mut ours = self.err.lines().filter(|line| line.starts_with("dblock: "));
        match (ours.next(), ours.next()) {
            (Some(line), None) => line,
            _ => panic!("not one line of ours: {self:?}"),
        }
    }
}

/// A running command; killed on drop.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    ended: Option<ExitStatus>,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is there");
    }

    /// What it has said on stderr so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.ended = self
            .ended
            .or(self.child.try_wait().expect("a child of ours"));
        self.ended.is_some()
    }

    /// Wait for its end.
    #[track_caller]
    pub fn end(mut self) -> Done {
        let ended = time::wait_until(SOON, || self.has_ended());
        let read = |path: &Path| {
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
        };
        let (out, err) = (read(&self.out), read(&self.err));
        assert!(ended, "it did not end: {out:?} {err:?}");
        Done {
            status: self.ended.expect("ended"),
            out,
            err,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Whether there is such a process. One that has ended and that nobody has reaped is none.
pub fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    state
        .flatten()
        .is_some_and(|state| state != 'Z' && state != 'X')
}

#[track_caller]
pub fn wait_until_gone(pid: &str) {
    assert!(!pid.trim().is_empty(), "no pid");
    assert!(
        time::wait_until(SOON, || !is_running(pid)),
        "{pid} is still there"
    );
}
