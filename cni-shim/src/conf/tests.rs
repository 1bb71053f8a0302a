use serde_json::json;

use super::*;

fn read(document: &Value) -> Conf {
    parse(document.to_string().as_bytes()).unwrap()
}

#[test]
fn defaults() {
    let conf = read(&json!({ "name": "weave" }));
    assert_eq!(conf.version.text(), "0.1.0");
    assert_eq!((conf.run_dir, conf.data_dir), (PathBuf::from(RUN_DIR), PathBuf::from(DATA_DIR)));
    assert_eq!(conf.settings, Settings::default());
    assert!(conf.delegate.is_none() && conf.prev_result.is_none() && conf.unsupported.is_none());
}

#[test]
fn everything_that_reaches_the_agent() {
    let conf = read(&json!({
        "cniVersion": "1.0.0", "name": "weave", "type": "weave-net",
        "bridge": "weave", "mtu": 1400, "hairpinMode": true,
        "ipam": { "subnet": "10.32.0.0/12", "routes": [{ "dst": "10.1.1.1/8", "gw": "10.32.0.1" }] },
    }));
    let expected = Settings {
        bridge: Some("weave".to_owned()),
        hairpin: Some(true),
        mtu: Some(1400),
        subnet: Some("10.32.0.0/12".parse().unwrap()),
        routes: Some(vec![Route {
            dst: "10.0.0.0/8".parse().unwrap(),
            gw: Some("10.32.0.1".parse().unwrap()),
        }]),
    };
    assert_eq!(conf.settings, expected);
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_the_name_of_its_key() {
    for (key, value) in [
        ("cniVersion", json!(1)),
        ("name", json!(["w"])),
        ("mtu", json!("1400")),
        ("mtu", json!(-1)),
        ("hairpinMode", json!("yes")),
        ("bridge", json!({})),
        ("ipam", json!([])),
        ("runDir", json!(7)),
        ("dns", json!("10.96.0.10")),
        ("runtimeConfig", json!([])),
        ("cni.dev/valid-attachments", json!({})),
    ] {
        let refusal = parse(json!({ "name": "w", key: value }).to_string().as_bytes()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Decode);
        assert!(refusal.msg.contains(&format!("cannot read {key} in")), "{}", refusal.msg);
        assert!(refusal.details.contains(&value.to_string()), "{}", refusal.details);
    }
    let ipam =
        parse(json!({ "name": "w", "ipam": { "gateway": "here" } }).to_string().as_bytes()).unwrap_err();
    assert!(ipam.msg.contains("cannot read ipam.gateway in"), "{}", ipam.msg);
}

#[test]
fn a_key_that_looks_like_one_of_ours_is_told() {
    let hints = |document: Value| hints(document.to_string().as_bytes());
    assert!(
        hints(json!({ "name": "w", "type": "weave-net", "mtu": 1, "hairpinMode": true, "x": 1 })).is_empty()
    );
    for (key, meant) in
        [("MTU", "mtu"), ("hairpin", "hairpinMode"), ("hairpin_mode", "hairpinMode"), ("ipmasq", "ipMasq")]
    {
        let told = hints(json!({ "name": "w", key: 1 }));
        assert!(told.len() == 1 && told[0].contains(key) && told[0].contains(meant), "{key}: {told:?}");
    }
}

#[test]
fn no_routes_and_an_empty_list_of_routes_are_different() {
    assert_eq!(read(&json!({ "name": "w", "ipam": {} })).settings.routes, None);
    assert_eq!(read(&json!({ "name": "w", "ipam": { "routes": [] } })).settings.routes, Some(vec![]));
}

#[test]
fn another_ipam_plugin_may_say_anything_in_its_section() {
    let conf = read(&json!({ "name": "w", "ipam": { "type": "host-local", "subnet": [1], "routes": "x" } }));
    assert_eq!((conf.delegate.as_deref(), conf.settings.routes), (Some("host-local"), None));
    for own in [json!({}), json!({ "type": "" }), json!({ "type": "weave-ipam" }), Value::Null] {
        assert_eq!(read(&json!({ "name": "w", "ipam": own })).delegate, None);
    }
}

#[test]
fn trap_03_runtime_config_is_read_in_any_case() {
    let containerd =
        json!({ "dns": { "Servers": ["10.96.0.10"], "Searches": ["a.b"], "Options": ["ndots:5"] } });
    let crio = json!({ "dns": { "servers": ["10.96.0.10"], "searches": ["a.b"], "options": ["ndots:5"] } });
    for runtime in [containerd, crio] {
        let dns =
            read(&json!({ "name": "w", "runtimeConfig": runtime, "dns": { "domain": "d" } })).dns.unwrap();
        assert_eq!(dns.nameservers, ["10.96.0.10"]);
        assert_eq!((dns.search, dns.options), (vec!["a.b".to_owned()], vec!["ndots:5".to_owned()]));
    }
    for name in ["ips", "Ips", "IPS"] {
        let conf = read(&json!({ "name": "w", "runtimeConfig": { name: ["10.32.0.9/12"] } }));
        assert!(conf.unsupported.unwrap().msg.contains("runtimeConfig.ips"));
    }
}

#[test]
fn the_configured_dns_holds_where_the_runtime_has_none() {
    let conf = json!({ "name": "w", "runtimeConfig": { "dns": {} }, "dns": { "nameservers": ["1.1.1.1"] } });
    assert_eq!(read(&conf).dns.unwrap().nameservers, ["1.1.1.1"]);
}

#[test]
fn versions_are_in_order() {
    assert_eq!(Version::LISTS.text(), "0.3.0");
    assert_eq!(Version::CHECK.text(), "0.4.0");
    assert_eq!(Version::FAMILY_IMPLIED.text(), "1.0.0");
    assert_eq!(Version::GC.text(), "1.1.0");
}
