//! What the commands leave on a node, and take away again.

use super::*;

#[test]
fn reset_is_refused_while_the_agent_runs() {
    let node = node();
    let said = node.say(&["reset"]);
    assert_eq!(said.exit, Exit::Failed);
    assert!(said.err.contains("--force"), "{}", said.err);
    assert_eq!(node.agent.heard(), Vec::<String>::new());
}

#[test]
fn a_forced_reset_ends_the_agent_and_says_what_to_do_elsewhere() {
    let node = node();
    let doers = FakeDoers::default();
    let data = node.dir.path().join("data");
    let cni = node.dir.path().join("cni");
    let words = |force: &'static [&'static str]| {
        let dirs = ["--data-dir", data.to_str().unwrap(), "--bin-dir", cni.to_str().unwrap(), "--conf-dir"];
        [&["--run-dir", node.run_dir(), "reset"], force, &dirs[..], &[cni.to_str().unwrap()]].concat()
    };
    let said = say(&doers, &words(&["--force"]));
    assert_eq!((said.exit, said.err.as_str()), (Exit::Done, ""));
    assert!(said.out.contains("removed bridge weave\n"), "{}", said.out);
    assert!(said.out.contains("run `weave rmpeer 7a:3f:00:00:00:01` on one of them"), "{}", said.out);
    assert_eq!(node.agent.heard(), ["shutdown"]);
    assert_eq!(doers.reset.borrow()[0].data_dir, data);
    // Again, without an agent, is no error.
    assert_eq!(say(&doers, &words(&[])).exit, Exit::Done);
}

#[test]
fn weave_nets_leftovers_are_shown_or_removed_beside_a_running_agent() {
    let node = node();
    let say = |words: &[&str]| node.say(&[&["reset", "--weave-net"], words].concat());
    assert_eq!(say(&["--dry-run"]).out, "would remove device vethwe-bridge\n");
    assert_eq!(say(&[]).out, "removed device vethwe-bridge\n");
    assert_eq!(node.agent.heard(), Vec::<String>::new());
    let failing = FakeDoers { fails: true, ..FakeDoers::default() };
    let said = super::say(&failing, &["reset", "--weave-net"]);
    assert_eq!(said.exit, Exit::Failed);
    assert!(said.err.contains("cannot find out what Weave Net left"), "{}", said.err);
    assert_eq!(super::say(&failing, &["reset", "--dry-run"]).exit, Exit::Usage);
}

#[test]
fn a_reset_goes_on_after_a_failure_and_reports_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for name in ["run", "data", "cni"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("run/cni.sock"), "").unwrap();
    fs::write(path("data/precious"), "").unwrap();
    let doers = FakeDoers { fails: true, ..FakeDoers::default() };
    let words = [
        "reset",
        "--run-dir",
        &path("run"),
        "--data-dir",
        &path("data"),
        "--bin-dir",
        &path("cni"),
        "--conf-dir",
        &path("cni"),
    ];
    let said = say(&doers, &words);
    assert_eq!(said.exit, Exit::Failed);
    assert!(said.err.contains("cannot remove bridge weave: device busy"), "{}", said.err);
    assert!(!Path::new(&path("run")).exists());
    assert!(Path::new(&path("data/precious")).exists());
}

/// A place to install to, with a plugin to install.
fn cni_place() -> (TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("plugin"), "the plugin").unwrap();
    let dirs = ["--bin-dir".to_owned(), path("bin"), "--conf-dir".to_owned(), path("conf")];
    (dir, dirs.to_vec())
}

fn setup(dir: &TempDir, dirs: &[String]) -> Said {
    let plugin = dir.path().join("plugin");
    let mut words = vec!["setup-cni", "--plugin", plugin.to_str().unwrap()];
    words.extend(dirs.iter().map(String::as_str));
    say(&FakeDoers::default(), &words)
}

#[test]
fn the_cni_plugin_is_installed_whole_and_can_be_installed_again() {
    let (dir, dirs) = cni_place();
    for again in [false, true] {
        let said = setup(&dir, &dirs);
        assert_eq!(said.exit, Exit::Done, "{}", said.err);
        assert_eq!(said.out.contains("is there already"), again, "{}", said.out);
    }
    let program = dir.path().join("bin/weave-net");
    assert_eq!(fs::read_to_string(&program).unwrap(), "the plugin");
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_link(dir.path().join("bin/weave-ipam")).unwrap(), Path::new("weave-net"));
    let network: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("conf/10-weave.conflist")).unwrap()).unwrap();
    assert_eq!(network["plugins"][0]["type"], "weave-net");
    let left: Vec<_> =
        fs::read_dir(dir.path().join("bin")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn the_network_names_the_agents_directories_and_only_plugins_that_are_there() {
    let (dir, mut dirs) = cni_place();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("bin/portmap"), "").unwrap();
    dirs.extend(["--run-dir", "/run/other", "--data-dir", "/data"].map(str::to_owned));
    let said = setup(&dir, &dirs);
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
    assert!(
        said.err.contains("bandwidth is not in") && said.err.contains("loopback is not in"),
        "{}",
        said.err
    );
    let network: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("conf/10-weave.conflist")).unwrap()).unwrap();
    let plugins = network["plugins"].as_array().unwrap();
    assert_eq!((&plugins[0]["runDir"], &plugins[0]["dataDir"]), (&"/run/other".into(), &"/data".into()));
    assert_eq!(plugins.iter().map(|plugin| &plugin["type"]).collect::<Vec<_>>(), ["weave-net", "portmap"]);
}

#[test]
fn a_network_changed_by_hand_is_kept_and_weave_nets_own_is_removed() {
    let (dir, dirs) = cni_place();
    let conf = dir.path().join("conf");
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join("10-weave.conflist"), "{\"mine\":true}").unwrap();
    fs::write(conf.join("10-weave.conf"), "{\"type\":\"weave-net\"}").unwrap();
    let said = setup(&dir, &dirs);
    assert_eq!(said.exit, Exit::Done);
    assert!(said.out.contains("left as it is"), "{}", said.out);
    assert_eq!(fs::read_to_string(conf.join("10-weave.conflist")).unwrap(), "{\"mine\":true}");
    assert!(!conf.join("10-weave.conf").exists());
}

#[test]
fn a_plugin_that_is_missing_is_named_and_nothing_is_installed() {
    let (dir, dirs) = cni_place();
    fs::remove_file(dir.path().join("plugin")).unwrap();
    let said = setup(&dir, &dirs);
    assert_eq!(said.exit, Exit::Failed);
    assert!(said.err.contains("cannot read the CNI plugin") && said.err.contains("/plugin"), "{}", said.err);
    assert!(!dir.path().join("conf/10-weave.conflist").exists());
}

#[test]
fn reset_removes_the_cni_files_but_no_foreign_network() {
    let (dir, dirs) = cni_place();
    setup(&dir, &dirs);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (run, data) = (path("run"), path("data"));
    let mut words = vec!["reset", "--run-dir", &run, "--data-dir", &data];
    words.extend(dirs.iter().map(String::as_str));
    let said = say(&FakeDoers::default(), &words);
    assert!(said.out.contains("10-weave.conflist") && said.out.contains("weave-ipam"), "{}", said.out);
    assert_eq!(fs::read_dir(dir.path().join("bin")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("conf")).unwrap().count(), 0);
    fs::write(dir.path().join("conf/10-weave.conflist"), "{\"type\":\"other\"}").unwrap();
    say(&FakeDoers::default(), &words);
    assert!(dir.path().join("conf/10-weave.conflist").exists());
}
