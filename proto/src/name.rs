//! Who is who: the names of peers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The public half of a peer's identity: a raw Ed25519 public key. Two peers are the same peer if and only if
/// their keys are equal; everything else about them may collide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerKey(pub [u8; 32]);

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first eight bytes in hexadecimal: enough to tell keys apart in a message to a person.
impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A peer's short name: 48 bits of its key's hash, in the form of a locally administered unicast MAC address
/// (IEEE 802: bit 1 of the first byte set, bit 0 cleared), so that it can serve as the MAC address of the
/// peer's bridge and VTEP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName([u8; 6]);

impl PeerName {
    /// The name whose bits are the first 48 of `digest` (a hash of a [`PeerKey`]), made local and unicast.
    #[must_use]
    pub const fn from_digest(digest: &[u8; 32]) -> Self {
        Self::from_bits([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5]])
    }

    /// The name with these bits, after setting the local bit and clearing the group bit.
    #[must_use]
    pub const fn from_bits(mut bits: [u8; 6]) -> Self {
        bits[0] = (bits[0] | 0b10) & !0b1;
        Self(bits)
    }

    /// The six bytes, as a MAC address.
    #[must_use]
    pub const fn mac(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no peer name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerNameError(String);

impl fmt::Display for PeerNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no peer name: six bytes such as 7a:3f:00:00:00:01, local and not group", self.0)
    }
}

impl std::error::Error for PeerNameError {}

impl FromStr for PeerName {
    type Err = PeerNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || PeerNameError(text.to_owned());
        let mut bits = [0; 6];
        let mut parts = text.split(':');
        for bit in &mut bits {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refused)?;
            *bit = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        let name = Self::from_bits(bits);
        if parts.next().is_some() || name.0 != bits { Err(refused()) } else { Ok(name) }
    }
}

impl Serialize for PeerName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for PeerName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            let bits = <[u8; 6]>::deserialize(deserializer)?;
            let name = Self::from_bits(bits);
            if name.0 == bits { Ok(name) } else { Err(serde::de::Error::custom("peer name with group bit")) }
        }
    }
}

/// How often this peer has started, counted in its store: of two records of one peer, the one with the larger
/// uid is from the later incarnation and wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerUid(pub u64);

impl fmt::Display for PeerUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The name a person gave to the machine: the host name unless told otherwise. Printable, not empty, at most
/// 253 bytes (the limit of a DNS name, RFC 1035 section 2.3.4). Never used to decide anything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Nickname(String);

impl Nickname {
    /// The longest nickname in bytes.
    pub const MAX_LEN: usize = 253;

    /// The nickname closest to `text`: what cannot be printed becomes `?`, what is too long is cut, and nothing
    /// at all becomes `unnamed`.
    #[must_use]
    pub fn lossy(text: &str) -> Self {
        let mut clean = String::new();
        for letter in text.chars().map(|letter| if letter.is_control() { '?' } else { letter }) {
            if clean.len() + letter.len_utf8() > Self::MAX_LEN {
                break;
            }
            clean.push(letter);
        }
        Self(if clean.is_empty() { "unnamed".to_owned() } else { clean })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nickname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Nickname {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let clean = Self::lossy(&text);
        if clean.0 == text {
            Ok(clean)
        } else {
            Err(serde::de::Error::custom("nickname not printable or too long"))
        }
    }
}
