//! A program that runs in a node's userland until it is stopped.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use weave_netns::userland::Userland;
use weave_netns::wait::eventually_true;

/// How long a program may take to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(30);
/// The end of a log that a failure shows.
const LOG_LINES: usize = 25;

/// A running program. What is inside the userland ends with the userland; `outer` only waits for it.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    log: PathBuf,
    outer: Child,
}

impl Daemon {
    /// Starts `program` in the userland; what it prints is appended to `NAME.log` in `folder`.
    pub(crate) fn start(
        userland: &Userland,
        folder: &Path,
        name: &'static str,
        (program, arguments): (&Path, &[String]),
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log).context("opening a log")?;
        ensure!(!program.is_absolute() || program.is_file(), "{} is missing", program.display());
        // The shell leaves its process id, which is the program's, where it can be found from inside.
        let mut command = userland.command("bash")?;
        command
            .args(["-c", "echo $$ > /run/$0.pid && exec \"$@\"", name])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let outer = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name, log, outer })
    }

    /// Fails when the program has ended, with the end of its log.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let ended = self.outer.try_wait().context("looking after a daemon")?;
        ensure!(ended.is_none(), "{} has ended: {}", self.name, self.tail());
        Ok(())
    }

    /// Ends it by `signal` (a name as `kill` takes it) and waits until it has ended.
    pub(crate) fn stop(mut self, userland: &Userland, signal: &str) -> Result<()> {
        self.signal(userland, signal)?;
        let outer = &mut self.outer;
        eventually_true(PATIENCE, "a daemon ends", || outer.try_wait().is_ok_and(|ended| ended.is_some()))
            .with_context(|| self.name)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, userland: &Userland, signal: &str) -> Result<()> {
        userland.run("bash", &["-c", "kill -s $1 $(cat /run/$0.pid)", self.name, signal]).map(drop)
    }

    /// Lets it go on after `STOP`, and what waits for it outside, which stopped with it.
    pub(crate) fn resume(&self, userland: &Userland) {
        let outer = i32::try_from(self.outer.id()).ok().and_then(Pid::from_raw);
        let _ = outer.map(|outer| kill_process(outer, Signal::CONT));
        let _ = self.signal(userland, "CONT");
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}
