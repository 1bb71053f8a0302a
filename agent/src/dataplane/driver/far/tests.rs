//! Two ends, and between them a mesh that loses what the test says.

use std::collections::VecDeque;
use std::net::IpAddr;

use weave_proto::PeerUid;

use super::*;
use crate::identity::Identity;
use crate::peer::{MeshSecrets, Secrets};

struct End {
    identity: Identity,
    secrets: MeshSecrets,
    far: Far,
    index: u32,
    agreed: Vec<Agreed>,
}

impl End {
    fn new(identity: Identity, secret: &str) -> Self {
        let (secrets, trust) = MeshSecrets::new(&Secrets::from_lines(secret, "a test").unwrap(), &identity);
        let far = Far::new(identity.name(), trust);
        Self { identity, secrets, far, index: 0, agreed: Vec::new() }
    }

    fn distant(&self) -> Distant {
        let underlay = Some(IpAddr::from([192, 0, 2, 1]));
        Distant { name: self.identity.name(), key: self.identity.key(), underlay, relays: Vec::new() }
    }

    fn change_secret(&self, secret: &str) {
        self.secrets.change(&Secrets::from_lines(secret, "a test").unwrap(), &self.identity);
    }
}

struct World {
    /// The lower name first.
    ends: [End; 2],
    now: Instant,
    coming: VecDeque<(usize, Vec<u8>)>,
    /// How many of the next messages are lost.
    lose: usize,
    said: usize,
}

impl World {
    fn new(secrets: [&str; 2]) -> Self {
        let mut identities = [1, 2].map(|uid| Identity::generate(PeerUid(uid)).unwrap());
        identities.sort_by_key(Identity::name);
        let [low, high] = identities;
        let ends = [End::new(low, secrets[0]), End::new(high, secrets[1])];
        let mut world = Self { ends, now: Instant::now(), coming: VecDeque::new(), lose: 0, said: 0 };
        for end in [0, 1] {
            world.meet(end);
        }
        world
    }

    /// The end hears that the other one is in the mesh and has no link.
    fn meet(&mut self, end: usize) {
        let other = self.ends[1 - end].distant();
        self.ends[end].far.set(vec![other], self.now);
    }

    fn say(&mut self, from: usize, said: impl IntoIterator<Item = Said>) {
        for (to, body) in said {
            assert_eq!(to, self.ends[1 - from].identity.name());
            self.said += 1;
            if self.lose > 0 {
                self.lose -= 1;
            } else {
                self.coming.push_back((1 - from, body));
            }
        }
    }

    fn deliver(&mut self, to: usize, body: &[u8]) {
        let from = self.ends[1 - to].identity.name();
        let (now, end) = (self.now, &mut self.ends[to]);
        end.index += 1;
        let index = end.index;
        let (said, agreed) = end.far.take((from, body), || offer(index), now);
        if let Some(agreed) = agreed {
            end.far.opened(from, agreed.own.index, agreed.met.proof.clone());
            end.agreed.push(agreed);
        }
        self.say(to, said);
    }

    fn step(&mut self) {
        while let Some((to, body)) = self.coming.pop_front() {
            self.deliver(to, &body);
        }
        for at in [0, 1] {
            let end = &mut self.ends[at];
            let said = end.far.poll(
                || {
                    end.index += 1;
                    offer(end.index)
                },
                self.now,
            );
            self.say(at, said);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
            self.now += Duration::from_millis(50);
        }
    }

    fn counts(&self) -> (usize, usize) {
        (self.ends[0].agreed.len(), self.ends[1].agreed.len())
    }

    /// Both have the same secret of their own, and know it.
    fn assert_agreed(&self) {
        let [one, other] = [0, 1].map(|end| self.ends[end].agreed.last().expect("agreed"));
        assert_eq!(one.met.export(b"x"), other.met.export(b"x"));
        assert_eq!((&one.own, &other.own), (&other.met.offer, &one.met.offer));
        assert!(one.dialled && !other.dialled);
        assert_eq!(one.met.key, self.ends[1].identity.key());
        assert_eq!(other.met.key, self.ends[0].identity.key());
    }
}

fn offer(index: u32) -> Offer {
    Offer { index, suites: vec![1], queues: 1, port: 6785 }
}

const SECS: Duration = Duration::from_secs(1);

#[test]
fn two_ends_agree_once_and_are_quiet_then() {
    let mut world = World::new(["common"; 2]);
    world.run(SECS / 4);
    assert_eq!(world.counts(), (1, 1));
    world.assert_agreed();
    world.run(SECS * 300);
    assert_eq!((world.counts(), world.said), ((1, 1), 4));
    assert!(world.ends.iter().all(|end| end.far.due().is_none()));
}

#[test]
fn whatever_is_lost_both_ends_agree_in_the_end() {
    for lost in 0..12 {
        for first in 0..4 {
            let mut world = World::new(["common"; 2]);
            while world.said < first {
                world.step();
            }
            world.lose = lost;
            world.run(SECS * 150);
            assert!(world.counts().0 > 0, "{first} and {lost} lost");
            world.assert_agreed();
        }
    }
}

#[test]
fn an_end_that_has_lost_its_keys_has_new_ones_soon_whichever_it_is() {
    for lost in [0, 1] {
        let mut world = World::new(["common"; 2]);
        world.run(SECS * 5);
        let now = world.now;
        world.ends[lost].far.start_again(now);
        world.run(SECS * 2);
        assert_eq!(world.counts(), (2, 2));
        world.assert_agreed();
    }
}

#[test]
fn a_retired_secret_ends_the_session_and_both_agree_anew_with_the_next() {
    for first in [0, 1] {
        let mut world = World::new(["old\nnew"; 2]);
        world.run(SECS);
        world.ends.iter().for_each(|end| end.change_secret("new\nold"));
        let now = world.now;
        assert!(world.ends.iter_mut().all(|end| end.far.retired(now).is_empty()), "both are believed");
        world.run(SECS);
        assert_eq!(world.counts(), (1, 1));
        world.ends[first].change_secret("new");
        let session = world.ends[first].agreed[0].own.index;
        assert_eq!(world.ends[first].far.retired(now), [session]);
        world.run(SECS * 3);
        assert_eq!(world.counts(), (2, 2));
        world.assert_agreed();
    }
}

#[test]
fn who_holds_another_secret_is_not_agreed_with_and_both_say_why() {
    let mut world = World::new(["one", "another"]);
    world.run(SECS * 120);
    assert_eq!(world.counts(), (0, 0));
    let names = [0, 1].map(|end| world.ends[end].identity.name());
    for end in [0, 1] {
        let trouble = world.ends[end].far.trouble(names[1 - end]).unwrap();
        assert!(trouble.contains("another cluster secret"), "{trouble}");
    }
    assert!(world.said < 50, "{} messages", world.said);
}

#[test]
fn a_member_that_speaks_in_the_name_of_another_is_not_believed() {
    let mut world = World::new(["common"; 2]);
    // It holds the secret and a key of its own, and says what it says as the lower name.
    let posing = Identity::generate(PeerUid(9)).unwrap();
    let real = std::mem::replace(&mut world.ends[0], End::new(posing, "common"));
    let name = real.identity.name();
    let mut false_one = Far::new(name, world.ends[0].secrets.trust());
    false_one.set(vec![world.ends[1].distant()], world.now);
    let mut coming: Vec<Said> = false_one.poll(|| offer(1), world.now);
    for _ in 0..4 {
        let mut answers = Vec::new();
        for (_, body) in coming.drain(..) {
            let (said, agreed) = world.ends[1].far.take((name, &body), || offer(2), world.now);
            assert!(agreed.is_none(), "it is believed");
            answers.extend(said);
        }
        for (_, body) in answers {
            let from = world.ends[1].identity.name();
            coming.extend(false_one.take((from, &body), || offer(3), world.now).0);
        }
    }
    assert!(world.ends[1].far.trouble(name).unwrap().contains("another key"));
}

#[test]
fn a_flood_of_attempts_and_garbage_costs_a_bounded_effort_and_strangers_are_not_answered() {
    let mut world = World::new(["common"; 2]);
    let name = world.ends[0].identity.name();
    let mut answered = 0;
    for attempt in 0..100 {
        let (now, far) = (world.now, &mut world.ends[0].far);
        far.start_again(now);
        let body = far.poll(|| offer(1), now).remove(0).1;
        answered += usize::from(world.ends[1].far.take((name, &body), || offer(2), now).0.is_some());
        let garbage = [&body[..7], &[attempt; 40]].concat();
        assert!(world.ends[1].far.take((name, &garbage), || offer(2), now).0.is_none());
        let stranger = PeerName::from_bits([2, 9, 9, 9, 9, attempt]);
        assert!(world.ends[1].far.take((stranger, &body), || offer(2), now).0.is_none());
    }
    assert_eq!(answered, 1);
    assert_eq!(world.ends[1].far.peers.len(), 1);
}
