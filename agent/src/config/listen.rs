//! Where a server listens: a TCP address, a unix socket, or nowhere.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Nowhere.
    Off,
    /// On a TCP port.
    Tcp(SocketAddr),
    /// On a unix socket with this absolute path.
    Unix(PathBuf),
}

/// Why a text is no [`ListenAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address to listen on: write IP:PORT, :PORT, the absolute path of a unix socket, or off")]
pub struct ListenAddressError(String);

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if matches!(text, "" | "off") {
            return Ok(Self::Off);
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let refused = |_| ListenAddressError(text.to_owned());
        match text.strip_prefix(':') {
            Some(port) => {
                let port = port.parse().map_err(refused)?;
                Ok(Self::Tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)))
            }
            None => text.parse().map(Self::Tcp).map_err(|_| ListenAddressError(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let read = |text: &str| text.parse::<ListenAddress>();
        assert_eq!(read("off"), Ok(ListenAddress::Off));
        assert_eq!(read(""), Ok(ListenAddress::Off));
        assert_eq!(read("/run/weave/metrics"), Ok(ListenAddress::Unix("/run/weave/metrics".into())));
        assert_eq!(read("127.0.0.1:6784").unwrap().to_string(), "127.0.0.1:6784");
        assert_eq!(read(":6782").unwrap().to_string(), "[::]:6782");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for text in ["6784", "localhost:6784", "127.0.0.1", ":x", "run/weave", "127.0.0.1:70000"] {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
