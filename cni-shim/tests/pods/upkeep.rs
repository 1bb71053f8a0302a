//! CHECK, GC, STATUS, the sweep at the start, and weave-ipam.

use super::*;

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
