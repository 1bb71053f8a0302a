//! What other programs do to a node's firewall: rule sets of the shapes that Docker, firewalld and kube-proxy
//! make, written from their documented behaviour and reduced to what decides about a packet.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;

use crate::command;
use crate::ns::Netns;

mod nftables;

pub use nftables::{kube_proxy_nftables, local_port};

/// The mark by which kube-proxy remembers that a packet shall be masqueraded.
const MASQUERADE_MARK: &str = "0x4000";

/// Docker: the forward chain drops what nobody accepted, and only Docker's own bridge is accepted.
///
/// # Errors
/// `iptables-restore` refuses.
pub fn docker(node: &Netns) -> Result<()> {
    restore(
        node,
        "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n\
         :DOCKER -\n:DOCKER-USER -\n:DOCKER-ISOLATION-STAGE-1 -\n:DOCKER-ISOLATION-STAGE-2 -\n\
         -A FORWARD -j DOCKER-USER\n\
         -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
         -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -o docker0 -j DOCKER\n\
         -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
         -A FORWARD -i docker0 -o docker0 -j ACCEPT\n\
         -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2\n\
         -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n\
         -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP\n\
         -A DOCKER-ISOLATION-STAGE-2 -j RETURN\n\
         -A DOCKER-USER -j RETURN\n\
         COMMIT\n\
         *nat\n:DOCKER -\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
         -A DOCKER -i docker0 -j RETURN\n\
         COMMIT\n",
    )
}

/// firewalld: what no zone accepts is rejected, arriving and passing. `trusted` are the interfaces of its
/// trusted zone; the uplink's zone admits the mesh's ports, and those of the network made by hand.
///
/// # Errors
/// `nft` refuses.
pub fn firewalld(node: &Netns, trusted: &[&str]) -> Result<()> {
    let names = trusted.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let trust = if names.is_empty() { String::new() } else { format!("iifname {{ {names} }} accept") };
    node.nft(&format!(
        "table inet firewalld {{\n\
         chain filter_INPUT {{\n type filter hook input priority filter + 10; policy accept;\n\
           ct state {{ established, related }} accept\n ct status dnat accept\n iifname \"lo\" accept\n\
           {trust}\n udp dport {{ 6783, 6784, 8472 }} accept\n icmp type echo-request accept\n\
           ct state invalid drop\n reject with icmpx admin-prohibited\n }}\n\
         chain filter_FORWARD {{\n type filter hook forward priority filter + 10; policy accept;\n\
           ct state {{ established, related }} accept\n ct status dnat accept\n iifname \"lo\" accept\n\
           {trust}\n ct state invalid drop\n reject with icmpx admin-prohibited\n }}\n}}\n"
    ))
    .map(drop)
}

/// One Service with one endpoint, TCP and UDP on one port.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Its virtual address.
    pub cluster: SocketAddrV4,
    /// Its port on every node.
    pub node_port: u16,
    /// The pod behind it.
    pub endpoint: SocketAddrV4,
}

/// kube-proxy in its iptables mode with `--cluster-cidr universe`: replaces its own rules, all of them.
///
/// # Errors
/// `iptables-restore` refuses.
pub fn kube_proxy(node: &Netns, universe: &str, services: &[Service]) -> Result<()> {
    let mut nat = String::from(
        "*nat\n:KUBE-SERVICES -\n:KUBE-NODEPORTS -\n:KUBE-POSTROUTING -\n:KUBE-MARK-MASQ -\n\
         -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n",
    );
    let mask = format!("{MASQUERADE_MARK}/{MASQUERADE_MARK}");
    nat.push_str(&format!(
        "-A KUBE-MARK-MASQ -j MARK --set-xmark {mask}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {mask} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark {MASQUERADE_MARK}/0x0\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
    ));
    for (number, service) in services.iter().enumerate() {
        nat.push_str(&service_rules(number, service, universe));
    }
    nat.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n");
    let filter = format!(
        "*filter\n:KUBE-FORWARD -\n-A FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark {mask} -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
    );
    restore(node, &(nat + &filter))
}

fn service_rules(number: usize, service: &Service, universe: &str) -> String {
    let Service { cluster, node_port, endpoint } = *service;
    let (address, port, pod): (Ipv4Addr, u16, Ipv4Addr) = (*cluster.ip(), cluster.port(), *endpoint.ip());
    let chain = format!("KUBE-SVC-{number}");
    let target = format!("KUBE-SEP-{number}");
    let mut rules = format!(":{chain} -\n:{target} -\n");
    for protocol in ["tcp", "udp"] {
        let to_service = format!("-d {address}/32 -p {protocol} -m {protocol} --dport {port}");
        rules.push_str(&format!(
            "-A KUBE-SERVICES {to_service} -j {chain}\n\
             -A {chain} ! -s {universe} {to_service} -j KUBE-MARK-MASQ\n\
             -A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {node_port} -j KUBE-MARK-MASQ\n\
             -A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {node_port} -j {chain}\n"
        ));
    }
    rules.push_str(&format!("-A {chain} -j {target}\n-A {target} -s {pod}/32 -j KUBE-MARK-MASQ\n"));
    for protocol in ["tcp", "udp"] {
        rules.push_str(&format!(
            "-A {target} -p {protocol} -m {protocol} -j DNAT --to-destination {endpoint}\n"
        ));
    }
    rules
}

/// Loads rules as these programs do, leaving alone what they do not name.
fn restore(node: &Netns, rules: &str) -> Result<()> {
    node.succeed(command::line("iptables-restore --noflush"), rules).map(drop)
}
