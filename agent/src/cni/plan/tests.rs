use super::*;

fn facts() -> Facts {
    Facts {
        bridge: "weave".to_owned(),
        index: 7,
        mac: [2, 0, 0, 0, 0, 1],
        address: Some("10.32.0.1".parse().unwrap()),
        mtu: 1450,
        hairpin: true,
        universe: "10.32.0.0/12".parse().unwrap(),
    }
}

fn route(dst: &str, gw: Option<&str>) -> Route {
    Route { dst: dst.parse().unwrap(), gw: gw.map(|gw| gw.parse().unwrap()) }
}

fn given(address: &str, prefix: u8, gateway: Option<&str>) -> Given {
    Given {
        address: address.parse().unwrap(),
        prefix,
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
    }
}

fn texts(routes: &[Route]) -> Vec<String> {
    let text = |route: &Route| format!("{} via {}", route.dst, route.gw.unwrap());
    routes.iter().map(text).collect()
}

#[test]
fn a_contradiction_is_refused_and_an_agreement_is_not() {
    let settings = Settings::default();
    assert_eq!(agree(&settings, &facts()), Ok(()));
    let all = Settings {
        bridge: Some("weave".to_owned()),
        hairpin: Some(true),
        mtu: Some(9000),
        subnet: Some("10.32.0.0/12".parse().unwrap()),
        routes: None,
    };
    assert_eq!(agree(&all, &facts()), Ok(()));
    let contradictions = [
        ("bridge", Settings { bridge: Some("docker0".to_owned()), ..Settings::default() }),
        ("hairpinMode", Settings { hairpin: Some(false), ..Settings::default() }),
        ("ipam.subnet", Settings { subnet: Some("10.40.0.0/16".parse().unwrap()), ..Settings::default() }),
        ("mtu", Settings { mtu: Some(67), ..Settings::default() }),
    ];
    for (field, settings) in contradictions {
        let refusal = agree(&settings, &facts()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidConfig);
        assert!(refusal.msg.starts_with(field) && !refusal.details.is_empty(), "{refusal}");
    }
}

#[test]
fn the_mtu_is_the_smaller_of_what_is_wanted_and_what_is_carried() {
    for (wanted, mtu_given) in [(None, 1450), (Some(1400), 1400), (Some(9000), 1450)] {
        assert_eq!(mtu(&Settings { mtu: wanted, ..Settings::default() }, &facts()), mtu_given);
    }
}

#[test]
fn routes_of_a_pod() {
    let own = "10.32.0.1".parse().unwrap();
    type Case = (&'static str, Option<Vec<Route>>, &'static [&'static str]);
    let table: [Case; 6] = [
        ("none named", None, &["0.0.0.0/0 via 10.32.0.1"]),
        ("none wanted", Some(vec![]), &["10.32.0.0/12 via 10.32.0.1"]),
        (
            "one without a gateway",
            Some(vec![route("10.0.0.0/8", None)]),
            &["10.32.0.0/12 via 10.32.0.1", "10.0.0.0/8 via 10.32.0.1"],
        ),
        (
            "one with the gateway",
            Some(vec![route("0.0.0.0/0", Some("10.32.0.1"))]),
            &["10.32.0.0/12 via 10.32.0.1", "0.0.0.0/0 via 10.32.0.1"],
        ),
        (
            "the range itself, twice",
            Some(vec![route("10.32.0.0/12", None); 2]),
            &["10.32.0.0/12 via 10.32.0.1"],
        ),
        ("another family's", Some(vec![route("::/0", None)]), &["10.32.0.0/12 via 10.32.0.1"]),
    ];
    for (case, wanted, expected) in table {
        let settings = Settings { routes: wanted, ..Settings::default() };
        assert_eq!(texts(&routes(&settings, None, own, &facts()).unwrap()), expected, "{case}");
    }
}

#[test]
fn a_gateway_that_would_be_ignored_is_refused() {
    let settings =
        Settings { routes: Some(vec![route("10.9.0.0/16", Some("10.32.0.9"))]), ..Settings::default() };
    let refusal = routes(&settings, None, "10.32.0.1".parse().unwrap(), &facts()).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::InvalidConfig);
    assert!(refusal.msg.contains("10.32.0.9") && refusal.msg.contains("10.9.0.0/16"), "{refusal}");
}

#[test]
fn an_address_of_another_plugin_brings_its_gateway_and_subnet() {
    let lease = given("10.22.0.5", 16, Some("10.22.0.1"));
    let gw = gateway(Some(&lease), &facts()).unwrap();
    assert_eq!(gw.to_string(), "10.22.0.1");
    let settings = Settings { routes: Some(vec![route("0.0.0.0/0", None)]), ..Settings::default() };
    let planned = routes(&settings, Some(&lease), gw, &facts()).unwrap();
    assert_eq!(texts(&planned), ["10.22.0.0/16 via 10.22.0.1", "0.0.0.0/0 via 10.22.0.1"]);

    let bare = given("10.22.0.5", 32, None);
    let gw = gateway(Some(&bare), &facts()).unwrap();
    assert_eq!(gw.to_string(), "10.32.0.1");
    let planned =
        routes(&Settings { routes: Some(vec![]), ..Settings::default() }, Some(&bare), gw, &facts());
    assert_eq!(planned, Ok(vec![]), "a /32 has no neighbours to reach");
}

#[test]
fn without_an_address_of_its_own_the_node_is_no_gateway() {
    assert_eq!(gateway(None, &Facts { address: None, ..facts() }), None);
}
