//! The machine as its users see it: small meshes, every message delivered at once.

mod hostile;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::IpamDirected;
use weave_proto::peer::ipam::Want;

use super::*;
use crate::{Answer, Rejection, Request, RequestError, RequestId};

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

    ipam.handle_request(RequestId(1), add("pod"), now);

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
fn what_others_have_said_is_told_on_in_their_name_and_what_is_new_from_here_in_nobody_s() {
    let now = start();
    let mut mesh = Mesh::founders(3, now);
    let told = |ipam: &mut Ipam| -> Vec<Option<PeerName>> {
        let heard_from = |output| {
            let Output::Gossip { heard_from, digest, state } = output else { return None };
            assert_eq!(digest, hash::digest(&state));
            Some(heard_from)
        };
        drain(ipam).into_iter().filter_map(heard_from).collect()
    };
    mesh.peers.iter_mut().for_each(|peer| drop(drain(peer)));
    let everybody: BTreeMap<PeerName, PeerFacts> =
        mesh.peers.iter().map(|peer| (peer.name(), PeerFacts { free: 1 })).collect();
    let [second, third] = [1, 2].map(|at: usize| (mesh.peers[at].name(), mesh.peers[at].state()));
    let first = &mut mesh.peers[0];
    first.handle_peers(everybody, now);
    assert_eq!(told(first), []);

    first.handle_gossip(second.0, second.1.clone(), now).unwrap();
    assert_eq!(told(first), [Some(second.0)]);
    first.handle_gossip(second.0, second.1, now).unwrap();
    assert_eq!(told(first), [], "nothing new");
    // Now that three stand, the first one locks on them: that is its own news.
    first.handle_gossip(third.0, third.1, now).unwrap();
    assert_eq!(told(first), [None]);
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

    let request = add("pod");
    mesh.peers[1].handle_request(RequestId(7), request, now);
    mesh.settle(now);

    let Some(Ok(Answer::Allocated { allocation, .. })) = mesh.replies.remove(&RequestId(7)) else {
        panic!("no address: {:?}", mesh.replies);
    };
    assert!(mesh.peers[1].ranges()[&name(9)].iter().any(|span| span.contains(allocation.address)));
    assert_eq!(mesh.peers[0].ranges(), mesh.peers[1].ranges());
}

#[test]
fn the_same_key_gets_the_same_address_under_a_new_generation() {
    let now = start();
    let mut ipam = alone(1, now);
    let Ok(Answer::Allocated { allocation: first, fresh: true }) = ask(&mut ipam, add("pod"), now) else {
        panic!()
    };

    let Ok(Answer::Allocated { allocation: second, fresh: false }) = ask(&mut ipam, add("pod"), now) else {
        panic!()
    };

    assert_eq!(first.address, second.address);
    assert!(first.generation < second.generation);
}

#[test]
fn a_late_delete_does_not_undo_a_newer_add() {
    let now = start();
    let mut ipam = alone(1, now);
    let Ok(Answer::Allocated { allocation: old, .. }) = ask(&mut ipam, add("pod"), now) else { panic!() };
    ask(&mut ipam, Request::Free { key: key("pod"), generation: None }, now).unwrap();
    let Ok(Answer::Allocated { allocation: new, .. }) = ask(&mut ipam, add("pod"), now) else { panic!() };

    let late = Request::Free { key: key("pod"), generation: Some(old.generation) };
    assert_eq!(ask(&mut ipam, late, now), Ok(Answer::Freed(Vec::new())));
    let due = Request::Free { key: key("pod"), generation: Some(new.generation) };
    assert_eq!(ask(&mut ipam, due, now), Ok(Answer::Freed(vec![new])));
}

#[test]
fn to_free_what_nobody_has_is_no_mistake() {
    let now = start();
    let mut ipam = alone(1, now);

    for request in [
        Request::Free { key: key("pod"), generation: None },
        Request::FreeContainer { container: "pod".to_owned() },
        Request::KeepOnly { valid: BTreeSet::new() },
    ] {
        assert_eq!(ask(&mut ipam, request, now), Ok(Answer::Freed(Vec::new())));
    }
    assert_eq!(ask(&mut ipam, Request::Lookup { key: key("pod") }, now), Ok(Answer::Found(None)));
}

#[test]
fn a_sweep_frees_all_but_the_living_and_the_agents_own() {
    let now = start();
    let mut ipam = alone(1, now);
    ask(&mut ipam, Request::Allocate { key: AttachmentKey::expose(), port: None }, now).unwrap();
    for container in ["living", "dead"] {
        ask(&mut ipam, add(container), now).unwrap();
    }

    let sweep = Request::KeepOnly { valid: BTreeSet::from([key("living")]) };
    let Ok(Answer::Freed(freed)) = ask(&mut ipam, sweep, now) else { panic!() };

    assert_eq!(freed.iter().map(|allocation| &allocation.key).collect::<Vec<_>>(), [&key("dead")]);
    assert_eq!(ipam.allocations().len(), 2);
}

#[test]
fn a_delete_ends_the_wait_of_its_add() {
    let now = start();
    let mut waiting = peer(1, Mode::Observer, now);
    waiting.handle_request(RequestId(1), add("pod"), now);

    waiting.handle_request(RequestId(2), Request::Free { key: key("pod"), generation: None }, now);

    let replies = replies(&mut waiting);
    assert_eq!(replies[&RequestId(1)], Err(RequestError::GivenUp(key("pod"))));
    assert_eq!(replies[&RequestId(2)], Ok(Answer::Freed(Vec::new())));
}

#[test]
fn a_cancelled_request_is_not_answered() {
    let now = start();
    let mut waiting = peer(1, Mode::Observer, now);
    waiting.handle_request(RequestId(1), add("pod"), now);

    waiting.handle_cancel(RequestId(1), now);

    waiting.handle_timeout(now + Duration::from_secs(60));
    assert_eq!(replies(&mut waiting), BTreeMap::new());
    assert_eq!(waiting.poll_timeout(), None);
}

#[test]
fn a_request_asked_twice_while_it_waits_is_answered_twice_with_one_address() {
    let now = start();
    let mut mesh = Mesh::founders(1, now);
    mesh.peers.push(peer(9, Mode::Observer, now));
    for id in [1, 2] {
        mesh.peers[1].handle_request(RequestId(id), add("pod"), now);
    }

    mesh.settle(now);

    let address = |id| {
        let Ok(Answer::Allocated { allocation, fresh }) = &mesh.replies[&RequestId(id)] else { panic!() };
        (allocation.address, *fresh)
    };
    assert_eq!(address(1).0, address(2).0);
    assert!(address(1).1 && !address(2).1);
}

#[test]
fn a_claim_takes_just_this_address_or_says_why_not() {
    let now = start();
    let mut mesh = Mesh::founders(2, now);
    mesh.settle(now);
    let ipam = &mut mesh.peers[0];
    let claim = |container: &str, address: &str| Request::Claim {
        key: key(container),
        address: address.parse().unwrap(),
    };

    let taken = ask(ipam, claim("a", "10.32.0.77"), now);
    assert!(matches!(taken, Ok(Answer::Allocated { fresh: true, .. })), "{taken:?}");
    let again = ask(ipam, claim("a", "10.32.0.77"), now);
    assert!(matches!(again, Ok(Answer::Allocated { fresh: false, .. })), "{again:?}");
    for (container, address, reason) in [
        ("b", "10.32.0.77", "a/eth0 has it"),
        ("a", "10.32.0.78", "it has 10.32.0.77 already"),
        ("b", "10.32.0.0", "never given out"),
        ("b", "192.0.2.1", "it is not in 10.32.0.0/20"),
        ("b", "10.32.15.1", "the range of peer 02:00:00:00:00:02"),
    ] {
        let error = ask(ipam, claim(container, address), now).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_restart_goes_on_where_the_store_ends() {
    let now = start();
    let mut before = alone(1, now);
    let address = allocate(&mut before, "pod", now).unwrap();
    let restored = Restored {
        state: Some(before.state()),
        allocations: before.allocations().cloned().collect(),
        ..Restored::default()
    };

    let mut after = Ipam::new(config(1, Mode::Observer), restored, 7, now).unwrap();

    assert_eq!(after.universe_id(), before.universe_id());
    assert_eq!(allocate(&mut after, "pod", now).unwrap(), address);
    assert_ne!(allocate(&mut after, "other", now).unwrap(), address);
}

#[test]
fn a_store_of_another_range_is_refused_with_both_ranges() {
    let now = start();
    let restored = Restored { state: Some(alone(1, now).state()), ..Restored::default() };
    let config = Config { universe: "10.48.0.0/16".parse().unwrap(), ..config(1, Mode::Observer) };

    let error = Ipam::new(config, restored, 0, now).unwrap_err().to_string();

    assert!(error.contains("10.32.0.0/20") && error.contains("10.48.0.0/16"), "{error}");
}

#[test]
fn ranges_that_cannot_be_shared_out_are_refused() {
    let now = start();
    for range in ["10.0.0.0/31", "10.0.0.1/32", "fd00::/63", "::/0"] {
        let config = Config { universe: range.parse().unwrap(), ..config(1, Mode::Observer) };
        let refused = Ipam::new(config, Restored::default(), 0, now).unwrap_err();
        assert!(matches!(refused, RestoreError::Size(_)), "{range}");
    }
    let nobody = config(1, Mode::Seed(BTreeSet::new()));
    assert_eq!(Ipam::new(nobody, Restored::default(), 0, now).unwrap_err(), RestoreError::NoSeeds);
}

#[test]
fn another_range_and_another_universe_are_refused_and_shown_on_both_sides() {
    let now = start();
    let (mut one, mut other) = (alone(1, now), alone(2, now));
    let elsewhere = Config { universe: "10.64.0.0/20".parse().unwrap(), ..config(3, Mode::Observer) };
    let third = Ipam::new(elsewhere, Restored::default(), 0, now).unwrap();
    let before = one.state();

    let refused = one.handle_gossip(name(2), other.state(), now).unwrap_err();
    assert!(matches!(refused.reason, Rejection::Universe { .. }), "{refused}");
    one.handle_gossip(name(2), other.state(), now).unwrap_err();
    other.handle_gossip(name(1), one.state(), now).unwrap_err();
    let refused = one.handle_gossip(name(3), third.state(), now).unwrap_err();
    assert!(matches!(refused.reason, Rejection::Range { .. }), "{refused}");

    assert_eq!(one.state(), before);
    let lines = one.status(now).refused;
    assert!(
        lines.iter().any(|line| line.contains("02:00:00:00:00:02") && line.contains("(2 times)")),
        "{lines:?}"
    );
    assert!(other.status(now).refused[0].contains("02:00:00:00:00:01"));
}

#[test]
fn a_request_for_space_of_another_universe_is_denied() {
    let now = start();
    let mut ipam = alone(1, now);
    drain(&mut ipam);
    let body = IpamDirected::SpaceRequest { token: 5, universe: UniverseId(1), want: Want::Share };

    ipam.handle_directed(name(2), body, now).unwrap_err();

    let denied = Output::Directed { to: name(2), body: IpamDirected::SpaceDenied { token: 5 } };
    assert_eq!(drain(&mut ipam), [denied]);
}

#[test]
fn a_question_that_arrives_twice_is_answered_twice_and_given_to_once() {
    let now = start();
    let mut ipam = alone(1, now);
    let universe = ipam.universe_id().unwrap();
    drain(&mut ipam);
    let body = IpamDirected::SpaceRequest { token: 5, universe, want: Want::Share };

    ipam.handle_directed(name(2), body.clone(), now).unwrap();
    let ranges = ipam.ranges();
    ipam.handle_directed(name(2), body, now).unwrap();

    assert_eq!(ipam.ranges(), ranges);
    let granted =
        |output: &&Output| matches!(output, Output::Directed { body: IpamDirected::SpaceGranted { .. }, .. });
    let outputs = drain(&mut ipam);
    assert_eq!(outputs.iter().filter(granted).count(), 2);
    assert!(matches!(outputs[0], Output::Persist(_)), "a gift is durable before anybody hears of it");
}

#[test]
fn the_hint_is_told_when_it_has_changed_by_much() {
    let now = start();
    let mut ipam = alone(1, now);
    let hints =
        |ipam: &mut Ipam| drain(ipam).into_iter().filter(|o| matches!(o, Output::FreeHint(_))).count();
    assert_eq!(hints(&mut ipam), 1);
    (0..100).for_each(|number| ipam.handle_request(RequestId(number), add(&number.to_string()), now));
    assert_eq!(hints(&mut ipam), 0, "an allocation is no news for others");
    (100..1000).for_each(|number| ipam.handle_request(RequestId(number), add(&number.to_string()), now));
    assert_eq!(hints(&mut ipam), 2);
}

#[test]
fn the_status_lists_shares_entries_and_who_waits_for_what() {
    let now = start();
    let mut mesh = Mesh::founders(2, now);
    mesh.settle(now);
    ask(&mut mesh.peers[1], add("pod"), now).unwrap();

    let status = mesh.peers[1].status(now);

    assert_eq!(status.state, "ready");
    assert_eq!(status.shares.iter().map(|share| share.peer).collect::<Vec<_>>(), [name(2), name(1)]);
    assert_eq!(status.shares[0].active, Some(1));
    assert_eq!(status.entries.len(), 2);
    assert_eq!(status.allocations[0].container, "pod");
    let mut waiting = peer(9, Mode::Observer, now);
    waiting.handle_request(RequestId(1), add("pod"), now);
    let claim = Request::Claim { key: key("other"), address: "10.32.0.9".parse().unwrap() };
    waiting.handle_request(RequestId(2), claim, now);
    let pending = waiting.status(now).pending;
    assert!(pending[0].starts_with("address for pod/eth0: waiting for"), "{pending:?}");
    assert!(pending[1].starts_with("claim 10.32.0.9 for other/eth0: waiting for"), "{pending:?}");
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
            self.deliver(*name, Output::Gossip { state, digest: 0, heard_from: None }, now);
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
            Output::Gossip { state, .. } => {
                self.peers.iter_mut().filter(|peer| peer.name() != from).for_each(|peer| {
                    peer.handle_gossip(from, (*state).clone(), now).unwrap();
                })
            }
            Output::GossipTo { peer, state, .. } => self.peer(peer).handle_gossip(from, *state, now).unwrap(),
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
    ipam.handle_request(RequestId(99), add(container), now);
    ipam.handle_timeout(now + Duration::from_secs(60));
    let mine = |output| {
        if let Output::Reply { request: RequestId(99), result } = output { Some(result) } else { None }
    };
    let reply = drain(ipam).into_iter().find_map(mine).expect("a request is answered in time")?;
    let Answer::Allocated { allocation, .. } = reply else { panic!("not the answer to Allocate: {reply:?}") };
    Ok(allocation.address)
}

fn ask(ipam: &mut Ipam, request: Request, now: Instant) -> Result<Answer, RequestError> {
    ipam.handle_request(RequestId(99), request, now);
    replies(ipam).remove(&RequestId(99)).expect("answered at once")
}

fn replies(ipam: &mut Ipam) -> BTreeMap<RequestId, Result<Answer, RequestError>> {
    let reply =
        |output| if let Output::Reply { request, result } = output { Some((request, result)) } else { None };
    drain(ipam).into_iter().filter_map(reply).collect()
}

fn add(container: &str) -> Request {
    Request::Allocate { key: key(container), port: None }
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
