//! In-memory twins of [`Addresses`] and [`Ports`], for tests here and elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use weave_proto::addr::{address_at, position};
use weave_proto::local::cni::{AttachmentKey, PodPort};

use super::{AddressError, Addresses, Allocation, Facts, PortPlan, Ports};

/// Addresses counted up from a first one; a freed one is not given out again.
#[derive(Debug, Default)]
pub struct MemoryAddresses(Mutex<AddressState>);

#[derive(Debug, Default)]
struct AddressState {
    next: Option<IpAddr>,
    generation: u64,
    given: BTreeMap<AttachmentKey, Allocation>,
    trouble: Option<String>,
}

impl MemoryAddresses {
    /// Addresses from `first` on.
    #[must_use]
    pub fn starting_at(first: IpAddr) -> Self {
        Self(Mutex::new(AddressState { next: Some(first), ..AddressState::default() }))
    }

    /// From now on every allocation fails for this reason, and STATUS says so; or none does any more.
    pub fn set_trouble(&self, trouble: Option<&str>) {
        self.state().trouble = trouble.map(str::to_owned);
    }

    /// Everything given out.
    #[must_use]
    pub fn given(&self) -> Vec<Allocation> {
        self.state().given.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, AddressState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Addresses for MemoryAddresses {
    async fn allocate(&self, key: AttachmentKey, port: Option<PortPlan>) -> Result<Allocation, AddressError> {
        let mut state = self.state();
        if let Some(trouble) = &state.trouble {
            return Err(AddressError::Later(trouble.clone()));
        }
        let (address, generation) = match state.given.get(&key) {
            Some(earlier) => (earlier.address, earlier.generation),
            None => {
                let address = state.next.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                state.next = Some(address_at(position(address) + 1, address));
                state.generation += 1;
                (address, state.generation)
            }
        };
        let port = port.map(|port| port.with_address(address));
        let allocation = Allocation { key: key.clone(), address, port, generation };
        state.given.insert(key, allocation.clone());
        Ok(allocation)
    }

    async fn free(&self, key: AttachmentKey, generation: Option<u64>) -> Result<(), AddressError> {
        let mut state = self.state();
        let same = |given: &Allocation| generation.is_none_or(|generation| given.generation == generation);
        if state.given.get(&key).is_some_and(same) {
            state.given.remove(&key);
        }
        Ok(())
    }

    async fn lookup(&self, key: AttachmentKey) -> Result<Option<Allocation>, AddressError> {
        Ok(self.state().given.get(&key).cloned())
    }

    async fn list(&self) -> Result<Vec<Allocation>, AddressError> {
        Ok(self.given())
    }

    fn ready(&self) -> Result<(), String> {
        self.state().trouble.clone().map_or(Ok(()), Err)
    }
}

/// Ports that are only remembered.
#[derive(Debug)]
pub struct MemoryPorts {
    state: Mutex<PortState>,
}

#[derive(Debug)]
struct PortState {
    facts: Result<Facts, String>,
    attached: BTreeMap<String, PodPort>,
    missing: BTreeSet<String>,
    trouble: Option<String>,
}

impl MemoryPorts {
    /// Ports on this bridge.
    #[must_use]
    pub fn new(facts: Result<Facts, String>) -> Self {
        let (attached, missing) = (BTreeMap::new(), BTreeSet::new());
        Self { state: Mutex::new(PortState { facts, attached, missing, trouble: None }) }
    }

    /// The bridge is so from now on.
    pub fn set_facts(&self, facts: Result<Facts, String>) {
        self.state().facts = facts;
    }

    /// From now on every attach fails for this reason; or none does any more.
    pub fn set_trouble(&self, trouble: Option<&str>) {
        self.state().trouble = trouble.map(str::to_owned);
    }

    /// Everything attached, by the name of the host's end.
    #[must_use]
    pub fn attached(&self) -> BTreeMap<String, PodPort> {
        self.state().attached.clone()
    }

    /// As if somebody had removed the guard of this port.
    pub fn lose(&self, host_interface: &str) {
        self.state().missing.insert(host_interface.to_owned());
    }

    fn state(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ports for MemoryPorts {
    fn facts(&self) -> Result<Facts, String> {
        self.state().facts.clone()
    }

    async fn settled_facts(&self) -> Result<Facts, String> {
        self.facts()
    }

    async fn attach(&self, port: PodPort) -> Result<(), String> {
        let mut state = self.state();
        if let Some(trouble) = &state.trouble {
            return Err(trouble.clone());
        }
        state.attached.insert(port.host_interface.clone(), port);
        Ok(())
    }

    async fn detach(&self, port: PodPort) -> Result<(), String> {
        self.state().attached.remove(&port.host_interface);
        Ok(())
    }

    async fn check(&self, port: PodPort) -> Result<(), String> {
        let state = self.state();
        let name = &port.host_interface;
        if state.missing.contains(name) {
            return Err(format!("the guard of {name} is missing"));
        }
        if state.attached.get(name) == Some(&port) {
            Ok(())
        } else {
            Err(format!("{name} is not guarded as recorded"))
        }
    }
}
