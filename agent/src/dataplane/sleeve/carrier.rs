//! What carries records: where they may go, and where they have come from.

use std::net::SocketAddr;

use weave_proto::PeerName;
use weave_sleeve::outbox::{Batch, Transmit};

use super::counters::Counters;
use super::quic::QuicLink;
use super::socket::Socket;

/// How records get to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// By UDP, to where the peer was last heard from.
    Udp,
    /// In the datagrams of a QUIC connection with the peer.
    Quic(QuicLink),
    /// In relay frames, to this peer first; its [`Peer::hop`](super::Peer::hop) says how.
    Relay(PeerName),
}

/// With what and by what way a peer's own packets are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendWith {
    /// The session, by the own index.
    pub session: u32,
    /// The way.
    pub carrier: Carrier,
}

/// How relay frames get to a peer, to be opened there or to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// By UDP. Its index for this session, with this node, is what the frames are let in by.
    Udp {
        /// The session, by the own index.
        session: u32,
    },
    /// In the datagrams of a QUIC connection.
    Quic {
        /// The session, by the own index.
        session: u32,
        /// The connection.
        link: QuicLink,
    },
    /// By way of another peer, whose own [`Hop`] is one of the two above.
    Next(PeerName),
}

/// Where a record has come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// By UDP from this address.
    Udp(SocketAddr),
    /// In a QUIC datagram from this peer.
    Quic(PeerName),
    /// In a relay frame whose last hop was this peer.
    Relay(PeerName),
}

/// Where datagrams leave.
#[derive(Debug, Clone)]
pub(super) enum Outlet {
    Udp(SocketAddr),
    Quic(QuicLink),
}

impl Outlet {
    /// Bytes of the longest datagram of at most `len`. A QUIC connection knows its path and may take less all at once.
    #[inline]
    pub(super) fn fitting(&self, len: usize) -> usize {
        match self {
            Self::Udp(_) => len,
            Self::Quic(link) => len.min(link.largest()),
        }
    }

    /// Sends batches in their order.
    #[inline]
    pub(super) fn send(&self, socket: &Socket, batches: &[Batch<'_>], count: &Counters) {
        match self {
            Self::Udp(remote) => socket.send(remote, batches, count),
            Self::Quic(link) => batches.iter().for_each(|batch| link.send(batch, count)),
        }
    }
}

/// Sends what an outbox has finished to one place.
pub(super) struct Exit<'a> {
    pub(super) socket: &'a Socket,
    pub(super) outlet: &'a Outlet,
    pub(super) count: &'a Counters,
}

impl Transmit for Exit<'_> {
    #[inline]
    fn transmit(&mut self, batches: &[Batch<'_>]) {
        self.outlet.send(self.socket, batches, self.count);
    }
}
