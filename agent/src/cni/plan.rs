//! What the configuration wants against what the node has: pure, so that every case can be a line of a table.
//!
//! A pod is routed through its node. It has its address alone, without a network around it, a direct route to its
//! gateway, and everything else goes through that gateway. The configuration may name other routes instead of the
//! default one. Then the network's own range is routed as well, because on other networks an interface always
//! reaches its own subnet, whatever the list of routes says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weave_proto::Cidr;
use weave_proto::local::cni::{ErrorCode, Given, Refusal, Route, Settings};

use super::Facts;

/// The least MTU that IPv4 works with (RFC 791), and IPv6 (RFC 8200).
const MIN_MTU: [u32; 2] = [68, 1280];

/// Refuses a configuration that contradicts the node.
///
/// # Errors
/// Code 7, with both values and the remedy.
pub fn agree(settings: &Settings, facts: &Facts) -> Result<(), Refusal> {
    let refuse =
        |msg: String, remedy: &str| Err(Refusal::new(ErrorCode::InvalidConfig, msg).with_details(remedy));
    if let Some(bridge) = settings.bridge.as_ref().filter(|&name| *name != facts.bridge) {
        let msg =
            format!("bridge: the configuration wants {bridge:?}, the agent's bridge is {:?}", facts.bridge);
        return refuse(msg, "leave it out");
    }
    if let Some(hairpin) = settings.hairpin.filter(|&wanted| wanted != facts.hairpin) {
        let msg = format!("hairpinMode: the configuration wants {hairpin}, the agent's is {}", facts.hairpin);
        return refuse(
            msg,
            "leave it out: the guard at each port needs hairpin mode, and lets nothing return that would loop",
        );
    }
    if let Some(subnet) = settings.subnet.filter(|&subnet| subnet != facts.universe) {
        let msg =
            format!("ipam.subnet: the configuration wants {subnet}, the network's is {}", facts.universe);
        return refuse(msg, "leave it out, or start the agents with this --ipalloc-range");
    }
    let floor = MIN_MTU[usize::from(!facts.universe.first().is_ipv4())];
    if let Some(mtu) = settings.mtu.filter(|&mtu| mtu < floor) {
        return refuse(format!("mtu: {mtu} is below {floor}, the least that works"), "leave it out");
    }
    Ok(())
}

/// The MTU of a pod's link: what the network carries, or less where less is wanted.
#[must_use]
pub fn mtu(settings: &Settings, facts: &Facts) -> u32 {
    settings.mtu.map_or(facts.mtu, |wanted| wanted.min(facts.mtu))
}

/// The gateway of a pod: the node's own address, or what the IPAM plugin that was asked instead named.
#[must_use]
pub fn gateway(given: Option<&Given>, facts: &Facts) -> Option<IpAddr> {
    given.and_then(|given| given.gateway).or(facts.address)
}

/// The routes of a pod through `gateway`.
///
/// # Errors
/// Code 7 if the configuration names another gateway: pods are routed through their node, so that it would be
/// ignored.
pub fn routes(
    settings: &Settings,
    given: Option<&Given>,
    gateway: IpAddr,
    facts: &Facts,
) -> Result<Vec<Route>, Refusal> {
    let subnet = given.map_or(Some(facts.universe), |given| Cidr::containing(given.address, given.prefix));
    let Some(wanted) = &settings.routes else {
        return Ok(vec![Route { dst: everything(gateway), gw: Some(gateway) }]);
    };
    let own = subnet.filter(|subnet| subnet.len() > 1).map(|dst| Route { dst, gw: Some(gateway) });
    let mut routes: Vec<Route> = own.into_iter().collect();
    for route in wanted {
        if let Some(other) = route.gw.filter(|&other| other != gateway && Some(other) != facts.address) {
            let msg =
                format!("the route to {} names gateway {other}, a pod's gateway is {gateway}", route.dst);
            return Err(Refusal::new(ErrorCode::InvalidConfig, msg)
                .with_details("pods are routed through their node: leave the gateway out"));
        }
        if route.dst.first().is_ipv4() == gateway.is_ipv4()
            && route.dst != Cidr::host(gateway)
            && routes.iter().all(|earlier| earlier.dst != route.dst)
        {
            routes.push(Route { dst: route.dst, gw: Some(gateway) });
        }
    }
    Ok(routes)
}

fn everything(like: IpAddr) -> Cidr {
    let any = match like {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    #[expect(clippy::expect_used, reason = "no prefix is shorter than zero bits, and zero has no host bits")]
    Cidr::new(any, 0).expect("the whole of a family is a block")
}

#[cfg(test)]
mod tests;
