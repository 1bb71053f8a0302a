//! The laboratory itself, without any agent: its tools find what they must find, its rule sets bite, its attacks
//! arrive, and the network made by hand works, so that a failure elsewhere is the product's.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::attack::RawLink;
use weave_netns::capture::Capture;
use weave_netns::host::UPLINK;
use weave_netns::packet;
use weave_netns::probe::{self, Flow, PORT, Server};
use weave_netns::reference::{ReferenceNode, ReferencePod, UNIVERSE};
use weave_netns::rules::{self, Service};
use weave_netns::settings::Settings;
use weave_netns::wait::throughout;
use weave_netns::{Host, Lab, eventually, leak, ns, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(5);

/// Two nodes of the hand-made network: two pods on the first, one on the second.
struct HandMade {
    hosts: [Arc<Host>; 2],
    pods: Vec<(&'static str, ReferencePod, Server)>,
}

impl HandMade {
    fn new(lab: &Lab) -> Result<Self> {
        let hosts = [lab.host("a")?, lab.host("b")?];
        let nodes = [ReferenceNode::set_up(&hosts[0], 1)?, ReferenceNode::set_up(&hosts[1], 2)?];
        nodes[0].know(&hosts[0], &nodes[1])?;
        nodes[1].know(&hosts[1], &nodes[0])?;
        let pods = [("client", 0), ("near", 0), ("far", 1)]
            .map(|(name, place)| {
                let pod = nodes[place].pod(&hosts[place], name)?;
                let server = Server::start(&pod.namespace, name, PORT)?;
                Ok((name, pod, server))
            })
            .into_iter()
            .collect::<Result<_>>()?;
        let made = Self { hosts, pods };
        eventually(PATIENCE, "the hand-made network works", || made.talk())?;
        Ok(made)
    }

    fn talk(&self) -> Result<()> {
        for (_, from, _) in &self.pods {
            for (name, to, _) in &self.pods {
                let seen = probe::reach(&from.namespace, (to.address, PORT).into(), name)?;
                ensure!(seen.client.ip() == from.address, "{name} sees {}", seen.client);
            }
        }
        Ok(())
    }
}

#[test]
fn a_lab_leaves_nothing_behind_and_a_killed_lab_is_swept_up_by_the_next() {
    run_in_lab(|lab| {
        let settings = Settings::read()?;
        // No process has this id: the kernel's largest is 2^22.
        let orphan = "wvffffffff-0";
        let left = ns::Netns::create(&format!("{orphan}-node"))?;
        std::fs::create_dir_all(settings.scratch.join(orphan))?;
        let mut sleeper = left.start(weave_netns::command::line("sleep 60"))?;
        drop(Lab::new(&settings)?);
        ensure!(ns::names(orphan)?.is_empty(), "the orphan's namespace is left");
        ensure!(!settings.scratch.join(orphan).exists(), "the orphan's files are left");
        ensure!(sleeper.wait()?.code().is_none(), "the orphan's process ended by itself");
        ensure!(leak::check(lab.tag(), lab.scratch(), &[]).is_err(), "a lab that is up counts as gone");
        Ok(())
    });
}

#[test]
fn probes_see_each_other_and_flows_count_what_a_cut_loses() {
    run_in_lab(|lab| {
        let made = HandMade::new(lab)?;
        let (_, from, _) = &made.pods[0];
        let target = SocketAddr::from((made.pods[2].1.address, PORT));
        let flow = Flow::udp(&from.namespace, target, Duration::from_millis(5))?;
        let steady = Flow::tcp(&from.namespace, target, Duration::from_millis(5))?;
        throughout(Duration::from_millis(300), "the flows run", || Ok(()))?;
        lab.cut(&[&made.hosts[0]], &[&made.hosts[1]])?;
        throughout(Duration::from_millis(300), "nobody is reached", || {
            ensure!(probe::ask_udp(&from.namespace, target).is_err(), "a cut path works");
            Ok(())
        })?;
        lab.heal()?;
        eventually(PATIENCE, "the path works again", || probe::ask_tcp(&from.namespace, target))?;
        let report = flow.finish()?;
        ensure!(report.lost > 10 && report.lost < report.sent, "{report:?}");
        ensure!(report.longest_silence > Duration::from_millis(250), "{report:?}");
        let report = steady.finish()?;
        ensure!(report.sent > 10 && report.lost == 0, "{report:?}");
        Ok(())
    });
}

#[test]
fn loss_loses_about_what_it_says() {
    run_in_lab(|lab| {
        let made = HandMade::new(lab)?;
        lab.lose(30, &[&made.hosts[0]], &[&made.hosts[1]])?;
        let target = SocketAddr::from((made.pods[2].1.address, PORT));
        let flow = Flow::udp(&made.pods[0].1.namespace, target, Duration::from_millis(2))?;
        throughout(Duration::from_secs(1), "the flow runs", || Ok(()))?;
        let report = flow.finish()?;
        // Question and answer: 1 - 0.7 * 0.7 = 51 %.
        ensure!(report.lost * 10 > report.sent * 3 && report.lost * 10 < report.sent * 7, "{report:?}");
        Ok(())
    });
}

#[test]
fn a_raw_frame_arrives_and_a_capture_shows_it() {
    run_in_lab(|lab| {
        let made = HandMade::new(lab)?;
        let (_, from, _) = &made.pods[0];
        let (_, to, _) = &made.pods[2];
        let link = RawLink::open(&from.namespace, "eth0")?;
        let gateway = made.hosts[0].ns()?.mac("cni0")?;
        let forged = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1);
        let frame = packet::udp_frame(
            (gateway, from.namespace.mac("eth0")?),
            forged,
            SocketAddrV4::new(to.address, 9999),
            b"forged",
        );
        let capture = Capture::start(&to.namespace, "eth0", "udp port 9999")?;
        link.send(&frame)?;
        capture.wait(PATIENCE)?;
        let seen = capture.finish()?;
        ensure!(seen.iter().any(|line| line.contains("192.0.2.1")), "{seen:#?}");
        Ok(())
    });
}

#[test]
fn a_capture_on_the_uplink_shows_what_leaves_in_the_clear() {
    run_in_lab(|lab| {
        let made = HandMade::new(lab)?;
        let node = made.hosts[0].ns()?;
        let capture = Capture::start(&node, UPLINK, &format!("net {UNIVERSE}"))?;
        made.talk()?;
        ensure!(capture.lines().is_empty(), "the tunnel shows in the clear: {:#?}", capture.lines());
        node.ip("link del flannel.1")?;
        let _ = probe::ping(&made.pods[0].1.namespace, made.pods[2].1.address);
        capture.wait(PATIENCE).context("what leaks is not seen")
    });
}

#[test]
fn docker_s_rules_stop_what_nobody_accepts() {
    run_in_lab(|lab| {
        let made = HandMade::new(lab)?;
        rules::docker(&*made.hosts[0].ns()?)?;
        let (_, from, _) = &made.pods[0];
        ensure!(probe::ping(&from.namespace, made.pods[2].1.address).is_err(), "Docker's rules let it pass");
        Ok(())
    });
}

#[test]
fn firewalld_s_rules_reject_what_is_not_trusted_and_pass_what_is() {
    run_in_lab(|lab| {
        let made = HandMade::new(lab)?;
        let (_, from, _) = &made.pods[0];
        let node = made.hosts[0].ns()?;
        rules::firewalld(&node, &[])?;
        ensure!(
            probe::ping(&from.namespace, made.pods[2].1.address).is_err(),
            "firewalld's rules let it pass"
        );
        node.nft("delete table inet firewalld")?;
        rules::firewalld(&node, &["cni0", "flannel.1"])?;
        probe::ping(&from.namespace, made.pods[2].1.address)
    });
}

#[test]
fn kube_proxy_s_rules_serve() {
    run_in_lab(|lab| {
        let made = HandMade::new(lab)?;
        let services: Vec<_> = (0..3_u8)
            .map(|number| Service {
                cluster: SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10 + number), 80),
                node_port: 30080 + u16::from(number),
                endpoint: SocketAddrV4::new(made.pods[usize::from(number)].1.address, PORT),
            })
            .collect();
        for host in &made.hosts {
            rules::kube_proxy(&*host.ns()?, UNIVERSE, &services)?;
        }
        let (_, client, _) = &made.pods[0];
        for (service, (name, _, _)) in services.iter().zip(&made.pods) {
            for server in
                [SocketAddr::from(service.cluster), (made.hosts[0].address(), service.node_port).into()]
            {
                let answer = probe::ask_tcp(&client.namespace, server)?;
                ensure!(answer.server == *name, "{server} is {answer:?}");
                let answer = probe::ask_udp(&client.namespace, server)?;
                ensure!(answer.server == *name, "{server} is {answer:?}");
            }
            let outside = SocketAddr::from((made.hosts[0].address(), service.node_port));
            ensure!(probe::ask_tcp(lab.underlay(), outside)?.server == *name, "{outside} is not {name}");
        }
        Ok(())
    });
}

#[test]
fn a_node_that_lost_power_comes_back_empty_but_with_its_disk() {
    run_in_lab(|lab| {
        let host = lab.host("node")?;
        std::fs::write(host.data_dir().join("kept"), "")?;
        std::fs::write(host.run_dir().join("lost"), "")?;
        host.ns()?.ip("route add 10.99.0.0/16 via 172.30.0.254")?;
        host.power_off()?;
        ensure!(host.ns().is_err(), "a node without power has a namespace");
        host.power_on()?;
        ensure!(
            host.data_dir().join("kept").exists() && !host.run_dir().join("lost").exists(),
            "wrong files"
        );
        ensure!(!host.ns()?.ip("route show")?.contains("10.99"), "a route survived");
        probe::ping(lab.underlay(), host.address())
    });
}
