//! Executes steps, and reads what there is. The only module that changes the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rustix::io::Errno;
use weave_proto::local::cni::PodPort;

use super::desired::{Desired, Resident};
use super::messages::{self, Indices};
use super::names::{Mac, VXLAN_PORT};
use super::observe::{self, Observed};
use super::plan::{self, Step};
use super::sysctl::Sysctls;
use super::transport::errno;
use super::{NetError, Netlink};
use crate::firewall::foreign::{self, ForwardChain};
use crate::firewall::{self, Change, Counters, RawElement, Set, conntrack, elements, inspect};

/// Elements in one transaction: it must fit the socket's send buffer (208 KiB by default, about 70 bytes each).
const ELEMENTS_A_TRANSACTION: usize = 1024;

/// The kernel of the network namespace in which it was opened.
pub(super) struct Kernel {
    route: Netlink,
    netfilter: Netlink,
    sysctls: Sysctls,
    indices: Indices,
    /// What counters had counted when their tables were replaced.
    carried: Counters,
}

impl Kernel {
    /// Opens the sockets.
    pub(super) fn open(sysctls: Sysctls) -> Result<Self, NetError> {
        let open = |protocol, what| Netlink::open(protocol).map_err(|error| NetError::Socket { what, error });
        Ok(Self {
            route: open(NETLINK_ROUTE, "route netlink")?,
            netfilter: open(NETLINK_NETFILTER, "netfilter netlink")?,
            sysctls,
            indices: Indices::new(),
            carried: Counters::new(),
        })
    }

    /// Reads everything that could differ from `desired`.
    pub(super) fn observe(&mut self, desired: &Desired) -> Result<Observed, NetError> {
        let mut observed = observe::observe(&mut self.route, &self.sysctls, desired)?;
        observed.firewall = self.observe_firewall()?;
        self.indices = observed.indices();
        Ok(observed)
    }

    /// Reads the firewall alone.
    pub(super) fn observe_firewall(&mut self) -> Result<firewall::Observed, NetError> {
        inspect::observe(&mut self.netfilter)
    }

    /// The number of the last nftables transaction.
    pub(super) fn generation(&mut self) -> Result<u32, NetError> {
        inspect::generation(&mut self.netfilter)
    }

    /// The number of the socket that changes the tables, by which the kernel names who changed them.
    pub(super) const fn netfilter_port(&self) -> u32 {
        self.netfilter.port()
    }

    /// What the counters of drops say, and said before the tables were replaced.
    pub(super) fn counters(&mut self) -> Result<Counters, NetError> {
        let mut counters = inspect::counters(&mut self.netfilter)?;
        for (&reason, carried) in &self.carried {
            let count = counters.entry(reason).or_default();
            count.packets += carried.packets;
            count.bytes += carried.bytes;
        }
        Ok(counters)
    }

    /// The kernel's number for a link, as of the last look.
    pub(super) fn index(&self, link: &str) -> Option<u32> {
        self.indices.get(link).copied()
    }

    /// The numbers of all links, as of the last look.
    pub(super) fn indices(&self) -> &Indices {
        &self.indices
    }

    /// The MAC address of a link, if it exists.
    pub(super) fn mac(&mut self, link: &str) -> Option<Mac> {
        let reply = self.route.get(&messages::link_named(link)).ok()?;
        let Some(RouteNetlinkMessage::NewLink(message)) = observe::decode(&reply) else { return None };
        observe::link(&message)?.1.mac
    }

    /// Makes a veth pair, both ends up.
    pub(super) fn create_veth(&mut self, name: &'static str, peer: &'static str) -> Result<(), NetError> {
        let failed = |error| NetError::Step { step: format!("create the links {name} and {peer}"), error };
        let answers = self.route.requests(&messages::create_veth(name, peer)).map_err(failed)?;
        answers.into_iter().collect::<io::Result<()>>().map_err(failed)?;
        for link in [name, peer] {
            let index = self.look_up(link).map_err(failed)?;
            self.indices.insert(link.to_owned(), index);
        }
        Ok(())
    }

    /// Removes a link if it exists.
    pub(super) fn delete_link(&mut self, name: &str) -> Result<(), NetError> {
        let Ok(index) = self.look_up(name) else { return Ok(()) };
        self.indices.insert(name.to_owned(), index);
        let result =
            self.send(&Step::DeleteLink { name: name.to_owned(), reason: "no longer needed".to_owned() });
        self.indices.remove(name);
        result
    }

    /// The packets that a counter of an inet table has counted.
    pub(super) fn count(&mut self, table: &str, counter: &str) -> Result<u64, NetError> {
        inspect::count_of(&mut self.netfilter, table, counter)
    }

    /// The chains of others through which forwarded packets go.
    pub(super) fn forward_chains(&mut self) -> Result<Vec<ForwardChain>, NetError> {
        foreign::forward_chains(&mut self.netfilter)
    }

    /// Executes steps in order, and returns those that failed. A failed step does not stop the others, except that
    /// no port is opened to a pod while the guard is not in place, and nothing is tried on a link that could not be
    /// made.
    pub(super) fn execute(&mut self, steps: &[Step]) -> Vec<NetError> {
        let mut errors = Vec::new();
        let mut guarded = true;
        let mut not_made = BTreeSet::new();
        for step in steps {
            if !guarded && matches!(step, Step::EnslavePort { .. } | Step::SetPortFlags { .. })
                || step.link().is_some_and(|link| not_made.contains(link))
            {
                continue;
            }
            if let Err(error) = self.step(step) {
                guarded &= !matches!(step, Step::Firewall(_));
                if let Step::CreateLink { name, .. } = step {
                    not_made.insert(*name);
                }
                errors.push(error);
            }
        }
        errors
    }

    fn step(&mut self, step: &Step) -> Result<(), NetError> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "all other steps are nothing but their messages")]
        match step {
            Step::Sysctl { key, value } => {
                self.sysctls.write(key, value).map_err(|error| failed(step, error))
            }
            Step::Firewall(change) => self.firewall(step, change),
            Step::CreateLink { name, .. } => {
                self.send(step)?;
                let index = self.look_up(name).map_err(|error| failed(step, error))?;
                self.indices.insert((*name).to_owned(), index);
                Ok(())
            }
            _ => self.send(step),
        }
    }

    fn send(&mut self, step: &Step) -> Result<(), NetError> {
        let messages = self.messages(step)?;
        let results = self.route.requests(&messages).map_err(|error| failed(step, error))?;
        results.into_iter().try_for_each(|result| judged(step, result))
    }

    fn messages(&self, step: &Step) -> Result<Vec<Vec<u8>>, NetError> {
        let ipv6 = matches!(step, Step::EnslavePort { port } if self.sysctls.speaks_ipv6(port));
        messages::messages(step, &self.indices, ipv6).map_err(|missing| {
            let text = format!("there is no link {}", missing.0);
            failed(step, io::Error::new(io::ErrorKind::NotFound, text))
        })
    }

    fn look_up(&mut self, name: &str) -> io::Result<u32> {
        let reply = self.route.get(&messages::link_named(name))?;
        match observe::decode(&reply) {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.header.index),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn firewall(&mut self, step: &Step, change: &Change) -> Result<(), NetError> {
        match change {
            Change::Replace { desired, .. } => {
                let counted = self.counters()?;
                firewall::program::apply(&desired.render())?;
                let (kernel, complete) = inspect::describe(&mut self.netfilter)?;
                if !complete {
                    let text = "the tables are not there after nft applied them".to_owned();
                    return Err(NetError::Firewall(text));
                }
                self.carried = counted;
                let seal = firewall::Seal { text: desired.text, kernel };
                let messages = elements::seal(&seal.to_string());
                self.netfilter.transaction(&messages).map_err(|error| failed(step, error))
            }
            Change::Elements { add, remove } => {
                self.elements(add, remove).map_err(|error| failed(step, error))
            }
        }
    }

    fn elements(
        &mut self,
        add: &BTreeSet<(Set, RawElement)>,
        remove: &BTreeSet<(Set, RawElement)>,
    ) -> io::Result<()> {
        if add.len() + remove.len() <= ELEMENTS_A_TRANSACTION {
            return self.netfilter.transaction(&elements::transaction(add, remove));
        }
        // Too many for one transaction: a mesh of thousands of peers is told at once. Room is made first.
        for (list, adding) in [(remove, false), (add, true)] {
            let list: Vec<_> = list.iter().collect();
            for chunk in list.chunks(ELEMENTS_A_TRANSACTION) {
                let chunk = chunk.iter().copied();
                let messages =
                    if adding { elements::transaction(chunk, []) } else { elements::transaction([], chunk) };
                self.netfilter.transaction(&messages)?;
            }
        }
        Ok(())
    }

    /// Admits pods at the guard, all in one transaction.
    /// `gateway` is the bridge's MAC address.
    pub(super) fn admit(&mut self, pods: &[PodPort], gateway: Mac) -> Result<(), NetError> {
        let add = pods.iter().flat_map(|pod| guard_elements(pod, gateway)).collect();
        let change = Change::Elements { add, remove: BTreeSet::new() };
        self.step(&Step::Firewall(change))
    }

    /// Expels pods at the guard, all in one transaction, and forgets where they were.
    pub(super) fn withdraw(&mut self, pods: &[PodPort], gateway: Mac) -> Result<(), NetError> {
        let remove = pods.iter().flat_map(|pod| guard_elements(pod, gateway)).collect();
        self.step(&Step::Firewall(Change::Elements { add: BTreeSet::new(), remove }))?;
        for pod in pods {
            // Most are detached after their interface is gone, whose number may be another's by now.
            let port = &pod.host_interface;
            match self.look_up(port) {
                Ok(index) => self.indices.insert(port.clone(), index),
                Err(_) => self.indices.remove(port),
            };
            for step in plan::detach_port(port, Resident::of(pod)) {
                if let Ok(messages) = self.messages(&step) {
                    let answers = self.route.requests(&messages).map_err(|error| failed(&step, error))?;
                    answers.into_iter().try_for_each(|answer| judged(&step, answer))?;
                }
            }
        }
        Ok(())
    }

    /// Forgets the connections of addresses.
    pub(super) fn forget_connections(&mut self, addresses: &BTreeSet<IpAddr>) {
        let v4 = |address: &IpAddr| if let IpAddr::V4(v4) = address { Some(*v4) } else { None };
        let addresses: BTreeSet<_> = addresses.iter().filter_map(v4).collect();
        if addresses.is_empty() {
            return;
        }
        match conntrack::forget(&mut self.netfilter, &addresses) {
            Ok(0) => {}
            Ok(entries) => tracing::debug!(?addresses, entries, "forgot the connections of pods that left"),
            Err(error) => {
                tracing::warn!(?addresses, %error, "cannot forget the connections of pods that left")
            }
        }
    }

    /// Puts the ports of pods in force: bridge port, flags, forwarding entry, neighbours, route; as few system calls
    /// as there can be. One result a pod.
    /// `source` is the node's own address.
    pub(super) fn open_ports(
        &mut self,
        pods: &[PodPort],
        source: Option<IpAddr>,
    ) -> Vec<Result<(), NetError>> {
        let mut requests = Vec::new();
        let mut owners: Vec<(usize, Step)> = Vec::new();
        let mut results: BTreeMap<usize, NetError> = BTreeMap::new();
        for (number, pod) in pods.iter().enumerate() {
            let steps = plan::attach_port(&pod.host_interface, Resident::of(pod), source);
            if let Err(error) = self.requests_of(&steps, number, &mut requests, &mut owners) {
                results.insert(number, error);
            }
        }
        match self.route.requests(&requests) {
            Ok(answers) => {
                for (answer, (number, step)) in answers.into_iter().zip(&owners) {
                    if let Err(error) = judged(step, answer) {
                        results.entry(*number).or_insert(error);
                    }
                }
            }
            Err(error) => {
                let text = error.to_string();
                for (number, step) in &owners {
                    let error = io::Error::new(error.kind(), text.clone());
                    results.entry(*number).or_insert_with(|| failed(step, error));
                }
            }
        }
        (0..pods.len()).map(|number| results.remove(&number).map_or(Ok(()), Err)).collect()
    }

    fn requests_of(
        &mut self,
        steps: &[Step],
        number: usize,
        requests: &mut Vec<Vec<u8>>,
        owners: &mut Vec<(usize, Step)>,
    ) -> Result<(), NetError> {
        if let Some(step @ Step::EnslavePort { port }) = steps.first() {
            let index = self.look_up(port).map_err(|error| failed(step, error))?;
            self.indices.insert(port.clone(), index);
        }
        let mut prepared = Vec::new();
        for step in steps {
            prepared.extend(self.messages(step)?.into_iter().map(|message| (message, step.clone())));
        }
        for (message, step) in prepared {
            requests.push(message);
            owners.push((number, step));
        }
        Ok(())
    }
}

/// Executes one step that is netlink's, on a socket of the caller's.
pub(super) fn send_alone(route: &mut Netlink, step: &Step, indices: &Indices) -> Result<(), NetError> {
    let messages = messages::messages(step, indices, false).unwrap_or_default();
    let results = route.requests(&messages).map_err(|error| failed(step, error))?;
    results.into_iter().try_for_each(|result| judged(step, result))
}

fn guard_elements(pod: &PodPort, gateway: Mac) -> impl Iterator<Item = (Set, RawElement)> + use<> {
    firewall::pod_elements(pod, gateway).map(|element| (element.set(), element.encode()))
}

/// What an answer means: something that is to go and is gone already is as it should be, and a route that is there
/// although we do not know it is somebody else's.
fn judged(step: &Step, result: io::Result<()>) -> Result<(), NetError> {
    let Err(error) = result else { return Ok(()) };
    let deleting = matches!(
        step,
        Step::DeleteLink { .. }
            | Step::DeleteAddress { .. }
            | Step::DeleteRoute { .. }
            | Step::DeleteNeighbour { .. }
            | Step::DeleteTunnel { .. }
            | Step::DeletePortMac { .. }
    );
    match (errno(&error), step) {
        (Some(Errno::NOENT | Errno::SRCH | Errno::NODEV | Errno::ADDRNOTAVAIL), _) if deleting => Ok(()),
        (Some(Errno::EXIST), Step::AddRoute { key, .. }) => Err(NetError::Foreign {
            object: format!("a route to {key}"),
            reason: "somebody else's route has the same destination and metric: remove it, or choose another range \
                     for the overlay"
                .to_owned(),
        }),
        (Some(Errno::ADDRINUSE), Step::CreateLink { name, .. }) => Err(NetError::Foreign {
            object: format!("what holds UDP {VXLAN_PORT}"),
            reason: format!(
                "{name} needs the port: `ip -d link show type vxlan` and `ss -lunp` tell whose it is (that of \
                 Weave Net goes with `weave reset --weave-net`)"
            ),
        }),
        (_, _) => Err(failed(step, error)),
    }
}

fn failed(step: &Step, error: io::Error) -> NetError {
    NetError::Step { step: step.to_string(), error }
}
