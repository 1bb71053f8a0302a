//! ADD: the link, the address, the guard, the pod's configuration; or nothing at all.
//!
//! The slowest part is the address's way to the disk, so the link is made meanwhile: its name and MAC addresses
//! depend on the attachment alone, not on the address. Nothing passes before everything is in force, since the
//! pod's end stays down until the guard stands.

use std::sync::Arc;

use weave_proto::local::cni::{
    Add, Address, Attached, AttachmentKey, ErrorCode, Given, Link, PodPort, Refusal, Route,
};

use super::del::Undo;
use super::forwarding::await_forwarding;
use super::pod::{CreateError, LinkPlan, PodNetns, PodPlan, configure, create_link, remove_own};
use super::records::Record;
use super::server::Asker;
use super::{Addresses, Cni, Facts, KernelError, PortPlan, Ports, plan};

/// How many names are tried for the host's end. Two attachments of a node share the first name with a chance of
/// one in 2^28, so that a third name is needed only where somebody takes them on purpose.
const ATTEMPTS: u8 = 8;

/// What an ADD has made so far: what is to be undone.
#[derive(Debug, Default)]
struct Made {
    link: Option<String>,
    generation: Option<u64>,
    record: bool,
    port: Option<PodPort>,
}

/// What is known before anything is made.
struct Intent<'a> {
    add: &'a Add,
    facts: Facts,
    gateway: std::net::IpAddr,
    routes: Vec<Route>,
    mtu: u32,
}

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// Attaches a pod.
    ///
    /// # Errors
    /// With the codes of the specification; then nothing has been made.
    pub async fn add(&self, add: &Add, pod: PodNetns, asker: &Asker<'_>) -> Result<Attached, Refusal> {
        let _lock = self.locks.lock(&add.key).await;
        asker.must_wait_still()?;
        self.carry_out_tombstone_of(&add.key).await?;
        let intent = self.intent(add).await?;
        self.refuse_attached(&add.key).await?;
        let pod = Arc::new(pod);
        let mut made = Made::default();
        let attached = match self.make(&intent, &pod, &mut made).await {
            Ok(attached) => asker.must_wait_still().map(|()| attached),
            Err(refusal) => Err(refusal),
        };
        match attached {
            Ok(attached) => Ok(attached),
            Err(refusal) => Err(self.undo(&add.key, made, refusal).await),
        }
    }

    async fn intent<'a>(&self, add: &'a Add) -> Result<Intent<'a>, Refusal> {
        let not_yet = |why: String| {
            // Without an address for the bridge, what the allocator waits for is what people want to know.
            Refusal::new(ErrorCode::TryAgain, self.addresses.ready().err().unwrap_or(why))
                .with_details("the agent is starting, or `weave status` says more")
        };
        let facts = self.ports.settled_facts().await.map_err(not_yet)?;
        plan::agree(&add.settings, &facts)?;
        let gateway = plan::gateway(add.given.as_ref(), &facts)
            .ok_or_else(|| not_yet(format!("the bridge {} has no address yet", facts.bridge)))?;
        let routes = plan::routes(&add.settings, add.given.as_ref(), gateway, &facts)?;
        let mtu = plan::mtu(&add.settings, &facts);
        Ok(Intent { add, facts, gateway, routes, mtu })
    }

    /// An ADD for an attachment that exists must fail and must not touch it. A record whose link is gone is not
    /// an attachment any more; it is taken over.
    async fn refuse_attached(&self, key: &AttachmentKey) -> Result<(), Refusal> {
        let allocation = self.addresses.lookup(key.clone()).await?;
        let port = allocation.and_then(|allocation| allocation.port).or_else(|| self.records.get(key)?.port);
        let Some(port) = port else { return Ok(()) };
        let (name, owner) = (port.host_interface.clone(), key.clone());
        let link = self.kernel(move |host| super::pod::see(host, &name)).await.map_err(Refusal::from)?;
        if link.is_some_and(|link| link.is_host_end_of(&owner)) {
            let msg = format!(
                "{key} is attached already, with address {} on {}",
                port.address, port.host_interface
            );
            return Err(Refusal::new(ErrorCode::AlreadyAttached, msg).with_details("DEL must come first"));
        }
        self.ports.detach(port).await.map_err(|why| Refusal::new(ErrorCode::Kernel, why))
    }

    async fn make(
        &self,
        intent: &Intent<'_>,
        pod: &Arc<PodNetns>,
        made: &mut Made,
    ) -> Result<Attached, Refusal> {
        let port = self.link_and_address(intent, pod, made).await?;
        made.port = Some(port.clone());
        self.ports.attach(port.clone()).await.map_err(|why| {
            let msg = format!("cannot guard the port {} of {}: {why}", port.host_interface, intent.add.key);
            Refusal::new(ErrorCode::Kernel, msg)
        })?;
        let plan = PodPlan {
            interface: intent.add.key.interface.clone(),
            address: port.address,
            gateways: vec![intent.gateway],
            gateway_mac: intent.facts.mac,
            routes: intent.routes.clone(),
            mtu: intent.mtu,
        };
        let pod = Arc::clone(pod);
        self.blocking(move || configure(&pod, &plan)).await.map_err(Refusal::from)?;
        let (bridge, name) = (intent.facts.bridge.clone(), port.host_interface.clone());
        let forwards = self.kernel(move |host| await_forwarding(host, &bridge, &name)).await;
        if !forwards.map_err(Refusal::from)? {
            tracing::warn!(container = %intent.add.key, "no packet passes between the bridge and the pod yet");
        }
        Ok(attached(intent, &port))
    }

    async fn link_and_address(
        &self,
        intent: &Intent<'_>,
        pod: &Arc<PodNetns>,
        made: &mut Made,
    ) -> Result<PodPort, Refusal> {
        let Add { key, network, netns, pod: name, .. } = intent.add;
        for attempt in 0..ATTEMPTS {
            let host_interface = key.host_interface(attempt);
            let port = PortPlan {
                host_interface: host_interface.clone(),
                mac: key.pod_mac(),
                netns: netns.clone(),
                pod: name.clone(),
            };
            let link = LinkPlan {
                key: key.clone(),
                network: network.clone(),
                begun: intent.add.begun.clone(),
                host_interface: host_interface.clone(),
                bridge: intent.facts.index,
                mtu: intent.mtu,
            };
            let into = Arc::clone(pod);
            let create = self.kernel(move |host| create_link(host, &into, &link));
            let (created, port) = tokio::join!(create, self.address(intent, port, made));
            match created {
                Ok(()) => {
                    made.link = Some(host_interface);
                    return port;
                }
                Err(KernelError::Work(CreateError::HostNameTaken)) => {
                    tracing::info!(container = %key, link = %host_interface, "name taken, trying the next");
                    drop(port?);
                }
                Err(error) => return Err(refused_link(error, key)),
            }
        }
        let msg = format!(
            "all {ATTEMPTS} names for the link of {key} are taken, the last {}",
            key.host_interface(ATTEMPTS - 1)
        );
        Err(Refusal::new(ErrorCode::Kernel, msg).with_details("what other links named vethwepl… are there?"))
    }

    /// The allocator's address, or the other plugin's, with its port recorded durably either way.
    async fn address(
        &self,
        intent: &Intent<'_>,
        port: PortPlan,
        made: &mut Made,
    ) -> Result<PodPort, Refusal> {
        let key = &intent.add.key;
        let Some(given) = &intent.add.given else {
            let allocation = self.addresses.allocate(key.clone(), Some(port.clone())).await?;
            made.generation = Some(allocation.generation);
            return Ok(port.with_address(allocation.address));
        };
        let port = port.with_address(given.address);
        let (network, begun) = (intent.add.network.clone(), intent.add.begun.clone());
        let record = Record { key: key.clone(), network, begun, port: Some(port.clone()) };
        made.record = true;
        self.records.put(&record).map_err(|error| {
            Refusal::new(ErrorCode::Io, format!("cannot record the attachment {key}: {error}"))
        })?;
        Ok(port)
    }

    /// Takes everything back, in the opposite order. What cannot be taken back is said beside the failure; the
    /// runtime's DEL will try again.
    async fn undo(&self, key: &AttachmentKey, made: Made, refusal: Refusal) -> Refusal {
        let mut trouble = Vec::new();
        let mut link_left = false;
        if let Some(name) = made.link {
            let owner = key.clone();
            if let Err(error) = self.kernel(move |host| remove_own(host, &name, &owner)).await {
                link_left = true;
                trouble.push(Refusal::from(error).msg);
            }
        }
        if let Some(port) = made.port
            && let Err(why) = self.ports.detach(port).await
        {
            trouble.push(why);
        }
        if !link_left {
            if made.record
                && let Err(error) = self.records.remove(key)
            {
                trouble.push(error.to_string());
            }
            if let Some(generation) = made.generation
                && let Err(error) = self.addresses.free(key.clone(), Some(generation)).await
            {
                trouble.push(error.to_string());
            }
        }
        tracing::warn!(container = %key, failure = %refusal, undone = trouble.is_empty(), "could not attach a pod");
        if trouble.is_empty() {
            return refusal;
        }
        let details = format!("{} left to DEL: {}", refusal.details, trouble.join("; "));
        refusal.with_details(details.trim_start())
    }

    /// Undoes an ADD that succeeded but whose answer nobody took.
    pub(super) async fn take_back(&self, add: &Add) {
        let undo = Undo { key: &add.key, begun: &add.begun, hint: None };
        if let Err(refusal) = self.detach(undo, None).await {
            tracing::warn!(container = %add.key, failure = %refusal, "could not undo an ADD that nobody waited for");
        }
    }
}

fn refused_link(error: KernelError<CreateError>, key: &AttachmentKey) -> Refusal {
    match error {
        KernelError::Work(CreateError::PodNameTaken) => {
            let msg = format!("the pod {} already has an interface {}", key.container, key.interface);
            Refusal::new(ErrorCode::AlreadyAttached, msg)
        }
        KernelError::Work(CreateError::HostNameTaken) => {
            Refusal::new(ErrorCode::Kernel, format!("the names for the link of {key} are taken"))
        }
        KernelError::Work(CreateError::Kernel(error)) => error.into(),
        KernelError::Died(why) => Refusal::new(ErrorCode::Internal, format!("a thread died: {why}")),
    }
}

fn attached(intent: &Intent<'_>, port: &PodPort) -> Attached {
    let Intent { add, facts, gateway, routes, mtu } = intent;
    let prefix = |given: &Given| given.prefix;
    Attached {
        bridge: Link { name: facts.bridge.clone(), mac: facts.mac, mtu: None },
        host: Link { name: port.host_interface.clone(), mac: add.key.host_mac(), mtu: Some(*mtu) },
        pod: Link { name: add.key.interface.clone(), mac: port.mac, mtu: Some(*mtu) },
        addresses: vec![Address {
            address: port.address,
            prefix: add.given.as_ref().map_or_else(|| weave_proto::addr::family_bits(port.address), prefix),
            gateway: Some(*gateway),
        }],
        routes: routes.clone(),
    }
}
