//! Asks the agent of this node, over its unix socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weave_proto::local::control::{Answer, Done, Failure, MAX_ANSWER, MAX_REQUEST, Request};
use weave_proto::local::status::Status;

use crate::config::control_socket;

/// How long the agent may take to answer: a little longer than it gives itself.
const PATIENCE: Duration = Duration::from_secs(35);

/// Why the agent has not answered as wished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens.
    #[error("cannot reach the agent at {}: is it running? Start it with `weave launch`", .0.display())]
    NotRunning(PathBuf),
    /// The caller may not ask.
    #[error("only root may ask the agent at {}: try with sudo, or read http://127.0.0.1:6784/status", .0.display())]
    NotPermitted(PathBuf),
    /// The agent gave no answer in time.
    #[error("the agent at {} did not answer within {} s: is it stopped? See its log", .0.display(), PATIENCE.as_secs())]
    NoAnswer(PathBuf),
    /// The request is too long to be sent.
    #[error(
        "that is too much for one request ({0} bytes, at most {MAX_REQUEST}): name fewer peers at a time"
    )]
    TooLong(usize),
    /// The connection failed half way.
    #[error("the conversation with the agent at {} failed: {error}", socket.display())]
    Broken {
        /// Its socket.
        socket: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// What came is no answer.
    #[error("the agent at {} answered what this version cannot read ({error}): are both of one version?", socket.display())]
    NotUnderstood {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        error: String,
    },
    /// The agent said no.
    #[error(transparent)]
    Refused(Failure),
}

/// The agent of this node.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// The agent with its sockets in `run_dir`; it need not run.
    pub(crate) fn at(run_dir: &Path) -> Self {
        Self { socket: control_socket(run_dir) }
    }

    /// Its status document.
    pub(crate) fn status(&self) -> Result<Status, AskError> {
        match self.ask(&Request::Status {})? {
            Answer::Status(status) => Ok(*status),
            other @ (Answer::Done(_) | Answer::Failed(_)) => Err(self.unexpected(&other)),
        }
    }

    /// What it says it has done.
    pub(crate) fn order(&self, request: &Request) -> Result<Done, AskError> {
        match self.ask(request)? {
            Answer::Done(done) => Ok(done),
            other @ (Answer::Status(_) | Answer::Failed(_)) => Err(self.unexpected(&other)),
        }
    }

    /// Whether somebody listens.
    pub(crate) fn is_running(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    fn unexpected(&self, answer: &Answer) -> AskError {
        let kind = match answer {
            Answer::Status(_) => "a status",
            Answer::Done(_) => "that it has done something",
            Answer::Failed(_) => "a failure",
        };
        AskError::NotUnderstood { socket: self.socket.clone(), error: format!("it sent {kind}") }
    }

    fn ask(&self, request: &Request) -> Result<Answer, AskError> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| self.broken(io::Error::other(error.to_string())))?;
        line.push(b'\n');
        if line.len() > MAX_REQUEST {
            return Err(AskError::TooLong(line.len()));
        }
        let answer = self.exchange(&line)?;
        match serde_json::from_slice(&answer) {
            Ok(Answer::Failed(failure)) => Err(AskError::Refused(failure)),
            Ok(answer) => Ok(answer),
            Err(error) => {
                Err(AskError::NotUnderstood { socket: self.socket.clone(), error: error.to_string() })
            }
        }
    }

    fn exchange(&self, line: &[u8]) -> Result<Vec<u8>, AskError> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|error| self.unreachable(error))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| self.broken(error))?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(|error| self.broken(error))?;
        // An agent that refuses to read on says why: its answer is worth more than the broken pipe.
        let sent = stream.write_all(line);
        let limit = u64::try_from(MAX_ANSWER).unwrap_or(u64::MAX);
        let mut answer = Vec::new();
        let received = BufReader::new(stream.take(limit)).read_until(b'\n', &mut answer);
        received.map_err(|error| self.broken(error))?;
        if answer.last() == Some(&b'\n') {
            return Ok(answer);
        }
        sent.map_err(|error| self.broken(error))?;
        Err(self.broken(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer breaks off")))
    }

    fn unreachable(&self, error: io::Error) -> AskError {
        let socket = self.socket.clone();
        let is = |kind| error.kind() == kind;
        if is(io::ErrorKind::NotFound) || is(io::ErrorKind::ConnectionRefused) {
            AskError::NotRunning(socket)
        } else if is(io::ErrorKind::PermissionDenied) {
            AskError::NotPermitted(socket)
        } else {
            AskError::Broken { socket, error }
        }
    }

    fn broken(&self, error: io::Error) -> AskError {
        let socket = self.socket.clone();
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            AskError::NoAnswer(socket)
        } else {
            AskError::Broken { socket, error }
        }
    }
}
