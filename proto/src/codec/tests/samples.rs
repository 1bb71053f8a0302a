//! One message of each form, and any message.

use std::net::{IpAddr, SocketAddr};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::peer::ipam::{
    Accepted, Ballot, Candidacy, Electorate, Era, Founded, Founding, Inheritance, IpamPhase, Opinion,
    Removal, RingEntry, Stance, Vote, Want,
};
use crate::peer::topology::RecordVersion;
use crate::peer::{
    Digest, Directed, Features, Handshake, Hello, IpamDirected, IpamState, LinkRecord, Message, Offer,
    PeerRecord, RecordDigest, Refusal, RefusalCode, Routed, Step, Terms, UniverseId, WireVersion,
};
use crate::{Cidr, Nickname, PeerKey, PeerName, PeerUid};

/// The messages whose bytes are pinned, each with the name of its file. A new form gets a new line.
pub(super) fn pinned() -> Vec<(&'static str, Message)> {
    let stranger = Hello { range: None, universe: None, founders: None, ..hello() };
    let granted = IpamDirected::SpaceGranted { token: 7, state: Box::new(electing()) };
    let request =
        |want| IpamDirected::SpaceRequest { token: 7, universe: UniverseId(0x1122_3344_5566_7788), want };
    vec![
        ("hello", Message::Hello(hello())),
        ("hello_without_options", Message::Hello(stranger)),
        ("refusal", Message::Refusal(refusal())),
        ("topology", Message::Topology(vec![record(2), record(0)])),
        ("digest", Message::Digest(digest())),
        ("want", Message::Want(vec![name(1), name(2)])),
        ("ipam", Message::Ipam(Box::new(state(IpamPhase::Founded(Box::new(founded())))))),
        ("ipam_electing", Message::Ipam(Box::new(electing()))),
        ("directed", Message::Directed(directed(request(Want::Balance { owned: 300 })))),
        ("directed_share", Message::Directed(directed(request(Want::Share)))),
        ("directed_leftover", Message::Directed(directed(request(Want::Leftover)))),
        ("directed_granted", Message::Directed(directed(granted))),
        ("directed_denied", Message::Directed(directed(IpamDirected::SpaceDenied { token: 7 }))),
        ("warning", Message::Warning(refusal())),
        ("terms", Message::Terms(Terms { plain: true })),
        ("offer", Message::Offer(offer())),
        ("routed", Message::Routed(routed())),
        ("handshake", Message::Handshake(handshake())),
        ("handshake_ask", Message::Handshake(Handshake { step: Step::Ask, ..handshake() })),
    ]
}

pub(super) fn hello() -> Hello {
    Hello {
        lowest: WireVersion(1),
        highest: WireVersion(2),
        name: name(1),
        uid: PeerUid(3),
        nickname: Nickname::lossy("node-1"),
        nonce: 0x0102_0304_0506_0708,
        instance: 0x1112_1314_1516_1718,
        range: Some("10.32.0.0/12".parse().unwrap()),
        universe: Some(UniverseId(0x2122_2324_2526_2728)),
        founders: Some(3),
        features: Features::FASTDP,
    }
}

fn offer() -> Offer {
    Offer { index: 0x0102_0304, suites: vec![1, 2, 3], queues: 2, port: 6785 }
}

fn routed() -> Routed {
    Routed { src: name(1), dst: name(2), hops_left: Directed::MAX_HOPS, body: vec![0xaa, 0xbb, 0xcc] }
}

fn handshake() -> Handshake {
    let step = Step::Flight { dialler: true, number: 1, tls: vec![0x16, 0x03, 0x01] };
    Handshake { attempt: 0x0102_0304_0506_0708, step }
}

pub(super) fn refusal() -> Refusal {
    Refusal { code: RefusalCode::Range, text: "the ranges differ".to_owned() }
}

pub(super) fn record(links: usize) -> PeerRecord {
    let link = |index: usize| LinkRecord {
        peer: name(u8::try_from(index % 256).unwrap()),
        addr: if index.is_multiple_of(2) { "192.168.0.2:6783" } else { "[fd00::2]:6783" }.parse().unwrap(),
        outbound: index.is_multiple_of(2),
    };
    PeerRecord {
        name: name(1),
        key: PeerKey([0x55; 32]),
        uid: PeerUid(3),
        version: RecordVersion(500),
        nickname: Nickname::lossy("node-1"),
        overlay: (links > 0).then(|| "10.32.0.1".parse().unwrap()),
        free: 70_000,
        features: Features::FASTDP,
        links: (0..links).map(link).collect(),
    }
}

fn digest() -> Digest {
    let records = [1, 2].map(|number| RecordDigest {
        name: name(number),
        uid: PeerUid(3),
        version: RecordVersion(u64::from(number) * 200),
    });
    Digest { records: records.into(), ipam: u64::MAX }
}

pub(super) fn directed(body: IpamDirected) -> Directed {
    Directed { src: name(1), dst: name(2), hops_left: Directed::MAX_HOPS, body }
}

pub(super) fn state(phase: IpamPhase) -> IpamState {
    IpamState { universe: "10.32.0.0/12".parse().unwrap(), phase }
}

pub(super) fn founded() -> Founded {
    let entry = |token: &str, owner, takeovers| RingEntry {
        token: token.parse().unwrap(),
        owner: name(owner),
        version: 1000,
        era: Era { takeovers, heir: (takeovers > 0).then(|| name(owner)) },
    };
    let opinion = Opinion {
        version: 2,
        stance: Stance::Insists,
        vote: Vote {
            promised: Some(ballot()),
            accepted: Some(Accepted {
                ballot: ballot(),
                value: Inheritance { heir: name(1), electors: [name(1), name(2)].into() },
            }),
        },
    };
    Founded {
        founding: Founding { founders: [name(1), name(2), name(3)].into(), nonce: 9 },
        ring: vec![entry("10.32.0.0", 1, 0), entry("10.40.0.0", 2, 1)],
        removals: [
            (name(3), Removal::Decided { heir: name(2) }),
            (name(4), Removal::Pending([(name(1), opinion)].into())),
        ]
        .into(),
    }
}

fn electing() -> IpamState {
    let electorate = |attempt| Electorate { attempt, members: [name(1), name(2), name(3)].into() };
    let voter = Candidacy {
        version: 4,
        founders: 3,
        attempt: 2,
        lock: Some(electorate(2)),
        leaving: [electorate(1)].into(),
        vote: Vote {
            promised: Some(ballot()),
            accepted: Some(Accepted {
                ballot: ballot(),
                value: Founding { founders: [name(1), name(2)].into(), nonce: 5 },
            }),
        },
    };
    let newcomer = Candidacy {
        version: 1,
        founders: 3,
        attempt: 0,
        lock: None,
        leaving: [].into(),
        vote: Vote::default(),
    };
    state(IpamPhase::Electing([(name(1), voter), (name(2), newcomer)].into()))
}

fn ballot() -> Ballot {
    Ballot { round: 1, proposer: name(2) }
}

fn name(last: u8) -> PeerName {
    PeerName::from_bits([0x02, 0, 0, 0, 0, last])
}

/// Any message at all.
pub(super) fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any_hello().prop_map(Message::Hello),
        (any::<u32>(), ".{0,200}")
            .prop_map(|(code, text)| Message::Refusal(Refusal { code: RefusalCode::from(code), text })),
        (any::<u32>(), ".{0,200}")
            .prop_map(|(code, text)| Message::Warning(Refusal { code: RefusalCode::from(code), text })),
        vec(any_record(), 0..5).prop_map(Message::Topology),
        (vec(any_digest(), 0..20), any::<u64>())
            .prop_map(|(records, ipam)| Message::Digest(Digest { records, ipam })),
        vec(any_name(), 0..50).prop_map(Message::Want),
        any_state().prop_map(|state| Message::Ipam(Box::new(state))),
        (any_name(), any_name(), any::<u8>(), any_directed()).prop_map(|(src, dst, hops_left, body)| {
            Message::Directed(Directed { src, dst, hops_left, body })
        }),
        any::<bool>().prop_map(|plain| Message::Terms(Terms { plain })),
        (any::<u32>(), vec(any::<u8>(), 0..=16), any::<u8>(), any::<u16>())
            .prop_map(|(index, suites, queues, port)| Message::Offer(Offer { index, suites, queues, port })),
        (any_name(), any_name(), any::<u8>(), vec(any::<u8>(), 0..300))
            .prop_map(|(src, dst, hops_left, body)| Message::Routed(Routed { src, dst, hops_left, body })),
        (any::<u64>(), option::of((any::<bool>(), any::<u8>(), vec(any::<u8>(), 0..300)))).prop_map(
            |(attempt, flight)| {
                let flight = flight.map(|(dialler, number, tls)| Step::Flight { dialler, number, tls });
                Message::Handshake(Handshake { attempt, step: flight.unwrap_or(Step::Ask) })
            }
        ),
    ]
}

fn any_name() -> impl Strategy<Value = PeerName> {
    any::<[u8; 6]>().prop_map(PeerName::from_bits)
}

fn any_nickname() -> impl Strategy<Value = Nickname> {
    ".{0,300}".prop_map(|text| Nickname::lossy(&text))
}

fn any_cidr() -> impl Strategy<Value = Cidr> {
    (any::<IpAddr>(), 0_u8..=128)
        .prop_map(|(addr, prefix)| Cidr::containing(addr, prefix).unwrap_or_else(|| Cidr::host(addr)))
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let numbers = (any::<u16>(), any::<u16>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>());
    let options = (option::of(any_cidr()), option::of(any::<u64>()), option::of(any::<u16>()));
    (any_name(), any_nickname(), numbers, options).prop_map(|(name, nickname, numbers, options)| Hello {
        lowest: WireVersion(numbers.0),
        highest: WireVersion(numbers.1),
        name,
        uid: PeerUid(numbers.2),
        nickname,
        nonce: numbers.3,
        instance: numbers.4,
        range: options.0,
        universe: options.1.map(UniverseId),
        founders: options.2,
        features: Features(numbers.5),
    })
}

fn any_record() -> impl Strategy<Value = PeerRecord> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>());
    // A flow label cannot be told from none once it has been through text, but through bytes it must survive as
    // far as serde carries it: address and port.
    let link =
        (any_name(), any::<IpAddr>(), any::<u16>(), any::<bool>()).prop_map(|(peer, ip, port, outbound)| {
            LinkRecord { peer, addr: SocketAddr::new(ip, port), outbound }
        });
    let facts = (option::of(any::<IpAddr>()), vec(link, 0..10));
    (any_name(), any::<[u8; 32]>(), any_nickname(), numbers, facts).prop_map(
        |(name, key, nickname, numbers, (overlay, links))| PeerRecord {
            name,
            key: PeerKey(key),
            uid: PeerUid(numbers.0),
            version: RecordVersion(numbers.1),
            nickname,
            overlay,
            free: numbers.2,
            features: Features(numbers.3),
            links,
        },
    )
}

fn any_digest() -> impl Strategy<Value = RecordDigest> {
    (any_name(), any::<u64>(), any::<u64>()).prop_map(|(name, uid, version)| RecordDigest {
        name,
        uid: PeerUid(uid),
        version: RecordVersion(version),
    })
}

fn any_directed() -> impl Strategy<Value = IpamDirected> {
    let want = prop_oneof![
        Just(Want::Share),
        Just(Want::Leftover),
        any::<u64>().prop_map(|owned| Want::Balance { owned }),
    ];
    prop_oneof![
        (any::<u64>(), any::<u64>(), want).prop_map(|(token, universe, want)| IpamDirected::SpaceRequest {
            token,
            universe: UniverseId(universe),
            want,
        }),
        (any::<u64>(), any_state())
            .prop_map(|(token, state)| IpamDirected::SpaceGranted { token, state: Box::new(state) }),
        any::<u64>().prop_map(|token| IpamDirected::SpaceDenied { token }),
    ]
}

fn any_state() -> impl Strategy<Value = IpamState> {
    let phase = prop_oneof![
        btree_map(any_name(), any_candidacy(), 0..5).prop_map(IpamPhase::Electing),
        any_founded().prop_map(|founded| IpamPhase::Founded(Box::new(founded))),
    ];
    (any_cidr(), phase).prop_map(|(universe, phase)| IpamState { universe, phase })
}

fn any_founding() -> impl Strategy<Value = Founding> {
    (btree_set(any_name(), 0..5), any::<u64>()).prop_map(|(founders, nonce)| Founding { founders, nonce })
}

fn any_founded() -> impl Strategy<Value = Founded> {
    let era = (any::<u32>(), option::of(any_name())).prop_map(|(takeovers, heir)| Era { takeovers, heir });
    let entry = (any::<IpAddr>(), any_name(), any::<u32>(), era)
        .prop_map(|(token, owner, version, era)| RingEntry { token, owner, version, era });
    let stance = prop_oneof![Just(Stance::Silent), Just(Stance::Asks), Just(Stance::Insists)];
    let inheritance =
        (any_name(), btree_set(any_name(), 0..4)).prop_map(|(heir, electors)| Inheritance { heir, electors });
    let opinion = (any::<u64>(), stance, any_vote(inheritance)).prop_map(|(version, stance, vote)| Opinion {
        version,
        stance,
        vote,
    });
    let removal = prop_oneof![
        btree_map(any_name(), opinion, 0..3).prop_map(Removal::Pending),
        any_name().prop_map(|heir| Removal::Decided { heir }),
    ];
    (any_founding(), vec(entry, 0..20), btree_map(any_name(), removal, 0..3))
        .prop_map(|(founding, ring, removals)| Founded { founding, ring, removals })
}

fn any_candidacy() -> impl Strategy<Value = Candidacy> {
    let electorate = || {
        (any::<u32>(), btree_set(any_name(), 0..4))
            .prop_map(|(attempt, members)| Electorate { attempt, members })
    };
    let numbers = (any::<u64>(), any::<u16>(), any::<u32>());
    (numbers, option::of(electorate()), btree_set(electorate(), 0..3), any_vote(any_founding())).prop_map(
        |(numbers, lock, leaving, vote)| Candidacy {
            version: numbers.0,
            founders: numbers.1,
            attempt: numbers.2,
            lock,
            leaving,
            vote,
        },
    )
}

fn any_vote<V: std::fmt::Debug + Clone>(value: impl Strategy<Value = V>) -> impl Strategy<Value = Vote<V>> {
    let ballot = || (any::<u32>(), any_name()).prop_map(|(round, proposer)| Ballot { round, proposer });
    let accepted = (ballot(), value).prop_map(|(ballot, value)| Accepted { ballot, value });
    (option::of(ballot()), option::of(accepted)).prop_map(|(promised, accepted)| Vote { promised, accepted })
}
