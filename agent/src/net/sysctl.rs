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

/// What each link of ours needs, under `net/ipv4/conf/LINK/`.
const IPV4_LINK: [(&str, &str); 6] = [
    // Loose. The effective value is the larger of this and `all`, so 0 would be overridden by distributions that set
    // `all` to 1, and 1 (strict) drops packets while the two directions use different tunnels.
    ("rp_filter", "2"),
    // Written per link because `default` may say otherwise even where `ip_forward` is on.
    ("forwarding", "1"),
    // Pods of one node talk through the bridge address; a redirect would tell them to send to the neighbour
    // directly, which the guard drops. `all` (by default 1) is or-ed in, so the firewall drops redirects as well.
    ("send_redirects", "0"),
    ("accept_redirects", "0"),
    ("proxy_arp", "0"),
    // Pods never need to hear of an address that is not the bridge's; a packet to the node's other addresses is
    // routed to the bridge address's MAC without any ARP.
    ("arp_ignore", "1"),
];
/// The same under `net/ipv6/conf/LINK/`: the overlay hands out no IPv6 addresses, so the links carry none, and
/// nobody may announce routers on them.
const IPV6_LINK: [(&str, &str); 2] = [("accept_ra", "0"), ("disable_ipv6", "1")];

/// The settings for these links, by path below the root.
#[must_use]
pub fn wanted<'a>(links: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::from([("net/ipv4/ip_forward".to_owned(), "1".to_owned())]);
    for link in links {
        for (family, list) in [("ipv4", &IPV4_LINK[..]), ("ipv6", &IPV6_LINK[..])] {
            settings.extend(
                list.iter()
                    .map(|(name, value)| (format!("net/{family}/conf/{link}/{name}"), (*value).to_owned())),
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
