//! Kernel settings under `/proc/sys/net`.
//!
//! Settings are written only where they differ, so an agent whose `/proc/sys` is read-only works as long as somebody
//! else has set them. The two that matter for safety are reported by the kernel when they change (see
//! [`super::watch`]); the rest is looked at in each full check.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel shows its settings, unless the operator says otherwise.
pub const ROOT: &str = "/proc/sys";

/// The kernel's check of source addresses by the route back, as it is set for all links at once. The larger of this and
/// a link's own holds: 1 is strict, 2 is loose, 0 does not ask.
pub const REVERSE_PATH_OF_ALL: &str = "net/ipv4/conf/all/rp_filter";

/// What a setting must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// This.
    Exactly(&'static str),
    /// Whatever keeps the check of the route back from being strict on this link. Strict drops what pods send, since the
    /// route back is by their ports and not by the bridge, and what comes while the two directions use different tunnels.
    /// It is 0, for each packet's source has been checked more closely by then, by the guard, or against the ranges of the
    /// peer that sent it; and 2, which wins over strict, where all links are asked for something.
    NotStrict,
}

impl Wanted {
    /// The value, where the check of the route back is set to `of_all` for all links.
    #[must_use]
    pub fn value(self, of_all: Option<&str>) -> &'static str {
        match self {
            Self::Exactly(value) => value,
            Self::NotStrict if of_all == Some("0") => "0",
            Self::NotStrict => "2",
        }
    }
}

/// What each link of ours needs, under `net/ipv4/conf/LINK/`.
const IPV4_LINK: [(&str, Wanted); 6] = [
    ("rp_filter", Wanted::NotStrict),
    // Written per link because `default` may say otherwise even where `ip_forward` is on.
    ("forwarding", Wanted::Exactly("1")),
    // Pods of one node talk through the bridge address; a redirect would tell them to send to the neighbour
    // directly, which the guard drops. `all` (by default 1) is or-ed in, so the firewall drops redirects as well.
    ("send_redirects", Wanted::Exactly("0")),
    ("accept_redirects", Wanted::Exactly("0")),
    ("proxy_arp", Wanted::Exactly("0")),
    // Pods never need to hear of an address that is not the bridge's; a packet to the node's other addresses is
    // routed to the bridge address's MAC without any ARP.
    ("arp_ignore", Wanted::Exactly("1")),
];
/// The same under `net/ipv6/conf/LINK/`: the overlay hands out no IPv6 addresses, so the links carry none, and
/// nobody may announce routers on them.
const IPV6_LINK: [(&str, Wanted); 2] =
    [("accept_ra", Wanted::Exactly("0")), ("disable_ipv6", Wanted::Exactly("1"))];

/// The settings for these links, by path below the root.
#[must_use]
pub fn wanted<'a>(links: impl Iterator<Item = &'a str>) -> BTreeMap<String, Wanted> {
    let mut settings = BTreeMap::from([("net/ipv4/ip_forward".to_owned(), Wanted::Exactly("1"))]);
    for link in links {
        for (family, list) in [("ipv4", &IPV4_LINK[..]), ("ipv6", &IPV6_LINK[..])] {
            settings.extend(
                list.iter().map(|&(name, value)| (format!("net/{family}/conf/{link}/{name}"), value)),
            );
        }
    }
    settings
}

/// Reads and writes settings.
#[derive(Debug, Clone)]
pub struct Sysctls {
    root: PathBuf,
}

impl Sysctls {
    /// Settings below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The value of a setting; none if there is no such setting.
    ///
    /// # Errors
    /// It exists and cannot be read.
    pub fn read(&self, key: &str) -> io::Result<Option<String>> {
        match std::fs::read_to_string(self.root.join(key)) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a setting.
    ///
    /// # Errors
    /// It cannot be written; on a read-only `/proc/sys` with the remedy.
    pub fn write(&self, key: &str, value: &str) -> io::Result<()> {
        let path = self.root.join(key);
        std::fs::write(&path, value).map_err(|error| {
            if error.kind() != io::ErrorKind::ReadOnlyFilesystem {
                return error;
            }
            let remedy =
                format!("set it on the host, or give the agent a writable {}/net", self.root.display());
            io::Error::new(error.kind(), format!("{error}: {remedy}"))
        })
    }

    /// Whether the kernel has IPv6 at all.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.root.join("net/ipv6").exists()
    }

    /// Whether it speaks IPv6 on a link: it does not on one whose MTU is below IPv6's least, 1280 bytes.
    #[must_use]
    pub fn speaks_ipv6(&self, link: &str) -> bool {
        self.root.join("net/ipv6/conf").join(link).exists()
    }
}
