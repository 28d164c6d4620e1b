//! Processes and directories that do not outlive the test process.
//!
//! A test process may end by returning from `main`, by an abort or by SIGKILL, and
//! `static`s are never dropped in any of these. Two things hold nevertheless:
//!
//! - The kernel ends what was started by [`spawn`], by its parent-death signal.
//! - A watcher, a shell whose standard input ends with the test process, kills the processes that
//!   still have their working directory in a [`ScratchDir`] (such as a frozen backend, which the
//!   parent-death signal does not reach), and removes the directory.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};

use crate::programs::find_binary;

/// Reads one directory a line; at the end of its input the test process is gone.
///
/// The servers have 5 s to end by themselves, and frozen ones are thawed for it, since
/// PostgreSQL gives its shared memory back only then. They are found by their working
/// directory, because a remembered pid may be that of another process by now.
const WATCHER: &str = r#"
    trap '' INT HUP TERM
    dirs= newline='
'
    while IFS= read -r dir; do dirs="$dirs$dir$newline"; done
    IFS=$newline
    inside() {
        for proc in /proc/[0-9]*; do
            cwd=$(readlink "$proc/cwd" 2>/dev/null) || continue
            for dir in $dirs; do
                case $cwd in "$dir"|"$dir"/*) echo "${proc#/proc/}" ;; esac
            done
        done
    }
    for pid in $(inside); do kill -CONT "$pid" 2>/dev/null; done
    rounds=0
    while [ -n "$(inside)" ] && [ $rounds -lt 25 ]; do sleep 0.2; rounds=$((rounds + 1)); done
    for pid in $(inside); do kill -KILL "$pid" 2>/dev/null; done
    for dir in $dirs; do rm -rf -- "$dir"; done
"#;

/// A temporary directory that is removed with its handle or, at the latest, soon
/// after the test process has ended.
#[derive(Debug)]
pub struct ScratchDir(tempfile::TempDir);

impl ScratchDir {
    /// Makes an empty directory with `tag` in its name.
    ///
    /// # Panics
    ///
    /// If the directory for temporary files cannot be written to.
    pub fn new(tag: &str) -> Self {
        let dir = tempfile::Builder::new()
            // Short: the path of a Unix socket has some 100 bytes in all.
            .prefix(&format!("dblock-{tag}-"))
            .tempdir()
            .expect("a temporary directory can be made");
        let path = dir
            .path()
            .canonicalize()
            .expect("the directory was made just now");
        static WATCHER_INPUT: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
        let mut watcher = WATCHER_INPUT
            .get_or_init(|| Mutex::new(start_watcher()))
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        writeln!(watcher, "{}", path.display()).expect("the watcher reads");
        Self(dir)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of an entry of it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[allow(
    clippy::zombie_processes,
    reason = "it ends after us, and init reaps it"
)]
fn start_watcher() -> ChildStdin {
    let mut watcher = Command::new("sh")
        .args(["-c", WATCHER])
        .stdin(Stdio::piped())
        // A pipe that reads the output of the tests would stay open for the watcher.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Ctrl-C ends the tests; the watcher must stay to clean up.
        .process_group(0)
        .spawn()
        .expect("sh can be started");
    watcher.stdin.take().expect("stdin is piped")
}

/// A command which runs `program`, and which the kernel sends `signal` (`KILL`,
/// `QUIT`, ...) when the test process ends.
///
/// To be started by [`spawn`] only. Without util-linux's `setpriv` it is the plain
/// command.
pub fn command(program: impl AsRef<std::ffi::OsStr>, signal: &str) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    match SETPRIV.get_or_init(|| find_binary("setpriv", &[])) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Starts `command` from a thread that never ends.
///
/// The parent-death signal fires when the *thread* that started the process ends,
/// and libtest runs every test in a thread of its own: a shared server would die
/// with the first test that asked for it.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let (answer, answered) = mpsc::channel();
    SPAWNER
        .get_or_init(|| {
            let (jobs, todo) = mpsc::channel::<Job>();
            std::thread::Builder::new()
                .name("spawner".into())
                .spawn(move || {
                    for (mut command, answer) in todo {
                        // It fails if the asking test has panicked.
                        let _ = answer.send(command.spawn());
                    }
                })
                .expect("a thread can be started");
            Mutex::new(jobs)
        })
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .expect("the spawner never ends");
    answered.recv().expect("the spawner answers every job")
}
