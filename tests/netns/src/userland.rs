//! The programs of a node: processes and mounts of their own, which end and vanish together.
//!
//! A container runtime starts daemons that outlive it, binds namespaces to files, mounts filesystems and makes control
//! groups. Here it lives in a process and a mount namespace of its own, inside the node's network namespace, with empty
//! folders where runtimes keep what a reboot forgets. So nothing of it shows on the machine, two nodes never meet, and
//! the end of the first process there is the end of everything. That process waits for its standard input to end,
//! which also happens when the test is killed.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::PROGRAMS;
use crate::cgroup;
use crate::command;
use crate::host::Host;
use crate::ns::Netns;
use crate::wait::eventually;

/// The first process. Before it mounts its own /proc, it finds its number on the machine in the machine's; the shell
/// reaps whatever is left to it. What it complains is read in the place of the number.
const INIT: &str = "set -e
exec 2>&1
read -r pid _ < /proc/self/stat
mount -t proc proc /proc
for folder in /run /dev/shm /var/lib; do mount -t tmpfs tmpfs $folder; done
echo $pid
read -r _ || true";

/// How long the groups of processes that just ended may be busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// A place for the programs of one node. They end when it is dropped.
#[derive(Debug)]
pub struct Userland {
    label: String,
    node: Arc<Netns>,
    /// `unshare`, which waits for the first process.
    parent: Child,
    init: Pid,
}

impl Userland {
    /// An empty one.
    ///
    /// # Errors
    /// Privileges are missing.
    pub fn start(host: &Host) -> Result<Self> {
        let node = host.ns()?;
        let mut command =
            command::line("unshare --fork --kill-child --pid --mount --propagation private bash -c");
        command
            .arg(INIT)
            .env_clear()
            .env("PATH", PROGRAMS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut parent = node.start(command)?;
        let mut said = String::new();
        let output = parent.stdout.take().context("unshare without standard output")?;
        BufReader::new(output).read_line(&mut said).context("reading from the first process")?;
        let init = said.trim().parse().ok().and_then(Pid::from_raw);
        let init = init.with_context(|| format!("the first process of {} says {said:?}", host.name()))?;
        Ok(Self { label: host.label(), node, parent, init })
    }

    /// A command to be run there.
    ///
    /// # Errors
    /// The program is not installed.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut places = PROGRAMS.split(':').map(PathBuf::from);
        ensure!(places.any(|place| place.join(program).is_file()), "{program} is missing: run `make tools`");
        let target = self.init.as_raw_nonzero();
        let mut command =
            command::line(&format!("nsenter --target {target} --mount --pid --net -- {program}"));
        command.env_clear().env("PATH", PROGRAMS).env("HOME", "/root");
        Ok(command)
    }

    /// Runs a program there that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// It is not installed or fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program)?;
        command.args(arguments);
        command::succeed(command, "")
    }

    /// Where the machine sees a path of these programs. Its links are followed there, since absolute ones would lead
    /// out.
    ///
    /// # Errors
    /// The folder that it is in does not exist.
    pub fn seen(&self, path: &str) -> Result<PathBuf> {
        let real = self.run("realpath", &[path])?;
        Ok(PathBuf::from(format!("/proc/{}/root{}", self.init.as_raw_nonzero(), real.trim())))
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// The control group for containers, in every hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("/{}", self.label)
    }
}

impl Drop for Userland {
    fn drop(&mut self) {
        // The kernel ends all others with the first process, before its parent hears of it.
        let _ = kill_process(self.init, Signal::KILL);
        let _ = self.parent.wait();
        let _ = eventually(PATIENCE, "the control groups are empty", || {
            cgroup::starting_with(&self.label).iter().try_for_each(|group| Ok(cgroup::remove(group)?))
        });
    }
}
