//! One end of a sleeve tunnel with a fixed secret, for measuring: no control plane, no agent.
//!
//! ```text
//! sleeve_pair <initiator|responder> <device> <peer's ranges> <own outer> <peer outer> [suite] [queues] [record]
//! ```
//!
//! `agent/examples/sleeve_pair.sh` lays two namespaces, starts one in each, and measures.

#![expect(clippy::print_stdout, reason = "a tool for a person at a terminal")]

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use weave_agent::dataplane::sleeve::{Carrier, Engine, PORT, Peer, SendWith, SessionSettings};
use weave_agent::dataplane::tun::Tun;
use weave_proto::{Cidr, PeerName};
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::session::Config;

const INITIATOR: u32 = 0x0101_0101;
const RESPONDER: u32 = 0x0202_0202;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, role, device, peer_ranges, own_outer, peer_outer, rest @ ..] = arguments.as_slice() else {
        bail!("see the top of agent/examples/sleeve_pair.rs for the arguments");
    };
    let role = match role.as_str() {
        "initiator" => Role::Initiator,
        "responder" => Role::Responder,
        other => bail!("{other} is no role"),
    };
    let suite = match rest.first().map_or("aes128", String::as_str) {
        "aes128" => Suite::Aes128Gcm,
        "aes256" => Suite::Aes256Gcm,
        "chacha" => Suite::ChaCha20Poly1305,
        other => bail!("{other} is no suite"),
    };
    let queues: NonZeroU8 = rest.get(1).map_or("1", String::as_str).parse().context("queues")?;
    let record_len: usize = rest.get(2).map_or("1472", String::as_str).parse().context("record length")?;
    let own_outer: IpAddr = own_outer.parse().context("own outer address")?;
    let peer_outer: IpAddr = peer_outer.parse().context("peer's outer address")?;

    let (index, remote_index) = match role {
        Role::Initiator => (INITIATOR, RESPONDER),
        Role::Responder => (RESPONDER, INITIATOR),
    };
    let name = |index| PeerName::from_bits([2, 0, 0, 0, 0, if index == INITIATOR { 1 } else { 2 }]);
    let peer = name(remote_index);
    let tun = Tun::open(device, queues.get())?;
    println!("offloads {:?}", tun.offloads);
    let listen = SocketAddr::new(own_outer, PORT);
    let engine = Engine::start(name(index), tun, listen, Box::new(|event| println!("{event:?}")))?;
    let config =
        Config { role, suite, send_queues: queues, receive_queues: queues, remote_index, record_len };
    let settings = SessionSettings { index, peer, remote: SocketAddr::new(peer_outer, PORT), config };
    engine.open_session(settings, &[42; 32], Instant::now());
    let ranges =
        peer_ranges.split(',').map(str::parse::<Cidr>).collect::<Result<_, _>>().context("peer's ranges")?;
    let send_with = Some(SendWith { session: index, carrier: Carrier::Udp });
    engine.set_peers(vec![Peer { peer, ranges, send_with, hop: None, record_len }]);
    println!("ready");
    let mut shown = engine.counters();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        engine.maintain(Instant::now());
        let counters = engine.counters();
        if counters != shown {
            println!("{counters:?}");
            shown = counters;
        }
    }
}
