//! DEL: everything goes, whatever is left of the pod, the agent or the namespace.

use super::*;

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
