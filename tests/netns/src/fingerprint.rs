//! A node's network state as a set of lines, to be compared before and after.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::host::Host;
use crate::ns::Netns;
use crate::wait::{eventually, throughout};

/// The tools and their arguments; every one omits counters.
const LOOKS: [&str; 8] = [
    "ip -br addr",
    "ip -o -d link show type vxlan",
    "ip route show table all",
    "ip rule",
    "ip neigh show nud permanent",
    "bridge fdb show",
    "bridge -o -d link",
    "nft -s list ruleset",
];

/// Switches of the whole node.
const SWITCHES: [&str; 4] = [
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
    "net.bridge.bridge-nf-call-iptables",
];

/// The lines of a namespace.
///
/// # Errors
/// A tool fails.
pub fn of(node: &Netns) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for look in LOOKS {
        let mut section = String::new();
        for line in node.run(look)?.lines() {
            // An nft rule means something only inside its chain.
            if line.contains("chain ") || line.contains("set ") || line.contains("map ") {
                section = line.trim().to_owned();
            }
            if let Some(line) = timeless(line) {
                lines.insert(format!("{look}: {section} | {line}"));
            }
        }
    }
    for switch in SWITCHES {
        lines.insert(format!("{switch} = {}", node.read_sysctl(switch)?));
    }
    Ok(lines)
}

/// The line without interface indexes; none for what comes and goes by itself: the kernel's own entries for
/// multicast groups and link-local addresses, which follow their links with a delay.
fn timeless(line: &str) -> Option<String> {
    let own = ["33:33:", "01:00:5e:", "fe80::", "ff00::", "proto kernel"];
    if own.iter().any(|mark| line.contains(mark)) && !line.contains("inet") {
        return None;
    }
    let words = line.split_whitespace().map(|word| word.split_once("@if").map_or(word, |(name, _)| name));
    // A TUN device is in an unknown state until its reader has once been away.
    let words = words.map(|word| if word == "UNKNOWN" { "UP" } else { word });
    let mut words: Vec<_> = words.filter(|word| !word.starts_with("fe80:")).collect();
    if words.first().is_some_and(|word| is_index(word)) {
        words.remove(0);
    }
    Some(words.join(" ")).filter(|line| !line.is_empty())
}

/// `12:`, as `ip` numbers links.
fn is_index(word: &str) -> bool {
    word.strip_suffix(':').is_some_and(|number| number.chars().all(|letter| letter.is_ascii_digit()))
}

/// What is only in one of two states, for a failure's message.
#[must_use]
pub fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let lost = before.difference(after).map(|line| format!("- {line}"));
    let new = after.difference(before).map(|line| format!("+ {line}"));
    lost.chain(new).collect::<Vec<_>>().join("\n")
}

impl Host {
    /// Waits until nothing in the fingerprint has changed for a second, and returns it: what the agent does of its own
    /// accord after its start has been done.
    ///
    /// # Errors
    /// Something changes again and again.
    pub fn wait_unchanged(&self, deadline: Duration) -> Result<BTreeSet<String>> {
        const STEADY: Duration = Duration::from_secs(1);
        eventually(deadline, &format!("{} stays as it is", self.name()), || {
            let before = self.fingerprint()?;
            throughout(STEADY, "nothing changes", || {
                let now = self.fingerprint()?;
                ensure!(now == before, "{}", difference(&before, &now));
                Ok(())
            })?;
            Ok(before)
        })
    }
}
