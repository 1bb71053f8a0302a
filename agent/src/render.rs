//! The status document as text for people: the lines that Weave Net's users know, better aligned.
//!
//! Every function is pure: document in, text out, each line ended. The HTTP server and the command line print
//! the same text. Columns are as wide as their widest cell. What comes from other machines (names, reasons) is
//! shown without control characters, so that no peer can write to an operator's terminal.

mod table;

use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::Value;
use weave_proto::local::status::{
    ACKNOWLEDGED, AllocationStatus, ConnectionState, ConnectionStatus, ControlTrust, DataEncryption,
    IpamStatus, MethodStatus, NodeStatus, PeerLinkStatus, PeerStatus, ShareStatus, Status, TunnelStatus,
};
use weave_proto::{Cidr, Nickname, PeerName};

use table::{Table, clean};

/// The parts of the document that can be asked for by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// All of it, in short.
    Summary,
    /// Where the agent was told to find peers.
    Targets,
    /// Connections and attempts at them.
    Connections,
    /// All peers known and their links.
    Peers,
    /// Who owns how many addresses.
    Ipam,
}

/// `view` of the document as text.
#[must_use]
pub fn text(status: &Status, view: View) -> String {
    match view {
        View::Summary => summary(status),
        View::Targets => targets(status),
        View::Connections => connections(status),
        View::Peers => peers(status),
        View::Ipam => ipam(status),
    }
}

/// `view` of the document as JSON, indented, with a line end.
///
/// # Errors
/// Never for a document that came from an agent: all its keys are texts.
pub fn json(status: &Status, view: View) -> serde_json::Result<String> {
    let mut text = match view {
        View::Summary => serde_json::to_string_pretty(status),
        View::Targets => serde_json::to_string_pretty(&status.router.targets),
        View::Connections => serde_json::to_string_pretty(&status.router.connections),
        View::Peers => serde_json::to_string_pretty(&status.router.peers),
        View::Ipam => serde_json::to_string_pretty(&status.ipam),
    }?;
    text.push('\n');
    Ok(text)
}

/// The value at a JSON pointer of the document: a text as it is, anything else as JSON; with a line end.
///
/// # Errors
/// The pointer is none, or points at nothing; the message says what is there.
pub fn value_at(status: &Status, pointer: &str) -> Result<String, String> {
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return Err(format!(
            "{pointer:?} is no JSON pointer: write it like /ipam/range (templates are not supported)"
        ));
    }
    let document = serde_json::to_value(status).map_err(|error| error.to_string())?;
    match document.pointer(pointer) {
        Some(Value::String(text)) => Ok(format!("{text}\n")),
        Some(value) => {
            serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|it| it.to_string())
        }
        None => Err(format!("there is nothing at {pointer:?}; {}", what_is_there(&document, pointer))),
    }
}

/// What can be found at the deepest part of `pointer` that exists.
fn what_is_there(document: &Value, pointer: &str) -> String {
    let mut known = pointer;
    while let Some((parent, _)) = known.rsplit_once('/') {
        known = parent;
        match document.pointer(known) {
            Some(Value::Object(fields)) => {
                let names: Vec<_> = fields.keys().map(String::as_str).collect();
                return format!("at {known:?} there are {}", names.join(", "));
            }
            Some(Value::Array(items)) => return format!("the list at {known:?} has {} items", items.len()),
            Some(Value::Null) => return format!("the value at {known:?} is not known yet"),
            Some(_) => return format!("the value at {known:?} has no parts"),
            None => {}
        }
    }
    "a pointer begins with a slash".to_owned()
}

/// A message in which only line ends may steer a terminal.
#[must_use]
pub fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

fn summary(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:>LABEL$}: {}", clean(value));
    };
    line("Version", &status.version);
    line("Ready", &readiness(status));
    out.push('\n');
    router_summary(status, &mut out);
    if let Some(ipam) = &status.ipam {
        out.push('\n');
        ipam_summary(ipam, &mut out);
    }
    out.push('\n');
    node_summary(&status.node, &mut out);
    if let Some(tunnels) = &status.tunnels {
        tunnel_summary(tunnels, &mut out);
    }
    for warning in &status.warnings {
        let _ = write!(out, "\n{:>LABEL$}: {}\n", "Warning", clean(warning));
    }
    out
}

/// The width of Weave's labels.
const LABEL: usize = 15;

fn readiness(status: &Status) -> String {
    if status.is_ready() { "yes".to_owned() } else { format!("no, {}", status.waiting_for.join("; ")) }
}

fn router_summary(status: &Status, out: &mut String) {
    let router = &status.router;
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:>LABEL$}: {}", clean(value));
    };
    line("Service", "router");
    line("Protocol", &format!("weave {}..{}", status.wire.lowest.0, status.wire.highest.0));
    line("Name", &named(status.name, Some(&status.nickname)));
    line("Encryption", encryption(router.encryption.data));
    line("ControlTrust", trust(router.encryption.control));
    line("PeerDiscovery", if router.discovery { "enabled" } else { "disabled" });
    line("Targets", &router.targets.len().to_string());
    line("Connections", &connection_counts(&router.connections));
    line("Peers", &peer_counts(&router.peers));
    let refused: u64 = router.refused.values().sum();
    if refused > 0 {
        let kinds: Vec<_> = router.refused.iter().map(|(why, count)| format!("{count} {why}")).collect();
        line("Refused", &format!("{refused} messages ({})", kinds.join(", ")));
    }
}

const fn encryption(data: DataEncryption) -> &'static str {
    match data {
        DataEncryption::Disabled => "disabled",
        DataEncryption::Enabled => "enabled",
    }
}

const fn trust(control: ControlTrust) -> &'static str {
    match control {
        ControlTrust::ClusterSecret => "cluster secret",
        ControlTrust::PublicSecret => "public secret (anybody who reaches the port can join)",
    }
}

fn connection_counts(connections: &[ConnectionStatus]) -> String {
    let classes = ConnectionState::ALL.iter().filter_map(|&state| {
        let count = connections.iter().filter(|connection| connection.state == state).count();
        (count > 0).then(|| format!("{count} {}", state.word()))
    });
    with_details(connections.len(), &classes.collect::<Vec<_>>(), "")
}

fn peer_counts(peers: &[PeerStatus]) -> String {
    // The last words of a peer that is gone say nothing about its links.
    let links = || peers.iter().filter(|peer| peer.reachable).flat_map(|peer| &peer.links);
    let established = links().filter(|link| link.established).count();
    let pending = links().count() - established;
    let mut details = Vec::new();
    if established > 0 {
        details.push(format!("{established} established"));
    }
    if pending > 0 {
        details.push(format!("{pending} pending"));
    }
    match details.as_slice() {
        [] => peers.len().to_string(),
        details => format!("{} (with {} connections)", peers.len(), details.join(", ")),
    }
}

fn with_details(count: usize, details: &[String], suffix: &str) -> String {
    if details.is_empty() { count.to_string() } else { format!("{count} ({}{suffix})", details.join(", ")) }
}

fn ipam_summary(ipam: &IpamStatus, out: &mut String) {
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:>LABEL$}: {}", clean(value));
    };
    line("Service", "ipam");
    line("Status", &ipam.state);
    line("Range", &ipam.range.to_string());
    line("DefaultSubnet", &ipam.range.to_string());
    for pending in ipam.pending.iter().filter_map(|pending| not_said_yet(pending, &ipam.state)) {
        line("Pending", pending);
    }
    let (done, open): (Vec<_>, Vec<_>) = ipam.removed.iter().partition(|it| it.state == ACKNOWLEDGED);
    for removed in open {
        line("Removed", &format!("{}, heir {}: {}", removed.peer, removed.heir, removed.state));
    }
    match done.as_slice() {
        [] => {}
        [one] => line("Removed", &format!("{}, its addresses are {}'s", one.peer, one.heir)),
        many => line(
            "Removed",
            &format!("{} peers for good; `weave report --format /ipam/removed` lists them", many.len()),
        ),
    }
    for refused in &ipam.refused {
        line("Refused", refused);
    }
}

/// What a waiting request adds to the status line, whose reason it mostly shares; nothing for the node's own address,
/// which everybody who reads the status waits for.
fn not_said_yet<'a>(pending: &'a str, state: &str) -> Option<&'a str> {
    let Some(object) = pending.strip_suffix(state) else { return Some(pending) };
    let object = object.trim_end_matches([':', ' ']);
    (!object.contains(EXPOSE)).then_some(object)
}

fn node_summary(node: &NodeStatus, out: &mut String) {
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:>LABEL$}: {}", clean(value));
    };
    line("Service", "node");
    line("Bridge", if node.bridge.is_empty() { "none yet" } else { &node.bridge });
    line("Address", &node.address.map_or_else(|| "none yet".to_owned(), |address| address.to_string()));
    line("MTU", &node.mtu.map_or_else(|| "not known yet".to_owned(), |mtu| mtu.to_string()));
    line("Pods", &node.pods.to_string());
    for (label, counters) in [("Repairs", &node.repairs), ("Drops", &node.drops)] {
        let total: u64 = counters.values().sum();
        let kinds = counters.iter().filter(|(_, count)| **count > 0);
        let kinds: Vec<_> = kinds.map(|(kind, count)| format!("{count} {kind}")).collect();
        if total > 0 {
            line(label, &format!("{total} ({})", kinds.join(", ")));
        }
    }
    for problem in &node.problems {
        line("Problem", problem);
    }
}

/// What the tunnels in user space refused, if anything: the rest of their counters is for programs.
fn tunnel_summary(tunnels: &TunnelStatus, out: &mut String) {
    let kinds = tunnels.drops.iter().filter(|(_, count)| **count > 0);
    let kinds: Vec<_> = kinds.map(|(kind, count)| format!("{count} {kind}")).collect();
    if !kinds.is_empty() {
        let total: u64 = tunnels.drops.values().sum();
        let _ = writeln!(out, "{:>LABEL$}: {total} ({})", "TunnelDrops", clean(&kinds.join(", ")));
    }
}

fn targets(status: &Status) -> String {
    let mut table = Table::default();
    for target in &status.router.targets {
        table.row([target.target.clone(), target.problem.clone().unwrap_or_default()]);
    }
    table.to_string()
}

fn connections(status: &Status) -> String {
    let mut table = Table::default();
    for connection in &status.router.connections {
        let arrow = direction(connection.outbound);
        table.row([
            format!("{arrow} {}", place(connection)),
            connection.state.word().to_owned(),
            connection_info(status, connection),
        ]);
    }
    table.to_string()
}

/// Where the other end is; a name that cannot be looked up leads nowhere.
fn place(connection: &ConnectionStatus) -> String {
    let address = connection.address;
    if address.ip().is_unspecified() { "no address".to_owned() } else { address.to_string() }
}

const fn direction(outbound: bool) -> &'static str {
    if outbound { "->" } else { "<-" }
}

/// What Weave printed behind the state: encryption, overlay, peer and attributes of a live connection; the error
/// and the next attempt of one that is not.
fn connection_info(status: &Status, connection: &ConnectionStatus) -> String {
    let peer = connection.peer.map(|peer| named(peer, connection.nickname.as_ref())).unwrap_or_default();
    match connection.state {
        ConnectionState::Established | ConnectionState::Pending => {
            let Some(method) = &connection.method else {
                return joined([peer, connection.info.clone()], " ");
            };
            let encrypted = if method.encrypted { "encrypted" } else { "unencrypted" };
            let mtu = method.mtu.map(|mtu| format!("mtu={mtu}")).unwrap_or_default();
            let reason =
                if method.reason.is_empty() { String::new() } else { format!("({})", method.reason) };
            if method.via.is_some() {
                return joined([peer, relayed(status, Some(method)), connection.info.clone()], " ");
            }
            joined(
                [format!("{encrypted:<11} {:<6}", method.name), peer, mtu, reason, connection.info.clone()],
                " ",
            )
        }
        ConnectionState::Retrying | ConnectionState::Failed => {
            let retry = match connection.retry_in_seconds {
                Some(seconds) => format!("retry: in {seconds} s"),
                None if connection.outbound => "retry: never".to_owned(),
                // Whether a caller calls again is its own affair.
                None => String::new(),
            };
            let relay = relayed(status, connection.method.as_ref());
            joined([joined([peer, connection.info.clone()], ": "), retry, relay], ", ")
        }
        ConnectionState::Connecting => {
            let relay = relayed(status, connection.method.as_ref());
            joined([joined([peer, connection.info.clone()], " "), relay], ", ")
        }
    }
}

/// How the pods of a peer are reached, if that is through another; empty otherwise.
fn relayed(status: &Status, method: Option<&MethodStatus>) -> String {
    let Some((method, via)) = method.and_then(|method| Some((method, method.via?))) else {
        return String::new();
    };
    let peers = &status.router.peers;
    let relay = named(via, peers.iter().find(|peer| peer.name == via).map(|peer| &peer.nickname));
    let by = method.by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
    let mtu = method.mtu.map(|mtu| format!("mtu={mtu} ")).unwrap_or_default();
    format!("encrypted relay through {relay}{by}, {mtu}({})", method.reason)
}

fn joined<const N: usize>(parts: [String; N], between: &str) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(between)
}

fn peers(status: &Status) -> String {
    let links = status.router.peers.iter().flat_map(|peer| peer.links.iter().map(link_cells));
    let widths = table::widths(links);
    let mut out = String::new();
    for peer in &status.router.peers {
        let lost = if peer.reachable { "" } else { " - unreachable!" };
        let relay = relayed(status, peer.method.as_ref());
        let relay = if relay.is_empty() { relay } else { format!(" - {relay}") };
        let _ = writeln!(out, "{}{lost}{}", clean(&named(peer.name, Some(&peer.nickname))), clean(&relay));
        for link in &peer.links {
            let _ = writeln!(out, "   {}", table::aligned(&link_cells(link), &widths));
        }
    }
    out
}

fn link_cells(link: &PeerLinkStatus) -> Vec<String> {
    vec![
        format!("{} {}", direction(link.outbound), link.address),
        named(link.peer, link.nickname.as_ref()),
        if link.established { "established" } else { "pending" }.to_owned(),
    ]
}

fn ipam(status: &Status) -> String {
    let Some(ipam) = &status.ipam else { return "the IP allocator is disabled\n".to_owned() };
    let mut table = Table::default();
    for share in &ipam.shares {
        table.row([named(share.peer, share.nickname.as_ref()), share_text(share, ipam.range)]);
    }
    // Before the first split nobody owns anything: what is awaited says more than an empty answer.
    if ipam.shares.is_empty() { format!("{}\n", clean(&ipam.state)) } else { table.to_string() }
}

fn share_text(share: &ShareStatus, range: Cidr) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let percentage = share.addresses as f64 * 100.0 / range.len() as f64;
    let active = share.active.map(|active| format!(" ({active} active)")).unwrap_or_default();
    let lost = if share.reachable { "" } else { " - unreachable!" };
    format!("{:>8} IPs ({percentage:>4.1}% of total){active}{lost}", share.addresses)
}

/// The containers of this node with their addresses, the node's own first: of all of them, or of those whose id
/// begins with one of `wanted` or whose pod is named so.
#[must_use]
pub fn ps(status: &Status, wanted: &[String]) -> String {
    let mut table = Table::default();
    for (container, allocations) in containers(status, wanted) {
        let short: String =
            container.chars().take(if container.starts_with("weave:") { 64 } else { 12 }).collect();
        let mac = match allocations.iter().find_map(|allocation| allocation.mac.clone()) {
            Some(mac) => mac,
            None if container == EXPOSE => status.name.to_string(),
            None => "-".to_owned(),
        };
        let addresses: Vec<_> = allocations.iter().map(|it| with_prefix(status, it.address)).collect();
        let pod = allocations.iter().find_map(|allocation| allocation.pod.clone()).unwrap_or_default();
        table.row([short, mac, addresses.join(" "), pod]);
    }
    for lost in status.ipam.iter().flat_map(|ipam| &ipam.lost).filter(|lost| is_wanted(lost, wanted)) {
        let short: String = lost.container.chars().take(12).collect();
        let pod = lost.pod.clone().unwrap_or_default();
        let address = with_prefix(status, lost.address);
        table.row([
            short,
            lost.mac.clone().unwrap_or_else(|| "-".to_owned()),
            address,
            format!("{pod} (lost: cut off, restart it)"),
        ]);
    }
    table.to_string()
}

fn is_wanted(allocation: &AllocationStatus, wanted: &[String]) -> bool {
    wanted.is_empty()
        || wanted.iter().any(|wanted| {
            !wanted.is_empty() && allocation.container.starts_with(wanted.as_str())
                || allocation.pod.as_deref() == Some(wanted.as_str())
        })
}

/// An address as Weave wrote it: with the prefix length of the range that it comes from.
#[must_use]
pub fn with_prefix(status: &Status, address: IpAddr) -> String {
    status
        .ipam
        .as_ref()
        .map_or_else(|| address.to_string(), |ipam| format!("{address}/{}", ipam.range.prefix()))
}

/// The reserved id of the node's own address.
const EXPOSE: &str = "weave:expose";

/// Allocations by container, the node's own first, then by id; those that [`ps`] wants.
#[must_use]
pub fn containers<'a>(status: &'a Status, wanted: &[String]) -> Vec<(&'a str, Vec<&'a AllocationStatus>)> {
    let mut allocations: Vec<_> = status
        .ipam
        .iter()
        .flat_map(|ipam| &ipam.allocations)
        .filter(|allocation| is_wanted(allocation, wanted))
        .collect();
    allocations.sort_by_key(|it| (it.container != EXPOSE, &it.container, &it.interface));
    allocations
        .chunk_by(|a, b| a.container == b.container)
        .filter_map(|group| Some((group.first()?.container.as_str(), group.to_vec())))
        .collect()
}

fn named(peer: PeerName, nickname: Option<&Nickname>) -> String {
    nickname.map_or_else(|| peer.to_string(), |nickname| format!("{peer}({nickname})"))
}

#[cfg(test)]
pub(crate) mod tests;
