//! kube-proxy in its nftables mode, imitated: a table of the shape that its own has, with its hooks, priorities, verdict
//! maps and mark, written from its documentation. The proxy that this machine can build is older than the mode.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;

use super::{MASQUERADE_MARK, Service};
use crate::ns::Netns;

/// The port of a Service on the nodes that run its pod, where its `externalTrafficPolicy` is `Local`.
#[must_use]
pub const fn local_port(service: &Service) -> u16 {
    service.node_port + 100
}

/// The table with `clusterCIDR: universe`: replaces itself, all of it. `here` are the pods of this node.
///
/// # Errors
/// `nft` refuses.
pub fn kube_proxy_nftables(
    node: &Netns,
    universe: &str,
    services: &[Service],
    here: &BTreeSet<Ipv4Addr>,
) -> Result<()> {
    let (mut by_address, mut by_port, mut chains) = (Vec::new(), Vec::new(), String::new());
    for (number, service) in services.iter().enumerate() {
        for protocol in ["tcp", "udp"] {
            let name = format!("{number}-{protocol}");
            let (address, port) = (service.cluster.ip(), service.cluster.port());
            by_address.push(format!("{address} . {protocol} . {port} : goto service-{name}"));
            by_port.push(format!("{protocol} . {} : goto external-{name}", service.node_port));
            by_port.push(format!("{protocol} . {} : goto local-{name}", local_port(service)));
            let is_here = here.contains(service.endpoint.ip());
            chains.push_str(&service_chains(&name, protocol, service, (universe, is_here)));
        }
    }
    let addresses =
        services.iter().map(|service| service.cluster.ip().to_string()).collect::<Vec<_>>().join(", ");
    node.nft(&format!(
        "table ip kube-proxy\ndelete table ip kube-proxy\ntable ip kube-proxy {{\n\
         set cluster-ips {{ type ipv4_addr; elements = {{ {addresses} }}; }}\n\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {} }}; }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {} }}; }}\n\
         {chains}{}}}\n",
        by_address.join(", "),
        by_port.join(", "),
        base_chains(universe)
    ))
    .map(drop)
}

fn base_chains(universe: &str) -> String {
    format!(
        "chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark or {MASQUERADE_MARK}; }}\n\
         chain masquerading {{\n meta mark and {MASQUERADE_MARK} == 0 return\n\
           meta mark set meta mark xor {MASQUERADE_MARK}\n masquerade fully-random\n }}\n\
         chain services {{\n ip daddr . meta l4proto . th dport vmap @service-ips\n\
           fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports\n }}\n\
         chain filter-forward {{ type filter hook forward priority -110; ct state new jump cluster-ips-check; }}\n\
         chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}\n\
         # Clients outside of {universe} are masqueraded, but for those of a policy Local.\n"
    )
}

fn service_chains(
    name: &str,
    protocol: &str,
    service: &Service,
    (universe, is_here): (&str, bool),
) -> String {
    let Service { cluster, endpoint, .. } = service;
    let (pod, target): (&Ipv4Addr, &SocketAddrV4) = (endpoint.ip(), endpoint);
    let from_the_node = "fib saddr type local jump mark-for-masquerade";
    let outside = if is_here { format!("goto endpoint-{name}") } else { "drop".to_owned() };
    format!(
        "chain endpoint-{name} {{\n ip saddr {pod} jump mark-for-masquerade\n\
           meta l4proto {protocol} dnat to {target}\n }}\n\
         chain service-{name} {{\n ip daddr {} {protocol} dport {} ip saddr != {universe} jump mark-for-masquerade\n\
           numgen random mod 1 vmap {{ 0 : goto endpoint-{name} }}\n }}\n\
         chain external-{name} {{\n jump mark-for-masquerade\n goto service-{name}\n }}\n\
         chain local-{name} {{\n ip saddr {universe} goto service-{name}\n {from_the_node}\n\
           fib saddr type local goto service-{name}\n {outside}\n }}\n",
        cluster.ip(),
        cluster.port()
    )
}
