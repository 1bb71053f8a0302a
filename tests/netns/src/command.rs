//! Running programs: the whole story in the error when one fails.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// What a finished program said.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Finished {
    /// Whether it exited with zero.
    #[must_use]
    pub const fn success(&self) -> bool {
        matches!(self.code, Some(0))
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A command of these words.
#[must_use]
pub fn words<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// A command from one line of words without quotes.
#[must_use]
pub fn line(text: &str) -> Command {
    let mut parts = text.split_whitespace();
    words(parts.next().unwrap_or_default(), parts)
}

/// Runs a command to its end, whatever the end, feeding it `input`.
///
/// # Errors
/// It could not be started.
pub fn finish(mut command: Command, input: &str) -> Result<Finished> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {}", shown(&command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input may be gone already: what it printed says more than EPIPE.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {}", shown(&command)))?;
    Ok(output.into())
}

/// Runs a command that must succeed, and returns what it printed.
///
/// # Errors
/// It could not be started or failed; the message holds the command and what it said.
pub fn succeed(command: Command, input: &str) -> Result<String> {
    let shown = shown(&command);
    let finished = finish(command, input)?;
    if !finished.success() {
        let said = format!("{}{}", finished.stdout, finished.stderr);
        bail!("{shown} failed ({:?}): {}{}", finished.code, said.trim(), told(input));
    }
    Ok(finished.stdout)
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The input, for the message of a command that was fed.
fn told(input: &str) -> String {
    if input.is_empty() { String::new() } else { format!("\nwhen told:\n{input}") }
}
