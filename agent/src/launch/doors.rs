//! What the CNI room and the operators' socket ask for, carried to the brain and to the kernel's room.

use std::time::Duration;

use weave_ipam::{Answer, Request, RequestError};
use weave_proto::local::cni::{AttachmentKey, PodPort};
use weave_proto::local::control::{Failure, FailureCode};
use weave_proto::{Cidr, PeerName};
use weave_topology::Target;

use crate::brain::{AskError, BrainHandle, StatusReceiver};
use crate::cni::{self, AddressError, PortPlan};
use crate::control::Control;
use crate::net::{self, Node, names};

/// How long an ADD waits for the bridge and its address: as long as the allocator waits for an address.
const BRIDGE_PATIENCE: Duration = Duration::from_secs(10);

/// The brain as CNI sees it.
#[derive(Debug, Clone)]
pub(super) struct AddressDoor {
    pub(super) brain: BrainHandle,
    pub(super) status: StatusReceiver,
}

/// The kernel's room as CNI sees it.
#[derive(Debug, Clone)]
pub(super) struct PortDoor {
    pub(super) node: Node,
    pub(super) universe: Cidr,
}

/// The brain as operators see it.
#[derive(Debug, Clone)]
pub(super) struct ControlDoor {
    pub(super) brain: BrainHandle,
}

impl AddressDoor {
    async fn ask(&self, request: Request) -> Result<Answer, AddressError> {
        self.brain.ask(request).await.map_err(|error| match error {
            AskError::Refused(
                RequestError::NotReady { .. }
                | RequestError::NoSpace { .. }
                | RequestError::TimedOut { .. }
                | RequestError::IdentityHeldTwice(_)
                | RequestError::Removed { .. },
            )
            | AskError::Ending => AddressError::Later(error.to_string()),
            AskError::Refused(_) => AddressError::Failed(error.to_string()),
        })
    }
}

fn unexpected(answer: &Answer) -> AddressError {
    AddressError::Failed(format!("the allocator gave an answer to another question: {answer:?}"))
}

impl cni::Addresses for AddressDoor {
    async fn allocate(
        &self,
        key: AttachmentKey,
        port: Option<PortPlan>,
    ) -> Result<cni::Allocation, AddressError> {
        let port = port.map(|PortPlan { host_interface, mac, netns, pod }| weave_ipam::PortPlan {
            host_interface,
            mac,
            netns,
            pod,
        });
        let answer = self.ask(Request::Allocate { key, port }).await?;
        if let Answer::Allocated { allocation, .. } = answer {
            Ok(given(allocation))
        } else {
            Err(unexpected(&answer))
        }
    }

    async fn free(&self, key: AttachmentKey, generation: Option<u64>) -> Result<(), AddressError> {
        self.ask(Request::Free { key, generation }).await.map(drop)
    }

    async fn lookup(&self, key: AttachmentKey) -> Result<Option<cni::Allocation>, AddressError> {
        let answer = self.ask(Request::Lookup { key }).await?;
        if let Answer::Found(found) = answer { Ok(found.map(given)) } else { Err(unexpected(&answer)) }
    }

    async fn list(&self) -> Result<Vec<cni::Allocation>, AddressError> {
        let all = self.brain.allocations().await.map_err(|error| AddressError::Later(error.to_string()))?;
        Ok(all.into_iter().map(given).collect())
    }

    fn ready(&self) -> Result<(), String> {
        let status = self.status.borrow();
        if status.is_ready() { Ok(()) } else { Err(status.waiting_for.join("; ")) }
    }
}

fn given(allocation: weave_ipam::Allocation) -> cni::Allocation {
    let weave_ipam::Allocation { key, address, port, generation } = allocation;
    cni::Allocation { key, address, port, generation }
}

impl cni::Ports for PortDoor {
    fn facts(&self) -> Result<cni::Facts, String> {
        let facts = self.node.facts().ok_or("the bridge is not up yet")?;
        Ok(cni::Facts {
            bridge: names::BRIDGE.to_owned(),
            index: facts.bridge_index,
            mac: facts.bridge_mac.0,
            address: facts.address,
            mtu: facts.mtu,
            hairpin: true,
            universe: self.universe,
        })
    }

    async fn settled_facts(&self) -> Result<cni::Facts, String> {
        let mut facts = self.node.watch_facts();
        let has_address = |facts: &Option<net::Facts>| facts.as_ref().is_some_and(|it| it.address.is_some());
        // What is missing when the time is over, the facts themselves say.
        let _ = tokio::time::timeout(BRIDGE_PATIENCE, facts.wait_for(has_address)).await;
        cni::Ports::facts(self)
    }

    async fn attach(&self, port: PodPort) -> Result<(), String> {
        self.node.attach(port).await.map_err(|error| error.to_string())
    }

    async fn detach(&self, port: PodPort) -> Result<(), String> {
        self.node.detach(port.host_interface).await.map_err(|error| error.to_string())
    }

    async fn check(&self, port: PodPort) -> Result<(), String> {
        self.node.check(port).await.map_err(|error| error.to_string())
    }
}

impl Control for ControlDoor {
    async fn connect(&self, targets: Vec<Target>, replace: bool) -> Result<(), Failure> {
        self.brain.connect(targets, replace).await
    }

    async fn forget(&self, targets: Vec<Target>) -> Result<(), Failure> {
        self.brain.forget(targets).await
    }

    async fn remove_peer(&self, peer: PeerName, force: bool) -> Result<u64, Failure> {
        match self.brain.ask(Request::RemovePeer { peer, force }).await {
            Ok(Answer::Removed { addresses, .. }) => Ok(addresses),
            Ok(other) => Err(Failure::new(FailureCode::Internal, unexpected(&other).to_string())),
            Err(error) => Err(Failure::new(code(&error), error.to_string())),
        }
    }

    async fn shutdown(&self) -> Result<(), Failure> {
        self.brain.stop();
        Ok(())
    }
}

fn code(error: &AskError) -> FailureCode {
    match error {
        AskError::Ending => FailureCode::Internal,
        AskError::Refused(
            RequestError::NotReady { .. } | RequestError::NoSpace { .. } | RequestError::IdentityHeldTwice(_),
        ) => FailureCode::NotReady,
        AskError::Refused(RequestError::TimedOut { .. }) => FailureCode::TimedOut,
        AskError::Refused(RequestError::OwnsNothing(_)) => FailureCode::NotFound,
        AskError::Refused(_) => FailureCode::Refused,
    }
}
