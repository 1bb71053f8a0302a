//! The agent's socket: garbage, another user, an end in the middle of work.

use super::*;

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
