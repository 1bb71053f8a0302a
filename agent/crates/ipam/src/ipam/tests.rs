//! The machine as its users see it: small meshes, every message delivered at once.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use weave_proto::local::cni::AttachmentKey;

use super::*;
use crate::{Answer, Request, RequestError, RequestId};

const RANGE: &str = "10.32.0.0/20";

#[test]
fn a_peer_that_is_launched_alone_owns_the_whole_range_at_once() {
    let now = start();
    let mut ipam = alone(1, now);

    let address = allocate(&mut ipam, "pod", now).unwrap();

    assert_eq!(address, "10.32.0.1".parse::<IpAddr>().unwrap());
    assert_eq!(ipam.ranges(), BTreeMap::from([(name(1), vec![Span::from(range())])]));
    assert!(ipam.status(now).ready);
}

#[test]
fn an_address_is_durable_before_it_is_answered() {
    let now = start();
    let mut ipam = alone(1, now);
    drain(&mut ipam);

    ipam.handle_request(RequestId(1), Request::Allocate { key: key("pod"), port: None }, now);

    let outputs = drain(&mut ipam);
    let persisted = outputs.iter().position(|output| matches!(output, Output::Persist(_))).unwrap();
    let answered = outputs.iter().position(|output| matches!(output, Output::Reply { .. })).unwrap();
    assert!(persisted < answered);
}

#[test]
fn three_founders_agree_and_share_equally() {
    let now = start();
    let mut mesh = Mesh::founders(3, now);

    mesh.settle(now);

    let sizes: Vec<u128> = mesh.peers[0].ranges().values().map(|spans| spans[0].len()).collect();
    assert_eq!(sizes.iter().sum::<u128>(), range().len());
    assert!(sizes.iter().all(|size| size.abs_diff(range().len() / 3) <= 64), "{sizes:?}");
    let id = mesh.peers[0].universe_id();
    assert!(id.is_some() && mesh.peers.iter().all(|peer| peer.universe_id() == id));
    assert!(mesh.peers.iter().all(|peer| peer.digest() == mesh.peers[0].digest()));
}

#[test]
fn two_of_three_founders_wait_and_say_for_whom() {
    let now = start();
    let mut mesh = Mesh::founders(3, now);
    mesh.peers.pop();
    mesh.settle(now);

    let error = allocate(&mut mesh.peers[0], "pod", now).unwrap_err().to_string();

    assert!(error.contains("2 of 3 are here"), "{error}");
    assert!(!mesh.peers[0].status(now).ready);
}

#[test]
fn a_joiner_gets_space_when_it_first_needs_an_address() {
    let now = start();
    let mut mesh = Mesh::founders(1, now);
    mesh.settle(now);
    mesh.peers.push(peer(9, Mode::Consensus { founders: None }, now));

    let request = Request::Allocate { key: key("pod"), port: None };
    mesh.peers[1].handle_request(RequestId(7), request, now);
    mesh.settle(now);

    let Some(Ok(Answer::Allocated { allocation, .. })) = mesh.replies.remove(&RequestId(7)) else {
        panic!("no address: {:?}", mesh.replies);
    };
    assert!(mesh.peers[1].ranges()[&name(9)].iter().any(|span| span.contains(allocation.address)));
    assert_eq!(mesh.peers[0].ranges(), mesh.peers[1].ranges());
}

/// A mesh in which everybody is everybody's neighbour.
struct Mesh {
    peers: Vec<Ipam>,
    replies: BTreeMap<RequestId, Result<Answer, RequestError>>,
}

impl Mesh {
    fn founders(count: u16, now: Instant) -> Self {
        let mode = Mode::Consensus { founders: NonZeroU16::new(count) };
        let peers = (1..=count).map(|index| peer(index.try_into().unwrap(), mode.clone(), now)).collect();
        Self { peers, replies: BTreeMap::new() }
    }

    /// Lets everybody hear what everybody knows, as new links do, and then until nobody has anything to say.
    fn settle(&mut self, now: Instant) {
        let names: Vec<PeerName> = self.peers.iter().map(Ipam::name).collect();
        let hints: BTreeMap<PeerName, PeerFacts> =
            names.iter().map(|name| (*name, PeerFacts { free: 1 })).collect();
        self.peers.iter_mut().for_each(|peer| peer.handle_peers(hints.clone(), now));
        for (index, name) in names.iter().enumerate() {
            let state = Box::new(self.peers[index].state());
            self.deliver(*name, Output::Gossip(state), now);
        }
        for _ in 0..200 {
            let mut quiet = true;
            for (index, name) in names.iter().enumerate() {
                for output in drain(&mut self.peers[index]) {
                    quiet = false;
                    self.deliver(*name, output, now);
                }
            }
            if quiet {
                return;
            }
        }
        panic!("the mesh does not come to rest");
    }

    fn deliver(&mut self, from: PeerName, output: Output, now: Instant) {
        match output {
            Output::Gossip(state) => {
                self.peers.iter_mut().filter(|peer| peer.name() != from).for_each(|peer| {
                    peer.handle_gossip(from, (*state).clone(), now).unwrap();
                })
            }
            Output::GossipTo(to, state) => self.peer(to).handle_gossip(from, *state, now).unwrap(),
            Output::Directed { to, body } => self.peer(to).handle_directed(from, body, now).unwrap(),
            Output::Reply { request, result } => {
                self.replies.insert(request, result);
            }
            Output::Persist(_)
            | Output::RangesChanged
            | Output::Lost(_)
            | Output::FreeHint(_)
            | Output::Notify(_) => {}
        }
    }

    fn peer(&mut self, name: PeerName) -> &mut Ipam {
        self.peers.iter_mut().find(|peer| peer.name() == name).unwrap()
    }
}

fn alone(index: u8, now: Instant) -> Ipam {
    let mode = Mode::Consensus { founders: None };
    Ipam::new(Config { alone: true, ..config(index, mode) }, Restored::default(), 0, now).unwrap()
}

fn peer(index: u8, mode: Mode, now: Instant) -> Ipam {
    Ipam::new(config(index, mode), Restored::default(), u64::from(index), now).unwrap()
}

fn config(index: u8, mode: Mode) -> Config {
    Config { me: name(index), universe: range(), mode, alone: false }
}

fn allocate(ipam: &mut Ipam, container: &str, now: Instant) -> Result<IpAddr, RequestError> {
    ipam.handle_request(RequestId(99), Request::Allocate { key: key(container), port: None }, now);
    ipam.handle_timeout(now + Duration::from_secs(60));
    let mine = |output| {
        if let Output::Reply { request: RequestId(99), result } = output { Some(result) } else { None }
    };
    let reply = drain(ipam).into_iter().find_map(mine).expect("a request is answered in time")?;
    let Answer::Allocated { allocation, .. } = reply else { panic!("not the answer to Allocate: {reply:?}") };
    Ok(allocation.address)
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn drain(ipam: &mut Ipam) -> Vec<Output> {
    std::iter::from_fn(|| ipam.poll_output()).collect()
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container: container.to_owned(), interface: "eth0".to_owned() }
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}

fn range() -> Cidr {
    RANGE.parse().unwrap()
}
