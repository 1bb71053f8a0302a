//! What links cost that nobody says anything on.

use super::lab::*;
use super::*;

/// Links of one node: as many as a mesh of 24 has.
const LINKS: u64 = 24;

/// For how long it is counted.
const WINDOW: Duration = Duration::from_secs(10);

/// Bytes of UDP payload a second that a link may send at rest, probes and acknowledgements (docs/adr/0009: it is 102).
const BYTES: u64 = 150;

/// Datagrams a second.
const DATAGRAMS: u64 = 4;

#[tokio::test]
async fn links_at_rest_stay_within_their_budget() {
    let mut hub = Peer::start("secret").await;
    let mut others = Vec::new();
    for _ in 0..LINKS {
        let mut other = Peer::start("secret").await;
        linked(&mut hub, &mut other).await;
        others.push(other);
    }
    // What a new connection has to say beyond its probes is said.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, ran) = (sent(&hub), ran());
    tokio::time::sleep(WINDOW).await;
    let (after, took) = (sent(&hub), self::ran() - ran);
    let seconds = WINDOW.as_secs() * LINKS;
    let (bytes, datagrams) = (after.0 - before.0, after.1 - before.1);
    let told = format!(
        "in {WINDOW:?} {LINKS} links sent {bytes} bytes in {datagrams} datagrams; with the other ends it took {took:?}"
    );
    assert!(bytes <= BYTES * seconds && datagrams <= DATAGRAMS * seconds, "{told}");
    assert!(after.1 > before.1, "nothing was sent at all");
    for other in &mut others {
        assert!(other.events.try_recv().is_err(), "and all are up");
    }
}

/// Bytes and datagrams that all links of a peer have sent so far.
fn sent(peer: &Peer) -> (u64, u64) {
    let links = lock(&peer.net.hands.shared.links);
    let stats = links.values().map(|mailbox| mailbox.connection().stats().udp_tx);
    stats.fold((0, 0), |(bytes, datagrams), udp| (bytes + udp.bytes, datagrams + udp.datagrams))
}

/// What this thread, which does everything here, has run so far.
fn ran() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}
