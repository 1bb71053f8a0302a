//! One agent process: how it is launched, ended and asked.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::command;
use crate::host::Host;
use crate::ns::Netns;
use crate::wait::eventually;

/// How long a told agent may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Where a daemon finds programs.
pub const PROGRAMS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The flags of `weave launch` that a test chooses; the paths and the machine's identity come from the host.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// The peers to dial.
    pub peers: Vec<String>,
    /// `--ipalloc-init`.
    pub init: Option<String>,
    /// `--ipalloc-range`.
    pub range: Option<String>,
    /// The content of `--secret-file`.
    pub secret: Option<String>,
    /// Any other flags.
    pub flags: Vec<String>,
}

impl AgentOptions {
    /// An agent that dials `peers` and takes part in a first split among `founders`.
    #[must_use]
    pub fn founder(founders: usize, peers: &[&Host]) -> Self {
        Self { init: Some(format!("consensus={founders}")), ..Self::dialling(peers) }
    }

    /// An agent that dials `peers` and takes the rest as it finds it.
    #[must_use]
    pub fn dialling(peers: &[&Host]) -> Self {
        let peers = peers.iter().map(|host| host.address().to_string()).collect();
        Self { peers, ..Self::default() }
    }

    /// The same with another range.
    #[must_use]
    pub fn range(mut self, range: &str) -> Self {
        self.range = Some(range.to_owned());
        self
    }

    /// The same with a cluster secret.
    #[must_use]
    pub fn secret(mut self, secret: &str) -> Self {
        self.secret = Some(secret.to_owned());
        self
    }

    /// The same with one more flag.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// The command line of `weave launch` for a host.
    fn arguments(&self, place: &Place<'_>) -> Result<Vec<String>> {
        let mut arguments = vec![
            "launch".to_owned(),
            format!("--data-dir={}", place.data.display()),
            format!("--run-dir={}", place.run.display()),
            format!("--nickname={}", place.name),
            format!("--machine-id={}", place.machine_id),
        ];
        arguments.extend(self.init.iter().map(|init| format!("--ipalloc-init={init}")));
        arguments.extend(self.range.iter().map(|range| format!("--ipalloc-range={range}")));
        if let Some(secret) = &self.secret {
            let file = place.data.with_extension("secret");
            std::fs::write(&file, secret).with_context(|| format!("writing {}", file.display()))?;
            arguments.push(format!("--secret-file={}", file.display()));
        }
        arguments.extend(self.flags.iter().cloned());
        arguments.extend(self.peers.iter().cloned());
        Ok(arguments)
    }
}

/// Where an agent lives.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) name: &'a str,
    pub(crate) machine_id: &'a str,
    pub(crate) namespace: &'a Netns,
    pub(crate) program: &'a Path,
    pub(crate) data: &'a Path,
    pub(crate) run: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) log_level: Option<&'a str>,
    pub(crate) outlives: bool,
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub(crate) struct AgentProcess {
    child: Child,
    kept: bool,
}

impl AgentProcess {
    /// Starts an agent. `ip netns exec` gives it the /sys of its namespace, as a real node has, and becomes the
    /// agent without a process between.
    pub(crate) fn start(place: &Place<'_>, options: &AgentOptions) -> Result<Self> {
        let log = append(place.log)?;
        let mut command = command::line(&format!("ip netns exec {}", place.namespace.name()));
        command
            .arg(place.program)
            .args(options.arguments(place)?)
            // Flags have environment variables too; whoever runs the tests may have some set.
            .env_clear()
            .env("PATH", PROGRAMS)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicating the log's file")?)
            .stderr(log);
        if let Some(level) = place.log_level {
            command.arg(format!("--log-level={level}"));
        }
        if place.outlives {
            // Its own process group: what ends the terminal's programs does not end it.
            command.process_group(0);
        }
        let child = command.spawn().with_context(|| format!("starting {}", place.program.display()))?;
        Ok(Self { child, kept: false })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("looking after the agent")
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().context("killing the agent")?;
        self.child.wait().context("waiting for the killed agent").map(drop)
    }

    /// The polite way (SIGTERM).
    pub(crate) fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        eventually(STOP_PATIENCE, "the agent stops when told to", || {
            self.ended()?.ok_or_else(|| anyhow!("it runs on"))
        })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to the agent"))
    }

    pub(crate) const fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}
