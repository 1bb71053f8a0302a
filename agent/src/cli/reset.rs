//! `weave reset`: removes every trace from the node.
//!
//! Teardown goes on after failures and reports each thing by itself. The CNI network goes first, so that the
//! container runtime calls for no more pods; the state goes last, so that a reset that was cut short can be run
//! again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weave_proto::local::control::{Request, SOCKET};

use super::args::ResetArgs;
use super::client::{Agent, AskError};
use super::{CommandError, Doers, Exit, Terminal, cni_files};
use crate::former::Places;
use crate::render;

/// Where the agent's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetPaths {
    /// What survives a reboot.
    pub data_dir: PathBuf,
    /// The sockets.
    pub run_dir: PathBuf,
}

/// One thing that a reset looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What it is, such as `bridge weave`.
    pub what: String,
    /// What became of it, or why it is still there.
    pub outcome: Result<Removal, String>,
}

/// What became of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was there and is gone.
    Removed,
    /// It was not there.
    Absent,
    /// It is there, and was only asked for.
    Kept,
}

impl Trace {
    /// The trace that a file operation leaves: absent when there was no such file.
    #[must_use]
    pub fn of_file(what: impl Into<String>, result: io::Result<()>) -> Self {
        let outcome = match result {
            Ok(()) => Ok(Removal::Removed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Removal::Absent),
            Err(error) => Err(error.to_string()),
        };
        Self { what: what.into(), outcome }
    }
}

/// How long an agent may take to end.
const END_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(super) fn reset(
    agent: &Agent,
    args: &ResetArgs,
    run_dir: &Path,
    doers: &impl Doers,
    terminal: &mut Terminal<'_>,
) -> Result<(), CommandError> {
    if args.weave_net {
        return weave_net(args, doers, terminal);
    }
    let name = end_agent(agent, args.force)?;
    let paths = ResetPaths { data_dir: args.data_dir.clone(), run_dir: run_dir.to_owned() };
    let mut traces = cni_files::remove(&args.cni);
    traces.extend(doers.reset(&paths));
    for socket in [SOCKET, "cni.sock"].map(|socket| run_dir.join(socket)) {
        traces.push(Trace::of_file(socket.display().to_string(), fs::remove_file(&socket)));
    }
    for dir in [run_dir, &args.data_dir] {
        traces.extend(remove_empty(dir));
    }
    let failed = show(&traces, terminal)?;
    if let Some(name) = name {
        let hint = "the other peers still count its addresses as taken";
        writeln!(terminal.out, "This peer was {name}; {hint}: run `weave rmpeer {name}` on one of them.")?;
    }
    if failed { Err(CommandError::Shown(Exit::Failed)) } else { Ok(()) }
}

/// Removes what Weave Net left, or shows it.
fn weave_net(args: &ResetArgs, doers: &impl Doers, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let places = Places {
        data_dir: args.data_dir.clone(),
        bin_dir: args.cni.bin_dir.clone(),
        conf_dir: args.cni.conf_dir.clone(),
    };
    let traces = doers.weave_net(&places, !args.dry_run).map_err(|error| {
        CommandError::Told(Exit::Failed, format!("cannot find out what Weave Net left on this node: {error}"))
    })?;
    if show(&traces, terminal)? { Err(CommandError::Shown(Exit::Failed)) } else { Ok(()) }
}

/// Makes sure that no agent runs; answers what its name was, if one did.
fn end_agent(agent: &Agent, force: bool) -> Result<Option<String>, CommandError> {
    if !agent.is_running() {
        return Ok(None);
    }
    if !force {
        let told = "the agent runs: stop it first, or use --force to have it end";
        return Err(CommandError::Told(Exit::Failed, told.to_owned()));
    }
    let name = agent.status().ok().map(|status| status.name.to_string());
    match agent.order(&Request::Shutdown {}) {
        Ok(_) | Err(AskError::NotRunning(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let started = Instant::now();
    while agent.is_running() {
        if started.elapsed() > END_PATIENCE {
            let told = format!(
                "the agent was asked to end but still runs after {} s: is it restarted by a service manager? Stop \
                 that one",
                END_PATIENCE.as_secs()
            );
            return Err(CommandError::Told(Exit::Failed, told));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(name)
}

/// A directory that holds something else is not ours to remove.
fn remove_empty(dir: &Path) -> Option<Trace> {
    let result = fs::remove_dir(dir);
    match &result {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => None,
        Ok(()) | Err(_) => Some(Trace::of_file(dir.display().to_string(), result)),
    }
}

/// Prints what was removed and what could not be; answers whether there is any of the latter.
fn show(traces: &[Trace], terminal: &mut Terminal<'_>) -> Result<bool, CommandError> {
    let mut removed = 0_usize;
    let mut failed = false;
    for Trace { what, outcome } in traces {
        match outcome {
            Ok(Removal::Removed) => {
                removed += 1;
                writeln!(terminal.out, "removed {what}")?;
            }
            Ok(Removal::Kept) => {
                removed += 1;
                writeln!(terminal.out, "would remove {what}")?;
            }
            Ok(Removal::Absent) => {}
            Err(why) => {
                failed = true;
                let _ = writeln!(terminal.err, "weave: cannot remove {what}: {}", render::clean_lines(why));
            }
        }
    }
    if removed == 0 && !failed {
        writeln!(terminal.out, "there was nothing to remove")?;
    }
    Ok(failed)
}
