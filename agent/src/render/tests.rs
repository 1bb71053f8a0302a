//! Golden texts: what people read, letter by letter.

use weave_proto::local::status::{
    ACKNOWLEDGED, ConnectionStatus, EncryptionStatus, MethodStatus, RemovedStatus, RingEntryStatus,
    TargetStatus, WireStatus,
};
use weave_proto::peer::{UniverseId, WireVersion};
use weave_proto::{PeerUid, Span};

use super::*;

pub(crate) fn peer(number: u8) -> PeerName {
    PeerName::from_bits([0x7a, 0x3f, 0, 0, 0, number])
}

pub(crate) fn nickname(number: u8) -> Nickname {
    Nickname::lossy(&format!("node{number}"))
}

fn link(to: u8, outbound: bool, established: bool) -> PeerLinkStatus {
    PeerLinkStatus {
        peer: peer(to),
        nickname: Some(nickname(to)),
        address: format!("10.0.0.{to}:6783").parse().unwrap(),
        outbound,
        established,
    }
}

fn peer_status(number: u8, reachable: bool, links: Vec<PeerLinkStatus>) -> PeerStatus {
    PeerStatus {
        name: peer(number),
        nickname: nickname(number),
        uid: PeerUid(4),
        version: 9,
        overlay: Some(format!("10.32.0.{number}").parse().unwrap()),
        reachable,
        links,
        method: None,
    }
}

pub(crate) fn connection(number: u8, state: ConnectionState, info: &str) -> ConnectionStatus {
    let is_live = matches!(state, ConnectionState::Established | ConnectionState::Pending);
    ConnectionStatus {
        address: format!("10.0.0.{number}:6783").parse().unwrap(),
        outbound: number % 2 == 1,
        state,
        peer: is_live.then(|| peer(number)),
        nickname: is_live.then(|| nickname(number)),
        info: info.to_owned(),
        retry_in_seconds: None,
        method: (state == ConnectionState::Established).then(|| MethodStatus {
            name: "fastdp".to_owned(),
            reason: String::new(),
            mtu: Some(1450),
            encrypted: false,
            via: None,
            by: None,
            round_trip_us: None,
            rejected: Vec::new(),
            session: None,
        }),
    }
}

fn share(number: u8, addresses: u64, active: Option<u64>, reachable: bool) -> ShareStatus {
    ShareStatus { peer: peer(number), nickname: Some(nickname(number)), addresses, active, reachable }
}

fn allocation(container: &str, address: &str, mac: Option<&str>, pod: Option<&str>) -> AllocationStatus {
    AllocationStatus {
        container: container.to_owned(),
        interface: "eth0".to_owned(),
        address: address.parse().unwrap(),
        host_interface: mac.map(|_| "vethwepl1".to_owned()),
        mac: mac.map(str::to_owned),
        pod: pod.map(str::to_owned),
    }
}

fn ipam_status() -> IpamStatus {
    IpamStatus {
        state: "ready".to_owned(),
        ready: true,
        range: "10.32.0.0/12".parse().unwrap(),
        universe: Some(UniverseId(7)),
        shares: vec![
            share(1, 349_525, Some(3), true),
            share(2, 349_525, None, true),
            share(3, 349_526, None, false),
        ],
        entries: vec![RingEntryStatus {
            span: Span::new("10.32.0.0".parse().unwrap(), "10.47.255.255".parse().unwrap()).unwrap(),
            owner: peer(1),
            version: 0,
        }],
        allocations: vec![
            allocation(
                "b7c1f00dcafe0123456789",
                "10.32.0.3",
                Some("8e:10:00:00:00:03"),
                Some("default/web-1"),
            ),
            allocation("a1b2c3d4e5f60123456789", "10.32.0.2", Some("8e:10:00:00:00:02"), None),
            allocation("weave:expose", "10.32.0.1", None, None),
        ],
        lost: vec![],
        quarantined: 2,
        pending: vec![],
        refused: vec![],
        removed: vec![],
    }
}

/// A node in the middle of its life: three peers, one of them lost, two pods.
pub(crate) fn sample() -> Status {
    let mut retrying = connection(9, ConnectionState::Retrying, "connection refused");
    retrying.retry_in_seconds = Some(4);
    let mut status = Status::starting(peer(1), nickname(1), PeerUid(4));
    status.version = "0.1.0".to_owned();
    status.wire = WireStatus { lowest: WireVersion(1), highest: WireVersion(2) };
    status.started_at = 1_795_250_000;
    status.waiting_for.clear();
    status.router = RouterStatus {
        port: 6783,
        discovery: true,
        conn_limit: Some(200),
        encryption: EncryptionStatus { data: DataEncryption::Disabled, control: ControlTrust::ClusterSecret },
        targets: vec![
            TargetStatus { target: "10.0.0.2".to_owned(), problem: None },
            TargetStatus {
                target: "node9.example:6783".to_owned(),
                problem: Some("the name cannot be resolved".to_owned()),
            },
        ],
        connections: vec![
            connection(2, ConnectionState::Established, ""),
            connection(3, ConnectionState::Failed, "cannot connect to ourself"),
            retrying,
            connection(4, ConnectionState::Pending, "waiting for the data path"),
            connection(11, ConnectionState::Connecting, ""),
        ],
        peers: vec![
            peer_status(1, true, vec![link(2, false, true)]),
            peer_status(2, true, vec![link(1, true, true), link(4, true, false)]),
            peer_status(3, false, vec![]),
        ],
        terminations: 5,
        refused: [("update for a range I own".to_owned(), 1)].into(),
    };
    status.ipam = Some(ipam_status());
    status.node = NodeStatus {
        warnings: Vec::new(),
        bridge: "weave".to_owned(),
        address: Some("10.32.0.1".parse().unwrap()),
        mtu: Some(1450),
        pods: 2,
        problems: vec![],
        repairs: [("route".to_owned(), 2), ("firewall".to_owned(), 1)].into(),
        drops: [("source".to_owned(), 12), ("arp".to_owned(), 0)].into(),
    };
    status
}

use weave_proto::local::status::RouterStatus;

#[test]
fn the_summary_of_a_node_at_work() {
    let mut status = sample();
    status.warnings.push("no secret was given: anybody can join; start with --secret-file".to_owned());
    assert_eq!(
        text(&status, View::Summary),
        "        Version: 0.1.0
          Ready: yes

        Service: router
       Protocol: weave 1..2
           Name: 7a:3f:00:00:00:01(node1)
     Encryption: disabled
   ControlTrust: cluster secret
  PeerDiscovery: enabled
        Targets: 2
    Connections: 5 (1 established, 1 pending, 1 retrying, 1 failed, 1 connecting)
          Peers: 3 (with 2 established, 1 pending connections)
        Refused: 1 messages (1 update for a range I own)

        Service: ipam
         Status: ready
          Range: 10.32.0.0/12
  DefaultSubnet: 10.32.0.0/12

        Service: node
         Bridge: weave
        Address: 10.32.0.1
            MTU: 1450
           Pods: 2
        Repairs: 3 (1 firewall, 2 route)
          Drops: 12 (12 source)

        Warning: no secret was given: anybody can join; start with --secret-file
"
    );
}

#[test]
fn the_summary_of_an_agent_that_knows_nobody() {
    let mut status = Status::starting(peer(1), nickname(1), PeerUid(1));
    status.version = "0.1.0".to_owned();
    assert_eq!(
        text(&status, View::Summary),
        "        Version: 0.1.0
          Ready: no, waiting for the agent to finish starting

        Service: router
       Protocol: weave 1..1
           Name: 7a:3f:00:00:00:01(node1)
     Encryption: disabled
   ControlTrust: public secret (anybody who reaches the port can join)
  PeerDiscovery: disabled
        Targets: 0
    Connections: 0
          Peers: 0

        Service: node
         Bridge: none yet
        Address: none yet
            MTU: not known yet
           Pods: 0
"
    );
    for view in [View::Connections, View::Peers, View::Targets] {
        assert_eq!(text(&status, view), "", "{view:?}");
    }
    assert_eq!(text(&status, View::Ipam), "the IP allocator is disabled\n");
    assert_eq!(ps(&status, &[]), "");
}

#[test]
fn what_the_allocator_waits_for_stands_in_the_summary_and_in_its_own_view() {
    let mut status = sample();
    let mut waiting = ipam_status();
    waiting.state = "awaiting consensus (quorum: 2, known: 1)".to_owned();
    waiting.ready = false;
    waiting.shares.clear();
    waiting.pending = vec!["claim 10.32.0.9 for weave:expose".to_owned()];
    waiting.removed = vec![RemovedStatus { peer: peer(8), heir: peer(1), state: "acknowledged".to_owned() }];
    status.ipam = Some(waiting);
    let summary = text(&status, View::Summary);
    assert!(
        summary.contains(
            "        Service: ipam
         Status: awaiting consensus (quorum: 2, known: 1)
          Range: 10.32.0.0/12
  DefaultSubnet: 10.32.0.0/12
        Pending: claim 10.32.0.9 for weave:expose
        Removed: 7a:3f:00:00:00:08, its addresses are 7a:3f:00:00:00:01's
"
        ),
        "{summary}"
    );
    assert_eq!(text(&status, View::Ipam), "awaiting consensus (quorum: 2, known: 1)\n");
}

#[test]
fn a_container_with_a_lost_address_is_listed_as_such() {
    let mut status = sample();
    status.ipam.as_mut().unwrap().lost =
        vec![allocation("3333aaaa5555cccc", "10.32.0.77", None, Some("default/web"))];
    let lines = ps(&status, &[]);
    let line = lines.lines().last().unwrap();
    assert!(
        line.contains("10.32.0.77/12") && line.contains("default/web (lost: cut off, restart it)"),
        "{line}"
    );
    assert_eq!(ps(&status, &["default/web".to_owned()]).lines().count(), 1);
}

#[test]
fn the_summary_says_nothing_twice_and_counts_what_is_done() {
    let mut status = sample();
    let mut waiting = ipam_status();
    waiting.state = "waiting for founders: 1 of 3 are here".to_owned();
    waiting.pending =
        ["weave:expose/weave", "c1/eth0"].map(|key| format!("address for {key}: {}", waiting.state)).into();
    waiting.pending.push("removal of x: waiting for 1 more acknowledgements".to_owned());
    let removed =
        |number, state: &str| RemovedStatus { peer: peer(number), heir: peer(1), state: state.to_owned() };
    waiting.removed = vec![removed(6, ACKNOWLEDGED), removed(7, "waiting"), removed(8, ACKNOWLEDGED)];
    status.ipam = Some(waiting);
    let summary = text(&status, View::Summary);
    assert!(
        summary.contains(
            "  DefaultSubnet: 10.32.0.0/12
        Pending: address for c1/eth0
        Pending: removal of x: waiting for 1 more acknowledgements
        Removed: 7a:3f:00:00:00:07, heir 7a:3f:00:00:00:01: waiting
        Removed: 2 peers for good; `weave report --format /ipam/removed` lists them
"
        ),
        "{summary}"
    );
}

#[test]
fn connections_in_every_state() {
    assert_eq!(
        text(&sample(), View::Connections),
        "\
<- 10.0.0.2:6783  established unencrypted fastdp 7a:3f:00:00:00:02(node2) mtu=1450
-> 10.0.0.3:6783  failed      cannot connect to ourself, retry: never
-> 10.0.0.9:6783  retrying    connection refused, retry: in 4 s
<- 10.0.0.4:6783  pending     7a:3f:00:00:00:04(node4) waiting for the data path
-> 10.0.0.11:6783 connecting
"
    );
}

#[test]
fn a_caller_that_was_refused_is_not_ours_to_try_again_and_a_lost_name_has_no_address() {
    let mut status = sample();
    let refused = connection(2, ConnectionState::Failed, "another range");
    let mut lost = connection(3, ConnectionState::Retrying, "cannot look up node9.example");
    lost.address = "0.0.0.0:0".parse().unwrap();
    lost.retry_in_seconds = Some(4);
    status.router.connections = vec![refused, lost];
    assert_eq!(
        text(&status, View::Connections),
        "<- 10.0.0.2:6783 failed   another range\n\
         -> no address    retrying cannot look up node9.example, retry: in 4 s\n"
    );
}

#[test]
fn a_connection_without_a_data_path_says_why() {
    let mut status = sample();
    let mut connection = connection(2, ConnectionState::Established, "");
    connection.method = Some(MethodStatus {
        name: "none".to_owned(),
        reason: "the peer has no VXLAN".to_owned(),
        mtu: None,
        encrypted: false,
        via: None,
        by: None,
        round_trip_us: None,
        rejected: Vec::new(),
        session: None,
    });
    status.router.connections = vec![connection];
    assert_eq!(
        text(&status, View::Connections),
        "<- 10.0.0.2:6783 established unencrypted none   7a:3f:00:00:00:02(node2) (the peer has no VXLAN)\n"
    );
}

#[test]
fn an_encrypted_path_and_one_through_a_relay_are_shown_as_such() {
    let mut status = sample();
    let mut direct = connection(2, ConnectionState::Established, "");
    let method = MethodStatus {
        name: "sleeve".to_owned(),
        reason: "encryption is due".to_owned(),
        mtu: Some(1400),
        encrypted: true,
        via: None,
        by: None,
        round_trip_us: Some(250),
        rejected: Vec::new(),
        session: None,
    };
    direct.method = Some(method.clone());
    let mut away = connection(3, ConnectionState::Retrying, "no answer");
    let via = Some(direct.peer.unwrap());
    let reason = "no direct way answers".to_owned();
    let by = Some("sleeve".to_owned());
    away.method = Some(MethodStatus { name: "relay".to_owned(), reason, via, by, ..method });
    away.retry_in_seconds = Some(4);
    let last = status.router.peers.last_mut().unwrap();
    (last.reachable, last.method) = (true, away.method.clone());
    status.router.connections = vec![direct, away];
    assert_eq!(
        text(&status, View::Connections),
        "<- 10.0.0.2:6783 established encrypted   sleeve 7a:3f:00:00:00:02(node2) mtu=1400 (encryption is due)\n\
         -> 10.0.0.3:6783 retrying    no answer, retry: in 4 s, encrypted relay through \
         7a:3f:00:00:00:02(node2) (sleeve), mtu=1400 (no direct way answers)\n"
    );
    assert!(
        text(&status, View::Peers).ends_with(
            "7a:3f:00:00:00:03(node3) - encrypted relay through 7a:3f:00:00:00:02(node2) (sleeve), mtu=1400 (no \
             direct way answers)\n"
        ),
        "{}",
        text(&status, View::Peers)
    );
}

#[test]
fn peers_with_their_links() {
    assert_eq!(
        text(&sample(), View::Peers),
        "\
7a:3f:00:00:00:01(node1)
   <- 10.0.0.2:6783 7a:3f:00:00:00:02(node2) established
7a:3f:00:00:00:02(node2)
   -> 10.0.0.1:6783 7a:3f:00:00:00:01(node1) established
   -> 10.0.0.4:6783 7a:3f:00:00:00:04(node4) pending
7a:3f:00:00:00:03(node3) - unreachable!
"
    );
}

#[test]
fn shares_of_the_range() {
    let mut status = sample();
    let shares = &mut status.ipam.as_mut().unwrap().shares;
    shares.push(ShareStatus { nickname: None, ..share(4, 16, None, true) });
    assert_eq!(
        text(&status, View::Ipam),
        "\
7a:3f:00:00:00:01(node1)   349525 IPs (33.3% of total) (3 active)
7a:3f:00:00:00:02(node2)   349525 IPs (33.3% of total)
7a:3f:00:00:00:03(node3)   349526 IPs (33.3% of total) - unreachable!
7a:3f:00:00:00:04              16 IPs ( 0.0% of total)
"
    );
}

#[test]
fn targets_with_what_is_wrong_with_them() {
    assert_eq!(text(&sample(), View::Targets), "10.0.0.2\nnode9.example:6783 the name cannot be resolved\n");
}

#[test]
fn containers_with_the_node_first() {
    assert_eq!(
        ps(&sample(), &[]),
        "\
weave:expose 7a:3f:00:00:00:01 10.32.0.1/12
a1b2c3d4e5f6 8e:10:00:00:00:02 10.32.0.2/12
b7c1f00dcafe 8e:10:00:00:00:03 10.32.0.3/12 default/web-1
"
    );
}

#[test]
fn containers_are_found_by_the_beginning_of_their_id_and_by_pod() {
    let wanted = |text: &str| ps(&sample(), &[text.to_owned()]);
    assert_eq!(wanted("a1b2"), "a1b2c3d4e5f6 8e:10:00:00:00:02 10.32.0.2/12\n");
    assert_eq!(wanted("default/web-1"), "b7c1f00dcafe 8e:10:00:00:00:03 10.32.0.3/12 default/web-1\n");
    assert_eq!(wanted("c"), "");
    assert_eq!(wanted(""), "");
}

#[test]
fn what_other_machines_say_cannot_steer_the_terminal() {
    let mut status = sample();
    status.router.connections[0].info = "\u{1b}[2J\u{202e}all is well\nreally".to_owned();
    status.waiting_for = vec!["\u{7}bell".to_owned()];
    status.ipam.as_mut().unwrap().state = "a\rb".to_owned();
    for view in [View::Summary, View::Connections, View::Peers, View::Ipam, View::Targets] {
        let text = text(&status, view);
        let steers = |letter: &char| letter.is_control() && *letter != '\n' || *letter == '\u{202e}';
        assert_eq!(text.chars().find(steers), None, "{view:?}: {text:?}");
    }
    assert!(text(&status, View::Connections).contains("?[2J?all is well?really\n"));
}

#[test]
fn json_of_a_view_reads_back_as_that_part() {
    let status = sample();
    let whole: Status = serde_json::from_str(&json(&status, View::Summary).unwrap()).unwrap();
    assert_eq!(whole, status);
    let connections: Vec<ConnectionStatus> =
        serde_json::from_str(&json(&status, View::Connections).unwrap()).unwrap();
    assert_eq!(connections, status.router.connections);
}

#[test]
fn a_document_of_a_later_version_can_be_read() {
    let mut value = serde_json::to_value(sample()).unwrap();
    value.as_object_mut().unwrap().insert("weather".to_owned(), "fair".into());
    assert_eq!(serde_json::from_value::<Status>(value).unwrap(), sample());
}

#[test]
fn one_value_is_found_by_its_pointer() {
    let at = |pointer: &str| value_at(&sample(), pointer);
    assert_eq!(at("/ipam/range"), Ok("10.32.0.0/12\n".to_owned()));
    assert_eq!(at("/router/connections/0/state"), Ok("established\n".to_owned()));
    assert_eq!(at("/node/mtu"), Ok("1450\n".to_owned()));
    assert_eq!(
        at("/router/encryption"),
        Ok("{\n  \"control\": \"cluster secret\",\n  \"data\": \"disabled\"\n}\n".to_owned())
    );
    let refusal = at("/router/connections/77/state").unwrap_err();
    assert!(refusal.contains("\"/router/connections\" has 5 items"), "{refusal}");
    let refusal = at("/ipma").unwrap_err();
    assert!(refusal.contains("there are ipam, name, nickname, node"), "{refusal}");
    let refusal = at("{{.IPAM.Range}}").unwrap_err();
    assert!(refusal.contains("templates are not supported"), "{refusal}");
}

#[test]
fn what_the_tunnels_refused_is_in_the_summary_if_it_is_anything() {
    let mut status = sample();
    assert!(!text(&status, View::Summary).contains("TunnelDrops"));
    let drops = [("forged".to_owned(), 2), ("replayed".to_owned(), 10), ("malformed".to_owned(), 0)];
    let tunnels = TunnelStatus { sent_bytes: 7, ..TunnelStatus::default() };
    status.tunnels = Some(tunnels.clone());
    assert!(!text(&status, View::Summary).contains("TunnelDrops"));
    status.tunnels = Some(TunnelStatus { drops: drops.into(), ..tunnels });
    let shown = text(&status, View::Summary);
    assert!(shown.contains("    TunnelDrops: 12 (2 forged, 10 replayed)\n"), "{shown}");
}
