//! ADD: a whole attachment, or nothing at all.

use super::*;

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
        // An answer that comes before the end must not count as taken because it lies in the socket.
        stream.shutdown(std::net::Shutdown::Read).unwrap();
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
