//! One end of a tunnel with fixed secrets, for measuring: no control plane, no agent.
//!
//! ```text
//! tunnel_rig <number> <device> <record> <queues> <suite> <peer>...
//!     a peer is  number,outer address,udp|quic|via-NUMBER,range[,range...]
//! ```
//!
//! Node N is the peer 02:00:00:00:00:N. Of two, the lower number is the initiator, and dials QUIC. A peer `via-2` is
//! reached by way of node 2, which must be a peer too. `tunnel_rig.sh` lays two namespaces, starts one in each, and
//! measures; `make bench PARTS=tunnels` uses it too.

#![expect(clippy::print_stdout, reason = "a tool for a person at a terminal")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::sync::{mpsc, watch};
use weave_agent::dataplane::sleeve::{
    Carrier, Engine, Hop, MAX_UDP_PAYLOAD, PORT, Peer, SendWith, SessionSettings, tune,
};
use weave_agent::dataplane::tun::Tun;
use weave_agent::identity::Identity;
use weave_agent::peer::{DEFAULT_PORT, Data, DataEvent, PeerNet, Secrets, Settings};
use weave_agent::task::Task;
use weave_proto::peer::{Features, Hello, SPOKEN};
use weave_proto::{Cidr, Nickname, PeerName, PeerUid};
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::session::Config;

/// How often epochs are looked after and counters shown.
const TICK: Duration = Duration::from_secs(1);

/// A peer, as the command line has it.
struct Known {
    number: u8,
    outer: IpAddr,
    way: Way,
    ranges: Vec<Cidr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp,
    Quic,
    Via(u8),
}

impl FromStr for Known {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(',').collect();
        let [number, outer, way, ranges @ ..] = parts.as_slice() else { bail!("{text} is no peer") };
        let way = match *way {
            "udp" => Way::Udp,
            "quic" => Way::Quic,
            other => Way::Via(other.strip_prefix("via-").context("udp, quic or via-NUMBER")?.parse()?),
        };
        let ranges = ranges.iter().map(|range| range.parse()).collect::<Result<_, _>>().context("ranges")?;
        Ok(Self { number: number.parse()?, outer: outer.parse()?, way, ranges })
    }
}

fn name(number: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, number])
}

/// By what number `owner` knows its session with `other`.
fn index(owner: u8, other: u8) -> u32 {
    u32::from_be_bytes([1, 1, owner, other])
}

fn identity(number: u8) -> Result<Identity> {
    Identity::from_seed([number; 32], PeerUid(1)).context("an identity")
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [number, device, record, queues, suite, peers @ ..] = arguments.as_slice() else {
        bail!("see the top of agent/examples/tunnel_rig.rs for the arguments");
    };
    let number: u8 = number.parse().context("number")?;
    let record_len: usize = record.parse().context("record length")?;
    let queues: NonZeroU8 = queues.parse().context("queues")?;
    let suite = match suite.as_str() {
        "aes128" => Suite::Aes128Gcm,
        "aes256" => Suite::Aes256Gcm,
        "chacha" => Suite::ChaCha20Poly1305,
        other => bail!("{other} is no suite"),
    };
    let peers: Vec<Known> = peers.iter().map(|peer| peer.parse()).collect::<Result<_>>()?;
    let tun = Tun::open(device, queues.get())?;
    println!("offloads {:?}", tun.offloads);
    let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
    let engine = Engine::start(name(number), tun, listen, Box::new(|event| println!("{event:?}")))?;
    for peer in &peers {
        let role = if number < peer.number { Role::Initiator } else { Role::Responder };
        let remote_index = index(peer.number, number);
        let config =
            Config { role, suite, send_queues: queues, receive_queues: queues, remote_index, record_len };
        let remote = SocketAddr::new(peer.outer, PORT);
        let settings =
            SessionSettings { index: index(number, peer.number), peer: name(peer.number), remote, config };
        // The same at both ends, and another for each pair.
        let secret = [number.min(peer.number), number.max(peer.number)].repeat(16);
        engine.open_session(settings, &secret, Instant::now());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(&engine, number, record_len, &peers))
}

/// Joins what is to be joined by QUIC, and looks after the engine for ever.
async fn serve(engine: &Engine, number: u8, record_len: usize, peers: &[Known]) -> Result<()> {
    let (tell, mut data) = mpsc::unbounded_channel();
    let (tell_events, _events) = mpsc::channel(8);
    let identity_here = identity(number)?;
    let (_said, hello) = watch::channel(hello(&identity_here));
    let data_settings = Data { tune, max_udp_payload: MAX_UDP_PAYLOAD, events: tell };
    let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), DEFAULT_PORT);
    let settings = Settings { listen, data: Some(data_settings) };
    let secrets = Secrets::from_lines("for measurements only", "the rig")?;
    let net = PeerNet::bind(settings, identity_here, secrets, hello, tell_events).await?;
    let mut links: Vec<(PeerName, Carrier, Task)> = Vec::new();
    publish(engine, number, record_len, peers, &links);
    println!("ready");
    let mut shown = engine.counters();
    let mut tick = tokio::time::interval(TICK);
    loop {
        let event = tokio::select! {
            event = data.recv() => event,
            _ = tick.tick() => None,
        };
        if let Some(DataEvent::Up { peer, connection, .. }) = event
            && let Some(known) =
                peers.iter().find(|known| identity(known.number).is_ok_and(|it| it.name() == peer))
            && let Some((link, task)) = engine.carry(name(known.number), connection)
        {
            links.push((name(known.number), Carrier::Quic(link), task));
            publish(engine, number, record_len, peers, &links);
            println!("joined {}", known.number);
            continue;
        }
        for known in peers.iter().filter(|known| known.way == Way::Quic && known.number > number) {
            if !links.iter().any(|(peer, _, task)| *peer == name(known.number) && !task.is_finished()) {
                net.data_door()
                    .open(SocketAddr::new(known.outer, DEFAULT_PORT), identity(known.number)?.key());
            }
        }
        engine.maintain(Instant::now());
        let counters = engine.counters();
        if counters != shown {
            println!("{counters:?}");
            shown = counters;
        }
    }
}

fn publish(
    engine: &Engine,
    number: u8,
    record_len: usize,
    peers: &[Known],
    links: &[(PeerName, Carrier, Task)],
) {
    let as_wanted = |known: &Known| {
        let session = index(number, known.number);
        let peer = name(known.number);
        let link =
            links.iter().rev().find(|(whose, ..)| *whose == peer).map(|(_, carrier, _)| carrier.clone());
        let (carrier, hop) = match (known.way, link) {
            (Way::Udp, _) => (Some(Carrier::Udp), Some(Hop::Udp { session })),
            (Way::Quic, Some(Carrier::Quic(link))) => {
                (Some(Carrier::Quic(link.clone())), Some(Hop::Quic { session, link }))
            }
            (Way::Quic, _) => (None, None),
            (Way::Via(next), _) => (Some(Carrier::Relay(name(next))), Some(Hop::Next(name(next)))),
        };
        let send_with = carrier.map(|carrier| SendWith { session, carrier });
        Peer { peer, ranges: known.ranges.clone(), send_with, hop, record_len }
    };
    engine.set_peers(peers.iter().map(as_wanted).collect());
}

fn hello(identity: &Identity) -> Hello {
    Hello {
        lowest: SPOKEN.0,
        highest: SPOKEN.1,
        name: identity.name(),
        uid: identity.uid(),
        instance: 1,
        nickname: Nickname::lossy("rig"),
        nonce: 0,
        range: None,
        universe: None,
        founders: None,
        features: Features::default(),
    }
}
