use weave_proto::local::cni::Route;

use super::*;
use crate::conf::VERSIONS;

fn attached() -> Attached {
    let link = |name: &str, last: u8, mtu| Link { name: name.to_owned(), mac: [0x7a, 0, 0, 0, 0, last], mtu };
    let gateway = "10.32.0.1".parse().unwrap();
    Attached {
        bridge: link("weave", 1, None),
        host: link("vethwepl0123456", 2, Some(1450)),
        pod: link("eth0", 3, Some(1450)),
        addresses: vec![Address {
            address: "10.32.0.7".parse().unwrap(),
            prefix: 32,
            gateway: Some(gateway),
        }],
        routes: vec![Route { dst: "0.0.0.0/0".parse().unwrap(), gw: Some(gateway) }],
    }
}

fn versions() -> impl Iterator<Item = Version> {
    VERSIONS.into_iter().map(|version| Version::parse(version).unwrap())
}

#[test]
fn trap_08_and_09_both_ends_are_listed_and_the_address_points_at_the_pods() {
    let routes = json!([{ "dst": "0.0.0.0/0", "gw": "10.32.0.1" }]);
    let result = CniResult::of(&attached(), "/var/run/netns/pod");
    for version in versions() {
        let interfaces = |mtu: bool| {
            let mut pod =
                json!({ "name": "eth0", "mac": "7a:00:00:00:00:03", "sandbox": "/var/run/netns/pod" });
            let mut host = json!({ "name": "vethwepl0123456", "mac": "7a:00:00:00:00:02" });
            if mtu {
                pod["mtu"] = json!(1450);
                host["mtu"] = json!(1450);
            }
            json!([{ "name": "weave", "mac": "7a:00:00:00:00:01" }, host, pod])
        };
        let text = version.text();
        let expected = match text {
            "0.1.0" | "0.2.0" => json!({
                "cniVersion": text,
                "ip4": { "ip": "10.32.0.7/32", "gateway": "10.32.0.1", "routes": routes },
            }),
            "0.3.0" | "0.3.1" | "0.4.0" => json!({
                "cniVersion": text, "interfaces": interfaces(false), "routes": routes,
                "ips": [{ "version": "4", "address": "10.32.0.7/32", "gateway": "10.32.0.1", "interface": 2 }],
            }),
            _ => json!({
                "cniVersion": text, "interfaces": interfaces(text == "1.1.0"), "routes": routes,
                "ips": [{ "address": "10.32.0.7/32", "gateway": "10.32.0.1", "interface": 2 }],
            }),
        };
        assert_eq!(result.write(version), expected);
    }
}

#[test]
fn both_families_in_every_version() {
    let mut attached = attached();
    attached.addresses.push(Address { address: "fd00::7".parse().unwrap(), prefix: 128, gateway: None });
    attached.routes.push(Route { dst: "::/0".parse().unwrap(), gw: None });
    let result = CniResult::of(&attached, "/n");
    for version in versions() {
        let document = result.write(version);
        match version.text() {
            "0.1.0" | "0.2.0" => {
                assert_eq!(document["ip6"], json!({ "ip": "fd00::7/128", "routes": [{ "dst": "::/0" }] }));
                assert_eq!(document["ip4"]["routes"].as_array().unwrap().len(), 1);
            }
            "0.3.0" | "0.3.1" | "0.4.0" => assert_eq!(document["ips"][1]["version"], "6"),
            _ => assert_eq!(document["ips"][1], json!({ "address": "fd00::7/128", "interface": 2 })),
        }
    }
}

#[test]
fn what_is_written_is_read_back_from_every_version() {
    let result = CniResult::of(&attached(), "/n");
    for version in versions() {
        let again = CniResult::read(&result.write(version)).unwrap();
        assert_eq!(again.write(version), result.write(version));
    }
}

#[test]
fn an_earlier_result_comes_first_and_keeps_what_we_do_not_know() {
    let earlier = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "net1", "mac": "", "sandbox": "/n", "socketPath": "/s", "pciID": "0:1", "x": 1 }],
        "ips": [{ "address": "192.0.2.9/24", "interface": 0 }],
        "routes": [{ "dst": "192.0.2.0/24", "priority": 7 }],
        "dns": { "domain": "d" },
    });
    let result = CniResult::of(&attached(), "/n").after(CniResult::read(&earlier).unwrap());
    let document = result.write(Version::GC);
    assert_eq!(
        document["interfaces"][0],
        json!({ "name": "net1", "sandbox": "/n", "socketPath": "/s", "pciID": "0:1", "x": 1 })
    );
    assert_eq!(document["interfaces"].as_array().unwrap().len(), 4);
    assert_eq!(document["ips"][0]["interface"], 0);
    assert_eq!(
        (&document["ips"][1]["interface"], &document["interfaces"][3]["name"]),
        (&json!(3), &json!("eth0"))
    );
    assert_eq!(document["routes"][0], json!({ "dst": "192.0.2.0/24", "priority": 7 }));
    assert_eq!(document["dns"], json!({ "domain": "d" }));

    let older = result.write(Version::FAMILY_IMPLIED);
    assert_eq!(older["interfaces"][0], json!({ "name": "net1", "sandbox": "/n", "x": 1 }));
    assert_eq!(older["routes"][0], json!({ "dst": "192.0.2.0/24" }));
}

#[test]
fn our_dns_replaces_an_earlier_plugins() {
    let earlier =
        CniResult { dns: Dns { domain: "theirs".to_owned(), ..Dns::default() }, ..CniResult::default() };
    let ours = CniResult { dns: Dns { domain: "ours".to_owned(), ..Dns::default() }, ..CniResult::default() };
    assert_eq!(ours.after(earlier.clone()).dns.domain, "ours");
    assert_eq!(CniResult::default().after(earlier).dns.domain, "theirs");
}

#[test]
fn null_is_as_good_as_absent() {
    let go = json!({ "cniVersion": "0.3.1", "interfaces": null, "ips": null, "routes": null, "dns": {} });
    assert_eq!(CniResult::read(&go).unwrap(), CniResult::default());
    let old = json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.0.0.2/8", "routes": null }, "ip6": null });
    assert_eq!(CniResult::read(&old).unwrap().ips[0].address, "10.0.0.2/8");
}

#[test]
fn what_is_no_result_is_refused() {
    for wrong in [json!({ "ips": 3 }), json!({ "ips": [{}] }), json!({ "routes": [{ "gw": "x" }] }), json!(7)]
    {
        assert_eq!(CniResult::read(&wrong).unwrap_err().code, ErrorCode::Decode, "{wrong}");
    }
}
