//! A folder of its own for each test, and the compiled command in it.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own, and uses a part of this"
)]
#![allow(unreachable_pub, reason = "a module of a crate without a public API")]

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use testkit::cleanup::ScratchDir;
use testkit::time;

pub const DBLOCK: &str = env!("CARGO_BIN_EXE_dblock");

/// The limit of each wait, on a busy machine too.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The state folder and the working folder of the commands of a test.
pub struct Sandbox(ScratchDir);

impl Sandbox {
    pub fn new() -> Self {
        Self(ScratchDir::new("cli"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The default SQLite file.
    pub fn database(&self) -> PathBuf {
        self.path("state/dblock/locks.sqlite3")
    }

    /// A program with these folders and without variables of `dblock`.
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

    /// Starts a command. It writes to files, since a process that outlives it would keep a pipe
    /// open.
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

    /// Starts `dblock run` with a script as CMD, and returns when the script has reached `BEGUN`.
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

    /// Runs `dblock` to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Finished {
        self.start(&mut self.dblock(args)).end()
    }

    /// Waits until a file exists.
    #[track_caller]
    pub fn wait_for(&self, name: &str) {
        let there = time::wait_until(TIMEOUT, || self.path(name).exists());
        assert!(
            there,
            "{name} was never created; stderr: {:?}",
            self.all_stderr()
        );
    }

    /// Waits until a command has the database file open: it listens for signals by then.
    #[track_caller]
    pub fn wait_until_opened_by(&self, command: &Running) {
        let opened = time::wait_until(TIMEOUT, || {
            let files = std::fs::read_dir(format!("/proc/{}/fd", command.pid()));
            files
                .expect("its files")
                .flatten()
                .any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == self.database()))
        });
        assert!(opened, "it never opened the database");
    }

    pub fn touch(&self, name: &str) {
        File::create(self.path(name)).expect("a file");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// What all commands have written to stderr so far.
    pub fn all_stderr(&self) -> String {
        let files = std::fs::read_dir(self.0.path()).expect("the folder");
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        let written = paths.filter(|path| path.extension().is_some_and(|it| it == "err"));
        written
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect()
    }

    /// Whether the lock is held.
    pub fn is_held(&self, name: &str) -> bool {
        let shown = self.run(["show", name, "--json"]);
        shown.out.contains(r#""state":"held""#)
    }
}

/// The exit status and the output of a command.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Finished {
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// Asserts the exit code, and that stderr is one line of `dblock`, which it returns.
    #[track_caller]
    pub fn only_line(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("dblock: "), "{self:?}");
        &self.err
    }

    /// As [`Self::only_line`], but CMD may have written to stderr too, as a shell does whose child
    /// was terminated.
    #[track_caller]
    pub fn dblock_line(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        let mut lines = self.err.lines().filter(|line| line.starts_with("dblock: "));
        match (lines.next(), lines.next()) {
            (Some(line), None) => line,
            _ => panic!("not one line of dblock: {self:?}"),
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
        kill_process(Pid::from_child(&self.child), signal).expect("it is running");
    }

    /// The content of stderr so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// Waits until stderr contains a text.
    #[track_caller]
    pub fn wait_for_stderr(&self, text: &str) {
        let there = time::wait_until(TIMEOUT, || self.stderr().contains(text));
        assert!(there, "never on stderr: {text:?}: {:?}", self.stderr());
    }

    /// Whether the command has ended.
    pub fn has_ended(&mut self) -> bool {
        self.ended = self.ended.or(self.child.try_wait().expect("a child"));
        self.ended.is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Finished {
        let ended = time::wait_until(TIMEOUT, || self.has_ended());
        let read = |path: &Path| {
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
        };
        let (out, err) = (read(&self.out), read(&self.err));
        assert!(ended, "it did not end: {out:?} {err:?}");
        Finished {
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

/// Whether the process is running. A zombie is not.
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
        time::wait_until(TIMEOUT, || !is_running(pid)),
        "{pid} is still there"
    );
}
