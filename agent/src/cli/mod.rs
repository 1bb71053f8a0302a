//! The command line `weave`: reads it, asks the agent over its socket, prints the answer.
//!
//! What the command line cannot do itself, running an agent and taking down what the agent built in the kernel,
//! it asks of [`Doers`], which `main` supplies. Everything else is here and is tested without a process: [`run_on`]
//! is a function from words to an [`Exit`], with the two output streams passed in.
//!
//! Text goes to standard output, errors to standard error. A reader that closes its end (`weave status | head
//! -1`) is no error.

mod args;
mod client;
mod cni_files;
pub mod logging;
mod reset;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::FromArgMatches;
use clap::error::ContextKind;
use serde_json::json;
use weave_proto::local::control::{Done, Failure, FailureCode, Request};
use weave_proto::local::status::Status;

use crate::config::{Settings, Target};
use crate::former::Places;
use crate::render::{self, View};

pub use args::{Action, CommandLine, Part, command};
pub use reset::{Removal, ResetPaths, Trace};

use args::{ConnectArgs, ForgetArgs, PrimeArgs, PsArgs, ReportArgs, RmpeerArgs, StatusArgs};
use client::{Agent, AskError};

/// What the command line asks of the rest of the program.
pub trait Doers {
    /// Runs the agent until it is told to end. The log is set up already.
    ///
    /// # Errors
    /// The agent could not start, or could not go on.
    fn launch(&self, settings: Settings) -> anyhow::Result<()>;

    /// Removes what the agent built in the kernel and what it stored, one [`Trace`] each. No agent runs. Goes on
    /// after failures.
    fn reset(&self, paths: &ResetPaths) -> Vec<Trace>;

    /// Finds what Weave Net left and, if told so, removes it, one [`Trace`] each. Goes on after failures.
    ///
    /// # Errors
    /// It cannot be found out what there is; then nothing was removed.
    fn weave_net(&self, places: &Places, remove: bool) -> io::Result<Vec<Trace>>;
}

/// What the exit status says. Part of the interface: scripts depend on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line is not understood.
    Usage = 2,
    /// The agent does not run.
    NotRunning = 3,
    /// The agent is not ready.
    NotReady = 4,
    /// Only root may do that.
    NotPermitted = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Where a command prints.
pub struct Terminal<'a> {
    /// What was asked for.
    pub out: &'a mut dyn Write,
    /// What went wrong.
    pub err: &'a mut dyn Write,
}

impl fmt::Debug for Terminal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Terminal")
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("{1}")]
    Told(Exit, String),
    /// What is wrong has been printed already.
    #[error("")]
    Shown(Exit),
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0:#}")]
    Agent(anyhow::Error),
}

impl CommandError {
    fn exit(&self) -> Exit {
        match self {
            Self::Ask(AskError::NotRunning(_)) => Exit::NotRunning,
            Self::Ask(AskError::NotPermitted(_)) => Exit::NotPermitted,
            Self::Ask(AskError::Refused(failure)) => match failure.code {
                FailureCode::NotReady => Exit::NotReady,
                FailureCode::Denied => Exit::NotPermitted,
                FailureCode::Invalid
                | FailureCode::NotFound
                | FailureCode::Ambiguous
                | FailureCode::Refused
                | FailureCode::TimedOut
                | FailureCode::Internal
                | FailureCode::Other => Exit::Failed,
            },
            Self::Told(exit, _) | Self::Shown(exit) => *exit,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Ask(_) | Self::Output(_) | Self::Json(_) | Self::Agent(_) => Exit::Failed,
        }
    }
}

/// Does what this process was asked to do.
pub fn run(doers: &impl Doers) -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let extra = std::env::var_os("EXTRA_ARGS").unwrap_or_default();
    let words = args::with_extra(std::env::args_os().collect(), &extra.to_string_lossy());
    let exit = run_on(words, doers, &mut Terminal { out: &mut out, err: &mut err });
    exit.into()
}

/// Does what `words` (the program's name first) ask for.
pub fn run_on(
    words: impl IntoIterator<Item = OsString>,
    doers: &impl Doers,
    terminal: &mut Terminal<'_>,
) -> Exit {
    let parsed = command()
        .try_get_matches_from(words)
        .and_then(|matches| Ok((CommandLine::from_arg_matches(&matches)?, args::given(&matches))));
    let (line, given) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return show_usage(error, terminal),
    };
    match perform(line, &given, doers, terminal)
        .and_then(|()| terminal.out.flush().map_err(CommandError::from))
    {
        Ok(()) => Exit::Done,
        Err(error) => {
            let exit = error.exit();
            if exit != Exit::Done && !matches!(error, CommandError::Shown(_)) {
                let _ = writeln!(terminal.err, "weave: {}", render::clean_lines(&error.to_string()));
            }
            exit
        }
    }
}

/// Help and version go to standard output and are no failure; the rest is one.
fn show_usage(mut error: clap::Error, terminal: &mut Terminal<'_>) -> Exit {
    let former = args::weave_net_note(&error);
    if former.is_some() {
        // What became of a word is known; a word that looks like it would lead astray.
        error.remove(ContextKind::SuggestedSubcommand);
        error.remove(ContextKind::SuggestedArg);
    }
    let text = error.render();
    if error.use_stderr() {
        let _ = write!(terminal.err, "{text}");
        let note = former.map(str::to_owned).or_else(|| args::variable_note(&error));
        if let Some(note) = note {
            let _ = writeln!(terminal.err, "\n  note: {note}");
        }
        return Exit::Usage;
    }
    match write!(terminal.out, "{text}").and_then(|()| terminal.out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Failed,
        Ok(()) | Err(_) => Exit::Done,
    }
}

fn perform(
    line: CommandLine,
    given: &str,
    doers: &impl Doers,
    terminal: &mut Terminal<'_>,
) -> Result<(), CommandError> {
    let CommandLine { run_dir, command } = line;
    let agent = Agent::at(&run_dir);
    match command {
        Action::Launch(mut settings) => {
            settings.paths.run_dir = run_dir;
            settings.note_variables(&args::variables());
            launch(*settings, given, doers)
        }
        Action::Status(args) => status(&agent, args, terminal),
        Action::Report(args) => report(&agent, &args, terminal),
        Action::Ps(args) => ps(&agent, &args, terminal),
        Action::Connect(args) => connect(&agent, &args, terminal),
        Action::Forget(args) => forget(&agent, &args, terminal),
        Action::Rmpeer(args) => rmpeer(&agent, &args, terminal),
        Action::Prime(args) => prime(&agent, args),
        Action::Reset(args) => reset::reset(&agent, &args, &run_dir, doers, terminal),
        Action::SetupCni(args) => cni_files::install(&args, &run_dir, terminal),
        Action::Version(args) => version(&agent, args.json, terminal),
        Action::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "weave", &mut script);
            Ok(terminal.out.write_all(&script)?)
        }
    }
}

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

fn launch(settings: Settings, given: &str, doers: &impl Doers) -> Result<(), CommandError> {
    if let Some(refusal) = settings.refusal() {
        return Err(CommandError::Told(Exit::Usage, refusal));
    }
    logging::install(settings.log);
    tracing::info!("weave {VERSION}");
    tracing::info!("Command line options: {given}");
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    doers.launch(settings).map_err(CommandError::Agent)
}

fn status(agent: &Agent, args: StatusArgs, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let (status, view) = (agent.status()?, View::from(args.part));
    let text = if args.output.json { render::json(&status, view)? } else { render::text(&status, view) };
    terminal.out.write_all(text.as_bytes())?;
    if view == View::Summary && !status.is_ready() {
        terminal.out.flush()?;
        return Err(CommandError::Shown(Exit::NotReady));
    }
    Ok(())
}

fn report(agent: &Agent, args: &ReportArgs, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let status = agent.status()?;
    let text = match &args.format {
        None => render::json(&status, View::Summary)?,
        Some(pointer) => {
            render::value_at(&status, pointer).map_err(|error| CommandError::Told(Exit::Failed, error))?
        }
    };
    Ok(terminal.out.write_all(text.as_bytes())?)
}

fn ps(agent: &Agent, args: &PsArgs, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let status = agent.status()?;
    for wanted in &args.containers {
        if render::containers(&status, std::slice::from_ref(wanted)).is_empty() {
            let told = format!(
                "no container {wanted:?} has an address on this node: `weave ps` lists those that have"
            );
            return Err(CommandError::Told(Exit::Failed, told));
        }
    }
    let text = if args.output.json {
        let containers = render::containers(&status, &args.containers);
        let allocations: Vec<_> = containers.into_iter().flat_map(|(_, allocations)| allocations).collect();
        format!("{}\n", serde_json::to_string_pretty(&allocations)?)
    } else {
        render::ps(&status, &args.containers)
    };
    Ok(terminal.out.write_all(text.as_bytes())?)
}

fn connect(agent: &Agent, args: &ConnectArgs, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let request = Request::Connect { peers: texts(&args.peers), replace: args.replace };
    let done = agent.order(&request)?;
    acknowledge(&done, args.output.json, terminal)
}

fn forget(agent: &Agent, args: &ForgetArgs, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let done = agent.order(&Request::Forget { peers: texts(&args.peers) })?;
    acknowledge(&done, args.output.json, terminal)
}

fn texts(targets: &[Target]) -> Vec<String> {
    targets.iter().map(ToString::to_string).collect()
}

fn acknowledge(done: &Done, json: bool, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let text = if json { serde_json::to_string(done)? } else { render::clean_lines(&done.message) };
    Ok(writeln!(terminal.out, "{text}")?)
}

/// Each peer by itself: one that cannot be removed does not keep the others.
fn rmpeer(agent: &Agent, args: &RmpeerArgs, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let mut outcomes = Vec::new();
    let mut worst = Exit::Done;
    for peer in &args.peers {
        match agent.order(&Request::RmPeer { peer: peer.clone(), force: args.force }) {
            Ok(done) if args.output.json => outcomes.push(json!({ "peer": peer, "done": done })),
            Ok(done) => acknowledge(&done, false, terminal)?,
            Err(AskError::Refused(failure)) => {
                worst = worst.max(CommandError::Ask(AskError::Refused(failure.clone())).exit());
                if args.output.json {
                    outcomes.push(json!({ "peer": peer, "failed": failure }));
                } else {
                    show_refusal(peer, &failure, terminal);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    if args.output.json {
        writeln!(terminal.out, "{}", serde_json::to_string_pretty(&outcomes)?)?;
    }
    if worst == Exit::Done { Ok(()) } else { Err(CommandError::Shown(worst)) }
}

fn show_refusal(peer: &str, failure: &Failure, terminal: &mut Terminal<'_>) {
    let message = render::clean_lines(&failure.message);
    let _ = writeln!(terminal.err, "weave: cannot remove {peer:?}: {message}");
}

/// Between two looks while waiting: short for a person, long for the agent.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

fn prime(agent: &Agent, args: PrimeArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    loop {
        let status = agent.status()?;
        let Some(awaited) = awaited_addresses(&status) else { return Ok(()) };
        if args.timeout.is_some_and(|seconds| started.elapsed() >= Duration::from_secs(seconds)) {
            return Err(CommandError::Told(Exit::NotReady, format!("no addresses yet: {awaited}")));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn awaited_addresses(status: &Status) -> Option<&str> {
    match &status.ipam {
        Some(ipam) if ipam.ready => None,
        Some(ipam) => Some(&ipam.state),
        None => Some("the agent is still starting"),
    }
}

fn version(agent: &Agent, json: bool, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let running = agent.status();
    let text = match (json, &running) {
        (true, running) => {
            let running = running.as_ref().ok().map(|status| &status.version);
            json!({ "weave": VERSION, "agent": running }).to_string()
        }
        (false, Ok(status)) => format!("weave {VERSION}\nagent {}", render::clean_lines(&status.version)),
        (false, Err(AskError::NotRunning(_))) => format!("weave {VERSION}\nagent not running"),
        (false, Err(error)) => format!("weave {VERSION}\nagent not known: {error}"),
    };
    Ok(writeln!(terminal.out, "{text}")?)
}
