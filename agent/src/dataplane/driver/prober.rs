//! Probes of the kernel's tunnel: frames put on `weave-vx` by hand, since the route of a peer may lead elsewhere.
//!
//! A frame with a type that no protocol uses, to a MAC address that leads to a peer's VTEP
//! ([`probe_mac`]), takes the way of every VXLAN packet to that peer; the other end's agent finds it on its own `weave-vx` and answers at once. No rule sees it there but
//! those for UDP 6784 outside, which is the point.
//!
//! What comes is not authentic. It comes from an address from which VXLAN is let in at all, and an answer must hold a
//! number that only the asked peer has seen; and where packets are to be sealed nothing is probed here.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;
use weave_proto::PeerName;

use super::word::Word;
use crate::dataplane::sys;
use crate::net::names::{Mac, probe_mac};

/// "Local experimental EtherType 1" of IEEE 802.
const ETHERTYPE: u16 = 0x88b5;

/// Two MAC addresses and the type.
const ETHERNET_LEN: usize = 14;

/// The longest frame read: what is behind the word does not matter.
const READ_LEN: usize = 128;

/// A socket on one device of the kernel's tunnel.
pub(super) struct Prober {
    device: &'static str,
    own: PeerName,
    open: Option<Open>,
}

/// Open on the device that had this number.
struct Open {
    index: u32,
    socket: AsyncFd<OwnedFd>,
}

/// Something has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    pub(super) from: PeerName,
    pub(super) word: Word,
}

impl Prober {
    pub(super) const fn new(device: &'static str, own: PeerName) -> Self {
        Self { device, own, open: None }
    }

    /// Makes sure that the socket is on the device that there is now. Needs a runtime.
    ///
    /// # Errors
    /// There is no such device, or no right to such a socket.
    pub(super) fn ensure(&mut self) -> io::Result<()> {
        let index = sys::link_index(self.device)?;
        if self.open.as_ref().is_none_or(|open| open.index != index) {
            self.open = None;
            self.open = Some(Open { index, socket: sys::packet_socket(index, ETHERTYPE)? });
        }
        Ok(())
    }

    /// Sends a word to a peer, in a frame as long as that of a packet of `len` bytes.
    ///
    /// # Errors
    /// The device or the kernel refuses; `EMSGSIZE` if it is longer than the device takes.
    pub(super) fn send(&mut self, to: PeerName, word: Word, len: usize) -> io::Result<()> {
        if self.open.is_none() {
            self.ensure()?;
        }
        let Some(open) = &self.open else { return Err(io::ErrorKind::NotConnected.into()) };
        let Mac(to) = probe_mac(to);
        let content = word.to_bytes();
        let mut frame = vec![0; ETHERNET_LEN + len.max(content.len())];
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&self.own.mac());
        frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        frame[ETHERNET_LEN..ETHERNET_LEN + content.len()].copy_from_slice(&content);
        let sent = rustix::net::send(open.socket.get_ref(), &frame, rustix::net::SendFlags::DONTWAIT);
        if let Err(rustix::io::Errno::NXIO | rustix::io::Errno::NETDOWN | rustix::io::Errno::NODEV) = sent {
            // There may be another device of the name by now.
            self.open = None;
        }
        sent?;
        Ok(())
    }

    /// Waits for a word for this node. Never returns while the socket is not open. May be cancelled without loss.
    pub(super) async fn heard(&mut self) -> Heard {
        loop {
            let Some(open) = &self.open else { return std::future::pending().await };
            let received = open.socket.async_io(tokio::io::Interest::READABLE, |socket| {
                let mut frame = [0; READ_LEN];
                let (len, _) = rustix::net::recv(socket, &mut frame[..], rustix::net::RecvFlags::DONTWAIT)?;
                Ok(self.read(&frame[..len.min(READ_LEN)]))
            });
            match received.await {
                Ok(Some(heard)) => return heard,
                Ok(None) => {}
                // The device is down or gone: the next probe finds out whether there is another.
                Err(_) => self.open = None,
            }
        }
    }

    fn read(&self, frame: &[u8]) -> Option<Heard> {
        let (head, content) = frame.split_at_checked(ETHERNET_LEN)?;
        let Mac(own) = probe_mac(self.own);
        if head[..6] != own {
            return None;
        }
        let from = PeerName::from_bits(*head[6..].first_chunk()?);
        Some(Heard { from, word: Word::parse(content)? }).filter(|heard| heard.from != self.own)
    }
}
