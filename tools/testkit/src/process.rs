//! Child processes that a test kills, freezes and listens to.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{cleanup, time};

/// A child process. Killed and reaped on drop, and by the kernel when the test
/// process ends.
#[derive(Debug)]
pub struct ChildProcess {
    child: Child,
    lines: Mutex<mpsc::Receiver<String>>,
}

impl ChildProcess {
    /// Starts `program` with `args`, its output to be read by [`line`](Self::line).
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn_command(&command)
    }

    /// Starts what `command` describes: its program, arguments, environment and
    /// working directory. Standard input and output are pipes; standard error is inherited.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn spawn_command(command: &Command) -> Self {
        Self::start(command, false)
    }

    /// Like [`spawn_command`](Self::spawn_command), with standard error in the stream of standard
    /// output, in order.
    pub(crate) fn spawn_merged(command: &Command) -> Self {
        Self::start(command, true)
    }

    fn start(wanted: &Command, merged: bool) -> Self {
        let mut command = cleanup::command(wanted.get_program(), "KILL");
        command.args(wanted.get_args());
        for (name, value) in wanted.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(dir) = wanted.get_current_dir() {
            command.current_dir(dir);
        }
        let (output, for_child) = std::io::pipe().expect("a pipe can be made");
        if merged {
            command.stderr(for_child.try_clone().expect("a pipe can be shared"));
        }
        command.stdin(Stdio::piped()).stdout(for_child);
        let child = cleanup::spawn(command)
            .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", wanted.get_program()));

        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines: Mutex::new(lines),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it prints, or `None` when none came in time or its output ended.
    pub fn line(&self, within: Duration) -> Option<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv_timeout(within)
            .ok()
    }

    /// The next line, which must come in time.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn expect_line(&self, within: Duration) -> String {
        self.line(within)
            .unwrap_or_else(|| panic!("process {} printed nothing within {within:?}", self.pid()))
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    ///
    /// If it no longer reads.
    pub fn send_line(&mut self, line: &str) -> std::io::Result<()> {
        let input = self
            .child
            .stdin
            .as_mut()
            .ok_or(std::io::ErrorKind::BrokenPipe)?;
        // One write, so that a process killed halfway has read a line or nothing.
        input.write_all(format!("{line}\n").as_bytes())?;
        input.flush()
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Sends it a signal. Nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        // After it is reaped, another process may have its pid.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Kills it by SIGKILL, as the kernel does when memory runs out, and reaps it.
    pub fn kill9(&mut self) -> ExitStatus {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for")
    }

    /// Freezes it by SIGSTOP.
    ///
    /// # Panics
    ///
    /// If it is not seen stopped within ten seconds.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
        // A signal is delivered when the process is next scheduled: a test that goes
        // on at once may still be answered.
        let stopped = time::wait_until(
            Duration::from_secs(10),
            || !matches!(state_of(self.pid()), Some(state) if !"TtZX".contains(state)),
        );
        assert!(stopped, "process {} does not stop", self.pid());
    }

    /// Thaws a frozen process.
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end; `None` when it still runs after `within`.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        time::poll(within, || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Forks this process without an `exec`; `None` in the child.
///
/// The child may allocate and start threads, which glibc allows after a fork. It ends by
/// [`std::process::exit`].
///
/// # Panics
///
/// If the kernel refuses.
pub fn fork() -> Option<Pid> {
    #[allow(unsafe_code, reason = "the standard library cannot fork")]
    // SAFETY: the child runs only what glibc supports in the child of a process with threads.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "cannot fork: {}", std::io::Error::last_os_error());
    Pid::from_raw(pid)
}

/// Waits until a child of [`fork`] has ended.
///
/// # Panics
///
/// If it is no child of this process.
pub fn wait_for_child(child: Pid) {
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
        .expect("the child ends");
}

/// The state of a process as a letter of `/proc`; `None` if there is no such process.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    stat_of(pid).map(|(state, _)| state)
}

/// Whether a process is stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    matches!(state_of(pid), Some('T' | 't'))
}

/// The processes whose parent is `pid`.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|child| matches!(stat_of(*child), Some((_, parent)) if parent == pid))
        .collect()
}

fn stat_of(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program comes first, in parentheses, and may itself contain any.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
