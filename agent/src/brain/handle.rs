//! How the rest of the agent asks the brain for something.

use std::fmt;

use tokio::sync::{mpsc, oneshot};
use weave_ipam::{Answer, Request, RequestError};
use weave_proto::local::control::{Failure, FailureCode};
use weave_topology::Target;

use super::Input;

/// A way to the brain. Cheap to clone.
#[derive(Clone)]
pub struct BrainHandle {
    inputs: mpsc::Sender<Input>,
    stop: mpsc::Sender<()>,
}

impl fmt::Debug for BrainHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrainHandle")
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The allocator refused, and says why.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// The agent is ending.
    #[error("the agent is ending: try again when it runs")]
    Ending,
}

impl BrainHandle {
    /// A handle that puts inputs there, and asks for the end there.
    #[must_use]
    pub const fn new(inputs: mpsc::Sender<Input>, stop: mpsc::Sender<()>) -> Self {
        Self { inputs, stop }
    }

    /// Asks the allocator. Dropping the future takes the request back.
    ///
    /// # Errors
    /// The allocator refused, or the agent is ending.
    pub async fn ask(&self, request: Request) -> Result<Answer, AskError> {
        let (caller, answer) = oneshot::channel();
        self.inputs.send(Input::Request(request, caller)).await.map_err(|_| AskError::Ending)?;
        Ok(answer.await.map_err(|_| AskError::Ending)??)
    }

    async fn tell(&self, input: impl FnOnce(oneshot::Sender<()>) -> Input) -> Result<(), Failure> {
        let ending = || Failure::new(FailureCode::Internal, AskError::Ending.to_string());
        let (done, told) = oneshot::channel();
        self.inputs.send(input(done)).await.map_err(|_| ending())?;
        told.await.map_err(|_| ending())
    }
}

impl BrainHandle {
    /// Everything given out on this node.
    ///
    /// # Errors
    /// The agent is ending.
    pub async fn allocations(&self) -> Result<Vec<weave_ipam::Allocation>, AskError> {
        let (caller, answer) = oneshot::channel();
        self.inputs.send(Input::List(caller)).await.map_err(|_| AskError::Ending)?;
        answer.await.map_err(|_| AskError::Ending)
    }

    /// Has these peers reached too, or (`replace`) these only. Durable when it returns.
    ///
    /// # Errors
    /// The agent is ending.
    pub async fn connect(&self, targets: Vec<Target>, replace: bool) -> Result<(), Failure> {
        self.tell(|done| Input::Connect { targets, replace, done }).await
    }

    /// Has these peers no longer reached. Durable when it returns.
    ///
    /// # Errors
    /// The agent is ending.
    pub async fn forget(&self, targets: Vec<Target>) -> Result<(), Failure> {
        self.tell(|done| Input::Forget { targets, done }).await
    }

    /// Has the status document built again: something that it shows has changed outside the brain.
    pub fn refresh(&self) {
        // A full queue has enough in it to have the document built again.
        let _ = self.inputs.try_send(Input::Refresh);
    }

    /// Asks the agent to end soon.
    pub fn stop(&self) {
        // A full queue means that it has been asked already.
        let _ = self.stop.try_send(());
    }
}
