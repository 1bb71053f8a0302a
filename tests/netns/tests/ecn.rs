//! A router that marks packets instead of dropping them is heard by the pods (RFC 6040).

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::capture::Capture;
use weave_netns::cni::INTERFACE;
use weave_netns::host::UPLINK;
use weave_netns::ns::Netns;
use weave_netns::probe;
use weave_netns::{Lab, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// Strong enough that nothing is warned of.
const PASSWORD: &str = "--password=Ndq0zJk1fR2uQmTg7xVwYb4cHs8eLpAo";
/// Nobody listens here.
const PORT: u16 = 9999;
/// Bytes of a datagram, and how long that makes an IP packet of either tunnel. No probe of ours is of that size.
const LENGTH: usize = 1000;
const OUTSIDE: [usize; 2] = [1060, 1110];

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
    run_in_lab(|lab| marks(lab, &[], 6784));
}

#[test]
fn marks_pass_through_the_sealed_tunnel() {
    run_in_lab(|lab| marks(lab, &[PASSWORD], 6785));
}

fn marks(lab: &Lab, flags: &[&str], tunnel: u16) -> Result<()> {
    let hosts =
        lab.mesh_with(&["a", "b"], |options| flags.iter().fold(options, |options, flag| options.flag(flag)))?;
    let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
    eventually(PATIENCE, "the pods talk", || probe::ping(one.ns(), other.address()))?;
    let node = hosts[1].ns()?;
    let arrives = |sent: Mark, outside: Mark, inside: Option<Mark>| {
        arrives((one.ns(), &other), &node, tunnel, (sent, outside, inside))
    };
    for mark in [Mark::NotCapable, Mark::CapableOne, Mark::Capable] {
        arrives(mark, mark, Some(mark))?;
    }
    // What a pod has marked itself is told on, whichever of the two ways the tunnel has to say so.
    let [least, most] = OUTSIDE;
    lab.impose("congestion", &format!("udp dport {tunnel} ip length {least}-{most} ip ecn set ce"))?;
    arrives(Mark::Capable, Mark::Congested, Some(Mark::Congested))?;
    arrives(Mark::CapableOne, Mark::Congested, Some(Mark::Congested))?;
    // Who does not understand marks must notice congestion by the loss.
    arrives(Mark::NotCapable, Mark::Congested, None)
}

/// Sends datagrams with a mark until one is seen on the uplink with another, and in the pod with a third or not at all.
fn arrives(
    (from, to): (&Netns, &Pod),
    node: &Netns,
    tunnel: u16,
    (sent, outside, inside): (Mark, Mark, Option<Mark>),
) -> Result<()> {
    let [least, most] = OUTSIDE;
    let on_wire = format!(
        "udp dst port {tunnel} and ip[2:2] >= {least} and ip[2:2] <= {most} and ip[1] & 3 == {}",
        outside as u8
    );
    let wire = Capture::inbound(node, UPLINK, &on_wire)?;
    let pod = Capture::inbound(to.ns(), INTERFACE, &format!("udp port {PORT}"))?;
    let marked = inside.map(|mark| format!("udp port {PORT} and ip[1] & 3 == {}", mark as u8));
    let marked = marked.map(|filter| Capture::inbound(to.ns(), INTERFACE, &filter)).transpose()?;
    let address = to.address();
    let send = || {
        from.enter(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            rustix::net::sockopt::set_ip_tos(&socket, sent as u8)?;
            socket.send_to(&[0; LENGTH], (address, PORT)).map(drop).context("sending")
        })?
    };
    eventually(PATIENCE, &format!("{sent:?} arrives as {outside:?} outside, {inside:?} inside"), || {
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
