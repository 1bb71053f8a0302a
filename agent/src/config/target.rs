//! Where a peer is expected: `host` or `host:port`.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// One place where a peer is expected: an address or a DNS name, and a port unless it is the default one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The machine.
    pub host: Host,
    /// The port; none for the port that this peer uses itself.
    pub port: Option<NonZeroU16>,
}

/// A machine, by address or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// Its address.
    Address(IpAddr),
    /// Its DNS name, in lower case.
    Name(String),
}

/// Why a text is no [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no peer address: {why}; write it like 10.0.0.7, node7.example:6783 or [fd00::7]:6783")]
pub struct TargetError {
    text: String,
    why: &'static str,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |why| TargetError { text: text.to_owned(), why };
        if let Ok(address) = text.parse() {
            return Ok(Self { host: Host::Address(address), port: None });
        }
        if let Some(bracketed) = text.strip_prefix('[') {
            let (address, rest) =
                bracketed.split_once(']').ok_or_else(|| refused("a bracket is not closed"))?;
            let address = address.parse().map_err(|_| refused("there is no IPv6 address in the brackets"))?;
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(parse_port(port).ok_or_else(|| refused(BAD_PORT))?),
                None if rest.is_empty() => None,
                None => return Err(refused("only a colon and a port may follow the brackets")),
            };
            return Ok(Self { host: Host::Address(IpAddr::V6(address)), port });
        }
        let (host, port) = match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(refused("an IPv6 address with a port must stand in brackets"));
            }
            Some((host, port)) => (host, Some(parse_port(port).ok_or_else(|| refused(BAD_PORT))?)),
            None => (text, None),
        };
        let host = match host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::Name(parse_name(host).map_err(refused)?),
        };
        Ok(Self { host, port })
    }
}

const BAD_PORT: &str = "the port must be a number from 1 to 65535";

fn parse_port(text: &str) -> Option<NonZeroU16> {
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// A DNS name by RFC 1123, underscores allowed (they occur), one dot at the end allowed. A name of digits and
/// dots only would be a misspelt IPv4 address: no top-level domain is a number.
fn parse_name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err("it names no host");
    }
    if name.len() > 253 || name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err("a host name has at most 253 letters, and 1 to 63 between two dots");
    }
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if !name.chars().all(allowed) || name.split('.').any(|label| label.starts_with('-')) {
        return Err("a host name has letters, digits, dots and inner dashes only");
    }
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("it looks like an IPv4 address but is none");
    }
    Ok(name.to_ascii_lowercase())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Name(name), None) => f.write_str(name),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Host::Address(address), None) => write!(f, "{address}"),
            (Host::Address(IpAddr::V4(address)), Some(port)) => write!(f, "{address}:{port}"),
            (Host::Address(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_printed_the_same() {
        for text in ["10.0.0.7", "10.0.0.7:7000", "fd00::7", "[fd00::7]:6783", "node7", "node-7.example:1"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn spellings_of_one_target_are_equal() {
        let same = |a: &str, b: &str| assert_eq!(a.parse::<Target>().unwrap(), b.parse().unwrap());
        same("[fd00::7]", "fd00:0::7");
        same("Node7.Example.", "node7.example");
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "names no host"),
            (":6783", "names no host"),
            ("node7:", "the port"),
            ("node7:0", "the port"),
            ("node7:+7", "the port"),
            ("node7:65536", "the port"),
            ("fd00::7:x:y", "brackets"),
            ("[fd00::7", "not closed"),
            ("[fd00::7]6783", "follow"),
            ("[10.0.0.7]:1", "no IPv6"),
            ("10.0.0.0/24", "letters"),
            ("http://node7", "the port"),
            ("10.0.0.300", "looks like an IPv4"),
            ("10.0.0", "looks like an IPv4"),
            ("a..b", "between two dots"),
            ("-node7", "letters"),
            ("no de", "letters"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?} gave {error:?}");
            assert!(error.contains(&format!("{text:?}")), "{error:?} does not name {text:?}");
        }
    }
}
