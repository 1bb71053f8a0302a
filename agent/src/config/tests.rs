use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Launch {
    #[command(flatten)]
    settings: Settings,
}

fn read(words: &[&str]) -> Result<Settings, String> {
    let words = std::iter::once("weave").chain(words.iter().copied());
    Launch::try_parse_from(words).map(|launch| launch.settings).map_err(|error| error.to_string())
}

#[test]
fn without_flags_the_settings_are_those_of_weave() {
    let settings = read(&[]).unwrap();
    assert_eq!(settings.mesh.port.get(), 6783);
    assert_eq!(settings.mesh.conn_limit, ConnLimit(NonZeroU32::new(200)));
    assert_eq!(settings.ipam.range.to_string(), "10.32.0.0/12");
    assert_eq!(settings.ipam.init, IpallocInit::Consensus(None));
    assert_eq!(settings.node.mtu, Mtu(None));
    assert_eq!(settings.watch.http_addr.to_string(), "127.0.0.1:6784");
    assert_eq!(settings.watch.metrics_addr.to_string(), "127.0.0.1:6782");
    assert_eq!(settings.paths.data_dir, Path::new("/var/lib/weave"));
    assert!(settings.is_alone() && settings.refusal().is_none());
    assert!(!settings.nickname().as_str().is_empty());
    assert_eq!(settings.mesh.listen(), ["[::]:6783".parse().unwrap(), "0.0.0.0:6783".parse().unwrap()]);
}

#[test]
fn every_flag_reaches_its_room() {
    let words = "--secret-file /s --nickname n --machine-id m --host 10.0.0.1 --port 7000 --resume --no-discovery \
                 --conn-limit 0 --ipalloc-range 10.128.0.0/16 --ipalloc-init consensus=3 --mtu 1400 \
                 --no-masq-local --forward-accept never --http-addr off --metrics-addr :9 --log-level warn \
                 --log-format json --data-dir /d 10.0.0.2 node3:7001";
    let settings = read(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
    assert_eq!(settings.identity.secret_file.as_deref(), Some(Path::new("/s")));
    assert_eq!(settings.nickname().as_str(), "n");
    assert_eq!(settings.identity.machine_id.as_deref(), Some("m"));
    assert_eq!(settings.mesh.listen(), ["10.0.0.1:7000".parse().unwrap()]);
    assert!(settings.mesh.resume && settings.mesh.no_discovery);
    assert_eq!(settings.mesh.conn_limit, ConnLimit(None));
    assert_eq!(settings.mesh.peers, ["10.0.0.2".parse().unwrap(), "node3:7001".parse().unwrap()]);
    assert_eq!(settings.ipam.range.to_string(), "10.128.0.0/16");
    assert_eq!(settings.ipam.init, IpallocInit::Consensus(NonZeroU16::new(3)));
    assert_eq!(settings.node.mtu, Mtu(NonZeroU16::new(1400)));
    assert!(settings.keeps_client_addresses());
    assert_eq!(settings.node.forward_accept, ForwardAccept::Never);
    assert_eq!(settings.watch.http_addr, ListenAddress::Off);
    assert_eq!(settings.log, LogSettings { level: LogLevel::Warning, format: LogFormat::Json });
    assert!(!settings.is_alone());
}

#[test]
fn bad_values_are_refused_with_the_flag_the_value_and_the_remedy() {
    for (words, parts) in [
        ("--port 0", vec!["--port", "'0'", "from 1 to 65535"]),
        ("--port 6784", vec!["packets of pods", "6783"]),
        ("--port 6785", vec!["packets of pods", "6783"]),
        ("--port x", vec!["--port", "'x'"]),
        ("--host node1", vec!["--host", "node1"]),
        ("--conn-limit -1", vec!["unexpected argument"]),
        ("--conn-limit many", vec!["--conn-limit", "0 for no limit"]),
        ("--ipalloc-range 10.32.0.0", vec!["--ipalloc-range", "write it like 10.32.0.0/12"]),
        ("--ipalloc-range 10.32.0.1/12", vec!["host bits", "10.32.0.0/12"]),
        ("--ipalloc-range 10.32.0.0/31", vec!["between a /8 and a /29"]),
        ("--ipalloc-range 0.0.0.0/0", vec!["between a /8 and a /29"]),
        ("--ipalloc-range 127.0.0.0/8", vec!["reserved"]),
        ("--ipalloc-range 224.0.0.0/8", vec!["reserved"]),
        ("--ipalloc-range 169.254.0.0/16", vec!["reserved"]),
        ("--ipalloc-range 250.0.0.0/8", vec!["240.0.0.0"]),
        ("--ipalloc-range fd00::/64", vec!["IPv4 addresses only"]),
        ("--ipalloc-init consensus=0", vec!["number of founders"]),
        ("--mtu 100", vec!["--mtu", "576"]),
        ("--mtu 70000", vec!["--mtu", "65535"]),
        ("--forward-accept maybe", vec!["auto", "never"]),
        ("--http-addr localhost", vec!["IP:PORT"]),
        ("--log-level loud", vec!["info"]),
        ("10.0.0.300", vec!["10.0.0.300", "neither an IP address"]),
        ("fd00::7:6783:x", vec!["fd00::7:6783:x"]),
    ] {
        let error = read(&words.split_whitespace().collect::<Vec<_>>()).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{words}: {part:?} is not in {error}");
        }
    }
    assert!(read(&["--nickname", ""]).unwrap_err().contains("printable"));
    assert!(read(&["--nickname", "a\nb"]).unwrap_err().contains("printable"));
    assert!(read(&["--machine-id", " "]).unwrap_err().contains("not empty"));
}

#[test]
fn a_password_asks_for_encryption_and_is_never_printed() {
    let settings = read(&["--password", "hunter2"]).unwrap();
    assert!(settings.refusal().is_none() && settings.tunnels.wants_encryption());
    assert_eq!(settings.tunnels.password(), Some("hunter2"));
    assert!(!format!("{settings:?}").contains("hunter2"));
    assert!(!read(&["--password", ""]).unwrap().tunnels.wants_encryption());
}

#[test]
fn settings_of_tunnels_that_contradict_each_other_are_refused_with_the_remedy() {
    for (words, part) in [
        ("--password p --secret-file /s", "not both"),
        ("--encrypt", "--secret-file"),
        ("--password p --methods fastdp", "add sleeve"),
        ("--methods fastdp --no-fastdp", "no method"),
    ] {
        let refusal = read(&words.split_whitespace().collect::<Vec<_>>()).unwrap().refusal();
        assert!(refusal.as_ref().is_some_and(|text| text.contains(part)), "{words}: {refusal:?}");
    }
    let settings = read(&["--encrypt", "--secret-file", "/s", "--no-fastdp"]).unwrap();
    assert_eq!(settings.refusal(), None);
    assert!(settings.tunnels.allows(Method::Sleeve) && !settings.tunnels.allows(Method::FastDp));
    let given = read(&["--methods", "sleeve,fastdp", "--trusted-subnets", "10.0.0.0/8,fd00::/8"]).unwrap();
    assert!(given.tunnels.allows(Method::FastDp) && !given.tunnels.allows(Method::Quic));
    assert_eq!(given.tunnels.trusted_subnets.len(), 2);
}

#[test]
fn in_a_cluster_client_addresses_are_kept_unless_somebody_switches_it_off() {
    assert!(!read(&[]).unwrap().keeps_client_addresses());
    assert!(read(&["--kubernetes"]).unwrap().keeps_client_addresses());
    assert!(!read(&["--kubernetes", "--no-masq-local=0"]).unwrap().keeps_client_addresses());
    assert!(read(&["--no-masq-local", "10.0.0.2"]).unwrap().keeps_client_addresses());
}

#[test]
fn peers_of_a_cluster_may_be_given_as_weave_net_took_them() {
    let settings = read(&["--kubernetes", "--kube-peers", "10.0.0.2 10.0.0.3,node4"]).unwrap();
    let peers: Vec<_> = settings.kubernetes.kube_peers.0.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["10.0.0.2", "10.0.0.3", "node4"]);
    assert!(read(&["--kube-peers", "10.0.0.300"]).unwrap_err().contains("10.0.0.300"));
}

#[test]
fn an_agent_that_resumes_is_not_alone() {
    assert!(!read(&["--resume"]).unwrap().is_alone());
}

mod anything {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_target_that_is_read_is_printed_so_that_it_reads_the_same(text in "\\PC{0,40}|[0-9a-f:.\\[\\]]{0,30}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>().ok(), Some(target));
            }
        }

        #[test]
        fn a_listen_address_that_is_read_is_printed_so_that_it_reads_the_same(text in "\\PC{0,20}|[0-9:.\\[\\]]{0,20}") {
            if let Ok(address) = text.parse::<ListenAddress>() {
                prop_assert_eq!(address.to_string().parse::<ListenAddress>().ok(), Some(address));
            }
        }

        #[test]
        fn an_init_mode_that_is_read_is_printed_so_that_it_reads_the_same(text in "\\PC{0,20}|(consensus|seed|observer)=?[0-9a-f:,]{0,40}") {
            if let Ok(init) = text.parse::<IpallocInit>() {
                prop_assert_eq!(init.to_string().parse::<IpallocInit>().ok(), Some(init));
            }
        }
    }
}
