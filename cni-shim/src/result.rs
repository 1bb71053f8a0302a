//! Results of ADD, in the shape of every version of the specification.
//!
//! Inside, a result is what 1.1.0 can say. It is read from any version from 0.3.0 on (a prevResult) or any at all
//! (a delegated plugin's answer), and written in the asked one. What a foreign plugin put into its interfaces and
//! routes beyond what we know is passed on untouched.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use weave_proto::local::cni::{Address, Attached, ErrorCode, Link, Refusal, Route, mac_to_text};

use crate::conf::Version;

/// Name resolution, as the configuration wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

impl Dns {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct CniResult {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Ip>,
    pub(crate) routes: Vec<ResultRoute>,
    pub(crate) dns: Dns,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// The namespace's path; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Ip {
    /// The address with its prefix length.
    pub(crate) address: String,
    pub(crate) gateway: Option<IpAddr>,
    /// The position in the list of interfaces.
    pub(crate) interface: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResultRoute {
    pub(crate) dst: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// What 1.1.0 added: mtu, advmss, priority, table, scope.
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

/// What 0.1.0 and 0.2.0 say of one family.
#[derive(Debug, Deserialize)]
struct OldIp {
    ip: String,
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<ResultRoute>,
}

impl CniResult {
    /// What the agent made, as a result of our own.
    pub(crate) fn of(attached: &Attached, netns: &str) -> Self {
        let interface = |link: &Link, sandbox: &str| Interface {
            name: link.name.clone(),
            mac: mac_to_text(link.mac),
            mtu: link.mtu,
            sandbox: sandbox.to_owned(),
            others: Map::new(),
        };
        let interfaces = vec![
            interface(&attached.bridge, ""),
            interface(&attached.host, ""),
            interface(&attached.pod, netns),
        ];
        let pod = interfaces.len() - 1;
        Self {
            interfaces,
            ips: attached.addresses.iter().map(|address| Ip::of(address, Some(pod))).collect(),
            routes: attached.routes.iter().map(ResultRoute::of).collect(),
            dns: Dns::default(),
        }
    }

    /// Addresses only, as an IPAM plugin answers.
    pub(crate) fn of_addresses(addresses: &[Address], routes: &[Route]) -> Self {
        Self {
            ips: addresses.iter().map(|address| Ip::of(address, None)).collect(),
            routes: routes.iter().map(ResultRoute::of).collect(),
            ..Self::default()
        }
    }

    /// Reads a result of any version.
    ///
    /// # Errors
    /// Code 6 if it has another shape.
    pub(crate) fn read(value: &Value) -> Result<Self, Refusal> {
        let wrong = |error: serde_json::Error| {
            Refusal::new(ErrorCode::Decode, format!("cannot read the earlier result: {error}"))
        };
        let mut result = Self::deserialize(nulls_removed(value)).map_err(wrong)?;
        for family in ["ip4", "ip6"] {
            let Some(old) = value.get(family).filter(|old| !old.is_null()) else { continue };
            let old = OldIp::deserialize(nulls_removed(old)).map_err(wrong)?;
            result.ips.push(Ip { address: old.ip, gateway: old.gateway, interface: None });
            result.routes.extend(old.routes);
        }
        Ok(result)
    }

    /// This result after an earlier plugin's: its interfaces, addresses and routes come first.
    pub(crate) fn after(mut self, mut earlier: Self) -> Self {
        let shift = earlier.interfaces.len();
        for ip in &mut self.ips {
            ip.interface = ip.interface.map(|position| position + shift);
        }
        earlier.interfaces.append(&mut self.interfaces);
        earlier.ips.append(&mut self.ips);
        earlier.routes.append(&mut self.routes);
        if !self.dns.is_empty() {
            earlier.dns = self.dns;
        }
        earlier
    }

    /// The document in the shape of `version`.
    pub(crate) fn write(&self, version: Version) -> Value {
        let mut document = json!({ "cniVersion": version.text() });
        if version < Version::LISTS {
            for (family, is_ours) in [("ip4", is_v4 as fn(&str) -> bool), ("ip6", is_v6)] {
                if let Some(ip) = self.ips.iter().find(|ip| is_ours(&ip.address)) {
                    document[family] = self.write_old(ip, is_ours);
                }
            }
        } else {
            if !self.interfaces.is_empty() {
                document["interfaces"] = self.interfaces.iter().map(|one| one.write(version)).collect();
            }
            document["ips"] = self.ips.iter().map(|ip| ip.write(version)).collect();
            if !self.routes.is_empty() {
                document["routes"] = self.routes.iter().map(|route| route.write(version)).collect();
            }
        }
        if !self.dns.is_empty() {
            document["dns"] = json!(self.dns);
        }
        document
    }

    fn write_old(&self, ip: &Ip, is_ours: fn(&str) -> bool) -> Value {
        let mut old = json!({ "ip": ip.address });
        if let Some(gateway) = ip.gateway {
            old["gateway"] = json!(gateway);
        }
        let routes: Vec<_> = self.routes.iter().filter(|route| is_ours(&route.dst)).collect();
        if !routes.is_empty() {
            old["routes"] = routes.iter().map(|route| route.write(Version::LISTS)).collect();
        }
        old
    }
}

impl Ip {
    fn of(address: &Address, interface: Option<usize>) -> Self {
        let Address { address, prefix, gateway } = address;
        Self { address: format!("{address}/{prefix}"), gateway: *gateway, interface }
    }

    fn write(&self, version: Version) -> Value {
        let mut document = json!({ "address": self.address });
        if version < Version::FAMILY_IMPLIED {
            document["version"] = json!(if is_v4(&self.address) { "4" } else { "6" });
        }
        if let Some(gateway) = self.gateway {
            document["gateway"] = json!(gateway);
        }
        if let Some(interface) = self.interface {
            document["interface"] = json!(interface);
        }
        document
    }
}

impl Interface {
    fn write(&self, version: Version) -> Value {
        let mut one = self.clone();
        if version < Version::GC {
            one.mtu = None;
            one.others.retain(|key, _| key != "socketPath" && key != "pciID");
        }
        json!(one)
    }
}

impl ResultRoute {
    fn of(route: &Route) -> Self {
        Self { dst: route.dst.to_string(), gw: route.gw, others: Map::new() }
    }

    fn write(&self, version: Version) -> Value {
        let mut one = self.clone();
        if version < Version::GC {
            one.others
                .retain(|key, _| !["mtu", "advmss", "priority", "table", "scope"].contains(&key.as_str()));
        }
        json!(one)
    }
}

/// Go's encoder writes null for an empty list; it means the same as leaving it out.
fn nulls_removed(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, inner| !inner.is_null());
    }
    value
}

fn is_v4(cidr: &str) -> bool {
    !is_v6(cidr)
}

fn is_v6(cidr: &str) -> bool {
    cidr.contains(':')
}

#[cfg(test)]
mod tests;
