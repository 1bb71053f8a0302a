//! Two nodes with a serving pod each, and the way between them that a test has chosen.
//!
//! ```text
//!   Kernel   a ══ VXLAN ══ b                 Quic      a ── QUIC ── b     nothing else passes
//!   Sealed   a ══ records by UDP ══ b        Relayed   a ══ c ══ b        a and b do not reach each other
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::AgentOptions;
use crate::host::{Host, HostOptions};
use crate::lab::{Lab, others};
use crate::pod::Pod;
use crate::probe::{self, Server};
use crate::wait::eventually;

/// A password that nobody guesses, so that nothing is warned of.
pub const PASSWORD: &str = "--password=Ndq0zJk1fR2uQmTg7xVwYb4cHs8eLpAo";
/// The rule of a network that lets neither VXLAN nor sealed records in UDP through.
pub const NARROWS: &str = "udp dport { 6784, 6785 } drop";
/// For how long packets may be lost when a way with traffic is blocked: silence is noticed within 3 s, by each end for
/// itself, and on a busy machine.
pub const GAP: Duration = Duration::from_millis(4500);
/// How long the nodes may take for a change of the way, and back after it has failed: on a busy machine, too.
const PATIENCE: Duration = Duration::from_secs(20);

/// By which way packets go from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The kernel's tunnel, in clear.
    Kernel,
    /// Sealed records in UDP.
    Sealed,
    /// Sealed records in datagrams of QUIC, since the network lets nothing else through.
    Quic,
    /// Sealed records by way of a third node, since the two cannot reach each other.
    Relayed,
}

impl Way {
    /// What `weave status` calls it.
    #[must_use]
    pub const fn method(self) -> &'static str {
        match self {
            Self::Kernel => "fastdp",
            Self::Sealed => "sleeve",
            Self::Quic => "quic",
            Self::Relayed => "relay",
        }
    }

    /// The UDP port that its packets go to.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Kernel => 6784,
            Self::Sealed | Self::Relayed => 6785,
            Self::Quic => 6783,
        }
    }

    /// The flags of an agent that takes it.
    #[must_use]
    pub const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Kernel => &[],
            Self::Sealed | Self::Quic | Self::Relayed => &[PASSWORD],
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Pair {
    /// The two nodes, and the one between them where there is one.
    pub hosts: Vec<Arc<Host>>,
    /// The pod of the first.
    pub one: Pod,
    /// The pod of the second.
    pub other: Pod,
    _servers: [Server; 2],
}

impl Pair {
    /// Two nodes whose pods talk by this way.
    ///
    /// # Errors
    /// They do not in time.
    pub fn by(lab: &Lab, way: Way) -> Result<Self> {
        Self::over(lab, way, 1500)
    }

    /// The same over an underlay of this MTU.
    ///
    /// # Errors
    /// They do not in time.
    pub fn over(lab: &Lab, way: Way, mtu: u32) -> Result<Self> {
        let names: &[&str] = if way == Way::Relayed { &["a", "b", "c"] } else { &["a", "b"] };
        let hosts: Vec<_> =
            names.iter().map(|name| lab.host_with(HostOptions::new(name).mtu(mtu))).collect::<Result<_>>()?;
        match way {
            Way::Kernel | Way::Sealed => {}
            Way::Quic => lab.impose("narrows", NARROWS)?,
            Way::Relayed => part(lab, &hosts[0], &hosts[1])?,
        }
        for host in &hosts {
            let options = AgentOptions::founder(hosts.len(), &others(&hosts, host));
            host.launch(&way.flags().iter().fold(options, |options, flag| options.flag(flag)))?;
        }
        let pair = Self::of(hosts)?;
        pair.wait_proven(way)?;
        Ok(pair)
    }

    /// The first two of these nodes, whose agents run, once their pods talk.
    ///
    /// # Errors
    /// They do not in time.
    pub fn of(hosts: Vec<Arc<Host>>) -> Result<Self> {
        hosts.iter().try_for_each(|host| host.wait_ready())?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let servers = [one.serve()?, other.serve()?];
        let pair = Self { hosts, one, other, _servers: servers };
        pair.wait_talk("the pods talk")?;
        Ok(pair)
    }

    /// Whether each pod reaches the other.
    ///
    /// # Errors
    /// One of them does not.
    pub fn talk(&self) -> Result<()> {
        probe::reach(self.one.ns(), self.other.service(), "other")?;
        probe::reach(self.other.ns(), self.one.service(), "one").map(drop)
    }

    /// Waits until each pod reaches the other.
    ///
    /// # Errors
    /// One of them does not in time.
    pub fn wait_talk(&self, what: &str) -> Result<()> {
        eventually(PATIENCE, what, || self.talk())
    }

    /// Moves so many bytes by TCP from each pod to the other and back, and compares them.
    ///
    /// # Errors
    /// One transfer stalls, or comes back changed.
    pub fn transfer(&self, bytes: usize) -> Result<()> {
        probe::bulk(self.one.ns(), self.other.service(), bytes)?;
        probe::bulk(self.other.ns(), self.one.service(), bytes)
    }

    /// By which methods the two nodes reach each other.
    ///
    /// # Errors
    /// An agent does not answer.
    pub fn methods(&self) -> Result<[String; 2]> {
        let [a, b] = [&self.hosts[0], &self.hosts[1]];
        Ok([a.method_to(b)?, b.method_to(a)?])
    }

    /// Whether the two nodes reach each other by these methods.
    ///
    /// # Errors
    /// They do not; the message tells why.
    pub fn ensure_methods(&self, wanted: [&str; 2]) -> Result<()> {
        let methods = self.methods()?;
        let told = || -> Result<String> {
            let [a, b] = [&self.hosts[0], &self.hosts[1]];
            Ok(format!("{} and back {}", a.way_to(b)?, b.way_to(a)?))
        };
        ensure!(methods == wanted, "{methods:?} instead of {wanted:?}: {}", told()?);
        Ok(())
    }

    /// Waits until the two nodes reach each other by these methods.
    ///
    /// # Errors
    /// They do not in time.
    pub fn wait_methods(&self, wanted: [&str; 2]) -> Result<()> {
        eventually(PATIENCE, &format!("the nodes use {wanted:?}"), || self.ensure_methods(wanted))
    }

    /// Waits until the two nodes reach each other by this way and each has had an answer on it.
    ///
    /// # Errors
    /// They do not in time.
    pub fn wait_proven(&self, way: Way) -> Result<()> {
        let [a, b] = [&self.hosts[0], &self.hosts[1]];
        a.wait_proven(b, way.method(), PATIENCE)?;
        b.wait_proven(a, way.method(), PATIENCE)
    }

    /// What lies next to the first node on the way to the second: the second itself, or the relay.
    #[must_use]
    pub fn next(&self) -> &Host {
        self.hosts.get(2).unwrap_or(&self.hosts[1])
    }
}

/// Keeps two nodes apart, whatever addresses they will have.
fn part(lab: &Lab, one: &Host, other: &Host) -> Result<()> {
    let mac = |host: &Host| -> Result<String> {
        let bytes = host.ns()?.mac(crate::host::UPLINK)?;
        Ok(bytes.map(|byte| format!("{byte:02x}")).join(":"))
    };
    let (one, other) = (mac(one)?, mac(other)?);
    lab.impose(
        "apart",
        &format!("ether saddr {one} ether daddr {other} drop\nether saddr {other} ether daddr {one} drop"),
    )
}
