//! Firewalls of others, and the one thing that may be done to them.
//!
//! A packet is forwarded if *every* table lets it pass: an accept in ours does not undo a drop in another. Docker sets
//! the policy of iptables' FORWARD chain to drop, ufw does the same, firewalld ends its chain with a reject. Whether
//! such a chain drops a pod's packets cannot be read off its rules without evaluating them, so the owner sends a
//! packet through (see [`crate::net::probe`]); this module tells when that is worth while, and who could be to blame.
//!
//! For iptables there is a remedy that undoes nothing of the administrator's: three rules at the head of FORWARD that
//! accept what comes from the pods' bridge and goes to it or to their ports, marked by a comment, put there only where
//! the chain exists and a packet was dropped, and removed by `reset`. For other firewalls there is only the message.

use std::fmt;
use std::io;
use std::process::{Command, Stdio};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use weave_proto::Cidr;

use super::elements::{Message, TABLE};
use super::inspect::{GENERIC, GETCHAIN, NEWCHAIN};
use crate::net::names::BRIDGE;
use crate::net::{NetError, Netlink, attributes};

/// The pods' ports, in iptables' words.
const PORTS: &str = "vethwe+";
/// The comment on our rules, by which they are found again. One word, so that `iptables -S` needs no unquoting.
const COMMENT: &str = "weave-forward-accept";
/// Families of tables whose `forward` hook IPv4 packets pass, with nft's name: ip and inet.
const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (1, "inet")];
/// The number of the forward hook (NF_INET_FORWARD).
const FORWARD: u32 = 2;
/// The policy that drops (NF_DROP).
const DROP: u32 = 0;
/// Where the kernel lists the tables of the old iptables, in the network namespace of the calling thread.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// iptables waits this many seconds for another iptables to end.
const LOCK_PATIENCE: &str = "5";

/// A chain of somebody else's through which forwarded packets go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardChain {
    family: &'static str,
    table: String,
    chain: String,
    drops_by_policy: bool,
    /// How many rules it has, so that a change is noticed; none where the kernel does not say.
    rules: Option<u32>,
}

impl fmt::Display for ForwardChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)?;
        f.write_str(if self.drops_by_policy { " (policy drop)" } else { "" })
    }
}

/// The chains of others through which forwarded packets go, in stable order. Of the old iptables only that its
/// filter table exists is known.
///
/// # Errors
/// The kernel could not be asked.
pub(crate) fn forward_chains(netfilter: &mut Netlink) -> Result<Vec<ForwardChain>, NetError> {
    let mut chains = Vec::new();
    for (number, family) in FAMILIES {
        let request = Message::new(GETCHAIN, NLM_F_REQUEST | NLM_F_DUMP, number).finish();
        let replies =
            netfilter.dump(&request).map_err(|error| NetError::Observe { what: "nftables chains", error })?;
        for reply in replies.iter().filter(|reply| reply.kind == NEWCHAIN) {
            let list = reply.payload.get(GENERIC..).unwrap_or_default();
            chains.extend(forward_chain(family, list).filter(|chain| chain.table != TABLE));
        }
    }
    if legacy_filter_table() {
        chains.push(ForwardChain {
            family: "iptables-legacy",
            table: "filter".to_owned(),
            chain: "FORWARD".to_owned(),
            drops_by_policy: false,
            rules: None,
        });
    }
    chains.sort();
    Ok(chains)
}

fn forward_chain(family: &'static str, list: &[u8]) -> Option<ForwardChain> {
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    let (mut table, mut chain, mut hook, mut policy, mut rules) = (None, None, None, None, None);
    attributes(list, |kind, value| match kind {
        1 => table = Some(text(value)),
        3 => chain = Some(text(value)),
        4 => attributes(value, |kind, value| {
            if kind == 1 {
                hook = number(value);
            }
        }),
        5 => policy = number(value),
        6 => rules = number(value),
        _ => {}
    });
    hook.filter(|&hook| hook == FORWARD)?;
    Some(ForwardChain { family, table: table?, chain: chain?, drops_by_policy: policy == Some(DROP), rules })
}

fn legacy_filter_table() -> bool {
    let tables = std::fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
    tables.lines().any(|table| table == "filter")
}

/// What a person must know when forwarded packets are dropped.
#[must_use]
pub fn complaint(universe: Cidr, chains: &[ForwardChain]) -> String {
    let suspects: Vec<String> = chains.iter().map(ToString::to_string).collect();
    format!(
        "another firewall drops what is forwarded for pods (it passes {}): let it forward from and to {universe} (with \
         firewalld: firewall-cmd --permanent --zone=trusted --add-source={universe}, then --reload)",
        suspects.join(", ")
    )
}

/// Accepts what comes from the pods' bridge and goes to it or to their ports at the head of FORWARD, in each iptables
/// that has such a chain. Returns what was done.
///
/// # Errors
/// An iptables that should have taken the rules did not.
pub fn accept(chains: &[ForwardChain]) -> io::Result<Vec<String>> {
    let mut done = Vec::new();
    for program in programs(chains) {
        for (direction, device) in [("-i", BRIDGE), ("-o", BRIDGE), ("-o", PORTS)] {
            let rule = ["FORWARD", direction, device, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
            if run(program, &[&["-C"], &rule[..]].concat())?.0 {
                continue;
            }
            let (accepted, complaint) = run(program, &[&["-I"], &rule[..]].concat())?;
            if !accepted {
                return Err(io::Error::other(format!("{program}: {complaint}")));
            }
            done.push(format!("{program} -I {}", rule.join(" ")));
        }
    }
    Ok(done)
}

/// Removes the accept rules wherever they are. Returns what was done.
#[must_use]
pub fn remove_accepts() -> Vec<String> {
    let mut done = Vec::new();
    let legacy = legacy_filter_table().then_some("iptables-legacy");
    for program in ["iptables-nft", "iptables"].into_iter().chain(legacy) {
        // Without such a program there is nothing of it to remove.
        let Ok((true, rules)) = run(program, &["-S", "FORWARD"]) else { continue };
        for rule in rules.lines().filter(|rule| rule.split_whitespace().any(|word| word == COMMENT)) {
            let words: Vec<&str> = rule.split_whitespace().skip(1).collect();
            if run(program, &[&["-D"], &words[..]].concat()).is_ok_and(|(removed, _)| removed) {
                done.push(format!("remove the rule {} from {program}", words.join(" ")));
            }
        }
    }
    done
}

/// The iptables programs whose FORWARD chain is among `chains`. Asking one whose chain does not exist would make it.
fn programs(chains: &[ForwardChain]) -> Vec<&'static str> {
    let has = |family: &str| {
        let is = |chain: &ForwardChain| (chain.table.as_str(), chain.chain.as_str()) == ("filter", "FORWARD");
        chains.iter().any(|chain| chain.family == family && is(chain))
    };
    let nft = has("ip").then_some("iptables-nft");
    nft.into_iter().chain(has("iptables-legacy").then_some("iptables-legacy")).collect()
}

/// Runs an iptables: whether it succeeded, and what it said.
fn run(program: &str, arguments: &[&str]) -> io::Result<(bool, String)> {
    let output =
        Command::new(program).args(["-w", LOCK_PATIENCE]).args(arguments).stdin(Stdio::null()).output()?;
    let said = if output.status.success() { output.stdout } else { output.stderr };
    Ok((output.status.success(), String::from_utf8_lossy(&said).trim_end().to_owned()))
}
