//! The ten bytes that a TUN device with `IFF_VNET_HDR` puts before each packet (virtio_net.h).
//!
//! They say what the kernel has *not* done to the packet: not yet cut it (`gso_*`), not yet summed it (`csum_*`).
//! Numbers are in the machine's own byte order, as the kernel's default is.

/// Bytes of the header.
pub const VNET_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// How a super-packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// Not at all: it is one packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either (USO).
    Udp,
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// The transport checksum is to be computed from `csum_start` to the end, over a field that holds the sum of
    /// the pseudo header.
    pub needs_csum: bool,
    /// How to cut.
    pub gso: Gso,
    /// Bytes of all headers. The kernel calls it a hint and so it is not relied on.
    pub header_len: u16,
    /// Payload bytes a segment.
    pub gso_size: u16,
    /// Where the transport header starts.
    pub csum_start: u16,
    /// Where in the transport header the checksum is.
    pub csum_offset: u16,
}

/// The kernel asked for a way of cutting that it was not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a kind of super-packet that was not offered to the kernel")]
pub struct UnknownGso;

impl VnetHeader {
    /// Reads the header.
    ///
    /// # Errors
    /// A kind of super-packet that this code never offers.
    #[inline]
    pub const fn parse(bytes: &[u8; VNET_LEN]) -> Result<Self, UnknownGso> {
        let [flags, gso, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        let gso = match gso {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return Err(UnknownGso),
        };
        Ok(Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            gso,
            header_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; VNET_LEN] {
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        [if self.needs_csum { NEEDS_CSUM } else { 0 }, gso, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}
