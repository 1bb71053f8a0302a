//! Two ends, and between them links that come twice and go at different moments, offers that are lost and late, and
//! records that are lost. Whatever has happened, both ends soon send with a session that the other one opens.

use std::collections::{BTreeMap, VecDeque};

use super::*;

const PEERS: [PeerName; 2] =
    [PeerName::from_bits([2, 0, 0, 0, 0, 7]), PeerName::from_bits([2, 0, 0, 0, 0, 8])];
const TICK: Duration = Duration::from_millis(50);

/// One end, with what takes the place of its engine: the keys of the sessions that it opens.
#[derive(Default)]
struct End {
    links: Links,
    sessions: Sessions,
    engine: BTreeMap<u32, Open>,
}

struct Open {
    remote: u32,
    keys: [u8; 32],
    received: u64,
}

/// A record or an offer on its way to an end.
enum Packet {
    Offer(LinkId, Offer),
    Record { index: u32, keys: [u8; 32] },
}

struct World {
    ends: [End; 2],
    up: [BTreeSet<LinkId>; 2],
    coming: [VecDeque<(Instant, Packet)>; 2],
    now: Instant,
    chance: u64,
    /// Of a hundred offers and records, how many are lost.
    lost: u64,
    links: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let (ends, up, coming) = Default::default();
        Self { ends, up, coming, now, chance: seed, lost: 30, links: 0 }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.chance = self.chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.chance >> 33) % below
    }

    fn send(&mut self, to: usize, packet: Packet) {
        if self.draw(100) >= self.lost {
            let at = self.now + Duration::from_millis(self.draw(400));
            self.coming[to].push_back((at, packet));
        }
    }

    fn link_up(&mut self, end: usize, link: LinkId) {
        let End { links, sessions, .. } = &mut self.ends[end];
        let addr = SocketAddr::from(([192, 0, 2, 1], 6783));
        links.up(link, PEERS[1 - end], end == 0, addr);
        links.draw(link, sessions, self.now);
        self.up[end].insert(link);
    }

    fn link_down(&mut self, end: usize, link: LinkId) {
        self.up[end].remove(&link);
        let withdrawn = self.draw(3) == 0;
        let End { links, sessions, .. } = &mut self.ends[end];
        links.down(link);
        sessions.link_down(link, withdrawn, self.now);
    }

    fn device_lost(&mut self, end: usize) {
        let End { links, sessions, engine } = &mut self.ends[end];
        sessions.clear();
        engine.clear();
        let ids = links.ids();
        ids.iter().for_each(|&link| links.draw(link, sessions, self.now));
        ids.into_iter().for_each(|link| self.agree(end, link));
    }

    fn agree(&mut self, end: usize, link: LinkId) {
        let now = self.now;
        let export = |context: &[u8]| {
            let mut keys = [0; 32];
            keys[..8].copy_from_slice(context);
            keys[8..16].copy_from_slice(&link.0.to_be_bytes());
            Some(keys)
        };
        let End { links, sessions, engine } = &mut self.ends[end];
        if let Some((settings, keys)) = links.agree(link, 1, (|_| 1500, now), export) {
            let remote = settings.config.remote_index;
            engine.insert(settings.index, Open { remote, keys: *keys, received: 0 });
            sessions.open(settings.index, (settings.peer, Some(link)), settings.remote, now);
        }
    }

    fn record(&mut self, end: usize, index: u32) {
        if let Some(&Open { remote, keys, .. }) = self.ends[end].engine.get(&index) {
            self.send(1 - end, Packet::Record { index: remote, keys });
        }
    }

    /// What the driver does in the same order.
    fn look(&mut self, end: usize) {
        let now = self.now;
        let End { links, sessions, engine } = &mut self.ends[end];
        for closed in sessions.look(|index| engine.get(&index).map(|open| open.received), now) {
            engine.remove(&closed);
        }
        let greeting = sessions.greeting(now);
        let offers = links.offers((1, 6785), sessions, now);
        greeting.into_iter().for_each(|index| self.record(end, index));
        offers.into_iter().for_each(|(link, offer)| self.send(1 - end, Packet::Offer(link, offer)));
    }

    fn take(&mut self, end: usize, packet: Packet) {
        match packet {
            Packet::Offer(link, offer) => {
                match self.ends[end].links.hear(link, PEERS[1 - end], offer) {
                    Some(index) => self.record(end, index),
                    None => self.agree(end, link),
                }
                self.look(end);
            }
            Packet::Record { index, keys } => {
                if let Some(open) = self.ends[end].engine.get_mut(&index).filter(|open| open.keys == keys) {
                    open.received += 1;
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end_of_run = self.now + time;
        while self.now < end_of_run {
            self.now += TICK;
            for end in 0..2 {
                let now = self.now;
                let (due, later): (Vec<_>, Vec<_>) =
                    self.coming[end].drain(..).partition(|(at, _)| *at <= now);
                self.coming[end].extend(later);
                due.into_iter().for_each(|(_, packet)| self.take(end, packet));
                self.look(end);
            }
        }
    }

    /// Something happens to links and devices.
    fn event(&mut self) {
        let end = usize::from(self.draw(2) == 0);
        let one_of = |links: &BTreeSet<LinkId>, drawn: u64| {
            links.iter().nth(usize::try_from(drawn).unwrap() % links.len().max(1)).copied()
        };
        match self.draw(6) {
            0..3 => {
                // Both ends learn of it, but not at the same moment.
                self.links += 1;
                let link = LinkId(self.links);
                self.link_up(end, link);
                let pause = Duration::from_millis(self.draw(1500));
                self.run(pause);
                self.link_up(1 - end, link);
            }
            3..5 => {
                let drawn = self.draw(100);
                if let Some(link) = one_of(&self.up[end], drawn) {
                    self.link_down(end, link);
                    let pause = Duration::from_millis(self.draw(1500));
                    self.run(pause);
                    self.link_down(1 - end, link);
                }
            }
            _ => self.device_lost(end),
        }
        let pause = Duration::from_millis(self.draw(3000));
        self.run(pause);
    }

    fn sends_what_is_opened(&self, end: usize) -> bool {
        let (here, there) = (&self.ends[end], &self.ends[1 - end]);
        let Some((index, session)) = here.sessions.to(PEERS[1 - end]) else { return false };
        let Some(own) = here.engine.get(&index) else { return false };
        let opened = there.engine.get(&own.remote).is_some_and(|open| open.keys == own.keys);
        opened && here.sessions.is_heard(index) && session.link.is_some()
    }
}

#[test]
fn whatever_is_lost_and_however_links_come_and_go_both_ends_soon_send_with_a_session_that_is_heard() {
    for seed in 0..100 {
        let mut world = World::new(seed);
        for _ in 0..12 {
            world.event();
        }
        if world.up[0].is_empty() {
            world.links += 1;
            let link = LinkId(world.links);
            (0..2).for_each(|end| world.link_up(end, link));
        }
        world.run(Duration::from_secs(60));
        for end in 0..2 {
            assert!(world.sends_what_is_opened(end), "seed {seed}: end {end} has no session that is heard");
        }
    }
}

#[test]
fn where_nothing_is_lost_each_end_says_its_offer_once_and_is_heard_at_once() {
    let mut world = World::new(1);
    world.lost = 0;
    (0..2).for_each(|end| world.link_up(end, LinkId(1)));
    let mut said = 0;
    for _ in 0..40 {
        world.run(TICK);
        said +=
            world.coming.iter().flatten().filter(|(_, packet)| matches!(packet, Packet::Offer(..))).count();
        world.coming.iter_mut().flatten().for_each(|(at, _)| *at = world.now);
    }
    assert_eq!(said, 2);
    assert!((0..2).all(|end| world.sends_what_is_opened(end)));
}

#[test]
fn an_offer_that_comes_twice_starts_no_talk_without_end() {
    let mut world = World::new(1);
    world.lost = 0;
    (0..2).for_each(|end| world.link_up(end, LinkId(1)));
    world.look(0);
    let offer = world.coming[1].iter().find_map(|(_, packet)| match packet {
        Packet::Offer(_, offer) => Some(offer.clone()),
        Packet::Record { .. } => None,
    });
    world.run(Duration::from_secs(5));
    assert!((0..2).all(|end| world.sends_what_is_opened(end)));
    world.send(1, Packet::Offer(LinkId(1), offer.unwrap()));
    world.run(Duration::from_secs(5));
    assert!(world.coming.iter().all(VecDeque::is_empty), "both ends talk on");
}

#[test]
fn an_offer_that_is_never_answered_is_said_ever_less_often() {
    let (mut links, sessions, now) = (Links::default(), Sessions::default(), Instant::now());
    links.up(LinkId(1), PEERS[0], true, SocketAddr::from(([192, 0, 2, 1], 6783)));
    links.draw(LinkId(1), &sessions, now);
    let mut said = |from: u64, to: u64| {
        let seconds = (from..to).map(|second| now + Duration::from_secs(second));
        seconds.filter(|&at| !links.offers((1, 6785), &sessions, at).is_empty()).count()
    };
    assert_eq!(said(0, 3), 3);
    assert_eq!(said(1000, 1300), 10);
}
