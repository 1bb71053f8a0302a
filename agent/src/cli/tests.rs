//! The command line from words to exit status, against a served socket in a directory of its own.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::control::ControlSocket;
use crate::control::fake::FakeAgent;
use crate::render::tests::sample;

mod traces;

/// Remembers what it was asked for.
#[derive(Default)]
struct FakeDoers {
    launched: RefCell<Vec<Settings>>,
    reset: RefCell<Vec<ResetPaths>>,
    fails: bool,
}

impl Doers for FakeDoers {
    fn launch(&self, settings: Settings) -> anyhow::Result<()> {
        self.launched.borrow_mut().push(settings);
        if self.fails {
            return Err(anyhow::anyhow!("address in use").context("cannot listen on 0.0.0.0:6783"));
        }
        Ok(())
    }

    fn reset(&self, paths: &ResetPaths) -> Vec<Trace> {
        self.reset.borrow_mut().push(paths.clone());
        let outcome = if self.fails { Err("device busy".to_owned()) } else { Ok(Removal::Removed) };
        vec![Trace { what: "bridge weave".to_owned(), outcome }]
    }

    fn weave_net(&self, _: &Places, remove: bool) -> io::Result<Vec<Trace>> {
        if self.fails {
            return Err(io::Error::other("not permitted"));
        }
        let outcome = Ok(if remove { Removal::Removed } else { Removal::Kept });
        Ok(vec![Trace { what: "device vethwe-bridge".to_owned(), outcome }])
    }
}

struct Said {
    exit: Exit,
    out: String,
    err: String,
}

fn say(doers: &FakeDoers, words: &[&str]) -> Said {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let words = std::iter::once("weave").chain(words.iter().copied()).map(OsString::from);
    let exit = run_on(words, doers, &mut Terminal { out: &mut out, err: &mut err });
    Said { exit, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// An agent that is served until it is told to shut down.
struct Node {
    dir: TempDir,
    agent: FakeAgent,
    _runtime: tokio::runtime::Runtime,
}

impl Node {
    fn serving(agent: FakeAgent) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = runtime.block_on(async { ControlSocket::bind(dir.path()).unwrap() });
        let (end, ended) = oneshot::channel::<()>();
        let (feed, control) = (agent.feed(), agent.clone());
        agent.on_shutdown(end);
        runtime.spawn(async move {
            tokio::select! {
                () = socket.serve(feed, control) => {}
                _ = ended => {}
            }
        });
        Self { dir, agent, _runtime: runtime }
    }

    fn run_dir(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn say(&self, words: &[&str]) -> Said {
        say(&FakeDoers::default(), &[&["--run-dir", self.run_dir()], words].concat())
    }
}

fn node() -> Node {
    Node::serving(FakeAgent::new(sample()))
}

#[test]
fn status_prints_each_part_as_text_and_as_json() {
    let node = node();
    for (words, view) in [
        (&["status"][..], View::Summary),
        (&["status", "connections"], View::Connections),
        (&["status", "peers"], View::Peers),
        (&["status", "ipam"], View::Ipam),
        (&["status", "targets"], View::Targets),
    ] {
        let said = node.say(words);
        assert_eq!((said.exit, said.out, said.err.as_str()), (Exit::Done, render::text(&sample(), view), ""));
        let said = node.say(&[words, &["--json"]].concat());
        assert_eq!((said.exit, said.out), (Exit::Done, render::json(&sample(), view).unwrap()));
    }
}

#[test]
fn the_run_directory_may_stand_before_or_behind_the_command() {
    let node = node();
    let said = say(&FakeDoers::default(), &["status", "--run-dir", node.run_dir()]);
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
}

#[test]
fn an_agent_that_is_not_ready_is_told_by_the_exit_status() {
    let node = node();
    node.agent.change(|status| status.waiting_for = vec!["waiting for an address".to_owned()]);
    let said = node.say(&["status"]);
    assert_eq!((said.exit, said.err.as_str()), (Exit::NotReady, ""));
    assert!(said.out.contains("Ready: no, waiting for an address"), "{}", said.out);
    assert_eq!(node.say(&["status", "peers"]).exit, Exit::Done);
}

#[test]
fn without_an_agent_every_asking_command_says_so_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().to_str().unwrap();
    let words: [&[&str]; 7] = [
        &["status"],
        &["report"],
        &["ps"],
        &["connect", "10.0.0.1"],
        &["forget", "10.0.0.1"],
        &["rmpeer", "node1"],
        &["prime"],
    ];
    for words in words {
        let said = say(&FakeDoers::default(), &[words, &["--run-dir", run_dir]].concat());
        assert_eq!((said.exit, said.out.as_str()), (Exit::NotRunning, ""), "{words:?}");
        let expected = format!(
            "weave: cannot reach the agent at {run_dir}/weave.sock: is it running? Start it with `weave launch`\n"
        );
        assert_eq!(said.err, expected);
    }
}

#[test]
fn a_socket_of_something_else_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("weave.sock")).unwrap();
    let answering = |answer: &'static str| {
        let listener = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let mut asker = io::BufReader::new(listener.accept().unwrap().0);
            io::BufRead::read_line(&mut asker, &mut String::new()).unwrap();
            asker.get_mut().write_all(answer.as_bytes()).unwrap();
        });
        let said = say(&FakeDoers::default(), &["--run-dir", dir.path().to_str().unwrap(), "status"]);
        thread.join().unwrap();
        assert_eq!(said.exit, Exit::Failed);
        said.err
    };
    assert!(answering("hello\n").contains("are both of one version?"));
    assert!(answering("{\"done\":{\"message\":\"x\"}}\n").contains("are both of one version?"));
    assert!(answering("{\"done\"").contains("the answer breaks off"));
    assert!(answering("").contains("the answer breaks off"));
}

#[test]
fn targets_are_changed_and_the_answer_printed() {
    let node = node();
    let said = node.say(&["connect", "10.0.0.7", "[fd00::7]:7000"]);
    assert_eq!((said.exit, said.out.as_str()), (Exit::Done, "looking for 10.0.0.7, [fd00::7]:7000\n"));
    let said = node.say(&["forget", "10.0.0.7", "--json"]);
    assert_eq!(said.out, "{\"message\":\"looking for 10.0.0.7 no longer\"}\n");
    let said = node.say(&["connect", "--replace"]);
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
    assert_eq!(node.say(&["status", "targets"]).out, "");
}

#[test]
fn for_a_word_of_weave_net_no_other_command_is_suggested() {
    for words in
        [&["expose"][..], &["start"], &["stop"], &["launch", "--status-addr=x"], &["launch", "--no-dns"]]
    {
        let said = say(&FakeDoers::default(), words);
        assert_eq!(said.exit, Exit::Usage);
        assert!(said.err.contains("note: ") && !said.err.contains("tip: "), "{words:?}: {}", said.err);
    }
    assert!(say(&FakeDoers::default(), &["statu"]).err.contains("tip: "));
}

#[test]
fn several_peers_are_removed_each_by_itself() {
    let node = node();
    let said = node.say(&["rmpeer", "node3", "node2", "node8"]);
    assert_eq!(said.exit, Exit::Failed);
    assert_eq!(said.out, "349526 IPs taken over from node3\n");
    assert!(said.err.contains("cannot remove \"node2\": 7a:3f:00:00:00:02 is alive"), "{}", said.err);
    assert!(said.err.contains("cannot remove \"node8\": no peer is called \"node8\""), "{}", said.err);
    let said = node.say(&["rmpeer", "--force", "--json", "node2", "node8"]);
    let outcomes: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(outcomes[0]["done"]["message"], "349525 IPs taken over from node2");
    assert_eq!(outcomes[1]["failed"]["code"], "not-found");
    assert_eq!((said.exit, said.err.as_str()), (Exit::Failed, ""));
}

#[test]
fn containers_and_values_are_found_or_missed_by_name() {
    let node = node();
    assert_eq!(node.say(&["ps"]).out, render::ps(&sample(), &[]));
    assert_eq!(node.say(&["ps", "a1b2"]).out, "a1b2c3d4e5f6 8e:10:00:00:00:02 10.32.0.2/12\n");
    let said = node.say(&["ps", "a1b2", "ffff"]);
    assert_eq!((said.exit, said.out.as_str()), (Exit::Failed, ""));
    assert!(said.err.contains("no container \"ffff\""), "{}", said.err);
    let json: serde_json::Value = serde_json::from_str(&node.say(&["ps", "--json"]).out).unwrap();
    assert_eq!(json[0]["container"], "weave:expose");
    assert_eq!(node.say(&["report", "-f", "/ipam/range"]).out, "10.32.0.0/12\n");
    let said = node.say(&["report", "-f", "/ipam/rnage"]);
    assert_eq!(said.exit, Exit::Failed);
    assert!(said.err.contains("range"), "{}", said.err);
    let whole: Status = serde_json::from_str(&node.say(&["report"]).out).unwrap();
    assert_eq!(whole, sample());
}

#[test]
fn prime_waits_for_addresses() {
    let node = node();
    assert_eq!(node.say(&["prime"]).exit, Exit::Done);
    node.agent.change(|status| {
        let ipam = status.ipam.as_mut().unwrap();
        (ipam.ready, ipam.state) = (false, "awaiting consensus".to_owned());
    });
    let said = node.say(&["prime", "--timeout", "0"]);
    assert_eq!(said.exit, Exit::NotReady);
    assert_eq!(said.err, "weave: no addresses yet: awaiting consensus\n");
}

#[test]
fn version_tells_of_both_programs() {
    let node = node();
    assert_eq!(node.say(&["version"]).out, format!("weave {VERSION}\nagent 0.1.0\n"));
    assert_eq!(
        node.say(&["version", "--json"]).out,
        format!("{{\"agent\":\"0.1.0\",\"weave\":\"{VERSION}\"}}\n")
    );
    let dir = tempfile::tempdir().unwrap();
    let said = say(&FakeDoers::default(), &["version", "--run-dir", dir.path().to_str().unwrap()]);
    assert_eq!((said.exit, said.out), (Exit::Done, format!("weave {VERSION}\nagent not running\n")));
}

/// A reader that has gone away.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let node = node();
    for words in [&["status"][..], &["report"], &["ps"], &["--help"], &["completion", "bash"], &["version"]] {
        let words: Vec<_> = [&["weave", "--run-dir", node.run_dir()], words].concat();
        let mut err = Vec::new();
        let mut terminal = Terminal { out: &mut Closed, err: &mut err };
        let exit = run_on(words.iter().map(OsString::from), &FakeDoers::default(), &mut terminal);
        assert_eq!((exit, err.as_slice()), (Exit::Done, &b""[..]), "{words:?}");
    }
}

#[test]
fn launch_hands_over_the_settings_with_the_run_directory() {
    let doers = FakeDoers::default();
    let said = say(&doers, &["launch", "--run-dir", "/tmp/r", "--port", "7000", "10.0.0.2"]);
    assert_eq!(said.exit, Exit::Done, "{}", said.err);
    let launched = doers.launched.borrow();
    assert_eq!(launched[0].paths.control_socket(), Path::new("/tmp/r/weave.sock"));
    assert_eq!(launched[0].mesh.port.get(), 7000);
}

#[test]
fn the_log_tells_what_was_given_but_no_password() {
    let given = |words: &[&str]| {
        let words = ["weave", "launch"].iter().chain(words);
        args::given(&command().try_get_matches_from(words).unwrap())
    };
    let line = given(&["--resume", "--conn-limit", "7", "--password", "hunter2", "10.0.0.2", "node3"]);
    for part in ["resume=true", "conn-limit=7", "peers=10.0.0.2,node3"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!line.contains("hunter2") && !line.contains("port") && !line.contains("Settings"), "{line}");
}

#[test]
fn a_launch_that_fails_says_why_on_one_line() {
    let doers = FakeDoers { fails: true, ..FakeDoers::default() };
    let said = say(&doers, &["launch"]);
    assert_eq!(said.exit, Exit::Failed);
    assert_eq!(said.err, "weave: cannot listen on 0.0.0.0:6783: address in use\n");
}

#[test]
fn settings_that_contradict_each_other_stop_the_launch() {
    let doers = FakeDoers::default();
    let said = say(&doers, &["launch", "--password", "hunter2", "--methods", "fastdp"]);
    assert_eq!(said.exit, Exit::Usage);
    assert!(said.err.contains("add sleeve") && !said.err.contains("hunter2"), "{}", said.err);
    assert!(doers.launched.borrow().is_empty());
}

/// What an agent would be launched with in a process with these variables.
fn launched_with(variables: &[(&str, &str)]) -> String {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cli::tests::child_that_shows_its_settings", "--ignored", "--nocapture"])
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    String::from_utf8(child.stdout).unwrap()
}

#[test]
#[ignore = "run in processes of their own by the tests of variables"]
fn child_that_shows_its_settings() {
    let doers = FakeDoers::default();
    let said = say(&doers, &["launch"]);
    println!("{:?} {} {:?}", said.exit, said.err, doers.launched.borrow().first());
}

#[test]
fn variables_have_weave_nets_names_and_meanings() {
    let settings = launched_with(&[
        ("WEAVE_SECRET_FILE", "/s"),
        ("CONN_LIMIT", "0"),
        ("IPALLOC_RANGE", "10.128.0.0/16"),
        ("IPALLOC_INIT", "consensus=3"),
        ("WEAVE_MTU", "1400"),
        ("NO_MASQ_LOCAL", "1"),
        ("WEAVE_HTTP_ADDR", "127.0.0.1:7784"),
        ("WEAVE_METRICS_ADDR", "0.0.0.0:6782"),
        ("WEAVE_DATA_DIR", "/d"),
        ("WEAVE_PROC_SYS", "/p"),
        ("WEAVE_RUN_DIR", "/r"),
    ]);
    for part in [
        "secret_file: Some(\"/s\")",
        "ConnLimit(None)",
        "range: 10.128.0.0/16, init: Consensus(Some(3))",
        "Mtu(Some(1400)), no_masq_local: Some(true)",
        "Tcp(127.0.0.1:7784), metrics_addr: Tcp(0.0.0.0:6782)",
        "data_dir: \"/d\", proc_sys: \"/p\", run_dir: \"/r\"",
    ] {
        assert!(settings.contains(part), "{part:?} is not in {settings}");
    }
}

#[test]
fn a_variable_set_to_nothing_counts_as_not_set() {
    let names =
        ["CONN_LIMIT", "IPALLOC_RANGE", "IPALLOC_INIT", "WEAVE_MTU", "NO_MASQ_LOCAL", "WEAVE_PASSWORD"];
    let settings = launched_with(&names.map(|name| (name, "")));
    for part in ["Done", "ConnLimit(Some(200))", "10.32.0.0/12", "no_masq_local: None"] {
        assert!(settings.contains(part), "{part:?} is not in {settings}");
    }
}

#[test]
fn a_switch_is_turned_off_by_zero_and_a_bad_variable_is_named() {
    assert!(launched_with(&[("NO_MASQ_LOCAL", "0")]).contains("no_masq_local: Some(false)"));
    let refused = launched_with(&[("IPALLOC_RANGE", "10.32.0.0")]);
    assert!(refused.contains("Usage") && refused.contains("--ipalloc-range"), "{refused}");
    assert!(refused.contains("comes from the environment variable IPALLOC_RANGE"), "{refused}");
    let launched = launched_with(&[("WEAVE_PASSWORD", "hunter2")]);
    assert!(launched.contains("Done") && launched.contains("Some((not shown))"), "{launched}");
    assert!(!launched.contains("hunter2"), "{launched}");
}

#[test]
fn bad_command_lines_are_usage_errors_that_name_the_word() {
    for (words, parts) in [
        (&["stauts"][..], &["stauts", "status"][..]),
        (&["status", "dns"], &["dns", "connections"]),
        (&["connect"], &["PEER"]),
        (&["connect", "10.0.0.300"], &["10.0.0.300", "neither an IP address"]),
        (&["rmpeer"], &["PEER"]),
        (&["launch", "--no-dns"], &["--no-dns", "no weaveDNS"]),
        (&["launch", "--name=x"], &["--name", "made from its key"]),
        (&["stop"], &["SIGTERM"]),
        (&["launch", "--ipalloc-range", "10.32.0.1/12"], &["host bits"]),
        (&[], &["Usage"]),
    ] {
        let said = say(&FakeDoers::default(), words);
        assert_eq!((said.exit, said.out.as_str()), (Exit::Usage, ""), "{words:?}");
        for part in parts {
            assert!(said.err.contains(part), "{words:?}: {part:?} is not in {}", said.err);
        }
    }
}

#[test]
fn the_description_of_the_command_line_is_sound() {
    command().debug_assert();
}

#[test]
fn every_command_has_help_that_teaches_and_fits_a_terminal() {
    let names: Vec<_> = command().get_subcommands().map(|it| it.get_name().to_owned()).collect();
    for name in names {
        let said = say(&FakeDoers::default(), &[&name, "--help"]);
        assert_eq!(said.exit, Exit::Done, "{name}");
        assert!(said.out.contains("Usage: weave"), "{name}: {}", said.out);
        let long = said.out.lines().find(|line| line.chars().count() > 100);
        assert_eq!(long, None, "{name}");
    }
    let help = say(&FakeDoers::default(), &["--help"]).out;
    assert!(help.contains("Exit status:") && help.contains("consensus=3"), "{help}");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let said = say(&FakeDoers::default(), &["completion", shell]);
        assert!(said.out.contains("rmpeer") && said.out.contains("setup-cni"), "{shell}");
    }
}

#[test]
fn the_examples_in_the_documentation_are_what_is_printed() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let before = fs::read_to_string(&page).unwrap();
    let after = documented(&before);
    // Set it after a change of the output, and look at the difference.
    if std::env::var_os("WEAVE_UPDATE_DOCS").is_some() {
        fs::write(&page, &after).unwrap();
    } else {
        assert_eq!(before, after);
    }
}

/// The page with the output of each example (`console`) as it is now.
fn documented(page: &str) -> String {
    let mut out = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        out.extend([line, "\n"]);
        if line == "```console" {
            let example = lines.next().unwrap();
            let words: Vec<_> = example.strip_prefix("# weave ").unwrap().split(' ').collect();
            assert!(!matches!(words[0], "reset" | "setup-cni"), "{example:?} would change this machine");
            let said = node().say(&words);
            out.extend([example, "\n"]);
            out.extend(said.out.lines().chain(said.err.lines()).flat_map(|line| [line.trim_end(), "\n"]));
            out.push_str("```\n");
            assert!(lines.any(|line| line == "```"), "{example:?} does not end");
        }
    }
    out
}

#[test]
fn extra_arguments_are_for_the_agent_of_a_cluster_alone() {
    let words = |line: &str| line.split(' ').map(Into::into).collect::<Vec<OsString>>();
    let extra = |line: &str| args::with_extra(words(line), " --log-level=debug  --conn-limit=9 ");
    assert_eq!(
        extra("weave launch --kubernetes"),
        words("weave launch --kubernetes --log-level=debug --conn-limit=9")
    );
    assert_eq!(extra("weave launch"), words("weave launch"));
    assert_eq!(extra("weave status"), words("weave status"));
}

#[test]
fn every_metric_is_documented() {
    let page = include_str!("../../../docs/cli.md");
    let status = Status { tunnels: Some(Default::default()), ..sample() };
    let metrics = crate::http::metrics::render(status.into(), crate::http::metrics::Format::Classic).unwrap();
    for name in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(page.contains(&format!("`{name}")), "{name}");
    }
}
