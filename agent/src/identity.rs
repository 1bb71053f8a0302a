//! Who this peer is: a key pair made at the first start and kept in the store, bound to the machine.
//!
//! The key pair is the identity. The [`PeerName`] is the first 48 bits of the public key's SHA-256, and every
//! address range and record in the mesh belongs to that name; so two machines must never run under one key. A
//! disk that is cloned, or a machine image that was taken from a running node, would do just that. Therefore the
//! store notes which [`Machine`] it was made on, and a store found on another one makes a new identity.
//!
//! A machine is known by two numbers, either of which may be missing (in a container, on a board without DMI):
//!
//! | part | where from | changes when |
//! |---|---|---|
//! | product | `/sys/class/dmi/id/product_uuid` | a virtual machine is cloned, a board is swapped |
//! | installation | `/etc/machine-id` | the system is installed or cloned with the proper tool |
//!
//! It is another machine as soon as one part that is known on both sides differs. A part that is missing on
//! either side says nothing. Only hashes of them are stored, since the machine-id is meant to stay confidential
//! (machine-id(5)).

use std::fmt;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use weave_proto::{PeerKey, PeerName, PeerUid};

/// Where the firmware's number of this machine is found. Only root may read it.
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";
/// Where the installation's number is found.
const MACHINE_ID: &str = "/etc/machine-id";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system gave no random numbers.
    #[error("no random numbers for a new identity")]
    Chance,
    /// What was kept is no key.
    #[error("the stored identity is no Ed25519 key")]
    Malformed,
}

/// This peer's key pair, name and incarnation.
#[derive(Clone)]
pub struct Identity {
    seed: [u8; 32],
    key: PeerKey,
    uid: PeerUid,
}

impl Identity {
    /// A new key pair from the system's random numbers.
    ///
    /// # Errors
    /// The system gave no random numbers.
    pub fn generate(uid: PeerUid) -> Result<Self, IdentityError> {
        let mut seed = [0; 32];
        aws_lc_rs::rand::SecureRandom::fill(&SystemRandom::new(), &mut seed)
            .map_err(|_| IdentityError::Chance)?;
        Self::from_seed(seed, uid)
    }

    /// The key pair that grows from `seed`.
    ///
    /// # Errors
    /// The seed is refused by the key algorithm.
    pub fn from_seed(seed: [u8; 32], uid: PeerUid) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| IdentityError::Malformed)?;
        let key = <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| IdentityError::Malformed)?;
        Ok(Self { seed, key: PeerKey(key), uid })
    }

    /// The same peer at another start.
    #[must_use]
    pub const fn with_uid(mut self, uid: PeerUid) -> Self {
        self.uid = uid;
        self
    }

    /// The public key.
    #[must_use]
    pub const fn key(&self) -> PeerKey {
        self.key
    }

    /// The short name.
    #[must_use]
    pub fn name(&self) -> PeerName {
        name_of(&self.key)
    }

    /// Which start of this peer this is.
    #[must_use]
    pub const fn uid(&self) -> PeerUid {
        self.uid
    }

    /// The secret that the key pair grows from. It is kept in the store and goes nowhere else.
    #[must_use]
    pub const fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// A secret for one purpose that is the same at each start and tells nothing about the key.
    #[must_use]
    pub fn derived(&self, purpose: &str) -> [u8; 32] {
        sha256(&[b"weave derived secret\0", purpose.as_bytes(), b"\0", &self.seed])
    }
}

/// Shows what is public.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name())
            .field("key", &self.key)
            .field("uid", &self.uid)
            .finish_non_exhaustive()
    }
}

/// The short name of the peer that holds this key.
#[must_use]
pub fn name_of(key: &PeerKey) -> PeerName {
    PeerName::from_digest(&sha256(&[&key.0]))
}

/// Which machine this is, as hashes of the numbers that tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Machine {
    #[serde(default)]
    product: Option<String>,
    #[serde(default)]
    installation: Option<String>,
}

impl Machine {
    /// The machine that this runs on.
    #[must_use]
    pub fn this() -> Self {
        Self::at(Path::new(PRODUCT_UUID), Path::new(MACHINE_ID))
    }

    /// A machine known by a text instead of its own numbers: `--machine-id`.
    #[must_use]
    pub fn named(text: &str) -> Self {
        Self { product: fingerprint(text), installation: fingerprint(text) }
    }

    fn at(product: &Path, installation: &Path) -> Self {
        let read = |path| std::fs::read_to_string(path).ok().and_then(|text| fingerprint(&text));
        Self { product: read(product), installation: read(installation) }
    }

    /// Whether nothing is known, so that no copy could be noticed.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        self.product.is_none() && self.installation.is_none()
    }

    /// Whether both may be one machine: no part that is known of both differs.
    #[must_use]
    pub fn may_be(&self, other: &Self) -> bool {
        let same =
            |mine: &Option<String>, its: &Option<String>| mine.is_none() || its.is_none() || mine == its;
        same(&self.product, &other.product) && same(&self.installation, &other.installation)
    }

    /// All that is known of either, this one's parts first.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            product: self.product.or(other.product),
            installation: self.installation.or(other.installation),
        }
    }
}

/// None for what a machine without a number of its own says: nothing, or `uninitialized` (machine-id(5)).
fn fingerprint(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_empty() || text == "uninitialized" {
        return None;
    }
    let hash = sha256(&[b"weave machine\0", text.to_ascii_lowercase().as_bytes()]);
    Some(hash[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &parts.concat()).as_ref());
    hash
}

#[cfg(test)]
mod tests;
