//! Names and numbers of the kernel objects that are ours.

use std::fmt;

/// The bridge whose ports are the pods, and which carries the node's own overlay address.
pub const BRIDGE: &str = "weave";
/// The VXLAN device towards peers with an IPv4 underlay address.
pub const VXLAN: &str = "weave-vx";
/// The VXLAN device towards peers with an IPv6 underlay address. A VXLAN device without a local or remote address
/// opens a socket of one family only, so a mesh over both families needs two devices; this one exists only where a
/// peer needs it.
pub const VXLAN6: &str = "weave-vx6";
/// The TUN device of the tunnels in user space. Made by who reads it ([`crate::dataplane`]), looked after here.
pub const TUN: &str = "weave-tun";
/// How the host's end of every pod's veth pair begins.
pub const PORT_PREFIX: &str = "vethwe";

/// The device group of the bridge, and the next numbers, of the VXLAN devices and the pods' ports: so that the firewall's
/// rules can tell a packet's device by comparing one number, where a name costs a copy, a hash and a comparison of
/// strings a packet. A multiple of four, so that one mask finds all of them.
pub const BRIDGE_GROUP: u32 = 6784;
/// The device group of the VXLAN devices.
pub const TUNNEL_GROUP: u32 = BRIDGE_GROUP + 1;
/// The device group of the pods' ports.
pub const PORT_GROUP: u32 = BRIDGE_GROUP + 2;

/// UDP port of VXLAN, the one that Weave Net has always used.
pub const VXLAN_PORT: u16 = 6784;
/// VXLAN network identifier. Any value does, since nobody else uses the port; the port's number is easy to recognise
/// in a capture.
pub const VXLAN_ID: u32 = 6784;
/// The routing protocol number on our routes: 87, an ASCII `W`. iproute2's `rt_protos` and the kernel leave it free,
/// and so do the usual routing daemons (80 is Calico's, 186 to 192 are the classic ones).
pub const ROUTE_PROTOCOL: u8 = 87;
/// Metric of the route that makes the universe unreachable: near the end of the 32 bits, so worse than any metric
/// that a person or a daemon sets, and not the very last, so that an administrator may still put one behind it.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// Bytes that VXLAN adds to a packet over an IPv4 underlay: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
pub const VXLAN_OVERHEAD: u32 = 50;
/// The same over an IPv6 underlay, whose header is 20 bytes longer.
pub const VXLAN_OVERHEAD6: u32 = 70;

/// The MAC address by which a peer's tunnel end point is probed: its own with the bit cleared that every peer's name has
/// set ("locally administered"), so that no peer has it. Probes have a forwarding entry of their own by it, and the time
/// of the last use that the kernel keeps in the other one tells of pods' packets alone.
#[must_use]
pub const fn probe_mac(peer: weave_proto::PeerName) -> Mac {
    let mut mac = peer.mac();
    mac[0] ^= 0x02;
    Mac(mac)
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
