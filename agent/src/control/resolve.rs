//! From what an operator calls a peer to its short name.

use std::collections::{BTreeMap, BTreeSet};

use weave_proto::local::control::{Failure, FailureCode};
use weave_proto::local::status::Status;
use weave_proto::{Nickname, PeerName};

/// Why a text names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchPeer {
    /// Nobody is called so.
    #[error("no peer is called {0:?}: `weave status ipam` lists those that own addresses")]
    Unknown(String),
    /// Several are.
    #[error("{nickname:?} is the host name of {}: name the peer by its MAC-like name", list(.peers))]
    Ambiguous {
        /// What was asked for.
        nickname: String,
        /// Who is called so.
        peers: BTreeSet<PeerName>,
    },
}

impl From<NoSuchPeer> for Failure {
    fn from(error: NoSuchPeer) -> Self {
        let code = match error {
            NoSuchPeer::Unknown(_) => FailureCode::NotFound,
            NoSuchPeer::Ambiguous { .. } => FailureCode::Ambiguous,
        };
        Self::new(code, error.to_string())
    }
}

fn list(peers: &BTreeSet<PeerName>) -> String {
    peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// The peer that `text` names: by its short name, or by its host name if only one peer has it. Peers that are
/// gone are found too, as long as they own addresses: they are the ones to remove.
///
/// # Errors
/// Nobody is called so, or several peers are.
pub fn resolve_peer(status: &Status, text: &str) -> Result<PeerName, NoSuchPeer> {
    let known = known_peers(status);
    if let Ok(name) = text.to_ascii_lowercase().parse() {
        return if known.contains_key(&name) { Ok(name) } else { Err(NoSuchPeer::Unknown(text.to_owned())) };
    }
    let called = |nickname: &Nickname| nickname.as_str() == text;
    let fitting: BTreeSet<_> = known
        .into_iter()
        .filter(|(_, nicknames)| nicknames.iter().any(|nickname| called(nickname)))
        .map(|(name, _)| name)
        .collect();
    match fitting.first() {
        None => Err(NoSuchPeer::Unknown(text.to_owned())),
        Some(&only) if fitting.len() == 1 => Ok(only),
        Some(_) => Err(NoSuchPeer::Ambiguous { nickname: text.to_owned(), peers: fitting }),
    }
}

fn known_peers(status: &Status) -> BTreeMap<PeerName, Vec<&Nickname>> {
    let mut known: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for peer in &status.router.peers {
        known.entry(peer.name).or_default().push(&peer.nickname);
    }
    for share in status.ipam.iter().flat_map(|ipam| &ipam.shares) {
        known.entry(share.peer).or_default().extend(&share.nickname);
    }
    for entry in status.ipam.iter().flat_map(|ipam| &ipam.entries) {
        known.entry(entry.owner).or_default();
    }
    known
}
