//! System calls, counted by strace.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use weave_netns::Host;
use weave_netns::command;
use weave_netns::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(10);

/// Counts the system calls of an agent, all of its threads, until it is asked.
pub(super) struct Calls {
    strace: std::process::Child,
}

impl Calls {
    /// Returns when every thread is being watched.
    pub(super) fn of(host: &Host) -> Result<Self> {
        let pid = host.pid()?;
        let arguments = ["-c", "-f", "-U", "calls,name", "-p", &pid.to_string()];
        let mut command = command::words("strace", arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let strace = command.spawn().context("starting strace")?;
        let calls = Self { strace };
        eventually(PATIENCE, "strace watches every thread", || {
            for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let status = std::fs::read_to_string(thread?.path().join("status"))?;
                let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
                anyhow::ensure!(tracer.is_some_and(|pid| pid.trim() != "0"), "not yet");
            }
            Ok(())
        })?;
        Ok(calls)
    }

    /// How many there were.
    pub(super) fn finish(self) -> Result<f64> {
        let pid = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw).context("a process number")?;
        kill_process(pid, Signal::INT).context("asking strace for its table")?;
        let output = self.strace.wait_with_output().context("waiting for strace")?;
        let table = String::from_utf8_lossy(&output.stderr);
        let total = table.lines().find_map(|line| line.trim().strip_suffix("total"));
        let total = total.with_context(|| format!("no sum in {table}"))?;
        total.trim().parse().with_context(|| format!("{total} is no number of calls"))
    }
}
