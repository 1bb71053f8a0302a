//! Whether a pod's packet is forwarded, found out by sending one.
//!
//! ```text
//!   raw socket ─ weaveprobe ══ vethweprobe ─ weave ─ forward hook (early … others … ) ─ postrouting (late) ─ dropped
//! ```
//! A veth pair stands for a pod: one end is a port of the bridge, admitted by the guard like any other; a raw socket
//! sends from the other end a packet of the protocol that is reserved for experiments, from an unused address of the
//! node's range to an address of the documentation's range, which is routed to that other end for the moment. A
//! table of its own counts the packet before everybody else in the forward hook, and behind the hook drops it. Early
//! without late means that somebody in between dropped it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use weave_proto::Cidr;
use weave_proto::addr::{address_at, position};
use weave_proto::local::cni::PodPort;

use super::NetError;
use super::desired::{Route, RouteKey};
use super::names::{BRIDGE, Mac};
use super::netlink::Kernel;
use super::plan::{LinkChange, Step};
use crate::firewall;

/// The bridge's end.
const PORT: &str = "vethweprobe";
/// The end from which the packet is sent.
const END: &str = "weaveprobe";
/// Its MAC address: local, and (by its first byte) no peer's name and no pod's.
const MAC: Mac = Mac([0x06, b'p', b'r', b'o', b'b', b'e']);
/// The table that counts.
const TABLE: &str = "weave_probe";
/// The protocol number for experiments (RFC 3692).
const PROTOCOL: u8 = 253;
/// Where the packet goes: an address for documentation (RFC 5737).
const DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 253);
/// How long the packet may take. It is on its way through the kernel of one machine.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks at the counters.
const PAUSE: Duration = Duration::from_millis(5);

/// What became of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was forwarded.
    Forwarded,
    /// It was dropped in the forward hook.
    Dropped,
    /// It did not reach the forward hook, so nothing is known.
    Lost,
}

/// Sends a packet from an address of `own` that is not in `used`.
pub(super) fn probe(kernel: &mut Kernel, own: &[Cidr], used: &BTreeSet<IpAddr>) -> Result<Verdict, NetError> {
    let Some(source) = unused(own, used) else { return Ok(Verdict::Lost) };
    let pod = PodPort {
        host_interface: PORT.to_owned(),
        mac: MAC.0,
        address: IpAddr::V4(source),
        netns: String::new(),
        pod: None,
    };
    let gateway = kernel.mac(BRIDGE).ok_or(NetError::NotReady)?;
    let verdict = send_and_watch(kernel, &pod, gateway, source);
    clear(kernel, &pod, gateway);
    verdict
}

/// The last address of the first range that nobody has.
fn unused(own: &[Cidr], used: &BTreeSet<IpAddr>) -> Option<Ipv4Addr> {
    let range = own.first()?;
    let candidates = (0..=used.len() as u128).filter(|&back| back < range.len());
    let mut addresses = candidates.map(|back| address_at(position(range.last()) - back, range.first()));
    match addresses.find(|address| !used.contains(address))? {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

fn send_and_watch(
    kernel: &mut Kernel,
    pod: &PodPort,
    gateway: Mac,
    source: Ipv4Addr,
) -> Result<Verdict, NetError> {
    firewall::program::apply(&table())?;
    kernel.create_veth(PORT, END)?;
    kernel.admit(std::slice::from_ref(pod), gateway)?;
    kernel.open_ports(std::slice::from_ref(pod), None).into_iter().collect::<Result<Vec<()>, _>>()?;
    let destination = IpAddr::V4(DESTINATION);
    let key = RouteKey { destination: Cidr::host(destination), metric: 0 };
    let steps = [
        Step::AdjustLink { name: END, change: LinkChange { mac: Some(MAC), ..LinkChange::default() } },
        Step::AddRoute { key, route: Route::Direct { link: END.to_owned(), source: None, mtu: None } },
        Step::PutNeighbour { link: END.to_owned(), address: destination, mac: gateway },
    ];
    if let Some(error) = kernel.execute(&steps).pop() {
        return Err(error);
    }
    send(source).map_err(|error| NetError::Step { step: format!("send a probe from {source}"), error })?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Both in this order: what is counted late has been counted early.
        let late = kernel.count(TABLE, "late")?;
        let early = kernel.count(TABLE, "early")?;
        match (early, late) {
            (_, 1..) => return Ok(Verdict::Forwarded),
            (0, 0) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            (0, 0) => return Ok(Verdict::Lost),
            // From the first hook to the last it is one run of the kernel's; a look between them is possible, two
            // are not.
            (_, 0) if kernel.count(TABLE, "late")? == 0 => return Ok(Verdict::Dropped),
            (_, 0) => return Ok(Verdict::Forwarded),
        }
    }
}

fn table() -> String {
    format!(
        "add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    counter early {{ }}
    counter late {{ }}
    chain output {{
        type filter hook output priority -500; policy accept;
        ip protocol {PROTOCOL} ip daddr {DESTINATION} notrack
    }}
    chain forward {{
        type filter hook forward priority -500; policy accept;
        ip protocol {PROTOCOL} ip daddr {DESTINATION} counter name early
    }}
    chain postrouting {{
        type filter hook postrouting priority -500; policy accept;
        iifname \"{BRIDGE}\" ip protocol {PROTOCOL} ip daddr {DESTINATION} counter name late drop
    }}
}}
"
    )
}

/// Sends one packet with a header of our own making. The kernel fills in length, checksum and identification.
fn send(source: Ipv4Addr) -> std::io::Result<()> {
    /// Enough to be forwarded once, and not to run in circles.
    const HOPS: u8 = 2;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, PROTOCOL, 0, 0];
    packet.extend(source.octets());
    packet.extend(DESTINATION.octets());
    packet.extend(b"weave probe.");
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
    rustix::net::sendto(&socket, &packet, SendFlags::empty(), &SocketAddrV4::new(DESTINATION, 0))?;
    Ok(())
}

/// Removes everything of the probe. What is not there any more needs no removing.
fn clear(kernel: &mut Kernel, pod: &PodPort, gateway: Mac) {
    let removals = [
        kernel.withdraw(std::slice::from_ref(pod), gateway),
        kernel.delete_link(PORT),
        firewall::program::apply(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")),
    ];
    for error in removals.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "clearing the probe for foreign firewalls");
    }
}
