//! A router that marks packets instead of dropping them is heard by the pods (RFC 6040).

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::capture::Capture;
use weave_netns::cni::INTERFACE;
use weave_netns::host::UPLINK;
use weave_netns::{Lab, Pair, Way, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// Nobody listens here.
const PORT: u16 = 9999;
/// Bytes of a datagram, and how long that makes an IP packet of any tunnel. No probe of ours is of that size.
const LENGTH: usize = 1000;
const OUTSIDE: [usize; 2] = [1060, 1150];

/// What a packet says of congestion: the last two bits of IPv4's second byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    NotCapable = 0,
    CapableOne = 1,
    Capable = 2,
    Congested = 3,
}

#[test]
fn marks_pass_through_the_kernel_s_tunnel() {
    run_in_lab(|lab| marks(lab, Way::Kernel));
}

#[test]
fn marks_pass_through_the_sealed_tunnel() {
    run_in_lab(|lab| marks(lab, Way::Sealed));
}

#[test]
fn marks_pass_through_a_relay_from_either_side_of_it() {
    run_in_lab(|lab| marks(lab, Way::Relayed));
}

fn marks(lab: &Lab, way: Way) -> Result<()> {
    let pair = Pair::by(lab, way)?;
    let arrives = |sent, outside, inside| arrives(&pair, way, sent, Some(outside), inside);
    for mark in [Mark::NotCapable, Mark::CapableOne, Mark::Capable] {
        arrives(mark, mark, Some(mark))?;
    }
    // Where the router is: behind the first node, and where there is a relay, behind that as well.
    let [first, last] = [&pair.hosts[0], pair.next()].map(|host| host.address());
    for from in BTreeSet::from([first, if way == Way::Relayed { last } else { first }]) {
        // What a pod has marked itself is told on, whichever of the two ways the tunnel has to say so.
        congest(lab, &format!("ip saddr {from}"), way)?;
        arrives(Mark::Capable, Mark::Congested, Some(Mark::Congested))?;
        arrives(Mark::CapableOne, Mark::Congested, Some(Mark::Congested))?;
        // Who does not understand marks must notice congestion by the loss.
        arrives(Mark::NotCapable, Mark::Congested, None)?;
    }
    Ok(())
}

/// A QUIC connection keeps the marks of its own packets to itself (docs/adr/0007); those of pods lie sealed in them.
#[test]
fn a_pod_s_marks_pass_by_quic_whatever_is_marked_outside() {
    run_in_lab(|lab| {
        let pair = Pair::by(lab, Way::Quic)?;
        let all = [Mark::NotCapable, Mark::CapableOne, Mark::Capable];
        for mark in all {
            arrives(&pair, Way::Quic, mark, None, Some(mark))?;
        }
        congest(lab, "ip saddr != 0.0.0.0", Way::Quic)?;
        for mark in all {
            arrives(&pair, Way::Quic, mark, Some(Mark::Congested), Some(mark))?;
        }
        Ok(())
    });
}

/// A router marks packets from somewhere that are as long as those of this file.
fn congest(lab: &Lab, from: &str, way: Way) -> Result<()> {
    let ([least, most], port) = (OUTSIDE, way.port());
    lab.impose("congestion", &format!("{from} udp dport {port} ip length {least}-{most} ip ecn set ce"))
}

/// Sends datagrams with a mark until one is seen on the far uplink with another, if that is asked for, and in the pod with
/// a third or not at all.
fn arrives(pair: &Pair, way: Way, sent: Mark, outside: Option<Mark>, inside: Option<Mark>) -> Result<()> {
    let ([least, most], port, to) = (OUTSIDE, way.port(), &pair.other);
    let mut on_wire = format!("udp dst port {port} and ip[2:2] >= {least} and ip[2:2] <= {most}");
    if let Some(mark) = outside {
        on_wire.push_str(&format!(" and ip[1] & 3 == {}", mark as u8));
    }
    let wire = Capture::inbound(&*pair.hosts[1].ns()?, UPLINK, &on_wire)?;
    let pod = Capture::inbound(to.ns(), INTERFACE, &format!("udp port {PORT}"))?;
    let marked = inside.map(|mark| format!("udp port {PORT} and ip[1] & 3 == {}", mark as u8));
    let marked = marked.map(|filter| Capture::inbound(to.ns(), INTERFACE, &filter)).transpose()?;
    let address = to.address();
    let send = || {
        pair.one.ns().enter(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            rustix::net::sockopt::set_ip_tos(&socket, sent as u8)?;
            socket.send_to(&[0; LENGTH], (address, PORT)).map(drop).context("sending")
        })?
    };
    eventually(PATIENCE, &format!("{sent:?} arrives as {outside:?} outside and {inside:?} inside"), || {
        send()?;
        ensure!(!wire.lines().is_empty(), "nothing such is on the wire; the pod sees {:?}", pod.lines());
        ensure!(
            marked.as_ref().is_none_or(|marked| !marked.lines().is_empty()),
            "nothing such is in the pod, but {:?}",
            pod.lines()
        );
        Ok(())
    })?;
    if inside.is_none() {
        let seen = pod.finish()?;
        ensure!(seen.is_empty(), "the pod sees {seen:?}");
    }
    Ok(())
}
