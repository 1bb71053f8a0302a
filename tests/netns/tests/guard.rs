//! A pod can speak only for itself, and a stranger cannot speak at all.
//!
//! Every test first shows, by the same means, that the honest form of its forgery arrives: otherwise it would
//! pass against a broken forger.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::attack::RawLink;
use weave_netns::capture::Capture;
use weave_netns::cni::INTERFACE;
use weave_netns::host::UPLINK;
use weave_netns::packet::{self, Arp, BROADCAST, Station};
use weave_netns::probe::{self, Server};
use weave_netns::wait::throughout;
use weave_netns::{Host, Lab, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);
/// How long a forged packet may take to show up where it must not.
const WATCH: Duration = Duration::from_millis(400);
/// Forged datagrams go here.
const PORT: u16 = 9999;
const VXLAN_PORT: u16 = 6784;
const VXLAN_NETWORK: u32 = 6784;

/// An attacker and its victims: a neighbour on the same node and a pod on another.
struct Scene {
    hosts: Vec<Arc<Host>>,
    evil: Pod,
    victim: Pod,
    far: Pod,
    _servers: [Server; 3],
}

impl Scene {
    fn new(lab: &Lab) -> Result<Self> {
        let hosts = lab.mesh(&["a", "b"])?;
        let (evil, victim, far) = (hosts[0].pod("evil")?, hosts[0].pod("victim")?, hosts[1].pod("far")?);
        let servers = [evil.serve()?, victim.serve()?, far.serve()?];
        let scene = Self { hosts, evil, victim, far, _servers: servers };
        eventually(PATIENCE, "the pods talk", || scene.talk())?;
        Ok(scene)
    }

    fn talk(&self) -> Result<()> {
        probe::reach(self.far.ns(), self.victim.service(), "victim")?;
        probe::reach(self.victim.ns(), self.far.service(), "far")?;
        probe::reach(self.evil.ns(), self.victim.service(), "victim").map(drop)
    }

    fn bridge_mac(&self) -> Result<[u8; 6]> {
        self.hosts[0].ns()?.mac("weave")
    }

    fn evil_link(&self) -> Result<RawLink> {
        RawLink::open(self.evil.ns(), INTERFACE)
    }

    /// A datagram from the attacker that claims `source`.
    fn claim(&self, source: Ipv4Addr, to: &Pod) -> Result<Vec<u8>> {
        let from = SocketAddrV4::new(source, PORT);
        let target = SocketAddrV4::new(to.address(), PORT);
        Ok(packet::udp_frame((self.bridge_mac()?, self.evil.mac()?), from, target, b"forged"))
    }

    fn drops(&self) -> Result<u64> {
        let status = self.hosts[0].status(&[])?;
        let counted = status["node"]["drops"].as_object().context("no drops in the status")?;
        Ok(counted.values().filter_map(serde_json::Value::as_u64).sum())
    }
}

/// Sends `frames` and fails if any of them arrives at `pod`.
fn never_arrive(link: &RawLink, frames: &[Vec<u8>], pod: &Pod) -> Result<()> {
    let capture = Capture::inbound(pod.ns(), INTERFACE, &format!("udp port {PORT} or arp"))?;
    frames.iter().try_for_each(|frame| link.send(frame))?;
    throughout(WATCH, "nothing forged arrives", || {
        let seen = capture.lines();
        ensure!(seen.is_empty(), "{} saw {seen:#?}", pod.name());
        Ok(())
    })
}

/// Sends `frame` and fails unless it arrives at `pod`.
fn does_arrive(link: &RawLink, frame: &[u8], pod: &Pod) -> Result<()> {
    let capture = Capture::inbound(pod.ns(), INTERFACE, &format!("udp port {PORT}"))?;
    link.send(frame)?;
    capture.wait(PATIENCE).context("the honest form of the forgery does not arrive")
}

#[test]
fn a_forged_source_address_is_dropped_and_counted() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let link = scene.evil_link()?;
        for to in [&scene.victim, &scene.far] {
            does_arrive(&link, &scene.claim(scene.evil.address(), to)?, to)?;
        }
        let before = scene.drops()?;
        let claimed = [
            scene.victim.address(),
            scene.far.address(),
            Ipv4Addr::new(10, 47, 255, 254),
            Ipv4Addr::new(192, 0, 2, 1),
            scene.hosts[0].address(),
            Ipv4Addr::LOCALHOST,
        ];
        for to in [&scene.victim, &scene.far] {
            let frames: Vec<_> = claimed
                .iter()
                .filter(|source| **source != to.address())
                .map(|source| scene.claim(*source, to))
                .collect::<Result<_>>()?;
            never_arrive(&link, &frames, to)?;
        }
        eventually(PATIENCE, "the drops are counted", || {
            let now = scene.drops()?;
            ensure!(now >= before + 8, "{before} before, {now} now");
            Ok(())
        })?;
        scene.talk()
    });
}

#[test]
fn a_forged_mac_is_dropped_and_takes_nobody_s_traffic() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let link = scene.evil_link()?;
        let (bridge, victim_mac) = (scene.bridge_mac()?, scene.victim.mac()?);
        let from = SocketAddrV4::new(scene.evil.address(), PORT);
        let to = SocketAddrV4::new(scene.far.address(), PORT);
        let stolen = |mac| packet::udp_frame((bridge, mac), from, to, b"forged");
        never_arrive(&link, &[stolen(victim_mac), stolen(bridge), stolen([2, 0, 0, 0, 0, 9])], &scene.far)?;
        let capture =
            Capture::inbound(scene.evil.ns(), INTERFACE, &format!("dst host {}", scene.victim.address()))?;
        for _ in 0..10 {
            link.send(&stolen(victim_mac))?;
            probe::reach(scene.far.ns(), scene.victim.service(), "victim")?;
        }
        let stolen_packets = capture.finish()?;
        ensure!(stolen_packets.is_empty(), "the attacker got {stolen_packets:#?}");
        Ok(())
    });
}

#[test]
fn forged_arp_takes_nobody_s_traffic() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let link = scene.evil_link()?;
        let (bridge, evil_mac) = (scene.bridge_mac()?, scene.evil.mac()?);
        let node = scene.hosts[0].status(&[])?["node"]["address"].as_str().unwrap_or_default().parse()?;
        let victim = Station { mac: scene.victim.mac()?, ip: scene.victim.address() };
        let lie = Station { mac: evil_mac, ip: scene.victim.address() };
        let gateway_lie = Station { mac: evil_mac, ip: node };
        let mut frames = Vec::new();
        for target in [BROADCAST, bridge, victim.mac] {
            for operation in [Arp::Request, Arp::Reply] {
                frames.push(packet::arp(operation, lie, Station { mac: bridge, ip: node }, target));
                frames.push(packet::arp(operation, gateway_lie, victim, target));
            }
        }
        let neighbours = |scene: &Scene| scene.hosts[0].ns()?.ip("neigh show nud permanent dev weave");
        let before = neighbours(&scene)?;
        let capture = Capture::inbound(
            scene.evil.ns(),
            INTERFACE,
            &format!(
                "src host {} or (dst host {} and not arp)",
                scene.victim.address(),
                scene.victim.address()
            ),
        )?;
        never_arrive(&link, &frames, &scene.victim)?;
        for _ in 0..5 {
            frames.iter().try_for_each(|frame| link.send(frame))?;
            probe::reach(scene.far.ns(), scene.victim.service(), "victim")?;
            probe::reach(scene.victim.ns(), scene.far.service(), "far")?;
        }
        ensure!(
            neighbours(&scene)? == before,
            "the node's neighbours changed:\n{before}\n{}",
            neighbours(&scene)?
        );
        let stolen = capture.finish()?;
        ensure!(stolen.is_empty(), "the attacker got {stolen:#?}");
        Ok(())
    });
}

#[test]
fn a_frame_straight_to_a_neighbour_or_to_everybody_is_dropped() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let link = scene.evil_link()?;
        let from = SocketAddrV4::new(scene.evil.address(), PORT);
        let to = SocketAddrV4::new(scene.victim.address(), PORT);
        let all = SocketAddrV4::new(Ipv4Addr::BROADCAST, PORT);
        let group = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), PORT);
        let (own, victim) = (scene.evil.mac()?, scene.victim.mac()?);
        let frames = [
            packet::udp_frame((victim, own), from, to, b"forged"),
            packet::udp_frame((BROADCAST, own), from, to, b"forged"),
            packet::udp_frame((BROADCAST, own), from, all, b"forged"),
            packet::udp_frame(([1, 0, 0x5e, 0, 0, 1], own), from, group, b"forged"),
            packet::ethernet(
                victim,
                own,
                [0x88, 0xb5],
                b"some other protocol, long enough to be a frame......",
            ),
        ];
        never_arrive(&link, &frames, &scene.victim)?;
        scene.talk()
    });
}

#[test]
fn a_pod_that_gives_itself_another_address_or_mac_reaches_nobody() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let (evil, stolen) = (scene.evil.ns(), scene.victim.address());
        evil.ip(&format!("addr add {stolen}/32 dev {INTERFACE}"))?;
        let forged = format!("ping -n -q -c 1 -W 1 -I {stolen} {}", scene.far.address());
        ensure!(evil.run(&forged).is_err(), "a pod spoke as its neighbour");
        evil.ip(&format!("addr del {stolen}/32 dev {INTERFACE}"))?;
        probe::reach(evil, scene.far.service(), "far")?;
        evil.ip(&format!("link set {INTERFACE} address 02:00:00:00:00:09"))?;
        ensure!(probe::ping(evil, scene.far.address()).is_err(), "a pod spoke with another MAC");
        probe::reach(scene.far.ns(), scene.victim.service(), "victim").map(drop)
    });
}

#[test]
fn a_stranger_s_vxlan_packets_are_dropped_and_a_peer_s_only_from_its_own_ranges() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let third = scene.hosts[1].pod("third")?;
        let stranger = lab.host("stranger")?;
        let vtep = scene.hosts[0].ns()?.mac("weave-vx")?;
        let peer_vtep = scene.hosts[1].ns()?.mac("weave-vx")?;
        let inner = |source: Ipv4Addr| {
            let (from, to) =
                (SocketAddrV4::new(source, PORT), SocketAddrV4::new(scene.victim.address(), PORT));
            packet::vxlan(VXLAN_NETWORK, &packet::udp_frame((vtep, peer_vtep), from, to, b"forged"))
        };
        let send = |from: &Host, payload: &[u8]| -> Result<()> {
            let node = from.ns()?;
            let target = (scene.hosts[0].address(), VXLAN_PORT);
            node.enter(|| -> Result<()> {
                let socket = std::net::UdpSocket::bind((from.address(), 0))?;
                socket.send_to(payload, target).map(drop).context("sending")
            })?
        };
        let capture = |pod: &Pod| Capture::inbound(pod.ns(), INTERFACE, &format!("udp port {PORT}"));
        let honest = capture(&scene.victim)?;
        send(&scene.hosts[1], &inner(third.address()))?;
        honest.wait(PATIENCE).context("a peer's own packet does not arrive")?;
        let forged = capture(&scene.victim)?;
        for source in [third.address(), scene.evil.address(), Ipv4Addr::new(192, 0, 2, 1)] {
            send(&stranger, &inner(source))?;
        }
        for source in [scene.evil.address(), Ipv4Addr::new(192, 0, 2, 1), scene.hosts[0].address()] {
            send(&scene.hosts[1], &inner(source))?;
        }
        throughout(WATCH, "nothing forged arrives", || {
            let seen = forged.lines();
            ensure!(seen.is_empty(), "the victim saw {seen:#?}");
            Ok(())
        })?;
        ensure!(scene.hosts[0].ns()?.has_link(UPLINK)?, "the uplink is gone");
        scene.talk()
    });
}

/// Behind its node's address, a pod's datagram to another node would look like a packet of that node.
#[test]
fn a_pod_s_own_vxlan_packets_reach_no_other_node_s_pods() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let vteps = (scene.hosts[1].ns()?.mac("weave-vx")?, scene.hosts[0].ns()?.mac("weave-vx")?);
        let inner = |source: &Pod, to: &Pod| {
            let (from, to) =
                (SocketAddrV4::new(source.address(), PORT), SocketAddrV4::new(to.address(), PORT));
            packet::vxlan(VXLAN_NETWORK, &packet::udp_frame(vteps, from, to, b"forged"))
        };
        let send = |from: &weave_netns::ns::Netns, payload: &[u8]| -> Result<()> {
            from.enter(|| -> Result<()> {
                let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.send_to(payload, (scene.hosts[1].address(), VXLAN_PORT)).map(drop).context("sending")
            })?
        };
        let capture = || Capture::inbound(scene.far.ns(), INTERFACE, &format!("udp port {PORT}"));
        let honest = capture()?;
        send(&*scene.hosts[0].ns()?, &inner(&scene.victim, &scene.far))?;
        honest.wait(PATIENCE).context("the node's own packet does not arrive")?;
        let (forged, before) = (capture()?, scene.drops()?);
        for source in [&scene.victim, &scene.evil] {
            send(scene.evil.ns(), &inner(source, &scene.far))?;
        }
        throughout(WATCH, "nothing forged arrives", || {
            let seen = forged.lines();
            ensure!(seen.is_empty(), "a pod of the other node saw {seen:#?}");
            Ok(())
        })?;
        eventually(PATIENCE, "the drops are counted", || {
            let now = scene.drops()?;
            ensure!(now >= before + 2, "{before} before, {now} now");
            Ok(())
        })?;
        scene.talk()
    });
}

#[test]
fn a_stranger_s_packets_with_a_pod_s_address_are_dropped_and_counted() {
    run_in_lab(|lab| {
        let scene = Scene::new(lab)?;
        let stranger = lab.host("stranger")?;
        let macs = (scene.hosts[0].ns()?.mac(UPLINK)?, stranger.ns()?.mac(UPLINK)?);
        let link = RawLink::open(&*stranger.ns()?, UPLINK)?;
        let claim = |source: Ipv4Addr| {
            let to = SocketAddrV4::new(scene.victim.address(), PORT);
            packet::udp_frame(macs, SocketAddrV4::new(source, PORT), to, b"forged")
        };
        does_arrive(&link, &claim(stranger.address()), &scene.victim)?;
        let before = scene.drops()?;
        let node = scene.hosts[1].status(&[])?["node"]["address"].as_str().unwrap_or_default().parse()?;
        let claimed = [scene.far.address(), scene.evil.address(), node, Ipv4Addr::new(10, 47, 255, 254)];
        let frames: Vec<_> = claimed.into_iter().map(claim).collect();
        never_arrive(&link, &frames, &scene.victim)?;
        eventually(PATIENCE, "the drops are counted", || {
            let now = scene.drops()?;
            ensure!(now >= before + 4, "{before} before, {now} now");
            Ok(())
        })?;
        scene.talk()
    });
}
