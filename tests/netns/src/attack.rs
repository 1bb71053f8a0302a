//! Sending frames that no honest network stack would send, and taking those that pass: a packet socket (packet(7))
//! bound to one link.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::ns::Netns;

/// Every protocol (`ETH_P_ALL`), and none.
const ALL: u16 = 3;
const NONE: u16 = 0;
/// Room for what passes while the reader does not run.
const BUFFER: usize = 16 << 20;

/// A socket that sends whole frames out of one link of a namespace.
#[derive(Debug)]
pub struct RawLink {
    socket: OwnedFd,
}

impl RawLink {
    /// Opens the socket inside the namespace. It receives nothing and so costs nothing while frames pass.
    ///
    /// # Errors
    /// The link does not exist, or privileges are missing.
    pub fn open(namespace: &Netns, link: &str) -> Result<Self> {
        Self::bound(namespace, link, NONE)
    }

    /// The same, to receive every frame that passes the link, those that leave by it included.
    ///
    /// # Errors
    /// The link does not exist, or privileges are missing.
    pub fn listen(namespace: &Netns, link: &str) -> Result<Self> {
        let listener = Self::bound(namespace, link, ALL)?;
        set_socket_recv_buffer_size_force(&listener.socket, BUFFER).context("making room for frames")?;
        Ok(listener)
    }

    fn bound(namespace: &Netns, link: &str, protocol: u16) -> Result<Self> {
        let shown = namespace.ip(&format!("-o link show dev {link}"))?;
        let index = shown.split(':').next().and_then(|index| index.trim().parse().ok());
        let index: i32 = index.with_context(|| format!("no index in {shown}"))?;
        let socket = namespace.enter(|| {
            let none: Option<Protocol> = None;
            rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, none)
        })??;
        rustix::net::bind(&socket, &link_address::LinkAddress::new(index, protocol))
            .with_context(|| format!("binding to {link} in {}", namespace.name()))?;
        Ok(Self { socket })
    }

    /// The next frame, if one comes in time.
    ///
    /// # Errors
    /// The link is down or gone.
    pub fn receive<'a>(&self, patience: Duration, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(patience.max(Duration::from_micros(1))))?;
        match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((length, _)) => Ok(buffer.get(..length)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error).context("receiving a frame"),
        }
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The link is down or gone.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        rustix::net::send(&self.socket, frame, SendFlags::empty()).context("sending a frame").map(drop)
    }
}

/// `struct sockaddr_ll`, which rustix has no type for.
#[expect(unsafe_code, reason = "a socket address of another family cannot be passed without it")]
mod link_address {
    use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};

    /// An interface by its index; see packet(7).
    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct LinkAddress {
        family: u16,
        protocol: u16,
        index: i32,
        hardware: u16,
        kind: u8,
        length: u8,
        address: [u8; 8],
    }

    const AF_PACKET: u16 = 17;

    impl LinkAddress {
        pub(super) const fn new(index: i32, protocol: u16) -> Self {
            let protocol = protocol.to_be();
            Self { family: AF_PACKET, protocol, index, hardware: 0, kind: 0, length: 0, address: [0; 8] }
        }
    }

    // SAFETY: the pointer passed on is to `self`, which has the layout of `struct sockaddr_ll` without padding
    // (2 + 2 + 4 + 2 + 1 + 1 + 8 bytes, each field at its natural alignment), and lives during the call.
    unsafe impl SocketAddrArg for LinkAddress {
        unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
            const LENGTH: SocketAddrLen = 20;
            const { assert!(size_of::<Self>() == LENGTH as usize) };
            f(std::ptr::from_ref(self).cast(), LENGTH)
        }
    }
}
