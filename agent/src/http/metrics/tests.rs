use super::*;
use crate::render::tests::{connection, nickname, peer, sample};

/// The samples, without those of the process, whose values nobody knows beforehand.
fn samples(status: Status) -> String {
    let text = render(Arc::new(status), Format::Classic).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("process_"));
    kept.map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_name_and_value_is_as_dashboards_expect() {
    assert_eq!(
        samples(sample()),
        r#"weave_connections{state="established",type="fastdp",encryption=""} 1.0
weave_connections{state="pending",type="unknown",encryption=""} 1.0
weave_connections{state="retrying",type="unknown",encryption=""} 1.0
weave_connections{state="failed",type="unknown",encryption=""} 1.0
weave_connections{state="connecting",type="unknown",encryption=""} 1.0
weave_connection_terminations_total 5
weave_ips{state="local-used"} 3.0
weave_max_ips 1048576.0
weave_ipam_unreachable_count 1.0
weave_ipam_unreachable_percentage 33.333396911621097
weave_ipam_pending_allocates 0.0
weave_ipam_pending_claims 0.0
weave_ipam_ready 1.0
weave_ipam_owned_ips 349525.0
weave_ipam_quarantined_ips 2.0
weave_peers{state="reachable"} 2.0
weave_peers{state="unreachable"} 1.0
weave_targets 2.0
weave_refused_messages_total{reason="update for a range I own"} 1
weave_ready 1.0
weave_warnings 0.0
weave_pods 2.0
weave_pod_mtu_bytes 1450.0
weave_node_problems 0.0
weave_node_repairs_total{object="firewall"} 1
weave_node_repairs_total{object="route"} 2
weave_dropped_packets_total{reason="arp"} 0
weave_dropped_packets_total{reason="source"} 12
weave_build_info{version="0.1.0"} 1.0
weave_start_time_seconds 1795250000.0
"#
    );
}

#[test]
fn states_without_connections_count_zero_and_encryption_is_yes_as_weave_wrote_it() {
    let mut status = sample();
    let mut encrypted = connection(2, ConnectionState::Established, "");
    encrypted.method.as_mut().unwrap().encrypted = true;
    status.router.connections = vec![encrypted];
    let samples = samples(status);
    assert!(samples.contains(r#"weave_connections{state="established",type="fastdp",encryption="yes"} 1.0"#));
    assert!(samples.contains(r#"weave_connections{state="failed",type="unknown",encryption=""} 0.0"#));
}

#[test]
fn claims_and_allocations_that_wait_are_counted_apart() {
    let mut status = sample();
    let pending = ["claim 10.32.0.9 for a", "an address for b", "an address for c"];
    status.ipam.as_mut().unwrap().pending = pending.map(str::to_owned).to_vec();
    let samples = samples(status);
    assert!(samples.contains("weave_ipam_pending_claims 1.0\n"), "{samples}");
    assert!(samples.contains("weave_ipam_pending_allocates 2.0\n"), "{samples}");
}

#[test]
fn an_agent_without_an_allocator_has_metrics_too() {
    let status = Status::starting(peer(1), nickname(1), weave_proto::PeerUid(1));
    let samples = samples(status);
    assert!(samples.contains("weave_ready 0.0\n") && !samples.contains("weave_max_ips"), "{samples}");
}

#[test]
fn both_formats_name_counters_as_they_must() {
    let classic = render(Arc::new(sample()), Format::Classic).unwrap();
    assert!(classic.contains("# TYPE weave_connection_terminations_total counter\n"), "{classic}");
    assert!(classic.contains("# HELP weave_connection_terminations_total Number of"), "{classic}");
    assert!(
        classic.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total "),
        "{classic}"
    );
    assert!(!classic.contains("# EOF"));
    let open = render(Arc::new(sample()), Format::OpenMetrics).unwrap();
    assert!(
        open.contains(
            "# TYPE weave_connection_terminations counter\nweave_connection_terminations_total 5\n"
        )
    );
    assert!(open.ends_with("# EOF\n"));
}

#[test]
fn each_name_has_its_help_and_type_once_and_the_process_is_among_them() {
    let text = render(Arc::new(sample()), Format::Classic).unwrap();
    let of = |kind: &str| -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix(kind)?.split(' ').next()).collect()
    };
    let (help, types) = (of("# HELP "), of("# TYPE "));
    assert_eq!(help, types);
    let unique: std::collections::BTreeSet<_> = types.iter().collect();
    assert_eq!(unique.len(), types.len());
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ] {
        assert!(types.contains(&name), "{name}");
    }
}

#[test]
fn a_reason_with_quotes_and_line_ends_does_not_break_the_format() {
    let mut status = sample();
    status.router.refused = [("a \"b\"\nc\\".to_owned(), 1)].into();
    let text = render(Arc::new(status), Format::Classic).unwrap();
    assert!(text.contains(r#"weave_refused_messages_total{reason="a \"b\"\nc\\"} 1"#), "{text}");
}

#[test]
fn what_the_tunnels_count_is_there_once_there_are_tunnels() {
    let mut status = sample();
    assert!(!samples(status.clone()).contains("weave_tunnel"));
    status.tunnels = Some(TunnelStatus {
        sent_bytes: 1,
        received_bytes: 2,
        opened_records: 3,
        relayed_frames: 4,
        drops: [("forged".to_owned(), 5), ("replayed".to_owned(), 0)].into(),
        fallbacks: [("cut for the device".to_owned(), 6)].into(),
    });
    let samples = samples(status);
    let tunnels: Vec<&str> = samples.lines().filter(|line| line.starts_with("weave_tunnel")).collect();
    assert_eq!(
        tunnels,
        [
            "weave_tunnel_sent_bytes_total 1",
            "weave_tunnel_received_bytes_total 2",
            "weave_tunnel_opened_records_total 3",
            "weave_tunnel_relayed_frames_total 4",
            r#"weave_tunnel_drops_total{reason="forged"} 5"#,
            r#"weave_tunnel_drops_total{reason="replayed"} 0"#,
            r#"weave_tunnel_fallbacks_total{kind="cut for the device"} 6"#,
        ]
    );
}
