//! The door for operators: the unix socket through which the command line asks the agent to do something.
//!
//! ```text
//!   weave connect … ──line──> ControlSocket::serve ──> impl Control (the brain's handle)
//!                  <──line──                       <── Result<_, Failure>
//! ```
//!
//! Everything that changes the agent passes here, and nowhere else: the HTTP server is handed the status document
//! only, so it could not change anything if it wanted to. Only root can open the socket (mode 0600, made so
//! before it gets its name), and the caller's user id is asked of the kernel as well.
//!
//! The server is one future without tasks of its own: dropping it ends every conversation, which loses nothing,
//! because a request that the brain has taken is carried out whether or not anybody reads the answer.

#[cfg(test)]
pub(crate) mod fake;
mod resolve;
mod server;
#[cfg(test)]
mod tests;

use std::future::Future;

use weave_proto::PeerName;
use weave_proto::local::control::Failure;

use crate::config::Target;

pub use resolve::{NoSuchPeer, resolve_peer};
pub use server::{BindError, ControlSocket};

/// What the socket asks of the brain. Each method returns once the change is in force and durable.
pub trait Control: Send + Sync + 'static {
    /// Looks for peers at these targets; `replace`: at these only.
    fn connect(
        &self,
        targets: Vec<Target>,
        replace: bool,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Looks for peers at these targets no longer.
    fn forget(&self, targets: Vec<Target>) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Takes over the addresses of a peer that will never come back; answers how many.
    fn remove_peer(&self, peer: PeerName, force: bool) -> impl Future<Output = Result<u64, Failure>> + Send;

    /// Ends the agent soon; the data path stays as it is.
    fn shutdown(&self) -> impl Future<Output = Result<(), Failure>> + Send;
}
