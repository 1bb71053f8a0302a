//! The device `weave-tun`.
//!
//! A TUN device with the virtio header (`IFF_VNET_HDR`), so that packets cross it as the network stack has them:
//! TCP in super-packets of up to 64 KiB, checksums still to be computed. Each [`Queue`] is one file; the kernel
//! spreads flows over the queues and keeps a flow on its queue.
//!
//! The device is persistent. If it vanished with the agent, the routes to it would go too, and packets for peers
//! would leave in clear by the default route. It goes only with `weave reset`.
//!
//! Not the tun-tap crate: its flags are fixed inside a C helper and cannot ask for any of this (docs/adr).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::sys;

/// Packets that the kernel may leave unsummed.
const TUN_F_CSUM: u32 = 0x01;
/// TCP over IPv4 that the kernel may leave uncut.
const TUN_F_TSO4: u32 = 0x02;
/// TCP over IPv6 that the kernel may leave uncut.
const TUN_F_TSO6: u32 = 0x04;
/// UDP over IPv4 that the kernel may leave uncut (Linux 6.2).
const TUN_F_USO4: u32 = 0x20;
/// UDP over IPv6 that the kernel may leave uncut (Linux 6.2).
const TUN_F_USO6: u32 = 0x40;

const TCP_OFFLOADS: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
const UDP_OFFLOADS: u32 = TUN_F_USO4 | TUN_F_USO6;

/// What the kernel leaves to us. Super-packets may be *written* to the device in any case where the kernel knows
/// their kind; where it does not, the first write says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// TCP super-packets and open checksums.
    pub tcp: bool,
    /// UDP super-packets.
    pub udp: bool,
}

/// What failed, on which device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// No `/dev/net/tun`, or no right to open it.
    #[error("open /dev/net/tun: {0} ({remedy})", remedy = remedy(.0))]
    Open(#[source] io::Error),
    /// The device exists in another form, or there is no right to make it.
    #[error("attach to device {name}: {source}")]
    Attach {
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel knows no persistent devices, or they are forbidden.
    #[error("make device {name} persistent: {source}")]
    Persist {
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What an operator can do about a device that cannot be opened.
fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "this container or unit may not open the device: let it; runc 1.2.0 to 1.2.3 let no container, newer ones do"
    } else {
        "run `modprobe tun` on the node; a container needs the node's /dev/net"
    }
}

/// The device, with all its queues.
#[derive(Debug)]
pub struct Tun {
    /// One file a queue.
    pub queues: Vec<Queue>,
    /// What the kernel agreed to leave to us.
    pub offloads: Offloads,
}

/// One queue of the device. Reads and writes never block.
#[derive(Debug)]
pub struct Queue {
    file: OwnedFd,
}

impl Tun {
    /// Creates the device, or attaches to it where it has persisted.
    ///
    /// # Errors
    /// There is no TUN driver, no permission, or a device of that name that is something else.
    pub fn open(name: &str, queues: u8) -> Result<Self, TunError> {
        let queues = (0..queues.max(1)).map(|_| attach(name)).collect::<Result<Vec<_>, _>>()?;
        let mut offloads = Offloads { tcp: false, udp: false };
        for queue in &queues {
            sys::tun_set_persistent(queue.as_fd(), true)
                .map_err(|source| TunError::Persist { name: name.to_owned(), source })?;
            offloads = queue.ask_for_offloads();
        }
        Ok(Self { queues, offloads })
    }
}

fn attach(name: &str) -> Result<Queue, TunError> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(TunError::Open)?;
    sys::tun_attach(file.as_fd(), name, flags)
        .map_err(|source| TunError::Attach { name: name.to_owned(), source })?;
    Ok(Queue { file: file.into() })
}

impl Queue {
    /// Asks for all offloads, then for fewer. A refused request leaves the earlier one in force, and the mask belongs
    /// to the device: so the smaller one is asked for first, which also clears what an earlier owner has left.
    fn ask_for_offloads(&self) -> Offloads {
        let tcp = sys::tun_set_offload(self.as_fd(), TCP_OFFLOADS).is_ok();
        if !tcp {
            // Without the virtio checksums nothing else may be set; the kernel then does all the work itself.
            drop(sys::tun_set_offload(self.as_fd(), 0));
        }
        let udp = tcp && sys::tun_set_offload(self.as_fd(), TCP_OFFLOADS | UDP_OFFLOADS).is_ok();
        Offloads { tcp, udp }
    }

    /// Reads one packet with its virtio header.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else is the device's failure.
    #[inline]
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        rustix::io::read(&self.file, buffer).map_err(io::Error::from)
    }

    /// Writes one packet with its virtio header.
    ///
    /// # Errors
    /// `EINVAL` for a kind of super-packet that the kernel does not know, `EIO` while the device is down.
    #[inline]
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.file, frame).map(|_| ()).map_err(io::Error::from)
    }

    /// Writes one packet whose virtio header lies elsewhere.
    ///
    /// # Errors
    /// As [`Queue::write`].
    pub fn write_parts(&self, vnet: &[u8], packet: &[u8]) -> io::Result<()> {
        let parts = [io::IoSlice::new(vnet), io::IoSlice::new(packet)];
        rustix::io::writev(&self.file, &parts).map(|_| ()).map_err(io::Error::from)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
