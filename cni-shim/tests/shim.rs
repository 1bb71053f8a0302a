//! The real binary against an agent that says what it is told: environment, configuration, results, error codes,
//! deadlines, tombstones. No root needed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must fail")]

mod support;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::fake_agent::FakeAgent;
use support::{Folder, Ran, SHIM, VERSIONS, run, weave_ipam, weave_net};
use weave_proto::local::cni::{
    Address, Allocated, Answer, AttachmentKey, Call, ErrorCode, Refusal, Tombstone,
};

const VARIABLES: [(&str, &str); 5] = [
    ("CNI_CONTAINERID", "some-container_id.1"),
    ("CNI_NETNS", "/proc/self/ns/net"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=till"),
    ("CNI_PATH", "/nowhere"),
];

fn env(verb: &str) -> Vec<(&str, &str)> {
    [("CNI_COMMAND", verb)].into_iter().chain(VARIABLES).collect()
}

fn env_without<'a>(verb: &'a str, missing: &[&str]) -> Vec<(&'a str, &'a str)> {
    env(verb).into_iter().filter(|(name, _)| !missing.contains(name)).collect()
}

fn env_with<'a>(verb: &'a str, name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    env_without(verb, &[name]).into_iter().chain([(name, value)]).collect()
}

fn conf(folder: &Folder, version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "weave", "type": "weave-net",
        "runDir": folder.path(), "dataDir": folder.path(),
    })
}

fn with(mut conf: Value, key: &str, value: Value) -> Value {
    conf[key] = value;
    conf
}

fn key() -> AttachmentKey {
    AttachmentKey { container: "some-container_id.1".to_owned(), interface: "eth0".to_owned() }
}

fn refused(code: ErrorCode, msg: &str) -> Answer {
    Answer::Refused(Refusal::new(code, msg))
}

#[track_caller]
fn assert_error(ran: &Ran, code: u64, text: &str) {
    let (is, msg) = ran.error();
    assert!(is == code && msg.contains(text), "wanted {code} with {text:?}: {ran:?}");
}

// ---- by hand -------------------------------------------------------------------------------------------------

#[test]
fn a_person_who_starts_it_reads_what_it_is() {
    for env in [&[][..], &[("CNI_COMMAND", "")]] {
        let ran = run(Path::new(SHIM), "weave-net", env, b"");
        assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
        assert!(
            ran.stderr.contains("CNI plugin of the weave network") && ran.stderr.contains("0.1.0, 0.2.0")
        );
    }
}

#[test]
fn it_tells_its_version() {
    let output = std::process::Command::new(SHIM).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), format!("weave-net {}", env!("CARGO_PKG_VERSION")));
}

// ---- the environment -----------------------------------------------------------------------------------------

#[test]
fn each_verb_names_all_variables_that_it_misses() {
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    let all = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
    let table: [(&str, &[&str]); 6] = [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", &["CNI_PATH"]),
        ("STATUS", &[]),
        ("VERSION", &[]),
    ];
    for (verb, required) in table {
        for (count, missing) in [&all[..]].into_iter().chain(all.iter().map(std::slice::from_ref)).enumerate()
        {
            let ran = weave_net(&env_without(verb, missing), &conf(&folder, "1.1.0"));
            let wanted: Vec<_> = required.iter().copied().filter(|name| missing.contains(name)).collect();
            if wanted.is_empty() {
                let refused_environment = ran.code == 1 && ran.error().0 == 4;
                assert!(!refused_environment, "{verb} without {missing:?}: {ran:?}");
            } else {
                assert_error(&ran, 4, &wanted.join(", "));
            }
            assert!(count < 6);
        }
    }
}

#[test]
fn a_verb_that_there_is_not() {
    let folder = Folder::new();
    for verb in ["add", "UPDATE", "ADD "] {
        assert_error(&weave_net(&env(verb), &conf(&folder, "1.0.0")), 4, "unknown CNI_COMMAND");
    }
}

#[test]
fn bad_container_ids_and_interface_names() {
    let folder = Folder::new();
    for id in ["../x", "a/b", "-a", ".a", "a b", "a:b", "weave:expose", "é"] {
        let ran = weave_net(&env_with("DEL", "CNI_CONTAINERID", id), &conf(&folder, "1.0.0"));
        assert_error(&ran, 4, "CNI_CONTAINERID");
    }
    for name in [".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen_letters_"] {
        let ran = weave_net(&env_with("DEL", "CNI_IFNAME", name), &conf(&folder, "1.0.0"));
        assert_error(&ran, 4, "CNI_IFNAME");
    }
    assert_eq!(folder.tombstones(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn bad_pairs_in_cni_args() {
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    let conf = conf(&folder, "1.0.0");
    assert_error(&weave_net(&env_with("ADD", "CNI_ARGS", "A=1;B"), &conf), 4, "\"B\"");
    weave_net(&env_with("DEL", "CNI_ARGS", "A=1;B"), &with(conf, "dns", Value::Null)).error();
    let env = env_with("DEL", "CNI_ARGS", "A=1;B");
    let env: Vec<_> = env.into_iter().filter(|(name, _)| *name != "CNI_NETNS").collect();
    weave_net(&env, &self::conf(&folder, "1.0.0")).silent_success();
}

#[test]
fn the_nodes_own_namespace_is_no_pod() {
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    let prev_result = json!({ "cniVersion": "1.0.0", "interfaces": [], "ips": [] });
    for verb in ["ADD", "DEL", "CHECK"] {
        let conf = with(conf(&folder, "1.0.0"), "prevResult", prev_result.clone());
        assert_error(&weave_net(&env(verb), &conf), 8, "the node's own");
    }
}

#[test]
fn a_namespace_that_is_gone_or_is_none() {
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    let file = folder.join("plain");
    std::fs::write(&file, "").unwrap();
    for path in ["/var/run/netns/cn-never", file.to_str().unwrap()] {
        assert_error(&weave_net(&env_with("ADD", "CNI_NETNS", path), &conf(&folder, "1.0.0")), 3, path);
        weave_net(&env_with("DEL", "CNI_NETNS", path), &conf(&folder, "1.0.0")).silent_success();
    }
}

// ---- the configuration ---------------------------------------------------------------------------------------

#[test]
fn what_is_no_configuration() {
    let folder = Folder::new();
    let good = conf(&folder, "1.0.0");
    let raw = |bytes: &[u8]| run(Path::new(SHIM), "weave-net", &env("ADD"), bytes);
    for bytes in [&b""[..], b"{", b"[]", b"\xff\xfe", b"{} {}"] {
        assert_error(&raw(bytes), 6, "configuration");
    }
    assert_error(&raw(format!("{good}{}", " ".repeat(1 << 21)).as_bytes()), 6, "longer than");
    for (key, wrong) in [("mtu", json!("big")), ("mtu", json!(-1)), ("ipMasq", json!(3)), ("ipam", json!([]))]
    {
        assert_error(&weave_net(&env("ADD"), &with(good.clone(), key, wrong)), 6, "");
    }
    for (key, wrong, text) in [
        ("name", json!(""), "network name"),
        ("name", json!("a/b"), "network name"),
        ("runDir", json!("run"), "runDir"),
        ("dataDir", json!("data"), "dataDir"),
        ("ipam", json!({ "subnet": "10.32.0.0" }), "ipam.subnet"),
        ("ipam", json!({ "routes": [{ "dst": "everywhere" }] }), "ipam.routes"),
    ] {
        assert_error(&weave_net(&env("ADD"), &with(good.clone(), key, wrong)), 7, text);
    }
}

#[test]
fn keys_that_cannot_be_honoured_are_refused_with_their_value_and_unknown_ones_ignored() {
    let folder = Folder::new();
    let good = conf(&folder, "1.0.0");
    for (key, value, text) in [
        ("isGateway", json!(true), "isGateway with value true"),
        ("ipMasq", json!(true), "ipMasq with value true"),
        ("runtimeConfig", json!({ "ips": ["10.32.0.9/12"] }), "runtimeConfig.ips"),
        ("runtimeConfig", json!({ "mac": "02:00:00:00:00:01" }), "runtimeConfig.mac"),
        ("runtimeConfig", json!({ "IPRanges": [[{ "subnet": "10.32.0.0/12" }]] }), "runtimeConfig.ipranges"),
    ] {
        assert_error(&weave_net(&env("ADD"), &with(good.clone(), key, value)), 2, text);
    }
    for (name, text) in [("IP", "IP=10.32.0.9"), ("MAC", "MAC=02:00:00:00:00:01")] {
        assert_error(&weave_net(&env_with("ADD", "CNI_ARGS", text), &good), 2, name);
    }
    // Past all refusals, the next hurdle is the node's own namespace.
    for (key, value) in [
        ("isGateway", json!(false)),
        ("ipMasq", json!(false)),
        ("mtu", json!(0)),
        ("colour", json!("blue")),
        ("args", json!({ "cni": { "labels": [] } })),
        ("runtimeConfig", json!({ "portMappings": [], "Bandwidth": { "IngressRate": 1 } })),
        ("runtimeConfig", Value::Null),
        ("ipam", json!({})),
    ] {
        assert_error(&weave_net(&env("ADD"), &with(good.clone(), key, value)), 8, "");
    }
}

#[test]
fn trap_02_versions_are_matched_by_equality_and_all_are_there() {
    let folder = Folder::new();
    for version in VERSIONS {
        assert_error(&weave_net(&env("ADD"), &conf(&folder, version)), 8, "");
    }
    for version in ["0.3", "0.3.2", "1.2.0", "v1.0.0", "1.0.0 ", "2.0.0"] {
        assert_error(&weave_net(&env("ADD"), &conf(&folder, version)), 1, "plugin supports [\"0.1.0\"");
    }
    let mut none = conf(&folder, "");
    none.as_object_mut().unwrap().remove("cniVersion");
    let ran = weave_net(&env("ADD"), &none);
    assert_eq!(ran.json()["cniVersion"], "0.1.0", "a configuration without a version is the oldest");
}

#[test]
fn verbs_under_versions_that_do_not_have_them() {
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    for (position, version) in VERSIONS.into_iter().enumerate() {
        for (verb, since) in [("CHECK", 4), ("GC", 6), ("STATUS", 6)] {
            for ran in [
                weave_net(&env(verb), &conf(&folder, version)),
                weave_ipam(&env(verb), &conf(&folder, version)),
            ] {
                let incompatible = ran.code == 1 && ran.error().0 == 1;
                assert_eq!(incompatible, position < since, "{verb} under {version}: {ran:?}");
            }
        }
    }
}

#[test]
fn check_needs_a_prev_result() {
    let folder = Folder::new();
    assert_error(&weave_net(&env("CHECK"), &conf(&folder, "1.0.0")), 7, "prevResult");
}

#[test]
fn trap_05_version_is_answered_without_reading_standard_input() {
    for program in ["weave-net", "weave-ipam"] {
        let ran = run(Path::new(SHIM), program, &[("CNI_COMMAND", "VERSION")], b"no json");
        assert_eq!(ran.result(), json!({ "cniVersion": "1.1.0", "supportedVersions": VERSIONS }));
    }
}

// ---- results -------------------------------------------------------------------------------------------------

#[test]
fn trap_01_weave_ipam_prints_every_version_of_a_result() {
    let folder = Folder::new();
    let gateway = Some("10.32.0.1".parse().unwrap());
    let address = Address { address: "10.32.0.7".parse().unwrap(), prefix: 12, gateway };
    let agent =
        FakeAgent::answering(folder.path(), Answer::Allocated(Allocated { addresses: vec![address] }));
    let routes = json!([{ "dst": "10.1.2.3/8" }, { "dst": "0.0.0.0/0", "gw": "10.32.0.1" }]);
    for version in VERSIONS {
        let conf = with(conf(&folder, version), "type", json!("ptp"));
        let conf = with(conf, "ipam", json!({ "type": "weave-ipam", "routes": routes }));
        let conf = with(conf, "dns", json!({ "nameservers": ["10.96.0.10"], "search": ["a", "b"] }));
        let conf = with(conf, "ipMasq", json!(true));
        let shown = json!([{ "dst": "10.0.0.0/8" }, { "dst": "0.0.0.0/0", "gw": "10.32.0.1" }]);
        let dns = json!({ "nameservers": ["10.96.0.10"], "search": ["a", "b"] });
        let expected = match version {
            "0.1.0" | "0.2.0" => json!({
                "cniVersion": version, "dns": dns,
                "ip4": { "ip": "10.32.0.7/12", "gateway": "10.32.0.1", "routes": shown },
            }),
            "0.3.0" | "0.3.1" | "0.4.0" => json!({
                "cniVersion": version, "dns": dns, "routes": shown,
                "ips": [{ "version": "4", "address": "10.32.0.7/12", "gateway": "10.32.0.1" }],
            }),
            _ => json!({
                "cniVersion": version, "dns": dns, "routes": shown,
                "ips": [{ "address": "10.32.0.7/12", "gateway": "10.32.0.1" }],
            }),
        };
        assert_eq!(weave_ipam(&env("ADD"), &conf).result(), expected);
        let Call::Allocate(asked) = agent.next().request.call else { panic!("no allocate") };
        assert_eq!((asked.key, asked.pod.as_deref()), (key(), Some("shop/till")));
    }
}

#[test]
fn weave_ipam_names_the_configured_gateway() {
    let folder = Folder::new();
    let address = Address { address: "10.32.0.7".parse().unwrap(), prefix: 12, gateway: None };
    let _agent =
        FakeAgent::answering(folder.path(), Answer::Allocated(Allocated { addresses: vec![address] }));
    let conf = with(conf(&folder, "1.0.0"), "ipam", json!({ "type": "weave-ipam", "gateway": "10.32.0.99" }));
    assert_eq!(weave_ipam(&env("ADD"), &conf).result()["ips"][0]["gateway"], "10.32.0.99");
}

// ---- the agent's answers -------------------------------------------------------------------------------------

#[test]
fn the_agents_refusal_is_the_error() {
    let folder = Folder::new();
    let refusal = Refusal::new(ErrorCode::Other(123), "no").with_details("because");
    let _agent = FakeAgent::answering(folder.path(), Answer::Refused(refusal));
    let ran = weave_ipam(&env("ADD"), &conf(&folder, "0.4.0"));
    assert_eq!(ran.json(), json!({ "cniVersion": "0.4.0", "code": 123, "msg": "no", "details": "because" }));
    assert_eq!(ran.code, 1);
    let env = env_without("DEL", &["CNI_NETNS"]);
    assert_error(&weave_net(&env, &conf(&folder, "1.0.0")), 123, "no");
    assert_eq!(folder.tombstones().len(), 0, "a DEL that was refused is no DEL that was not heard");
}

#[test]
fn trap_18_status_says_50_and_why_within_a_second() {
    let folder = Folder::new();
    let status = |folder: &Folder| weave_net(&[("CNI_COMMAND", "STATUS")], &conf(folder, "1.1.0"));
    assert_error(&status(&folder), 50, "does not answer");
    {
        let folder = Folder::new();
        let _agent =
            FakeAgent::answering(folder.path(), refused(ErrorCode::NotAvailable, "waiting for 2 peers"));
        assert_error(&status(&folder), 50, "waiting for 2 peers");
    }
    {
        let folder = Folder::new();
        let _agent = FakeAgent::answering(folder.path(), Answer::Done);
        let fastest = (0..20)
            .map(|_| {
                let ran = status(&folder);
                ran.silent_success();
                ran.took
            })
            .min();
        assert!(fastest.unwrap() < Duration::from_millis(10), "{fastest:?}");
    }
    for hung in [FakeAgent::hung, FakeAgent::hung_with_a_full_queue] {
        let folder = Folder::new();
        let _agent = hung(folder.path());
        let ran = status(&folder);
        assert_error(&ran, 50, "timed out");
        assert!(ran.took < Duration::from_secs(1), "{ran:?}");
    }
}

#[test]
fn gc_passes_on_the_list_under_either_name() {
    let folder = Folder::new();
    let agent = FakeAgent::answering(folder.path(), Answer::Done);
    let list = json!([{ "containerID": "a", "ifname": "eth0" }, { "containerID": "b", "ifname": "net1" }]);
    for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let conf = with(conf(&folder, "1.1.0"), name, list.clone());
        weave_net(&env("GC"), &conf).silent_success();
        let Call::Gc(gc) = agent.next().request.call else { panic!("no GC") };
        let valid: Vec<_> = gc.valid.iter().map(ToString::to_string).collect();
        assert_eq!((gc.network.as_str(), valid), ("weave", vec!["a/eth0".to_owned(), "b/net1".to_owned()]));
        weave_ipam(&env("GC"), &conf).silent_success();
        assert!(matches!(agent.next().request.call, Call::Prune(_)));
    }
}

#[test]
fn trap_10_del_without_a_namespace_reaches_the_agent() {
    let folder = Folder::new();
    let agent = FakeAgent::answering(folder.path(), Answer::Done);
    for env in [env_without("DEL", &["CNI_NETNS"]), env_with("DEL", "CNI_NETNS", "")] {
        weave_net(&env, &conf(&folder, "1.0.0")).silent_success();
        let asked = agent.next();
        let Call::Del(del) = asked.request.call else { panic!("no DEL") };
        assert_eq!((del.key, asked.descriptors.len()), (key(), 0));
    }
}

#[test]
fn trap_15_proxy_variables_change_nothing() {
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    let proxies =
        [("HTTP_PROXY", "http://127.0.0.1:9"), ("http_proxy", "http://127.0.0.1:9"), ("ALL_PROXY", "x")];
    let env: Vec<_> = env_without("DEL", &["CNI_NETNS"]).into_iter().chain(proxies).collect();
    weave_net(&env, &conf(&folder, "1.0.0")).silent_success();
}

#[test]
fn gibberish_from_the_agent_is_an_error_and_for_del_a_reason_for_a_tombstone() {
    for bytes in [&b"hello\n"[..], b"{}\n", b"{\"done\":1}\n", b"\n", b""] {
        let folder = Folder::new();
        let _agent = FakeAgent::saying(folder.path(), bytes.to_vec());
        assert_error(&weave_net(&env("STATUS"), &conf(&folder, "1.1.0")), 50, "does not answer");
        weave_net(&env_without("DEL", &["CNI_NETNS"]), &conf(&folder, "1.0.0")).silent_success();
        assert_eq!(folder.tombstones().len(), 1);
    }
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    assert_error(&weave_ipam(&env("ADD"), &conf(&folder, "1.0.0")), 999, "wrong kind");
}

// ---- tombstones ----------------------------------------------------------------------------------------------

fn prev_result() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": "weave", "mac": "7a:00:00:00:00:01" },
            { "name": "vethwepl0123456", "mac": "7a:00:00:00:00:02" },
            { "name": "eth0", "mac": "7a:00:00:00:00:03", "sandbox": "/var/run/netns/x" },
        ],
        "ips": [{ "address": "10.32.0.7/32", "interface": 2 }],
    })
}

#[test]
fn trap_11_del_with_the_agent_down_leaves_a_tombstone_and_succeeds() {
    let folder = Folder::new();
    let conf = with(conf(&folder, "1.0.0"), "prevResult", prev_result());
    let env = env_with("DEL", "CNI_NETNS", "/var/run/netns/cn-never");
    weave_net(&env, &conf).silent_success();
    let left = folder.tombstones();
    assert_eq!(left.len(), 1);
    let tombstone: Tombstone = serde_json::from_slice(&std::fs::read(&left[0]).unwrap()).unwrap();
    assert_eq!(left[0].file_name().unwrap().to_str().unwrap(), Tombstone::file_name(&key()));
    assert_eq!((&tombstone.del.key, tombstone.del.network.as_str()), (&key(), "weave"));
    assert_eq!(tombstone.host_interface.as_deref(), Some("vethwepl0123456"));
    assert!(tombstone.del.begun.nanoseconds > 0 && !tombstone.del.begun.boot.is_empty());

    weave_net(&env, &conf).silent_success();
    let again: Tombstone = serde_json::from_slice(&std::fs::read(&folder.tombstones()[0]).unwrap()).unwrap();
    assert!(again.del.begun.is_after(&tombstone.del.begun), "the later DEL counts");
    assert_eq!(folder.tombstones().len(), 1);

    weave_ipam(&env, &self::conf(&folder, "1.0.0")).silent_success();
    let ipam: Tombstone = serde_json::from_slice(&std::fs::read(&folder.tombstones()[0]).unwrap()).unwrap();
    assert!(ipam.ipam_only);
}

#[test]
fn trap_11_del_with_a_hung_agent_takes_five_seconds_and_no_longer() {
    let deadline = Duration::from_secs(5)..Duration::from_secs(6);
    let one = |hang: fn(&Path) -> support::fake_agent::Hung| {
        let folder = Folder::new();
        let _agent = hang(folder.path());
        let ran = weave_net(&env_without("DEL", &["CNI_NETNS"]), &conf(&folder, "1.0.0"));
        ran.silent_success();
        assert!(deadline.contains(&ran.took), "{ran:?}");
        assert_eq!(folder.tombstones().len(), 1);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| one(FakeAgent::hung));
        scope.spawn(|| one(FakeAgent::hung_with_a_full_queue));
    });
}

#[test]
fn a_del_that_cannot_even_leave_a_tombstone_fails_so_that_the_runtime_comes_back() {
    let folder = Folder::new();
    std::fs::write(folder.join("cni"), "in the way").unwrap();
    let ran = weave_net(&env_without("DEL", &["CNI_NETNS"]), &conf(&folder, "1.0.0"));
    assert_error(&ran, 11, "cni/del");
}

#[test]
fn a_tombstone_is_never_seen_half_written() {
    let folder = Folder::new();
    weave_net(&env_without("DEL", &["CNI_NETNS"]), &conf(&folder, "1.0.0")).silent_success();
    let names: Vec<_> =
        std::fs::read_dir(folder.join("cni/del")).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "nothing beside it: {names:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(folder.join("cni/del")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
}

// ---- delegation ----------------------------------------------------------------------------------------------

#[test]
fn a_delegate_that_is_not_there_is_named() {
    let folder = Folder::new();
    let _agent = FakeAgent::answering(folder.path(), Answer::Done);
    let conf = with(conf(&folder, "1.0.0"), "ipam", json!({ "type": "no-such-ipam" }));
    assert_error(&weave_net(&env("ADD"), &conf), 5, "no-such-ipam");
    assert_error(&weave_net(&env_without("DEL", &["CNI_NETNS"]), &conf), 5, "no-such-ipam");
    assert_error(&weave_net(&env_without("DEL", &["CNI_NETNS", "CNI_PATH"]), &conf), 4, "CNI_PATH");
    let path = with(conf, "ipam", json!({ "type": "../evil" }));
    assert_error(&weave_net(&env("ADD"), &path), 7, "../evil");
}
