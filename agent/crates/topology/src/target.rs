//! Whom people want to be reached: an address or a name, with or without a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name that DNS can hold (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;

/// Where a peer is to be looked for. Written `host`, `host:port` or `[IPv6]:port`; a name is looked up again and again,
/// so that it may move.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// Why a text names no peer's place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No host at all.
    #[error("a peer is given as host, host:port or [IPv6]:port, not as an empty text")]
    Empty,
    /// The part behind the last colon is no port.
    #[error("{0:?}: the port must be a number from 1 to 65535")]
    Port(String),
    /// Neither an address nor a possible name.
    #[error("{0:?} is neither an IP address nor a host name: write host, host:port or [IPv6]:port")]
    Host(String),
    /// An address that nobody can have.
    #[error("{0:?}: no peer can be reached at an unspecified or multicast address")]
    Nowhere(String),
}

impl Target {
    /// The address, if it is one that needs no lookup; `port` is for a target that names none.
    #[must_use]
    pub fn literal(&self, port: u16) -> Option<SocketAddr> {
        match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port.unwrap_or(port))),
            Host::Name(_) => None,
        }
    }

    /// The name that is to be looked up; none if it is an address.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Ip(_) => None,
            Host::Name(name) => Some(name),
        }
    }

    /// The port, where one was given.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        self.port
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return at(text, IpAddr::V6(ip), None);
        }
        if let Some(bracketed) = text.strip_prefix('[') {
            let (ip, rest) = bracketed.split_once(']').ok_or_else(|| TargetError::Host(text.to_owned()))?;
            let ip: Ipv6Addr = ip.parse().map_err(|_| TargetError::Host(text.to_owned()))?;
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(port_of(text, port)?),
                None if rest.is_empty() => None,
                None => return Err(TargetError::Port(text.to_owned())),
            };
            return at(text, IpAddr::V6(ip), port);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port_of(text, port)?)),
            None => (text, None),
        };
        match host.parse::<IpAddr>() {
            Ok(ip) => at(text, ip, port),
            Err(_) if is_name(host) => Ok(Self { host: Host::Name(host.to_ascii_lowercase()), port }),
            Err(_) => Err(TargetError::Host(text.to_owned())),
        }
    }
}

fn at(text: &str, ip: IpAddr, port: Option<u16>) -> Result<Target, TargetError> {
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(TargetError::Nowhere(text.to_owned()));
    }
    Ok(Target { host: Host::Ip(ip), port })
}

fn port_of(text: &str, port: &str) -> Result<u16, TargetError> {
    port.parse().ok().filter(|&port| port != 0).ok_or_else(|| TargetError::Port(text.to_owned()))
}

/// Whether `host` can be a DNS name. One that is all digits and dots would have been an address if it were right.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let looks_like_address = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    !looks_like_address && host.len() <= MAX_NAME && host.split('.').all(label)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Ip(IpAddr::V6(ip)), Some(port)) => write!(f, "[{ip}]:{port}"),
            (Host::Ip(ip), Some(port)) => write!(f, "{ip}:{port}"),
            (Host::Ip(ip), None) => write!(f, "{ip}"),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Host::Name(name), None) => f.write_str(name),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests;
