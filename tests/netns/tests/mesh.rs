//! Peers find each other, share out the range, and refuse in clear words whom they must refuse.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weave_netns::capture::Capture;
use weave_netns::host::UPLINK;
use weave_netns::probe::{self, Server};
use weave_netns::wait::throughout;
use weave_netns::{AgentOptions, Host, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn first_starts_may_be_staggered_and_the_early_ones_say_what_they_wait_for() {
    run_in_lab(|lab| {
        let hosts = [lab.host("a")?, lab.host("b")?, lab.host("c")?];
        let options = |others: &[&Host]| AgentOptions::founder(3, others);
        hosts[0].launch(&options(&[&hosts[1], &hosts[2]]))?;
        eventually(PATIENCE, "a founder that is alone waits", || waits(&hosts[0]))?;
        let start = Instant::now();
        let refused =
            hosts[0].pod("early").err().context("an address was given out before the first split")?;
        ensure!(start.elapsed() < Duration::from_secs(20), "the refusal took {:?}", start.elapsed());
        let told = format!("{refused:#}");
        ensure!(told.contains('3'), "the refusal does not say what it waits for: {told}");
        hosts[1].launch(&options(&[&hosts[0], &hosts[2]]))?;
        hosts[1].wait_linked(&[&hosts[0]])?;
        throughout(Duration::from_secs(2), "two of three founders wait", || waits(&hosts[1]))?;
        hosts[2].launch(&options(&[&hosts[0], &hosts[1]]))?;
        hosts.iter().try_for_each(|host| host.wait_ready())?;
        one_universe(&[&hosts[0], &hosts[1], &hosts[2]])?;
        equal_shares(&hosts[0], 3)
    });
}

#[test]
fn seeds_that_are_named_share_the_range_without_a_vote_and_an_observer_gets_a_part_of_it() {
    run_in_lab(|lab| {
        let (one, other, late) = (lab.host("one")?, lab.host("other")?, lab.host("late")?);
        let options = |init: &str, peer: &Host| AgentOptions {
            init: Some(init.to_owned()),
            ..AgentOptions::dialling(&[peer])
        };
        // A peer has its name from its first start, so the list is written after one as observers.
        let mut names = Vec::new();
        for (host, peer) in [(&one, &other), (&other, &one)] {
            host.launch(&options("observer", peer))?;
            eventually(PATIENCE, "an observer waits", || waits(host))?;
            throughout(Duration::from_secs(2), "an observer founds nothing", || waits(host))?;
            names.push(host.status(&[])?["name"].as_str().context("no name")?.to_owned());
            host.stop_agent()?;
        }
        let seeds = format!("seed={}", names.join(","));
        // Neither asks the other: one that is alone gives out addresses.
        one.launch(&options(&seeds, &other))?;
        one.wait_ready()?;
        other.launch(&options(&seeds, &one))?;
        other.wait_ready()?;
        equal_shares(&one, 2)?;
        late.launch(&options("observer", &one))?;
        late.wait_ready()?;
        one_universe(&[&one, &other, &late])?;
        let (pod, far) = (late.pod("pod")?, other.pod("far")?);
        let _server = far.serve()?;
        eventually(PATIENCE, "the observer's pod is part of the network", || {
            probe::reach(pod.ns(), far.service(), "far")
        })?;
        Ok(())
    });
}

#[test]
fn joiner_after_joiner_makes_a_mesh_of_eight_in_which_nobody_owns_more_than_twice_another() {
    run_in_lab(|lab| {
        let first = lab.host("n1")?;
        first.launch(&AgentOptions::default())?;
        first.wait_ready()?;
        let mut hosts = vec![first];
        for number in 2..=8 {
            let joiner = lab.host(&format!("n{number}"))?;
            joiner.launch(&AgentOptions::dialling(&[&hosts[0]]))?;
            joiner.wait_ready()?;
            hosts.push(joiner);
        }
        let pods: Vec<Pod> = hosts.iter().map(|host| host.pod("pod")).collect::<Result<_>>()?;
        let _servers: Vec<Server> = pods.iter().map(Pod::serve).collect::<Result<_>>()?;
        for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to))) {
            eventually(PATIENCE, "every pod reaches every pod", || {
                probe::reach(from.ns(), to.service(), to.name()).with_context(|| {
                    format!(
                        "{} ({}) to {} ({})",
                        from.container(),
                        from.address(),
                        to.container(),
                        to.address()
                    )
                })
            })?;
        }
        one_universe(&hosts.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
        eventually(PATIENCE, "the shares even out", || {
            let shares = shares(&hosts[0])?;
            let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
            let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
            ensure!(shares.len() == 8 && most <= 2 * least, "the shares are {shares:?}");
            Ok(())
        })
    });
}

#[test]
fn peers_with_different_secrets_refuse_each_other_say_so_and_do_not_hammer() {
    run_in_lab(|lab| {
        let (one, other) = (lab.host("one")?, lab.host("other")?);
        one.launch(&AgentOptions::founder(2, &[&other]).secret("correct horse battery staple 1"))?;
        other.launch(&AgentOptions::founder(2, &[&one]).secret("another secret altogether 2"))?;
        for (host, peer) in [(&one, &other), (&other, &one)] {
            wait_refused(host, peer, "secret")?;
        }
        let capture = Capture::start(&*one.ns()?, UPLINK, "udp port 6783")?;
        throughout(Duration::from_secs(5), "nothing is established", || not_established(&one))?;
        let packets = capture.finish()?.len();
        ensure!(packets < 500, "{packets} packets in 5 s between peers that refuse each other");
        other.stop_agent()?;
        other.launch(&AgentOptions::founder(2, &[&one]).secret("correct horse battery staple 1"))?;
        one.wait_ready()?;
        other.wait_ready()
    });
}

#[test]
fn peers_with_different_ranges_refuse_each_other_and_both_say_so() {
    run_in_lab(|lab| {
        let (one, other) = (lab.host("one")?, lab.host("other")?);
        one.launch(&AgentOptions::founder(2, &[&other]).range("10.32.0.0/16"))?;
        other.launch(&AgentOptions::founder(2, &[&one]).range("10.48.0.0/16"))?;
        wait_refused(&one, &other, "10.48.0.0/16")?;
        wait_refused(&other, &one, "10.32.0.0/16")
    });
}

#[test]
fn peers_that_were_told_different_numbers_of_founders_refuse_each_other_and_both_say_so() {
    run_in_lab(|lab| {
        let (one, other) = (lab.host("one")?, lab.host("other")?);
        one.launch(&AgentOptions::founder(2, &[&other]))?;
        other.launch(&AgentOptions::founder(3, &[&one]))?;
        wait_refused(&one, &other, "3")?;
        wait_refused(&other, &one, "2")
    });
}

#[test]
fn two_meshes_that_each_split_the_range_refuse_to_become_one() {
    run_in_lab(|lab| {
        let (one, other) = (lab.host("one")?, lab.host("other")?);
        for host in [&one, &other] {
            host.launch(&AgentOptions::default())?;
            host.wait_ready()?;
        }
        one.weave(&["connect", &other.address().to_string()])?;
        wait_refused(&one, &other, "split twice")?;
        wait_refused(&other, &one, "split twice")?;
        throughout(Duration::from_secs(2), "the meshes stay apart", || not_established(&one))?;
        let (pod, stranger) = (one.pod("pod")?, other.pod("stranger")?);
        ensure!(
            probe::ping(pod.ns(), stranger.address()).is_err() || pod.address() == stranger.address(),
            "a pod of another mesh answers"
        );
        Ok(())
    });
}

#[test]
fn an_agent_told_to_dial_itself_says_so_and_works() {
    run_in_lab(|lab| {
        let host = lab.host("one")?;
        host.launch(&AgentOptions::founder(1, &[&host]))?;
        host.wait_ready()?;
        let pod = host.pod("pod")?;
        probe::ping(pod.ns(), pod.address())?;
        throughout(Duration::from_secs(2), "no connection to oneself", || not_established(&host))
    });
}

#[test]
fn a_cloned_disk_on_another_machine_makes_another_peer() {
    run_in_lab(|lab| {
        let hosts = [lab.host("original")?, lab.host("clone")?];
        hosts[0].launch(&AgentOptions::default())?;
        hosts[0].wait_ready()?;
        let name = hosts[0].status(&[])?["name"].clone();
        hosts[0].stop_agent()?;
        hosts[1].clone_disk(&hosts[0])?;
        hosts[0].relaunch()?;
        hosts[0].wait_ready()?;
        ensure!(hosts[0].status(&[])?["name"] == name, "a restart made another peer");
        hosts[1].launch(&AgentOptions::dialling(&[&hosts[0]]))?;
        hosts[1].wait_ready()?;
        ensure!(hosts[1].status(&[])?["name"] != name, "the clone is {name} as well");
        hosts[1].wait_connected(&[&hosts[0]])?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _server = other.serve()?;
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        Ok(())
    });
}

#[test]
fn two_live_holders_of_one_identity_refuse_and_name_each_other() {
    run_in_lab(|lab| {
        let machine = |name: &str| weave_netns::HostOptions::new(name).machine_id("the-same-machine");
        let hosts = [lab.host_with(machine("original"))?, lab.host_with(machine("twin"))?];
        hosts[0].launch(&AgentOptions::default())?;
        hosts[0].wait_ready()?;
        hosts[0].stop_agent()?;
        hosts[1].clone_disk(&hosts[0])?;
        hosts[0].relaunch()?;
        hosts[0].wait_ready()?;
        hosts[1].launch(&AgentOptions::dialling(&[&hosts[0]]))?;
        for (host, twin) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
            eventually(PATIENCE, &format!("{} names its twin", host.name()), || {
                let told = format!("{}{}", host.status(&[])?, host.status(&["connections"])?);
                ensure!(told.contains(&twin.address().to_string()) && told.contains("identity"), "{told}");
                Ok(())
            })?;
        }
        throughout(Duration::from_secs(2), "the twins stay apart", || not_established(&hosts[0]))
    });
}

#[test]
fn two_holders_of_one_identity_that_meet_at_a_third_peer_both_give_out_no_address_and_say_why() {
    run_in_lab(|lab| {
        let machine = |name: &str| weave_netns::HostOptions::new(name).machine_id("the-same-machine");
        let third = lab.host("third")?;
        let hosts = [lab.host_with(machine("original"))?, lab.host_with(machine("twin"))?];
        third.launch(&AgentOptions::founder(2, &[&hosts[0]]))?;
        hosts[0].launch(&AgentOptions::founder(2, &[&third]))?;
        hosts[0].wait_ready()?;
        hosts[0].stop_agent()?;
        hosts[1].clone_disk(&hosts[0])?;
        hosts[0].relaunch()?;
        hosts[0].wait_connected(&[&third])?;
        hosts[0].pod("before")?;
        // The twins cannot reach each other.
        lab.cut(&[&hosts[0]], &[&hosts[1]])?;
        hosts[1].launch(&AgentOptions::founder(2, &[&third]))?;
        for (host, twin) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
            eventually(PATIENCE, &format!("{} names its twin", host.name()), || {
                let ipam = host.status(&["ipam"])?;
                let state = ipam["state"].as_str().unwrap_or_default();
                ensure!(ipam["ready"] == Value::Bool(false), "{} is ready: {state}", host.name());
                ensure!(state.contains(&twin.address().to_string()) && state.contains("identity"), "{state}");
                ensure!(host.log().contains("two running agents hold one identity"), "the log does not tell");
                Ok(())
            })?;
            let refused = host.pod("pod").err().context("an address was given out")?;
            let told = format!("{refused:#}");
            ensure!(told.contains("identity") && told.contains("\"code\":11"), "not code 11: {told}");
        }
        third.pod("pod").map(drop)
    });
}

#[test]
fn a_living_peer_is_not_removed() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b", "c"])?;
        let name = hosts[2].status(&[])?["name"].as_str().unwrap_or_default().to_owned();
        let refused = hosts[0].try_weave(&["rmpeer", &name])?;
        ensure!(!refused.success(), "a living peer was removed: {}", refused.stdout);
        ensure!(refused.stderr.contains("--force"), "the way out is not named: {}", refused.stderr);
        hosts[2].pod("pod").map(drop)
    });
}

#[test]
fn a_removed_peer_that_returns_cuts_off_pods_with_lost_addresses_and_joins_as_a_new_peer_by_itself() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b", "c"])?;
        let (near, returned) = (hosts[0].pod("near")?, &hosts[2]);
        let lost = returned.pod("lost")?;
        let _server = near.serve()?;
        eventually(PATIENCE, "the pods talk", || probe::reach(lost.ns(), near.service(), "near"))?;
        let before = returned.status(&[])?;
        returned.kill_agent()?;
        let name = before["name"].as_str().unwrap_or_default().to_owned();
        eventually(PATIENCE, "the silent peer may be removed", || hosts[0].weave(&["rmpeer", &name]))?;
        returned.relaunch()?;
        eventually(PATIENCE, "it is another peer, with another address of its own", || {
            let status = returned.status(&[])?;
            ensure!(status["name"] != before["name"], "it is {name} still");
            ensure!(status["node"]["address"].is_string(), "no address yet");
            ensure!(status["node"]["address"] != before["node"]["address"], "it kept its address");
            Ok(())
        })?;
        returned.wait_ready()?;
        ensure!(probe::reach(lost.ns(), near.service(), "near").is_err(), "a lost address is still in use");
        let shown = returned.weave(&["ps"])?;
        ensure!(shown.contains(&lost.address().to_string()) && shown.contains("lost"), "not shown: {shown}");
        let warned = returned.weave(&["status"])?;
        ensure!(warned.contains("cut off") && warned.contains(&lost.address().to_string()), "{warned}");
        let fresh = returned.pod("fresh")?;
        eventually(PATIENCE, "a new pod is part of the network", || {
            probe::reach(fresh.ns(), near.service(), "near")
        })?;
        lost.detach(returned)?;
        eventually(PATIENCE, "a pod that is gone is forgotten", || {
            let shown = returned.weave(&["ps"])?;
            ensure!(!shown.contains("lost"), "{shown}");
            Ok(())
        })?;
        returned.stop_agent()?;
        returned.relaunch()?;
        returned.wait_ready()?;
        ensure!(returned.status(&[])?["name"] != before["name"], "it went back to {name}");
        one_universe(&[&hosts[0], &hosts[1], returned])
    });
}

#[test]
fn a_range_that_overlaps_a_route_of_the_host_is_refused_by_name() {
    run_in_lab(|lab| {
        let host = lab.host("one")?;
        host.ns()?.ip("route add 10.40.0.0/16 via 172.30.0.254")?;
        host.launch(&AgentOptions::default())?;
        let (status, log) = host.wait_ended()?;
        ensure!(!status.success(), "the agent ended as if all were well");
        ensure!(
            log.contains("10.40.0.0/16") && log.contains("10.32.0.0/12"),
            "the route is not named: {log}"
        );
        ensure!(!host.ns()?.has_link("weave")?, "a refused start left a bridge");
        host.launch(&AgentOptions::default().range("10.48.0.0/16"))?;
        host.wait_ready()
    });
}

#[test]
fn a_founder_that_was_wiped_joins_as_somebody_else_and_no_address_is_given_twice() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b", "c"])?;
        let pods: Vec<Pod> = hosts.iter().map(|host| host.pod("pod")).collect::<Result<_>>()?;
        let lost = &hosts[2];
        let before = lost.status(&[])?["name"].clone();
        lost.power_off()?;
        lost.wipe()?;
        lost.power_on()?;
        lost.relaunch()?;
        lost.wait_ready()?;
        ensure!(lost.status(&[])?["name"] != before, "the wiped founder took its old name {before}");
        let fresh: Vec<Pod> =
            (0..20).map(|number| lost.pod(&format!("new{number}"))).collect::<Result<_>>()?;
        for pod in &fresh {
            ensure!(
                pods.iter().all(|old| old.address() != pod.address()),
                "{} is given twice",
                pod.address()
            );
        }
        one_universe(&[&hosts[0], &hosts[1], lost])?;
        let (new, _server) = (&fresh[0], pods[0].serve()?);
        eventually(PATIENCE, "the new pods are part of the network", || {
            probe::reach(new.ns(), pods[0].service(), "pod")
        })?;
        removed_peer_s_range_returns(&hosts[0], before.as_str().unwrap_or_default())
    });
}

#[test]
fn a_founder_that_was_wiped_before_the_first_split_takes_part_in_it_once() {
    run_in_lab(|lab| {
        let hosts = [lab.host("a")?, lab.host("b")?, lab.host("c")?];
        hosts[0].launch(&AgentOptions::founder(3, &[&hosts[1], &hosts[2]]))?;
        hosts[1].launch(&AgentOptions::founder(3, &[&hosts[0], &hosts[2]]))?;
        hosts[0].wait_linked(&[&hosts[1]])?;
        hosts[1].kill_agent()?;
        hosts[1].wipe()?;
        hosts[1].relaunch()?;
        hosts[1].wait_linked(&[&hosts[0]])?;
        hosts[2].launch(&AgentOptions::founder(3, &[&hosts[0], &hosts[1]]))?;
        hosts.iter().try_for_each(|host| host.wait_ready())?;
        one_universe(&[&hosts[0], &hosts[1], &hosts[2]])
    });
}

/// The ranges of a peer that is gone for good come back through `weave rmpeer`.
fn removed_peer_s_range_returns(host: &Host, peer: &str) -> Result<()> {
    // A peer that spoke a moment ago counts as alive until its silence is noticed.
    eventually(PATIENCE, "the wiped peer may be removed", || host.weave(&["rmpeer", peer]))?;
    eventually(PATIENCE, "the removed peer owns nothing", || {
        let ipam = host.status(&["ipam"])?;
        let owns = ipam["shares"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|share| share["peer"].as_str() == Some(peer) && share["addresses"].as_u64() != Some(0));
        ensure!(!owns, "{ipam}");
        Ok(())
    })
}

fn waits(host: &Host) -> Result<()> {
    let ipam = host.status(&["ipam"])?;
    ensure!(ipam["ready"] == Value::Bool(false), "{} is ready: {ipam}", host.name());
    ensure!(!ipam["state"].as_str().unwrap_or_default().is_empty(), "no reason in {ipam}");
    Ok(())
}

fn not_established(host: &Host) -> Result<()> {
    let connections = host.status(&["connections"])?;
    let up = connections.as_array().into_iter().flatten().any(|one| one["state"] == "established");
    ensure!(!up, "{} has a connection: {connections}", host.name());
    Ok(())
}

/// Waits until `host` shows a failed connection to `peer` whose text holds `word`.
fn wait_refused(host: &Host, peer: &Host, word: &str) -> Result<()> {
    let address = format!("{}:", peer.address());
    eventually(PATIENCE, &format!("{} says why it refuses {}", host.name(), peer.name()), || {
        let connections = host.status(&["connections"])?;
        let told = connections.as_array().into_iter().flatten().any(|connection| {
            let info = connection["info"].as_str().unwrap_or_default();
            connection["address"].as_str().is_some_and(|shown| shown.starts_with(&address))
                && connection["state"] != "established"
                && !info.is_empty()
                && info.contains(word)
        });
        ensure!(told, "connections are {connections}");
        Ok(())
    })
}

fn one_universe(hosts: &[&Host]) -> Result<()> {
    let mut ids = Vec::new();
    for host in hosts {
        ids.push(host.status(&["ipam"])?["universe"].clone());
    }
    ensure!(ids.iter().all(|id| *id == ids[0] && !id.is_null()), "the universes are {ids:?}");
    Ok(())
}

fn shares(host: &Host) -> Result<Vec<u64>> {
    let ipam = host.status(&["ipam"])?;
    let shares = ipam["shares"].as_array().with_context(|| format!("no shares in {ipam}"))?;
    Ok(shares.iter().filter_map(|share| share["addresses"].as_u64()).collect())
}

fn equal_shares(host: &Host, founders: usize) -> Result<()> {
    let shares = shares(host)?;
    ensure!(shares.len() == founders, "the shares are {shares:?}");
    let (least, most) = (shares.iter().min(), shares.iter().max());
    let difference = most.copied().unwrap_or(0) - least.copied().unwrap_or(0);
    // A block is at most a 16th of a founder's part.
    ensure!(difference * 16 <= shares.iter().sum::<u64>() / founders as u64, "unequal shares: {shares:?}");
    Ok(())
}
