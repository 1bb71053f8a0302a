//! With the reference plugins of the distribution, in a runtime's hands: chains, delegated addresses, and our
//! addresses under others' interfaces. Root and the package containernetworking-plugins needed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on must fail"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::{Value, json};
use support::lab::{GATEWAY, Netns, Node, is_installed, reaches, sh};
use support::libcni::Runtime;
use support::{is_root, weave_net};
use weave_agent::cni::conflist::{Chained, Conflist, Standard};
use weave_agent::cni::{Paths, records};

/// Versions that the distribution's plugins speak, too, and that chains exist in.
const CHAINED: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];

fn ready(test: &str, plugins: &[&str]) -> bool {
    if !is_root(test) {
        return false;
    }
    let missing: Vec<_> = plugins.iter().filter(|plugin| !is_installed(plugin)).collect();
    assert!(
        missing.is_empty() || std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test} needs {missing:?}"
    );
    if !missing.is_empty() {
        eprintln!("skipped: {test} needs {missing:?} in /usr/lib/cni");
    }
    missing.is_empty()
}

/// What the agent writes, in another version.
fn conflist(version: &str) -> Value {
    let chained =
        [Standard::Portmap, Standard::Bandwidth].map(|plugin| Chained { plugin, is_newest: false }).to_vec();
    let conflist =
        Conflist { name: "weave".to_owned(), hairpin: true, mtu: None, paths: Paths::default(), chained };
    let mut list = conflist.render();
    list["cniVersion"] = json!(version);
    list
}

fn single(version: &str, plugin: &Value) -> Value {
    json!({ "cniVersion": version, "name": "weave", "plugins": [plugin] })
}

#[test]
fn trap_09_portmap_and_bandwidth_find_what_they_need_in_our_result() {
    if !ready("trap_09", &["portmap", "bandwidth"]) {
        return;
    }
    let node = Node::new();
    // A way in from outside the node, so that a host port is really a port of the host.
    let outside = Netns::new();
    let (host, out) = (node.host.name(), outside.name());
    sh(&format!(
        "ip -n {host} link add up0 type veth peer name up0 netns {out}
         ip -n {host} addr add 192.0.2.1/24 dev up0; ip -n {host} link set up0 up
         ip -n {out} addr add 192.0.2.2/24 dev up0; ip -n {out} link set up0 up"
    ));
    for version in CHAINED {
        let runtime = Runtime::new(&node, conflist(version));
        let pod = Netns::new();
        // containerd's way to write them.
        let capabilities = json!({
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000 },
        });
        let result = runtime.add("pod", &pod.path(), capabilities).unwrap();
        let link = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
        assert_eq!(greeting(&pod, &outside), "hello", "{version}: through the host's port");
        let shaped = sh(&format!("tc -n {host} qdisc show dev {link}"));
        assert!(shaped.contains("tbf"), "{version}: the host's end is shaped: {shaped}");
        runtime.del("pod", &pod.path()).unwrap();
        runtime.del("pod", &pod.path()).unwrap();
        node.assert_clean();
        let rules = sh(&format!("ip netns exec {host} iptables-save -t nat"));
        assert!(!rules.contains("8080"), "{rules}");

        // The distribution's portmap fails its own CHECK of a host port where a pod has one family only.
        if version >= "0.4.0" {
            let shaped = json!({ "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000 } });
            runtime.add("pod", &pod.path(), shaped).unwrap();
            runtime.check("pod", &pod.path()).unwrap();
            runtime.del("pod", &pod.path()).unwrap();
        }
    }
}

/// Serves one greeting in the pod on port 80 and fetches it from outside on the host's port 8080.
fn greeting(pod: &Netns, outside: &Netns) -> String {
    let listener = pod.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
        outside.inside(|| {
            let address = "192.0.2.1:8080".parse().unwrap();
            let mut stream =
                std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(5)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    })
}

#[test]
fn trap_13_a_chain_that_fails_behind_us_is_deleted_whole() {
    if !ready("trap_13", &["portmap"]) {
        return;
    }
    let node = Node::new();
    let runtime = Runtime::new(&node, conflist("1.0.0"));
    let pod = Netns::new();
    let wrong = json!({ "portMappings": [{ "hostPort": 99_999, "containerPort": 80, "protocol": "tcp" }] });
    runtime.add("pod", &pod.path(), wrong).unwrap_err();
    assert!(pod.links().contains("eth0"), "ours had succeeded");
    runtime.del("pod", &pod.path()).unwrap();
    node.assert_clean();
    runtime.add("pod", &pod.path(), json!({})).unwrap();
    assert!(reaches(&pod, GATEWAY));
}

#[test]
fn behind_another_plugin_our_interface_is_added_to_its_result() {
    if !ready("behind_another_plugin", &[]) {
        return;
    }
    let node = Node::new();
    for version in CHAINED {
        let mut earlier = json!({
            "cniVersion": version,
            "interfaces": [{ "name": "net1", "sandbox": "/elsewhere" }],
            "ips": [{ "address": "192.0.2.9/24", "interface": 0 }],
            "dns": { "nameservers": ["192.0.2.53"] },
        });
        if version < "1.0.0" {
            earlier["ips"][0]["version"] = json!("4");
        }
        let pod = Netns::new();
        let mut conf = node.conf(version);
        conf["prevResult"] = earlier.clone();
        let result = node.cni("ADD", "pod", &pod.path(), &conf).result();
        assert_eq!(
            (&result["interfaces"][0]["name"], &result["interfaces"][3]["name"]),
            (&json!("net1"), &json!("eth0"))
        );
        assert_eq!((&result["ips"][0], &result["ips"][1]["interface"]), (&earlier["ips"][0], &json!(3)));
        assert_eq!(result["dns"], earlier["dns"]);
        if version >= "0.4.0" {
            conf["prevResult"] = result;
            node.cni("CHECK", "pod", &pod.path(), &conf).silent_success();
        }
        node.cni("DEL", "pod", &pod.path(), &conf).silent_success();
        node.assert_clean();
    }
}

/// host-local on a node, keeping its leases in the node's folder.
struct HostLocal {
    node: Node,
    ipam: Value,
}

impl HostLocal {
    fn new() -> Self {
        let node = Node::new();
        let routes = json!([{ "dst": "0.0.0.0/0" }]);
        let leases = node.folder.join("leases");
        let ipam =
            json!({ "type": "host-local", "subnet": "10.22.0.0/16", "dataDir": leases, "routes": routes });
        sh(&format!("ip -n {} route add 10.22.0.0/16 dev weave src {GATEWAY}", node.host.name()));
        Self { node, ipam }
    }

    fn conf(&self) -> Value {
        let mut conf = self.node.conf("1.0.0");
        conf["ipam"] = self.ipam.clone();
        conf
    }

    /// How many addresses it has given out.
    fn held(&self) -> usize {
        let Ok(all) = std::fs::read_dir(self.node.folder.join("leases/weave")) else { return 0 };
        all.filter(|one| one.as_ref().unwrap().file_name().to_string_lossy().starts_with("10.22.")).count()
    }
}

#[test]
fn an_address_of_host_local_is_used_instead_of_ours() {
    if !ready("an_address_of_host_local", &["host-local"]) {
        return;
    }
    let lab = HostLocal::new();
    let node = &lab.node;
    for version in CHAINED {
        let runtime = Runtime::new(node, single(version, &json!({ "type": "weave-net", "ipam": lab.ipam })));
        let pod = Netns::new();
        let result = runtime.add("pod", &pod.path(), json!({})).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert!(address.starts_with("10.22.0.") && address.ends_with("/16"), "{result}");
        assert_eq!(result["ips"][0]["gateway"], "10.22.0.1");
        assert_eq!((node.room.addresses().given().len(), lab.held()), (0, 1));
        assert!(reaches(&pod, GATEWAY), "{}{}", pod.ip("route"), pod.ip("addr"));
        assert_eq!(
            records::delegated_ports(node.folder.path()).len(),
            1,
            "known for the node's desired state"
        );
        if version >= "0.4.0" {
            runtime.check("pod", &pod.path()).unwrap();
        }
        runtime.del("pod", &pod.path()).unwrap();
        runtime.del("pod", &pod.path()).unwrap();
        assert_eq!(lab.held(), 0);
        node.assert_clean();
    }
}

#[test]
fn an_address_of_host_local_is_given_back_whatever_fails() {
    if !ready("an_address_of_host_local", &["host-local"]) {
        return;
    }
    let mut lab = HostLocal::new();
    let pod = Netns::new();
    lab.node.room.ports().set_trouble(Some("nft is gone"));
    let (code, msg) = lab.node.cni("ADD", "pod", &pod.path(), &lab.conf()).error();
    assert!(code == 102 && msg.contains("nft is gone"), "{msg}");
    assert_eq!(lab.held(), 0, "after a failure of ours");
    lab.node.room.ports().set_trouble(None);

    let mut two = lab.conf();
    two["ipam"]["ranges"] = json!([[{ "subnet": "10.22.0.0/16" }], [{ "subnet": "10.23.0.0/16" }]]);
    two["ipam"].as_object_mut().unwrap().remove("subnet");
    let (code, msg) = lab.node.cni("ADD", "pod", &pod.path(), &two).error();
    assert!(code == 7 && msg.contains("gave 2 addresses"), "{msg}");
    assert_eq!(lab.held(), 0, "after an answer that we cannot use");

    let mut wrong = lab.conf();
    wrong["ipam"]["subnet"] = json!("10.22.0.0/33");
    let (_, msg) = lab.node.cni("ADD", "pod", &pod.path(), &wrong).error();
    assert!(msg.contains("IPAM plugin host-local"), "{msg}");
    lab.node.assert_clean();

    // With the agent down the delegate is told of DEL all the same.
    lab.node.cni("ADD", "pod", &pod.path(), &lab.conf()).result();
    lab.node.stop();
    lab.node.cni("DEL", "pod", &pod.path(), &lab.conf()).silent_success();
    assert_eq!((lab.held(), lab.node.folder.tombstones().len()), (0, 1));
    lab.node.start();
    lab.node.assert_clean();
}

#[test]
fn our_addresses_under_the_interfaces_of_others() {
    if !ready("our_addresses", &["ptp", "bridge"]) {
        return;
    }
    let node = Node::new();
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0"] {
        for plugin in [
            json!({ "type": "ptp", "ipam": { "type": "weave-ipam", "routes": [{ "dst": "0.0.0.0/0" }] } }),
            json!({ "type": "bridge", "bridge": "cnother", "ipam": { "type": "weave-ipam" } }),
        ] {
            let runtime = Runtime::new(&node, single(version, &plugin));
            let pod = Netns::new();
            let result = runtime.add("pod", &pod.path(), json!({})).unwrap();
            let text = result.to_string();
            assert!(text.contains("10.32.0.") && text.contains("/12"), "{text}");
            assert_eq!(node.room.addresses().given().len(), 1);
            if version >= "0.4.0" {
                runtime.check("pod", &pod.path()).unwrap();
            }
            runtime.del("pod", &pod.path()).unwrap();
            node.assert_clean();
        }
    }
}

#[test]
fn gc_and_status_by_a_runtime_of_today() {
    if !ready("gc_and_status", &[]) {
        return;
    }
    let node = Node::new();
    let runtime = Runtime::new(&node, single("1.1.0", &json!({ "type": "weave-net" })));
    runtime.status().unwrap();
    let (kept, lost) = (Netns::new(), Netns::new());
    runtime.add("kept", &kept.path(), json!({})).unwrap();
    node.cni("ADD", "lost", &lost.path(), &node.conf("1.1.0")).result();
    runtime.gc().unwrap();
    assert_eq!(node.pod_links().len(), 1);
    runtime.check("kept", &kept.path()).unwrap();
    runtime.del("kept", &kept.path()).unwrap();
    node.assert_clean();
    node.room.addresses().set_trouble(Some("no quorum"));
    assert_eq!(runtime.status().unwrap_err().error().0, 50);
}

#[test]
fn the_shim_in_a_path_with_a_delegate_that_fails_tells_whose_error_it_is() {
    if !ready("the_shim_in_a_path", &[]) {
        return;
    }
    let node = Node::new();
    let script = |name: &str, text: &str| {
        let path = node.folder.join(name);
        std::fs::write(&path, text).unwrap();
        sh(&format!("chmod +x {}", path.display()));
    };
    script(
        "ipam-error",
        "#!/bin/sh\ncat >/dev/null\necho '{\"cniVersion\":\"1.0.0\",\"code\":77,\"msg\":\"full\",\"details\":\"d\"}'; exit 1\n",
    );
    script("ipam-crash", "#!/bin/sh\necho nonsense; exit 3\n");
    script(
        "ipam-gibberish",
        "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && touch $0.deleted\necho nonsense\n",
    );
    for (name, code, text) in [
        ("ipam-error", 77, "IPAM plugin ipam-error: full d"),
        ("ipam-crash", 999, "ipam-crash failed on ADD"),
        ("ipam-gibberish", 6, "the answer of the IPAM plugin ipam-gibberish"),
    ] {
        let mut conf = node.conf("1.0.0");
        conf["ipam"] = json!({ "type": name });
        let pod = Netns::new();
        let path = node.folder.path().display().to_string();
        let netns = pod.path();
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "pod"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", path.as_str()),
        ];
        let (is, msg) = node.host.inside(|| weave_net(&env, &conf)).error();
        assert!(is == code && msg.contains(text), "{is} {msg}");
        node.assert_clean();
    }
    assert!(node.folder.join("ipam-gibberish.deleted").exists(), "what it gave may exist and is given back");
}
