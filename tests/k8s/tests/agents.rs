//! Agents on a real API server, without kubelets: how they come into the cluster, and what becomes of them when the
//! API server, an object or a Node goes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weave_k8s::agents::{Agents, GRACE, PATIENCE, condition, own_name, shares};
use weave_netns::wait::{eventually, throughout};
use weave_netns::{Host, probe, run_in_lab};

#[test]
fn agents_that_start_together_share_the_range_and_make_their_nodes_ready() {
    run_in_lab(|lab| {
        let cluster = Agents::start(lab, &["node1", "node2", "node3"])?;
        cluster.launch_all()?;
        for host in &cluster.hosts {
            let shares = shares(host)?;
            let (least, most) = (shares.iter().min().context("none")?, shares.iter().max().context("none")?);
            ensure!(*most - *least <= 1 << 15, "the shares are not equal: {shares:?}");
            let universe = host.status(&[])?["ipam"]["universe"].clone();
            ensure!(universe == cluster.hosts[0].status(&[])?["ipam"]["universe"], "two universes");
            eventually(PATIENCE, "the runtime and the cluster are told", || {
                ensure!(host.cni_conf_dir().join("10-weave.conflist").is_file(), "no conflist");
                let node = cluster.plane.kubectl()?.get(&["node", host.name()])?;
                let available = condition(&node, "NetworkUnavailable").context("no NetworkUnavailable")?;
                ensure!(available == ("False".to_owned(), "WeaveIsUp".to_owned()), "{available:?}");
                let ready = condition(&node, "WeaveReady").context("no WeaveReady")?;
                ensure!(ready.0 == "True", "{ready:?}");
                let peer = cluster.annotation(host.name(), "weave-net/peer")?;
                ensure!(peer == Some(own_name(host)?), "{peer:?} is registered");
                Ok(())
            })?;
        }
        std::fs::remove_file(cluster.hosts[0].cni_conf_dir().join("10-weave.conflist"))?;
        eventually(PATIENCE, "the conflist is put back", || {
            ensure!(cluster.hosts[0].cni_conf_dir().join("10-weave.conflist").is_file(), "not there");
            Ok(())
        })
    });
}

#[test]
fn agents_that_start_one_by_one_are_in_one_universe_and_follow_the_nodes() {
    run_in_lab(|lab| {
        let cluster = Agents::start(lab, &["node1", "node2"])?;
        cluster.make_node(0)?;
        cluster.launch(0)?;
        cluster.is_ready_with(&cluster.hosts[0], 1)?;
        cluster.make_node(1)?;
        let looks_for_node2 = || -> Result<bool> {
            let targets = cluster.hosts[0].status(&[])?["router"]["targets"].to_string();
            Ok(targets.contains(&cluster.hosts[1].address().to_string()))
        };
        eventually(PATIENCE, "the new Node is looked for", || {
            ensure!(looks_for_node2()?, "not yet");
            Ok(())
        })?;
        cluster.launch(1)?;
        cluster.is_ready_with(&cluster.hosts[1], 2)?;
        cluster.hosts[1].stop_agent()?;
        cluster.plane.kubectl()?.run(&["delete", "node", "node2"])?;
        eventually(PATIENCE, "the deleted Node is looked for no longer", || {
            ensure!(!looks_for_node2()?, "still");
            Ok(())
        })
    });
}

#[test]
fn agents_that_start_cut_off_from_each_other_are_in_one_universe_and_give_no_address_twice() {
    run_in_lab(|lab| {
        let cluster = Agents::start(lab, &["node1", "node2", "node3"])?;
        let [one, two, three] = [0, 1, 2].map(|index| &*cluster.hosts[index]);
        lab.cut(&[one], &[two, three])?;
        lab.cut(&[two], &[three])?;
        for index in 0..cluster.hosts.len() {
            cluster.make_node(index)?;
        }
        for index in 0..cluster.hosts.len() {
            cluster.launch(index)?;
        }
        // The API server alone says who the founders are: nobody of them has met another.
        let universe = |host: &Host| -> Result<Value> {
            let status = host.status(&[])?;
            ensure!(status["ipam"]["ready"] == true, "no addresses: {}", status["ipam"]["state"]);
            let links = status["router"]["connections"].as_array().context("no connections")?;
            ensure!(links.iter().all(|link| link["state"] != "established"), "it has met another: {links:?}");
            Ok(status["ipam"]["universe"].clone())
        };
        let mut universes = Vec::new();
        let mut pods = Vec::new();
        for host in &cluster.hosts {
            universes
                .push(eventually(PATIENCE, &format!("{} gives addresses", host.name()), || universe(host))?);
            pods.push(host.pod(&format!("on-{}", host.name()))?);
        }
        ensure!(!universes[0].is_null() && universes.iter().all(|it| *it == universes[0]), "{universes:?}");
        let addresses: BTreeSet<_> = pods.iter().map(weave_netns::Pod::address).collect();
        ensure!(addresses.len() == pods.len(), "an address was given twice: {addresses:?}");
        lab.heal()?;
        for host in &cluster.hosts {
            cluster.is_ready_with(host, 3)?;
        }
        eventually(PATIENCE, "their pods talk", || {
            for from in &pods {
                pods.iter().try_for_each(|to| probe::ping(from.ns(), to.address()))?;
            }
            Ok(())
        })
    });
}

#[test]
fn an_agent_without_a_ring_waits_for_the_api_server_and_one_with_a_ring_does_not() {
    run_in_lab(|lab| {
        let cluster = Agents::start(lab, &["node1", "node2"])?;
        cluster.make_node(0)?;
        cluster.make_node(1)?;
        let options = [cluster.options(0)?, cluster.options(1)?];
        cluster.plane.stop_api("KILL")?;
        for (host, options) in cluster.hosts.iter().zip(&options) {
            host.launch(options)?;
        }
        eventually(PATIENCE, "the status says what is waited for", || {
            let waiting = cluster.hosts[0].status(&[])?["waiting_for"].to_string();
            ensure!(waiting.contains("waiting for the Kubernetes API"), "{waiting}");
            Ok(())
        })?;
        cluster.plane.start_api()?;
        cluster.is_ready_with(&cluster.hosts[0], 2)?;
        cluster.is_ready_with(&cluster.hosts[1], 2)?;

        cluster.plane.stop_api("KILL")?;
        cluster.hosts[0].stop_agent()?;
        cluster.hosts[0].relaunch()?;
        cluster.is_ready_with(&cluster.hosts[0], 2)?;
        eventually(PATIENCE, "the status tells of the API server's absence", || {
            let warnings = cluster.hosts[1].status(&[])?["warnings"].to_string();
            ensure!(warnings.contains("the Kubernetes API cannot be asked"), "{warnings}");
            Ok(())
        })?;
        cluster.plane.start_api()?;
        eventually(PATIENCE, "and no longer when it is back", || {
            let warnings = cluster.hosts[1].status(&[])?["warnings"].to_string();
            ensure!(!warnings.contains("Kubernetes API"), "{warnings}");
            Ok(())
        })
    });
}

#[test]
fn objects_that_somebody_deletes_are_put_back_and_a_new_secret_is_used_at_once() {
    run_in_lab(|lab| {
        let cluster = Agents::start(lab, &["node1", "node2"])?;
        cluster.launch_all()?;
        let kubectl = cluster.plane.kubectl()?;
        let content = |kind: &str, name: &str| -> Result<Value> {
            Ok(kubectl.get(&["-n", "kube-system", kind, name])?["data"].clone())
        };
        for (kind, name) in [("secret", "weave-net-secret"), ("configmap", "weave-net-universe")] {
            let before = content(kind, name)?;
            kubectl.run(&["-n", "kube-system", "delete", kind, name])?;
            eventually(PATIENCE, &format!("{name} is put back"), || {
                ensure!(content(kind, name)? == before, "not the same");
                Ok(())
            })?;
        }
        let patch = r#"--patch={"stringData":{"secrets":"another secret of a good length, 7f3a\n"}}"#;
        kubectl.run(&["-n", "kube-system", "patch", "secret", "weave-net-secret", patch])?;
        for host in &cluster.hosts {
            eventually(PATIENCE, "the copy is the new secret", || {
                let copy = std::fs::read_to_string(host.data_dir().join("cluster-secret"))?;
                ensure!(copy.starts_with("another secret"), "the old one");
                Ok(())
            })?;
        }
        for host in &cluster.hosts {
            cluster.is_ready_with(host, 2)?;
        }
        Ok(())
    });
}

#[test]
fn a_deleted_node_is_reclaimed_and_its_agent_begins_anew_when_it_returns() {
    run_in_lab(|lab| {
        let cluster = Agents::start(lab, &["node1", "node2", "node3"])?;
        cluster.launch_all()?;
        let gone = &cluster.hosts[2];
        let former = own_name(gone)?;
        let kubectl = cluster.plane.kubectl()?;
        let (pod, other) = (gone.pod("left-behind")?, cluster.hosts[0].pod("other")?);
        eventually(PATIENCE, "the pods talk", || probe::ping(pod.ns(), other.address()))?;

        // Neither the one nor the other alone is a death.
        gone.kill_agent()?;
        let grace = Duration::from_secs(GRACE.parse()?);
        throughout(grace * 2, "a Node whose agent is down keeps its addresses", || {
            ensure!(shares(&cluster.hosts[0])?.len() == 3, "it was reclaimed");
            Ok(())
        })?;
        kubectl.run(&["delete", "node", gone.name()])?;
        for host in &cluster.hosts[..2] {
            cluster.is_ready_with(host, 2)?;
        }
        eventually(PATIENCE, "the cluster remembers the removal", || {
            let object = kubectl.get(&["-n", "kube-system", "configmap", "weave-net-universe"])?;
            let key = format!("removed.{}", former.replace(':', "-"));
            ensure!(object["data"][&key].is_string(), "{}", object["data"]);
            Ok(())
        })?;

        cluster.make_node(2)?;
        gone.relaunch()?;
        eventually(PATIENCE, "the returner is another peer", || {
            ensure!(own_name(gone)? != former, "it is the former one");
            Ok(())
        })?;
        cluster.is_ready_with(gone, 3)?;
        eventually(PATIENCE, "an Event names the pod that is cut off", || {
            let events = kubectl.list(&["-n", "default", "events"])?;
            let told =
                events.iter().find(|event| event["reason"] == "WeavePeerRemoved").context("no Event")?;
            ensure!(told["message"].as_str().is_some_and(|it| it.contains("left-behind")), "{told}");
            Ok(())
        })?;
        // Others may have its address by now: it is heard by nobody, and nobody on its Node is led to it.
        let new = gone.pod("new")?;
        eventually(PATIENCE, "a new pod talks", || probe::ping(new.ns(), other.address()))?;
        for to in [other.address(), new.address()] {
            ensure!(probe::ping(pod.ns(), to).is_err(), "the pod without an address reaches {to}");
        }
        for from in [new.ns(), &*gone.ns()?] {
            ensure!(probe::ping(from, pod.address()).is_err(), "{} reaches the former pod", from.name());
        }
        pod.detach(gone).context("the runtime removes the pod")
    });
}

#[test]
fn a_range_that_holds_services_is_refused() {
    run_in_lab(|lab| {
        let cluster = Agents::start(lab, &["node1"])?;
        cluster.make_node(0)?;
        cluster.hosts[0].launch(&cluster.options(0)?.range("10.96.0.0/12"))?;
        eventually(PATIENCE, "the status names both and the remedy", || {
            let waiting = cluster.hosts[0].status(&[])?["waiting_for"].to_string();
            let named = ["10.96.0.0/12", weave_k8s::control_plane::API_SERVICE, "IPALLOC_RANGE"];
            ensure!(named.iter().all(|word| waiting.contains(word)), "{waiting}");
            Ok(())
        })?;
        eventually(PATIENCE, "the Node and an Event say so", || {
            let node = cluster.plane.kubectl()?.get(&["node", "node1"])?;
            let ready = condition(&node, "WeaveReady").context("no WeaveReady")?;
            ensure!(ready == ("False".to_owned(), "WeaveNotInCluster".to_owned()), "{ready:?}");
            let events = cluster.plane.kubectl()?.list(&["-n", "default", "events"])?;
            ensure!(events.iter().any(|event| event["reason"] == "WeaveNotInCluster"), "{events:?}");
            Ok(())
        })?;
        let found =
            cluster.plane.kubectl()?.finish(&["-n", "kube-system", "get", "cm", "weave-net-universe"])?;
        ensure!(!found.success(), "a universe was founded");
        Ok(())
    });
}
