//! A worker process as the run sees it: started, paused at breakpoints, killed and started again.

use std::path::PathBuf;
use std::time::Duration;

use testkit::time::now;
use testkit::{ChildProcess, faketime};

use crate::lock_rows::LockRow;
use crate::network::Network;
use crate::worker::{Breakpoint, Settings};

/// How long it may take until a process reaches a breakpoint: it may have to wait for frozen
/// holders, and for its turn.
const PAUSED_WITHIN: Duration = Duration::from_secs(40);
/// By how many seconds a clock jumps.
pub const JUMP: i64 = 300;

/// A worker process, and the network between it and the database.
#[derive(Debug)]
pub struct WorkerProcess {
    /// The settings of the process; the name in them counts its starts.
    pub settings: Settings,
    started: u32,
    name: String,
    program: Vec<String>,
    pub(crate) process: ChildProcess,
    network: Option<Network>,
    clock: Option<PathBuf>,
    skew: i64,
}

impl WorkerProcess {
    /// Starts a process: `program` with `settings` as the last argument. `clock` is the file of the
    /// process's own wall clock, if it has one.
    pub fn start(
        name: &str,
        mut settings: Settings,
        program: Vec<String>,
        network: Option<Network>,
        clock: Option<PathBuf>,
    ) -> Self {
        if let Some(clock) = &clock {
            faketime::set(clock, 0).expect("the folder can be written to");
        }
        let process = spawn(name, 1, &mut settings, &program, clock.as_ref());
        Self {
            settings,
            started: 1,
            name: name.to_owned(),
            program,
            process,
            network,
            clock,
            skew: 0,
        }
    }

    /// Starts the process again after it was killed.
    pub(crate) fn respawn(&mut self) {
        self.started += 1;
        let clock = self.clock.as_ref();
        self.process = spawn(
            &self.name,
            self.started,
            &mut self.settings,
            &self.program,
            clock,
        );
    }

    /// Waits until the process is ready; `false` if that takes too long.
    pub fn ready(&self) -> bool {
        self.process
            .line(Duration::from_secs(60))
            .is_some_and(|line| line == "ready")
    }

    /// Whether the process has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.process.wait(Duration::ZERO).is_some()
    }

    /// Ends all faults of the network, and asks the process to finish.
    pub fn finish(&mut self) {
        if let Some(network) = &self.network {
            network.resume();
            network.refuse(false);
        }
        self.process.thaw();
        self.process.close_input();
    }

    /// Waits for the end of the process: whether it succeeded; `None` if it still runs.
    pub fn wait(&mut self, within: Duration) -> Option<bool> {
        self.process.wait(within).map(|status| status.success())
    }

    /// Kills the process by SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill9();
    }

    /// Waits until the process pauses at a breakpoint: its lock and its token.
    pub(crate) fn pause_at(&mut self, breakpoint: Breakpoint) -> Result<(String, i64), String> {
        let ended = |error| format!("{} does not listen: {error}", self.settings.process);
        self.process
            .send_line(&format!("pause {}", breakpoint.as_str()))
            .map_err(ended)?;
        let begun = now();
        while let Some(line) = self
            .process
            .line(PAUSED_WITHIN.saturating_sub(begun.elapsed()))
        {
            let mut words = line.split(' ');
            if words.next() == Some("paused") {
                let lock = words.next().unwrap_or_default().to_owned();
                let token = words.next().and_then(|word| word.parse().ok());
                return Ok((lock, token.unwrap_or_default()));
            }
        }
        let _ = self.process.send_line("pause none");
        Err(format!(
            "{} was never {}",
            self.settings.process,
            breakpoint.as_str()
        ))
    }

    /// Lets the process go on from its breakpoint.
    pub(crate) fn resume(&mut self) {
        // This fails if the process has ended, which `ended` and `wait` report.
        let _ = self.process.send_line("resume");
    }

    /// Whether a row names the process: by `host.pid.random`, or a control client by its own name.
    pub(crate) fn is_holder(&self, row: &LockRow) -> bool {
        let pid = format!(".{}.", self.process.pid());
        row.holder == self.settings.process || row.holder.contains(&pid)
    }

    /// Sets the process's wall clock [`JUMP`] seconds ahead of the machine's, and behind it the
    /// next time.
    pub(crate) fn jump_clock(&mut self) -> Result<(), String> {
        self.skew = if self.skew == JUMP { -JUMP } else { JUMP };
        let clock = self.clock.as_ref().ok_or("it has no clock of its own")?;
        faketime::set(clock, self.skew).map_err(|error| error.to_string())
    }

    pub(crate) fn network(&self) -> Result<&Network, String> {
        self.network.as_ref().ok_or_else(|| "no network".to_owned())
    }
}

fn spawn(
    name: &str,
    times: u32,
    settings: &mut Settings,
    program: &[String],
    clock: Option<&PathBuf>,
) -> ChildProcess {
    settings.process = format!("{name}.{times}");
    settings
        .history
        .set_file_name(format!("{}.jsonl", settings.process));
    settings.seed = settings.seed.wrapping_add(u64::from(times) << 32);
    let mut command = std::process::Command::new(&program[0]);
    command
        .args(&program[1..])
        .arg(settings.to_json().to_string());
    command.env("PYTHONUNBUFFERED", "1");
    if let Some(clock) = clock {
        let library = faketime::library().expect("a clock needs the library");
        command.envs(faketime::environment(&library, clock, None));
    }
    ChildProcess::spawn_command(&command)
}
