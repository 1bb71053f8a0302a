use super::*;

fn conflist(chained: Vec<Chained>) -> Conflist {
    Conflist { name: "weave".to_owned(), hairpin: true, mtu: None, paths: Paths::default(), chained }
}

const fn old(plugin: Standard) -> Chained {
    Chained { plugin, is_newest: false }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_usual_configuration() {
    let document = conflist(vec![old(Standard::Portmap), old(Standard::Bandwidth)]).render();
    let expected = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0"],
        "name": "weave",
        "plugins": [
            { "type": "weave-net", "hairpinMode": true },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    });
    assert_eq!(document, expected);
}

#[test]
fn a_runtime_is_offered_1_1_0_only_if_every_plugin_in_place_speaks_it() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, script: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let offers = || conflist(look_around(dir.path()).0).render()["cniVersions"].to_string().contains("1.1.0");
    let new = r#"test "$CNI_COMMAND" = VERSION && echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'"#;
    put("portmap", new);
    assert!(offers());
    put("bandwidth", r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#);
    assert!(!offers());
    put("bandwidth", new);
    assert!(offers());
    for broken in ["exit 1", "echo nonsense", "exec sleep 60"] {
        put("bandwidth", broken);
        assert!(!offers(), "{broken}");
    }
}

#[test]
fn what_is_unusual_is_written_down() {
    let paths = Paths { run_dir: "/run/other".into(), data_dir: "/data".into() };
    let document = Conflist { hairpin: false, mtu: Some(1400), paths, ..conflist(vec![]) }.render();
    let ours = json!({ "type": "weave-net", "hairpinMode": false, "mtu": 1400, "runDir": "/run/other", "dataDir": "/data" });
    assert_eq!(document["plugins"], json!([ours]));
}

#[test]
fn trap_04_the_configuration_is_renamed_within_its_folder_and_nothing_is_left_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
    let flags = rustix::fs::inotify::WatchFlags::ALL_EVENTS;
    rustix::fs::inotify::add_watch(&watch, dir.path(), flags).unwrap();
    conflist(vec![]).install(dir.path()).unwrap();

    let mut space = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = rustix::fs::inotify::Reader::new(&watch, &mut space);
    let mut seen = Vec::new();
    while let Ok(event) = events.next() {
        seen.push((event.events(), event.file_name().map(|name| name.to_string_lossy().into_owned())));
    }
    let place = || Some(FILE.to_owned());
    assert!(seen.contains(&(rustix::fs::inotify::ReadFlags::MOVED_TO, place())), "{seen:?}");
    let from = seen.iter().find(|(flags, _)| flags.contains(rustix::fs::inotify::ReadFlags::MOVED_FROM));
    let from = from.expect("renamed within the folder").1.clone().unwrap();
    for read in [".conflist", ".conf", ".json"] {
        assert!(!from.ends_with(read), "a runtime would read {from}");
    }
    assert_eq!(names(dir.path()), [FILE]);
}

#[test]
fn the_same_configuration_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    conflist(vec![]).install(dir.path()).unwrap();
    let before = std::fs::metadata(dir.path().join(FILE)).unwrap().modified().unwrap();
    conflist(vec![]).install(dir.path()).unwrap();
    assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().modified().unwrap(), before);
    conflist(vec![old(Standard::Portmap)]).install(dir.path()).unwrap();
    assert!(std::fs::read_to_string(dir.path().join(FILE)).unwrap().contains("portmap"));
}

#[test]
fn trap_05_and_07_only_plugins_that_are_there_are_named_and_the_others_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("portmap"), "").unwrap();
    let (chained, missing) = look_around(dir.path());
    assert_eq!(chained, [old(Standard::Portmap)]);
    let plugins: Vec<_> = missing.iter().map(|missing| missing.plugin).collect();
    assert_eq!(plugins, ["bandwidth", "loopback"]);
    std::fs::write(dir.path().join("bandwidth"), "").unwrap();
    std::fs::write(dir.path().join("loopback"), "").unwrap();
    assert_eq!(look_around(dir.path()), (vec![old(Standard::Portmap), old(Standard::Bandwidth)], vec![]));
}

#[test]
fn trap_06_a_plugin_that_is_where_debian_s_runtime_looks_is_pointed_out() {
    let missing = |is_in_debians| {
        let dir = "/opt/cni/bin".into();
        Missing { plugin: "loopback", dir, loss: "no pod starts", is_in_debians }.to_string()
    };
    assert_eq!(
        missing(false),
        "the CNI plugin loopback is not in /opt/cni/bin: no pod starts; install it there (Debian's package \
         containernetworking-plugins has it)"
    );
    assert!(missing(true).contains("--bin-dir /usr/lib/cni"), "{}", missing(true));
}

#[test]
fn trap_14_a_running_shim_is_replaced_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    install_shim(Path::new("/bin/sleep"), &bin).unwrap();
    let mut running = Command::new(bin.join("weave-net")).arg("60").spawn().unwrap();
    let old = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(bin.join("weave-net")).unwrap());
    let installed = install_shim(Path::new("/bin/cat"), &bin);
    running.kill().unwrap();
    running.wait().unwrap();
    installed.unwrap();
    assert_ne!(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(bin.join("weave-net")).unwrap()), old);
    assert_eq!(names(&bin), ["weave-ipam", "weave-net"]);
    assert_eq!(std::fs::read_link(bin.join("weave-ipam")).unwrap(), Path::new("weave-net"));
    assert_eq!(std::fs::read(bin.join("weave-ipam")).unwrap(), std::fs::read("/bin/cat").unwrap());
    install_shim(Path::new("/bin/cat"), &bin).unwrap();
}
