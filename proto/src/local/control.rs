//! What the CLI asks of the agent: one JSON line each way, over a unix socket that only root can open.
//!
//! ```text
//!   weave connect 10.0.0.7      {"command":"connect","peers":["10.0.0.7"],"replace":false}
//!   the agent                   {"done":{"message":"..."}}
//!                          or   {"failed":{"code":"invalid","message":"..."}}
//! ```
//!
//! One connection carries one request. A request that cannot be read is answered like any other failure.

use serde::{Deserialize, Serialize};

use super::status::Status;

/// The socket's name inside the agent's run directory.
pub const SOCKET: &str = "weave.sock";

/// The longest request in bytes, its line end included: room for thousands of peers, and a bound on what a
/// confused program can make the agent hold.
pub const MAX_REQUEST: usize = 64 * 1024;

/// The longest answer in bytes, its line end included. A status document of a thousand peers with two hundred
/// links each is about 30 MB.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// What can be asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// What do you know?
    Status {},
    /// Look for peers there.
    Connect {
        /// Targets, `host` or `host:port`.
        peers: Vec<String>,
        /// Whether these replace all earlier targets.
        #[serde(default)]
        replace: bool,
    },
    /// Look for peers there no longer.
    Forget {
        /// Targets as they were given.
        peers: Vec<String>,
    },
    /// A peer will never come back: share out its addresses.
    RmPeer {
        /// Its short name, or its host name if that names only one peer.
        peer: String,
        /// Even if it seems to be alive.
        #[serde(default)]
        force: bool,
    },
    /// End, and leave the data path as it is.
    Shutdown {},
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The document asked for.
    Status(Box<Status>),
    /// It is done.
    Done(Done),
    /// It is not done, and nothing was changed.
    Failed(Failure),
}

/// Something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What, for people.
    pub message: String,
}

/// Something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure, for programs.
    pub code: FailureCode,
    /// On which object and what would help, for people.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Kinds of failure, as far as the asker does something different about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// The request cannot be read or makes no sense.
    Invalid,
    /// The object named is not known.
    NotFound,
    /// The name fits several objects.
    Ambiguous,
    /// It would do harm and was not forced.
    Refused,
    /// The asker may not ask.
    Denied,
    /// The agent cannot do it yet.
    NotReady,
    /// It took too long; it may still happen.
    TimedOut,
    /// The agent is at fault, or ends.
    Internal,
    /// A kind of a later version.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests;
