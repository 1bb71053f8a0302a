//! Real pods on a real bridge: the real shim, the agent's real server, the kernel. Root needed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must fail")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::lab::{BRIDGE_MAC, GATEWAY, Netns, Node, reaches, sh};
use support::{Ran, VERSIONS, eventually, is_root};
use weave_agent::cni::Paths;
use weave_agent::cni::conflist::{self, Conflist};
use weave_agent::cni::server::Asker;
use weave_proto::local::cni::{AttachmentKey, Del, HOST_INTERFACE_PREFIX, Moment, Tombstone};

fn key(id: &str) -> AttachmentKey {
    AttachmentKey { container: id.to_owned(), interface: "eth0".to_owned() }
}

fn with(mut conf: Value, name: &str, value: &Value) -> Value {
    conf[name] = value.clone();
    conf
}

#[track_caller]
fn assert_error(ran: &Ran, code: u64, text: &str) {
    let (is, msg) = ran.error();
    assert!(is == code && msg.contains(text), "wanted {code} with {text:?}: {ran:?}");
}

/// Runs the room's own calls where its server runs.
fn in_room<T: Send>(node: &Node, work: impl AsyncFnOnce() -> T + Send) -> T {
    node.host.inside(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
    })
}

// ---- ADD -----------------------------------------------------------------------------------------------------

#[test]
fn two_pods_of_a_node_reach_each_other_and_leave_nothing_behind() {
    if !is_root("two_pods") {
        return;
    }
    let node = Node::new();
    let (one, two) = (Netns::new(), Netns::new());
    let conf = node.conf("1.0.0");
    let first = node.cni("ADD", "one", &one.path(), &conf).result();
    let second = node.cni("ADD", "two", &two.path(), &conf).result();
    assert_eq!(first["ips"][0]["address"], "10.32.0.2/32");
    assert_eq!(second["ips"][0]["address"], "10.32.0.3/32");
    assert!(reaches(&one, "10.32.0.3") && reaches(&two, "10.32.0.2") && reaches(&one, GATEWAY));
    node.cni("DEL", "one", &one.path(), &conf).silent_success();
    node.cni("DEL", "two", &two.path(), &conf).silent_success();
    node.assert_clean();
}

#[test]
fn every_version_adds_checks_and_deletes() {
    if !is_root("every_version") {
        return;
    }
    let node = Node::new();
    for version in VERSIONS {
        let pod = Netns::new();
        let conf = node.conf(version);
        let result = node.cni("ADD", "pod", &pod.path(), &conf).result();
        assert_eq!(result["cniVersion"], version, "trap 1");
        let address = if version < "0.3.0" { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
        assert_eq!(pod.ip_json("-4 addr show eth0")[0]["addr_info"].as_array().unwrap().len(), 1);
        assert!(address.as_str().unwrap().starts_with("10.32.0."), "{result}");
        let conf = with(conf, "prevResult", &result);
        if version >= "0.4.0" {
            node.cni("CHECK", "pod", &pod.path(), &conf).silent_success();
        }
        node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
        node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
        node.assert_clean();
    }
}

#[test]
fn a_pods_interface_is_what_the_design_says() {
    if !is_root("a_pods_interface") {
        return;
    }
    let node = Node::new();
    let pod = Netns::new();
    let args = [("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=till")];
    let result = node.cni_with(&args, "ADD", ("pod", &pod.path()), &node.conf("1.1.0")).result();
    let [bridge, host, eth0] = result["interfaces"].as_array().unwrap().as_slice() else {
        panic!("{result}")
    };
    assert_eq!((bridge["name"].as_str(), bridge["mac"].as_str()), (Some("weave"), Some(BRIDGE_MAC)));

    let name = host["name"].as_str().unwrap();
    let outside = node.host.link(name);
    assert!(name.starts_with(HOST_INTERFACE_PREFIX) && name.len() == 15);
    assert_eq!((&outside["master"], &outside["address"]), (&json!("weave"), &host["mac"]));
    assert_eq!((&outside["mtu"], &host["mtu"]), (&json!(1450), &json!(1450)));
    assert!(outside["ifalias"].as_str().unwrap().starts_with("weave weave pod/eth0 "), "{outside}");
    assert_eq!(outside["inet6_addr_gen_mode"], "none");

    let inside = pod.link("eth0");
    assert_eq!((&inside["address"], &inside["mtu"]), (&eth0["mac"], &json!(1450)));
    assert_eq!(inside["operstate"], "UP");
    let addresses = pod.ip_json("addr show eth0")[0]["addr_info"].clone();
    assert_eq!((&addresses[0]["local"], &addresses[0]["prefixlen"]), (&json!("10.32.0.2"), &json!(32)));
    assert_eq!(addresses.as_array().unwrap().len(), 1, "no IPv6 link-local: {addresses}");
    assert_eq!(
        pod.ip("route").lines().map(str::trim).collect::<Vec<_>>(),
        [
            format!("default via {GATEWAY} dev eth0 proto static"),
            format!("{GATEWAY} dev eth0 proto static scope link"),
        ]
    );
    assert_eq!(pod.ip("neigh").trim(), format!("{GATEWAY} dev eth0 lladdr {BRIDGE_MAC} PERMANENT"));
    let port = node.room.ports().attached()[name].clone();
    assert_eq!((port.pod.as_deref(), port.netns), (Some("shop/till"), pod.path()));
}

#[test]
fn pods_of_an_ipv6_range() {
    if !is_root("pods_of_an_ipv6_range") {
        return;
    }
    let mut node = Node::with_range("fd00:32::/64", "fd00:32::1", "fd00:32::2");
    node.start();
    for version in VERSIONS {
        let (one, two) = (Netns::new(), Netns::new());
        let conf = node.conf(version);
        let result = node.cni("ADD", "one", &one.path(), &conf).result();
        node.cni("ADD", "two", &two.path(), &conf).result();
        let port = node.room.ports().attached()[&key("two").host_interface(0)].clone();
        assert!(port.address.is_ipv6() && reaches(&one, "fd00:32::1") && reaches(&two, "fd00:32::1"));
        if version < "0.3.0" {
            assert!(result["ip6"]["ip"].as_str().unwrap().ends_with("/128") && result.get("ip4").is_none());
        } else {
            assert_eq!(result["routes"], json!([{ "dst": "::/0", "gw": "fd00:32::1" }]));
        }
        let conf = with(conf, "prevResult", &result);
        if version >= "0.4.0" {
            node.cni("CHECK", "one", &one.path(), &conf).silent_success();
        }
        node.cni("DEL", "one", &one.path(), &conf).silent_success();
        node.cni("DEL", "two", "", &node.conf(version)).silent_success();
        node.assert_clean();
    }
}

#[test]
fn mac_addresses_are_set_at_creation_where_udev_leaves_them_alone_and_are_stable() {
    if !is_root("mac_addresses") {
        return;
    }
    let node = Node::new();
    let macs: Vec<_> = (0..2)
        .map(|_| {
            let pod = Netns::new();
            let result = node.cni("ADD", "pod", &pod.path(), &node.conf("1.0.0")).result();
            let name = result["interfaces"][1]["name"].as_str().unwrap();
            for (netns, link) in [(&node.host, name), (&pod, "eth0")] {
                let read =
                    format!("ip netns exec {} cat /sys/class/net/{link}/addr_assign_type", netns.name());
                // 3 is NET_ADDR_SET; 1 is NET_ADDR_RANDOM, which MACAddressPolicy=persistent replaces.
                assert_eq!(sh(&read).trim(), "3", "{link}");
            }
            node.cni("DEL", "pod", &pod.path(), &node.conf("1.0.0")).silent_success();
            (result["interfaces"][1].clone(), result["interfaces"][2]["mac"].clone())
        })
        .collect();
    assert_eq!(macs[0], macs[1]);
}

#[test]
fn settings_of_the_configuration() {
    if !is_root("settings") {
        return;
    }
    let node = Node::new();
    let add = |conf: &Value| {
        let pod = Netns::new();
        let ran = node.cni("ADD", "pod", &pod.path(), conf);
        let seen = (pod.ip("route"), pod.links());
        node.cni("DEL", "pod", &pod.path(), conf);
        node.assert_clean();
        (ran, seen)
    };
    let conf = node.conf("1.1.0");
    let (ran, _) = add(&with(conf.clone(), "mtu", &json!(1300)));
    assert_eq!(ran.result()["interfaces"][2]["mtu"], 1300);
    let (ran, (routes, _)) =
        add(&with(conf.clone(), "ipam", &json!({ "routes": [{ "dst": "10.0.0.0/8" }] })));
    assert_eq!(ran.result()["routes"].as_array().unwrap().len(), 2);
    assert!(
        routes.contains("10.0.0.0/8 via")
            && routes.contains("10.32.0.0/12 via")
            && !routes.contains("default")
    );
    for (name, value) in [
        ("bridge", json!("docker0")),
        ("hairpinMode", json!(false)),
        ("ipam", json!({ "subnet": "10.40.0.0/16" })),
        ("ipam", json!({ "routes": [{ "dst": "10.0.0.0/8", "gw": "10.32.0.99" }] })),
    ] {
        let (ran, (_, links)) = add(&with(conf.clone(), name, &value));
        assert_error(&ran, 7, "");
        assert!(!links.contains("eth0"));
    }
}

#[test]
fn trap_16_an_interface_that_exists_is_an_error_and_is_not_touched() {
    if !is_root("trap_16") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let foreign = Netns::new();
    foreign.ip("link add eth0 type bridge");
    assert_error(&node.cni("ADD", "foreign", &foreign.path(), &conf), 101, "already has an interface eth0");
    assert_eq!(foreign.link("eth0")["linkinfo"]["info_kind"], "bridge");
    node.cni("DEL", "foreign", &foreign.path(), &conf).silent_success();
    assert_eq!(foreign.link("eth0")["linkinfo"]["info_kind"], "bridge", "DEL leaves what ADD did not make");
    node.assert_clean();

    let pod = Netns::new();
    let result = node.cni("ADD", "pod", &pod.path(), &conf).result();
    assert_error(&node.cni("ADD", "pod", &pod.path(), &conf), 101, "DEL must come first");
    let conf = with(conf, "prevResult", &result);
    node.cni("CHECK", "pod", &pod.path(), &conf).silent_success();
    node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
    let conf = node.conf("1.0.0");
    node.cni("ADD", "pod", &pod.path(), &conf).result();
    assert!(reaches(&pod, GATEWAY), "the same container id and namespace, after DEL");
    node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
    node.assert_clean();
}

#[test]
fn a_record_whose_link_is_gone_does_not_stand_in_the_way() {
    if !is_root("a_record") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let gone = Netns::new();
    node.cni("ADD", "pod", &gone.path(), &conf).result();
    gone.vanish();
    eventually("the link is gone with its namespace", || node.pod_links().is_empty());
    let pod = Netns::new();
    node.cni("ADD", "pod", &pod.path(), &conf).result();
    assert_eq!(node.room.addresses().given().len(), 1);
    assert_eq!(node.room.addresses().given()[0].port.as_ref().unwrap().netns, pod.path());
    node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
    node.assert_clean();
}

#[test]
fn a_name_that_somebody_has_taken_is_gone_around() {
    if !is_root("a_name") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let taken = key("pod").host_interface(0);
    node.host.ip(&format!("link add {taken} type bridge"));
    let pod = Netns::new();
    let result = node.cni("ADD", "pod", &pod.path(), &conf).result();
    let name = result["interfaces"][1]["name"].as_str().unwrap();
    assert_eq!(name, key("pod").host_interface(1));
    assert_eq!(node.room.ports().attached().keys().collect::<Vec<_>>(), [name]);
    node.cni("CHECK", "pod", &pod.path(), &with(conf.clone(), "prevResult", &result)).silent_success();
    node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
    assert_eq!(
        node.pod_links().into_iter().collect::<Vec<_>>(),
        std::slice::from_ref(&taken),
        "the other one's link stays"
    );
    node.host.ip(&format!("link del {taken}"));
    node.assert_clean();
}

#[test]
fn a_failed_add_leaves_nothing_behind_wherever_it_failed() {
    if !is_root("a_failed_add") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let fails = |what: &str, code: u64, text: &str, pod: &Netns| {
        assert_error(&node.cni("ADD", "pod", &pod.path(), &conf), code, text);
        assert!(!pod.links().contains("eth0"), "{what}");
        node.assert_clean();
    };
    node.room.addresses().set_trouble(Some("waiting for donor 7a:01"));
    fails("no address", 11, "waiting for donor 7a:01", &Netns::new());
    node.room.addresses().set_trouble(None);

    node.room.ports().set_trouble(Some("nft is gone"));
    fails("no guard", 102, "nft is gone", &Netns::new());
    node.room.ports().set_trouble(None);

    let crowded = Netns::new();
    crowded.ip("link add other type bridge");
    crowded.ip("link set other up");
    crowded.ip("route add default dev other");
    fails("no route", 102, "adding a route to 0.0.0.0/0 on eth0", &crowded);
    assert!(crowded.ip("route").contains("default dev other"));

    node.cni("ADD", "pod", &Netns::new().path(), &conf).result();
}

#[test]
fn an_add_whose_asker_went_away_is_undone() {
    if !is_root("an_add_whose_asker") {
        return;
    }
    let node = Node::new();
    let pod = Netns::new();
    // The runtime kills the shim when its own caller gives up.
    for _ in 0..10 {
        let stream = std::os::unix::net::UnixStream::connect(node.folder.join("cni.sock")).unwrap();
        let begun = now();
        let line = json!({
            "protocol": 1, "verb": "add", "key": { "container": "pod", "interface": "eth0" }, "network": "weave",
            "netns": pod.path(), "begun": begun, "pod": null, "settings": {}, "given": null,
        });
        raw::send(&stream, format!("{line}\n").as_bytes(), &raw::pod_descriptors(&pod));
        drop(stream);
        eventually("undone", || {
            node.pod_links().is_empty()
                && node.room.addresses().given().is_empty()
                && node.room.ports().attached().is_empty()
        });
    }
    node.cni("ADD", "pod", &pod.path(), &node.conf("1.0.0")).result();
}

#[test]
fn fifty_pods_at_once() {
    if !is_root("fifty_pods") {
        return;
    }
    let node = Node::new();
    let pods: Vec<_> = (0..50).map(|number| (format!("pod{number}"), Netns::new())).collect();
    let conf = node.conf("1.0.0");
    let all = |verb: &'static str| -> (Vec<Ran>, Duration) {
        let begun = Instant::now();
        let ran = std::thread::scope(|scope| {
            let one = |(id, pod): &(String, Netns)| node.cni(verb, id, &pod.path(), &conf);
            let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || one(pod))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        (ran, begun.elapsed())
    };
    let (added, took) = all("ADD");
    eprintln!("50 ADDs in {took:?}");
    let addresses: std::collections::BTreeSet<_> =
        added.iter().map(|ran| ran.result()["ips"][0]["address"].as_str().unwrap().to_owned()).collect();
    assert_eq!(addresses.len(), 50, "no address twice");
    assert_eq!(node.pod_links().len(), 50);
    assert!(took < Duration::from_secs(15), "{took:?}");
    for pair in pods.windows(2).step_by(7) {
        assert!(reaches(&pair[0].1, GATEWAY) && reaches(&pair[1].1, GATEWAY));
    }
    let (deleted, took) = all("DEL");
    eprintln!("50 DELs in {took:?}");
    deleted.iter().for_each(Ran::silent_success);
    node.assert_clean();
}

// ---- DEL -----------------------------------------------------------------------------------------------------

#[test]
fn trap_10_del_with_an_empty_or_vanished_namespace_takes_everything_away() {
    if !is_root("trap_10") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let pod = Netns::new();
    node.cni("ADD", "pod", &pod.path(), &conf).result();
    node.cni("DEL", "pod", "", &conf).silent_success();
    assert!(!pod.links().contains("eth0"), "the link goes although nobody said where it is");
    node.assert_clean();

    node.cni("ADD", "pod", &pod.path(), &conf).result();
    pod.vanish();
    node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
    node.assert_clean();

    let file = node.folder.join("was-a-namespace");
    std::fs::write(&file, "").unwrap();
    let pod = Netns::new();
    node.cni("ADD", "pod", &pod.path(), &conf).result();
    node.cni("DEL", "pod", file.to_str().unwrap(), &conf).silent_success();
    node.assert_clean();
}

#[test]
fn trap_11_del_of_what_never_was_and_from_what_little_is_left() {
    if !is_root("trap_11") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let pod = Netns::new();
    node.cni("DEL", "never", &pod.path(), &conf).silent_success();

    // The record is gone: the link is found by its name and label.
    node.cni("ADD", "pod", &pod.path(), &conf).result();
    in_room(&node, async || weave_agent::cni::Addresses::free(node.room.addresses(), key("pod"), None).await)
        .unwrap();
    node.cni("DEL", "pod", "", &conf).silent_success();
    assert!(node.pod_links().is_empty());

    // The record is gone and somebody has renamed the link: it is found from inside the pod.
    let name = node.cni("ADD", "two", &pod.path(), &conf).result()["interfaces"][1]["name"].clone();
    in_room(&node, async || weave_agent::cni::Addresses::free(node.room.addresses(), key("two"), None).await)
        .unwrap();
    node.host.ip(&format!("link set {} down name strange", name.as_str().unwrap()));
    node.cni("DEL", "two", &pod.path(), &conf).silent_success();
    assert!(!node.host.links().contains("strange") && !pod.links().contains("eth0"));

    // The link is gone, the record is not.
    let name = node.cni("ADD", "three", &pod.path(), &conf).result()["interfaces"][1]["name"].clone();
    node.host.ip(&format!("link del {}", name.as_str().unwrap()));
    node.cni("DEL", "three", &pod.path(), &conf).silent_success();
    assert_eq!(node.room.addresses().given(), vec![]);
}

#[test]
fn with_the_agent_down_the_pod_goes_and_the_agent_learns_of_it_at_its_start() {
    if !is_root("with_the_agent_down") {
        return;
    }
    let mut node = Node::new();
    let conf = node.conf("1.0.0");
    let (seen, unseen) = (Netns::new(), Netns::new());
    let _ = node.cni("ADD", "seen", &seen.path(), &conf).result();
    let result = node.cni("ADD", "unseen", &unseen.path(), &conf).result();
    node.stop();
    node.cni("DEL", "seen", &seen.path(), &conf).silent_success();
    assert!(!seen.links().contains("eth0"), "the shim removed the link through the namespace");
    // Told neither the namespace nor who could do it: the link stays until the agent starts.
    node.cni("DEL", "unseen", "", &with(conf, "prevResult", &result)).silent_success();
    assert!(unseen.links().contains("eth0"));
    assert_eq!((node.folder.tombstones().len(), node.room.addresses().given().len()), (2, 2));
    node.start();
    node.assert_clean();
    assert!(!unseen.links().contains("eth0"));
}

#[test]
fn trap_12_the_configuration_stays_when_the_agent_stops_and_pods_can_go() {
    if !is_root("trap_12") {
        return;
    }
    let mut node = Node::new();
    let conf_dir = node.folder.join("net.d");
    let paths = Paths { run_dir: node.folder.path().into(), data_dir: node.folder.path().into() };
    Conflist { name: "weave".to_owned(), hairpin: true, mtu: None, paths, chained: vec![] }
        .install(&conf_dir)
        .unwrap();
    let list = || -> Value {
        serde_json::from_slice(&std::fs::read(conf_dir.join(conflist::FILE)).unwrap()).unwrap()
    };
    let conf = |list: &Value| {
        let named = with(list["plugins"][0].clone(), "name", &list["name"]);
        with(named, "cniVersion", &list["cniVersion"])
    };
    let pod = Netns::new();
    node.cni("ADD", "pod", &pod.path(), &conf(&list())).result();
    node.stop();
    node.cni("DEL", "pod", &pod.path(), &conf(&list())).silent_success();
    assert!(!pod.links().contains("eth0"));
}

#[test]
fn the_shim_removes_no_interface_that_is_not_its_own() {
    if !is_root("the_shim_removes") {
        return;
    }
    let node = Node::without_agent();
    let pod = Netns::new();
    pod.ip("link add eth0 type bridge");
    node.cni("DEL", "pod", &pod.path(), &node.conf("1.0.0")).silent_success();
    assert!(pod.links().contains("eth0"));
}

#[test]
fn a_tombstone_is_carried_out_when_it_appears() {
    if !is_root("a_tombstone_is") {
        return;
    }
    let node = Node::new();
    let pod = Netns::new();
    node.cni("ADD", "pod", &pod.path(), &node.conf("1.0.0")).result();
    bury(&node, "pod", now());
    eventually("carried out", || node.folder.tombstones().is_empty());
    node.assert_clean();
    // One that cannot be read is put aside and hurts nobody.
    std::fs::write(node.folder.join("cni/del/.half"), "{").unwrap();
    std::fs::rename(node.folder.join("cni/del/.half"), node.folder.join("cni/del/half")).unwrap();
    eventually("put aside", || !node.folder.join("cni/del/half").exists());
    node.cni("ADD", "pod", &pod.path(), &node.conf("1.0.0")).result();
}

#[test]
fn a_tombstone_from_before_an_add_is_carried_out_before_it() {
    if !is_root("a_tombstone_from_before") {
        return;
    }
    let mut node = Node::new();
    let conf = node.conf("1.0.0");
    let (old, new) = (Netns::new(), Netns::new());
    node.cni("ADD", "pod", &old.path(), &conf).result();
    node.stop();
    node.cni("DEL", "pod", "", &conf).silent_success();
    node.start();
    let result = node.cni("ADD", "pod", &new.path(), &conf).result();
    assert!(!old.links().contains("eth0") && new.links().contains("eth0"));
    node.cni("CHECK", "pod", &new.path(), &with(conf, "prevResult", &result)).silent_success();
}

#[test]
fn nothing_older_undoes_a_newer_add() {
    if !is_root("nothing_older") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let pod = Netns::new();
    let before = now();
    let result = node.cni("ADD", "pod", &pod.path(), &conf).result();
    // A DEL that was on its way for long, and two notes of one: of this boot and of another.
    let late = Del { key: key("pod"), network: "weave".to_owned(), begun: before.clone() };
    in_room(&node, async || node.room.del(&late, None, &Asker::patient()).await).unwrap();
    for begun in [before, Moment { boot: "another".to_owned(), nanoseconds: u64::MAX }] {
        bury(&node, "pod", begun);
        eventually("looked at", || node.folder.tombstones().is_empty());
    }
    node.cni("CHECK", "pod", &pod.path(), &with(conf.clone(), "prevResult", &result)).silent_success();
    node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
    node.assert_clean();
}

fn now() -> Moment {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap();
    Moment { boot: boot_id(), nanoseconds: seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap() }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

fn bury(node: &Node, id: &str, begun: Moment) {
    let del = Del { key: key(id), network: "weave".to_owned(), begun };
    let tombstone = Tombstone { del, host_interface: None, ipam_only: false };
    let (beside, place) = (node.folder.join("cni/del/.new"), Tombstone::file_name(&key(id)));
    std::fs::write(&beside, serde_json::to_vec(&tombstone).unwrap()).unwrap();
    std::fs::rename(&beside, node.folder.join("cni/del").join(place)).unwrap();
}

// ---- CHECK ---------------------------------------------------------------------------------------------------

#[test]
fn trap_17_check_is_content_after_add_and_names_every_difference() {
    if !is_root("trap_17") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.1.0");
    let sabotage = |what: &str, text: &str, harm: &dyn Fn(&Netns, &str)| {
        let pod = Netns::new();
        let result = node.cni("ADD", "pod", &pod.path(), &conf).result();
        let check = with(conf.clone(), "prevResult", &result);
        node.cni("CHECK", "pod", &pod.path(), &check).silent_success();
        harm(&pod, result["interfaces"][1]["name"].as_str().unwrap());
        assert_error(&node.cni("CHECK", "pod", &pod.path(), &check), 100, text);
        node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
        node.assert_clean();
        eprintln!("noticed: {what}");
    };
    let node_ip = |command: &str| node.host.ip(command);
    let host =
        |command: &'static str| move |_: &Netns, link: &str| drop(node_ip(&command.replace("LINK", link)));
    let inside = |command: &'static str| move |pod: &Netns, _: &str| drop(pod.ip(command));
    sabotage("port off the bridge", "the bridge of veth", &host("link set LINK nomaster"));
    sabotage("host end down", "is up", &host("link set LINK down"));
    sabotage("host end's MAC", "the MAC address of veth", &host("link set LINK address 02:00:00:00:00:99"));
    sabotage("host end's MTU", "the MTU of veth", &host("link set LINK mtu 1400"));
    sabotage("link gone", "is gone", &host("link del LINK"));
    sabotage("label gone", "is gone", &host("link set LINK address 02:00:00:00:00:99 alias x"));
    sabotage("pod's end down", "is up", &inside("link set eth0 down"));
    sabotage("pod's MAC", "the MAC address of eth0", &inside("link set eth0 address 02:00:00:00:00:99"));
    sabotage("pod's MTU", "the MTU of eth0", &inside("link set eth0 mtu 1400"));
    sabotage("pod's interface renamed", "eth0 in the pod is gone", &inside("link set eth0 down name eth9"));
    sabotage("address gone", "lacks 10.32.", &inside("addr flush dev eth0"));
    sabotage("address wider", "lacks 10.32.", &|pod, _| {
        let address = pod.ip_json("addr show eth0")[0]["addr_info"][0]["local"].as_str().unwrap().to_owned();
        pod.ip(&format!("addr add {address}/24 dev eth0"));
        pod.ip(&format!("addr del {address}/32 dev eth0"));
    });
    sabotage("default route gone", "route to 0.0.0.0/0", &inside("route del default"));
    sabotage("default route elsewhere", "route to 0.0.0.0/0", &|pod, _| {
        pod.ip("route replace default dev eth0");
    });
    sabotage("gateway route gone", "route to 10.32.0.1/32 on", &|pod, _| {
        pod.ip("route del 10.32.0.1 dev eth0");
    });
    sabotage("neighbour gone", "permanent neighbour 10.32.0.1", &inside("neigh del 10.32.0.1 dev eth0"));
    sabotage("neighbour moved", "permanent neighbour 10.32.0.1", &|pod, _| {
        pod.ip("neigh replace 10.32.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent");
    });
    sabotage("neighbour no longer permanent", "permanent neighbour 10.32.0.1", &|pod, _| {
        pod.ip(&format!("neigh replace 10.32.0.1 lladdr {BRIDGE_MAC} dev eth0 nud stale"));
    });
    sabotage("guard gone", "the guard of veth", &|_, link| node.room.ports().lose(link));
}

#[test]
fn check_compares_the_runtimes_copy_with_the_record_and_allows_what_others_added() {
    if !is_root("check_compares") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.0.0");
    let pod = Netns::new();
    let result = node.cni("ADD", "pod", &pod.path(), &conf).result();
    let check =
        |result: &Value| node.cni("CHECK", "pod", &pod.path(), &with(conf.clone(), "prevResult", result));
    let changed = |path: &str, value: &str| {
        let mut changed = result.clone();
        *changed.pointer_mut(path).unwrap() = json!(value);
        check(&changed)
    };
    assert_error(
        &changed("/interfaces/2/mac", "02:00:00:00:00:99"),
        100,
        "the MAC address in the prevResult",
    );
    assert_error(&changed("/interfaces/2/mac", "zz"), 6, "MAC address");
    assert_error(&changed("/interfaces/1/name", "vethwepl0000000"), 100, "does not list vethwepl");
    assert_error(&changed("/ips/0/address", "10.32.9.9/32"), 100, "does not list the address");
    assert_error(&changed("/routes/0/dst", "10.0.0.0/8"), 100, "route to 10.0.0.0/8");

    pod.ip("addr add 192.0.2.1/24 dev eth0");
    pod.ip("route add 198.51.100.0/24 dev eth0");
    pod.ip("link add dummy0 type bridge");
    check(&result).silent_success();
    let mut chained = result.clone();
    chained["interfaces"].as_array_mut().unwrap().push(json!({ "name": "ifb", "mac": "02:00:00:00:00:01" }));
    check(&chained).silent_success();

    node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
    assert_error(&check(&result), 100, "has no record");
    assert_error(
        &node.cni("CHECK", "pod", "/var/run/netns/cn-never", &with(conf.clone(), "prevResult", &result)),
        3,
        "",
    );
}

// ---- GC, STATUS, the sweep -----------------------------------------------------------------------------------

#[test]
fn gc_takes_back_what_is_not_in_its_list_and_leaves_other_networks_alone() {
    if !is_root("gc_takes_back") {
        return;
    }
    let node = Node::new();
    let conf = node.conf("1.1.0");
    let other = with(conf.clone(), "name", &json!("other"));
    let pods: Vec<_> = (0..5).map(|_| Netns::new()).collect();
    for (id, pod) in ["valid", "stale", "vanished", "unrecorded"].into_iter().zip(&pods) {
        node.cni("ADD", id, &pod.path(), &conf).result();
    }
    node.cni("ADD", "foreign", &pods[4].path(), &other).result();
    pods[2].vanish();
    in_room(&node, async || {
        weave_agent::cni::Addresses::free(node.room.addresses(), key("unrecorded"), None).await
    })
    .unwrap();
    let list = json!([{ "containerID": "valid", "ifname": "eth0" }]);
    node.cni("GC", "x", "", &with(conf.clone(), "cni.dev/valid-attachments", &list)).silent_success();
    let left: Vec<_> = node.room.addresses().given().into_iter().map(|one| one.key.container).collect();
    assert_eq!(left, ["foreign", "valid"]);
    assert_eq!(node.pod_links().len(), 2);
    assert!(reaches(&pods[0], GATEWAY) && reaches(&pods[4], GATEWAY));
    node.cni("GC", "x", "", &with(conf, "cni.dev/valid-attachments", &json!([]))).silent_success();
    node.cni("GC", "x", "", &other).silent_success();
    assert!(node.pod_links().is_empty() && node.room.addresses().given().is_empty());
}

#[test]
fn the_sweep_at_start_frees_what_no_container_holds_and_nothing_else() {
    if !is_root("the_sweep") {
        return;
    }
    let mut node = Node::new();
    let conf = node.conf("1.0.0");
    let (living, dead) = (Netns::new(), Netns::new());
    node.cni("ADD", "living", &living.path(), &conf).result();
    node.cni("ADD", "dead", &dead.path(), &conf).result();
    let own = weave_agent::cni::Addresses::allocate(node.room.addresses(), AttachmentKey::expose(), None);
    in_room(&node, async || own.await).unwrap();
    node.stop();
    dead.vanish();
    eventually("the link is gone with its namespace", || node.pod_links().len() == 1);
    node.start();
    let left: Vec<_> = node.room.addresses().given().into_iter().map(|one| one.key.container).collect();
    assert_eq!(left, ["living", "weave:expose"]);
    assert!(reaches(&living, GATEWAY));
}

#[test]
fn trap_18_status_tells_whether_add_would_be_served() {
    if !is_root("trap_18") {
        return;
    }
    let mut node = Node::new();
    let status = |node: &Node| node.cni("STATUS", "", "", &node.conf("1.1.0"));
    status(&node).silent_success();
    node.room.addresses().set_trouble(Some("the first split awaits 2 more peers"));
    assert_error(&status(&node), 50, "the first split awaits 2 more peers");
    node.room.addresses().set_trouble(None);
    node.room.ports().set_facts(Err("no bridge yet".to_owned()));
    assert_error(&status(&node), 50, "no bridge yet");
    node.stop();
    assert_error(&status(&node), 50, "does not answer");
    assert_error(&node.cni("ADD", "pod", &Netns::new().path(), &node.conf("1.0.0")), 11, "does not answer");
}

// ---- weave-ipam ----------------------------------------------------------------------------------------------

#[test]
fn weave_ipam_gives_keeps_and_takes_back() {
    if !is_root("weave_ipam") {
        return;
    }
    let mut node = Node::new();
    let conf = with(node.conf("1.1.0"), "ipam", &json!({ "type": "weave-ipam" }));
    let result = node.ipam("ADD", "c", &conf).result();
    assert_eq!(result["ips"], json!([{ "address": "10.32.0.2/12", "gateway": GATEWAY }]));
    assert_eq!(node.ipam("ADD", "c", &conf).result(), result, "asked again, the same");
    let check = with(conf.clone(), "prevResult", &result);
    node.ipam("CHECK", "c", &check).silent_success();
    assert_error(&node.ipam("CHECK", "d", &check), 100, "has no address");
    node.ipam("STATUS", "", &conf).silent_success();

    let other = with(conf.clone(), "name", &json!("other"));
    node.ipam("ADD", "d", &conf).result();
    node.ipam("ADD", "e", &other).result();
    let list = json!([{ "containerID": "c", "ifname": "eth0" }]);
    node.ipam("GC", "", &with(conf.clone(), "cni.dev/valid-attachments", &list)).silent_success();
    let left = |node: &Node| -> Vec<_> {
        node.room.addresses().given().into_iter().map(|one| one.key.container).collect()
    };
    assert_eq!(left(&node), ["c", "e"]);
    // weave-net's GC is about pods.
    node.cni("GC", "", "", &conf).silent_success();
    assert_eq!(left(&node), ["c", "e"]);

    node.stop();
    node.ipam("DEL", "e", &other).silent_success();
    node.start();
    assert_eq!(left(&node), ["c"], "by tombstone");
    node.ipam("DEL", "c", &conf).silent_success();
    node.ipam("DEL", "c", &conf).silent_success();
    node.assert_clean();

    let pod = Netns::new();
    node.cni("ADD", "pod", &pod.path(), &conf).result();
    assert_error(&node.ipam("ADD", "pod", &conf), 101, "is a pod of weave-net");
    node.ipam("DEL", "pod", &conf).silent_success();
    assert_eq!(left(&node), ["pod"], "only DEL of weave-net frees a pod's address");
}

// ---- the socket ----------------------------------------------------------------------------------------------

#[test]
fn garbage_on_the_socket_gets_an_answer_and_harms_nobody() {
    if !is_root("garbage") {
        return;
    }
    let node = Node::new();
    let socket = node.folder.join("cni.sock");
    let ask = |bytes: &[u8], descriptors: &[std::os::fd::OwnedFd]| raw::ask(&socket, bytes, descriptors);
    let add = json!({
        "protocol": 1, "verb": "add", "key": { "container": "c", "interface": "eth0" }, "network": "weave",
        "netns": "/n", "begun": { "boot": "b", "nanoseconds": 1 }, "pod": null, "settings": {}, "given": null,
    });
    let add = format!("{add}\n").into_bytes();
    let file = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let own = || std::os::fd::OwnedFd::from(std::fs::File::open(node.host.path()).unwrap());
    let pod = Netns::new();
    type Case = (&'static str, Vec<u8>, Vec<std::os::fd::OwnedFd>, u64, &'static str);
    let table: [Case; 11] = [
        ("no JSON", b"hello\n".to_vec(), vec![], 6, "illegible"),
        ("binary", vec![0xff, 0xfe, b'\n'], vec![], 6, "illegible"),
        ("an empty line", b"\n".to_vec(), vec![], 6, "illegible"),
        ("no verb", b"{\"protocol\":1}\n".to_vec(), vec![], 6, "verb"),
        ("another verb", b"{\"protocol\":1,\"verb\":\"dance\"}\n".to_vec(), vec![], 6, "dance"),
        ("a newer shim", b"{\"protocol\":2,\"verb\":\"dance\"}\n".to_vec(), vec![], 11, "version 2"),
        (
            "two lines",
            b"{\"protocol\":1,\"verb\":\"status\"}\n{}\n".to_vec(),
            vec![],
            6,
            "behind the request",
        ),
        ("no end", vec![b' '; (1 << 20) + 70_000], vec![], 6, "too long"),
        ("ADD without descriptors", add.clone(), vec![], 6, "without the pod's descriptors"),
        ("ADD with wrong descriptors", add.clone(), vec![file(), file()], 8, "no network namespace"),
        ("ADD into the node itself", add.clone(), vec![own(), file()], 8, "the node's own"),
    ];
    for (what, bytes, descriptors, code, text) in table {
        let answer = ask(&bytes, &descriptors);
        let refused = &answer["refused"];
        assert!(
            refused["code"] == code && refused["msg"].as_str().unwrap().contains(text),
            "{what}: {answer}"
        );
    }
    let netns = std::os::fd::OwnedFd::from(std::fs::File::open(pod.path()).unwrap());
    let answer = ask(&add, &[netns, file()]);
    assert_eq!(answer["refused"]["code"], 8, "the second is no netlink socket: {answer}");

    let silent = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let half = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    raw::send(&half, b"{\"protocol\"", &[]);
    node.cni("ADD", "pod", &pod.path(), &node.conf("1.0.0")).result();
    node.cni("DEL", "pod", &pod.path(), &node.conf("1.0.0")).silent_success();
    assert!(raw::read(&half)["refused"]["msg"].as_str().unwrap().contains("did not come to an end"));
    assert!(raw::read(&silent)["refused"]["msg"].as_str().unwrap().contains("did not come to an end"));
    node.assert_clean();
}

#[test]
fn the_socket_is_for_root_alone_and_an_agent_takes_it_over_from_another() {
    if !is_root("the_socket") {
        return;
    }
    let mut node = Node::new();
    let socket = node.folder.join("cni.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    node.stop();
    assert!(socket.exists(), "the file stays, so that nothing is deleted that a successor has made");
    node.start();
    node.cni("STATUS", "", "", &node.conf("1.1.0")).silent_success();
}

#[test]
fn requests_that_are_being_worked_on_are_finished_when_the_agent_stops() {
    if !is_root("requests_that_are") {
        return;
    }
    let mut node = Node::new();
    let pods: Vec<_> = (0..8).map(|_| Netns::new()).collect();
    let conf = node.conf("1.0.0");
    let threads: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            let (conf, pod) = (conf.clone(), pod.path());
            std::thread::spawn(move || {
                let id = format!("pod{number}");
                let env = [
                    ("CNI_COMMAND", "ADD"),
                    ("CNI_CONTAINERID", &id),
                    ("CNI_NETNS", &pod),
                    ("CNI_IFNAME", "eth0"),
                ];
                support::weave_net(&env, &conf)
            })
        })
        .collect();
    node.stop();
    let served = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ran| ran.code == 0).count();
    assert_eq!(
        (node.pod_links().len(), node.room.addresses().given().len()),
        (served, served),
        "whole or not at all"
    );
}

/// The socket without the shim.
mod raw {
    use std::io::{IoSlice, Read, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
        sendmsg, socket_with,
    };
    use serde_json::Value;

    use crate::support::lab::Netns;

    pub(super) fn pod_descriptors(pod: &Netns) -> Vec<OwnedFd> {
        let netns = OwnedFd::from(std::fs::File::open(pod.path()).unwrap());
        let socket = pod.inside(|| {
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap()
        });
        vec![netns, socket]
    }

    pub(super) fn send(mut stream: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        let sent =
            sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
        // The agent may hang up on something endless.
        let _hung_up = stream.write_all(&bytes[sent..]);
    }

    pub(super) fn read(mut stream: &UnixStream) -> Value {
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !answer.ends_with(b"\n") {
            let got = stream.read(&mut buffer).unwrap();
            assert_ne!(got, 0, "no answer");
            answer.extend_from_slice(&buffer[..got]);
        }
        serde_json::from_slice(&answer).unwrap()
    }

    pub(super) fn ask(socket: &Path, bytes: &[u8], descriptors: &[OwnedFd]) -> Value {
        let stream = UnixStream::connect(socket).unwrap();
        send(&stream, bytes, descriptors);
        read(&stream)
    }
}
