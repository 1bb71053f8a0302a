//! What was found, what is to be written, and how both look as rows.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weave_ipam::Restored;
use weave_overlay::KnownWay;
use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::ipam::{IpamPhase, Removal};
use weave_proto::{PeerName, PeerUid};
use weave_router::StoreOp;
use weave_topology::{KnownPeer, Target};

use super::{Change, Store, StoreError, Table, file};
use crate::identity::{Identity, IdentityError, Machine};

const SELF: &str = "self";
const STATE: &str = "state";
const GENERATION: &str = "generation";
const ALL: &str = "all";

/// What the store held at the start, and who this peer is.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The key pair; its uid is the number of this start, already durable.
    pub identity: Identity,
    /// The peer that this store belonged to, if it was brought here from another machine and set aside.
    pub replaced: Option<PeerName>,
    /// What IPAM needs to go on.
    pub ipam: Restored,
    /// Whom people wanted to be reached; none if nobody ever said.
    pub targets: Option<Vec<Target>>,
    /// Last known facts of other peers, in the order of names.
    pub peers: Vec<KnownPeer>,
    /// The last ways to them, in the order of names.
    pub ways: Vec<KnownWay>,
}

/// The rows, read.
pub(super) struct Found {
    pub(super) identity: Option<IdentityRow>,
    pub(super) ipam: Restored,
    targets: Option<Vec<Target>>,
    peers: Vec<KnownPeer>,
    ways: Vec<KnownWay>,
}

/// The identity as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct IdentityRow {
    seed: String,
    uid: u64,
    pub(super) machine: Machine,
}

impl IdentityRow {
    pub(super) fn seed(&self) -> Result<[u8; 32], IdentityError> {
        let mut seed = [0; 32];
        if self.seed.len() != 2 * seed.len() || !self.seed.is_ascii() {
            return Err(IdentityError::Malformed);
        }
        for (byte, at) in seed.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&self.seed[at..at + 2], 16).map_err(|_| IdentityError::Malformed)?;
        }
        Ok(seed)
    }

    pub(super) const fn uid(&self) -> PeerUid {
        PeerUid(self.uid)
    }
}

/// Reads everything.
pub(super) fn load(store: &Store) -> Result<Found, StoreError> {
    Ok(Found {
        identity: one(store, Table::Identity, SELF)?,
        ipam: Restored {
            state: one(store, Table::Ipam, STATE)?,
            allocations: every(store, Table::Allocations)?,
            lost: every(store, Table::Lost)?,
            freed: every(store, Table::Freed)?,
            generation: one(store, Table::Ipam, GENERATION)?.unwrap_or(0),
        },
        targets: one(store, Table::Targets, ALL)?,
        peers: every(store, Table::Peers)?,
        ways: every(store, Table::Ways)?,
    })
}

/// Counts this start, durably, and hands the store over.
pub(super) fn start(
    store: Store,
    found: Found,
    machine: &Machine,
    replaced: Option<PeerName>,
) -> Result<(Store, Loaded), StoreError> {
    let (identity, machine) = match found.identity {
        Some(row) => {
            let uid = PeerUid(row.uid.saturating_add(1));
            let known = Identity::from_seed(row.seed()?, uid)?;
            (successor(known, &found.ipam)?, machine.clone().or(row.machine))
        }
        None => (Identity::generate(PeerUid(1))?, machine.clone()),
    };
    if let Some(old) = replaced {
        tracing::warn!(
            old = %old,
            new = %identity.name(),
            "the store was made on another machine: it was set aside, and this node is a new peer; if the old one \
             is gone for good, `weave rmpeer` with its name on any node frees its addresses"
        );
    }
    if machine.is_unknown() {
        tracing::warn!(
            "neither /sys/class/dmi/id/product_uuid nor /etc/machine-id can be read: a copy of this store on \
             another machine would not be noticed; give each machine its --machine-id"
        );
    }
    let row = IdentityRow {
        seed: identity.seed().iter().map(|byte| format!("{byte:02x}")).collect(),
        uid: identity.uid().0,
        machine,
    };
    store.apply(vec![put(Table::Identity, SELF, &row, "the identity")?])?;
    let Found { ipam, targets, peers, ways, .. } = found;
    Ok((store, Loaded { identity, replaced, ipam, targets, peers, ways }))
}

/// The peer itself, or if the mesh has removed it for good, the new peer that takes its place on this node. It knows what
/// the old one knew, so that it cannot found another universe, and owns nothing.
fn successor(known: Identity, ipam: &Restored) -> Result<Identity, IdentityError> {
    if !is_removed(known.name(), ipam) {
        return Ok(known);
    }
    let new = Identity::generate(PeerUid(1))?;
    tracing::warn!(
        old = %known.name(),
        new = %new.name(),
        "this peer was removed from the mesh for good: this node joins again as a new peer"
    );
    Ok(new)
}

/// Whether the mesh has removed this peer for good, as far as its own store knows.
pub(super) fn is_removed(name: PeerName, ipam: &Restored) -> bool {
    match ipam.state.as_ref().map(|state| &state.phase) {
        Some(IpamPhase::Founded(founded)) => {
            matches!(founded.removals.get(&name), Some(Removal::Decided { .. }))
        }
        Some(IpamPhase::Electing(_)) | None => false,
    }
}

/// The rows that an operation changes.
pub(super) fn changes(op: StoreOp) -> Result<Vec<Change>, StoreError> {
    match op {
        StoreOp::Ipam(op) => Ok(vec![ipam_change(op)?]),
        StoreOp::Targets(targets) => Ok(vec![put(Table::Targets, ALL, &targets, "the targets")?]),
        StoreOp::Known(peers) => {
            peers.iter().map(|peer| put(Table::Peers, &peer.name.to_string(), peer, "a peer")).collect()
        }
        StoreOp::Way(known) => Ok(vec![put(Table::Ways, &known.peer.to_string(), &known, "a way")?]),
        StoreOp::ForgetKnown(names) => {
            let rows = |table| names.iter().map(move |name| delete(table, &name.to_string()));
            Ok(rows(Table::Peers).chain(rows(Table::Ways)).collect())
        }
    }
}

fn ipam_change(op: weave_ipam::StoreOp) -> Result<Change, StoreError> {
    use weave_ipam::StoreOp as Op;
    match op {
        Op::PutState(state) => put(Table::Ipam, STATE, &state, "the ring"),
        Op::PutGeneration(generation) => put(Table::Ipam, GENERATION, &generation, "a generation"),
        Op::PutAllocation(allocation) => {
            put(Table::Allocations, &attachment(&allocation.key), &allocation, "an allocation")
        }
        Op::DeleteAllocation(key) => Ok(delete(Table::Allocations, &attachment(&key))),
        Op::PutLost(allocation) => {
            put(Table::Lost, &attachment(&allocation.key), &allocation, "a lost address")
        }
        Op::DeleteLost(key) => Ok(delete(Table::Lost, &attachment(&key))),
        Op::PutFreed(freed) => put(Table::Freed, &freed_key(freed.address), &freed, "a freed address"),
        Op::DeleteFreed(address) => Ok(delete(Table::Freed, &freed_key(address))),
    }
}

/// Neither part can hold a NUL: both come from environment variables.
fn attachment(key: &AttachmentKey) -> String {
    format!("{}\0{}", key.container, key.interface)
}

fn freed_key(address: IpAddr) -> String {
    address.to_string()
}

fn put(table: Table, key: &str, value: &impl Serialize, what: &'static str) -> Result<Change, StoreError> {
    let value = serde_json::to_vec(value)
        .map_err(|error| StoreError::Unencodable { what, reason: error.to_string() })?;
    Ok(Change { table, key: key.to_owned(), value: Some(value) })
}

fn delete(table: Table, key: &str) -> Change {
    Change { table, key: key.to_owned(), value: None }
}

fn one<T: DeserializeOwned>(store: &Store, table: Table, key: &str) -> Result<Option<T>, StoreError> {
    let row = store.read(table)?.into_iter().find(|(found, _)| found == key);
    row.map(|(key, value)| parse(store, table, &key, &value)).transpose()
}

fn every<T: DeserializeOwned>(store: &Store, table: Table) -> Result<Vec<T>, StoreError> {
    store.read(table)?.iter().map(|(key, value)| parse(store, table, key, value)).collect()
}

fn parse<T: DeserializeOwned>(store: &Store, table: Table, key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|error| {
        let key = key.replace('\0', "/");
        file::damaged(&store.place, &format!("{} {key:?} cannot be read: {error}", table.name()))
    })
}
