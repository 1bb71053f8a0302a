//! Requests that cannot be answered yet.
//!
//! A request is answered at once where it can be. What is left is work of one of three kinds, kept in the order of
//! arrival and tried again on every piece of news. None of it waits longer than [`PATIENCE`]: a runtime that
//! gets an error with a reason can tell somebody and try again, one that hangs cannot.

use std::time::{Duration, Instant};

use std::net::IpAddr;

use weave_proto::PeerName;
use weave_proto::local::cni::AttachmentKey;

use crate::api::{PortPlan, RequestId};

/// How long a request may wait. Long enough for an election among peers that are starting and for a few donors
/// that do not answer; much shorter than the two to four minutes after which kubelet gives up on a CNI call.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What is still to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// Find any address.
    Allocate {
        /// For whom.
        key: AttachmentKey,
        /// The port that it is for.
        port: Option<PortPlan>,
    },
    /// Take this address once it is known whose it is.
    Claim {
        /// For whom.
        key: AttachmentKey,
        /// Which.
        address: IpAddr,
    },
    /// See a removal through.
    Remove {
        /// Who is to go.
        peer: PeerName,
    },
}

impl Pending {
    /// The key that waits for an address.
    #[must_use]
    pub const fn key(&self) -> Option<&AttachmentKey> {
        match self {
            Self::Allocate { key, .. } | Self::Claim { key, .. } => Some(key),
            Self::Remove { .. } => None,
        }
    }
}

/// A request and how long it waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Whom to answer.
    pub request: RequestId,
    /// What to do.
    pub pending: Pending,
    /// Until when.
    pub until: Instant,
}

/// Waiting requests in the order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    waiting: Vec<Waiting>,
}

impl Queue {
    /// Puts a request at the end.
    pub fn push(&mut self, request: RequestId, pending: Pending, now: Instant) {
        self.waiting.push(Waiting { request, pending, until: now + PATIENCE });
    }

    /// Takes every request out that is `meant`, in order.
    pub fn take(&mut self, meant: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let (taken, left) = std::mem::take(&mut self.waiting).into_iter().partition(|waiting| meant(waiting));
        self.waiting = left;
        taken
    }

    /// Takes the first request out that waits for any address.
    pub fn take_allocate(&mut self) -> Option<(RequestId, AttachmentKey, Option<PortPlan>)> {
        let index = self.waiting.iter().position(|w| matches!(w.pending, Pending::Allocate { .. }))?;
        let Waiting { request, pending, .. } = self.waiting.remove(index);
        match pending {
            Pending::Allocate { key, port } => Some((request, key, port)),
            Pending::Claim { .. } | Pending::Remove { .. } => None,
        }
    }

    /// Whether somebody waits for any address.
    #[must_use]
    pub fn wants_address(&self) -> bool {
        self.waiting.iter().any(|waiting| matches!(waiting.pending, Pending::Allocate { .. }))
    }

    /// Everybody who waits, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter()
    }

    /// When the first of them runs out of patience.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }
}

#[cfg(test)]
mod tests;
