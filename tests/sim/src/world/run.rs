//! How time passes in the world: events, deadlines, and outputs performed one at a time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use weave_proto::codec::{Framer, Kind, encode};
use weave_proto::peer::{Message, SPOKEN};
use weave_router::Output;
use weave_topology::{DialId, Direction, LinkId, LinkUp, Reason};

use super::{Event, Link, Place, World, addr};

/// The shortest and the longest way from peer to peer.
const DELAY: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(20));

impl World {
    /// Lets time pass until then.
    pub fn run_until(&mut self, end: Instant) {
        loop {
            let event = self.events.keys().next().map(|&(at, _)| at);
            let deadline =
                self.places().filter_map(|at| self.router(at)?.poll_timeout()).map(|(at, _)| at).min();
            let Some(next) = [event, deadline].into_iter().flatten().min().filter(|&next| next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            if event == Some(next) {
                if let Some((_, event)) = self.events.pop_first() {
                    self.happen(event);
                }
            } else {
                self.fire_deadlines();
            }
        }
    }

    fn fire_deadlines(&mut self) {
        let now = self.now;
        for at in self.places() {
            let Some(agent) = &mut self.machines[at].agent else { continue };
            if agent.router.poll_timeout().is_some_and(|(due, _)| due <= now) {
                agent.router.handle_timeout(now);
                self.perform(at);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dialled { from, incarnation, dial, to } => self.connect(from, incarnation, dial, to),
            Event::Answered { at, incarnation, answer } => self.answered(at, incarnation, answer),
            Event::Bytes { link, to, bytes } => self.receive(link, to, &bytes),
            Event::Dead { link, at, reason } => {
                let Some(id) = self.end_of(link, at) else { return };
                let now = self.now;
                let Some(agent) = &mut self.machines[at].agent else { return };
                if agent.links.remove(&id).is_some() {
                    agent.router.handle_link_down(id, reason, now);
                    self.perform(at);
                }
            }
        }
    }

    fn end_of(&self, link: u64, at: Place) -> Option<LinkId> {
        self.links.get(&link)?.ends.iter().find(|(place, _)| *place == at).map(|&(_, id)| id)
    }

    /// Both ends of a dial meet, or the dialler learns why not.
    fn connect(&mut self, from: Place, incarnation: u64, dial: DialId, to: SocketAddr) {
        let now = self.now;
        if self.machines[from].disk.starts != incarnation {
            return;
        }
        let other = self.places().find(|&place| addr(place) == to);
        let answered = other.filter(|&other| self.hear(from, other) && self.hello_of(other).is_some());
        let (Some(other), Some(_)) = (answered, self.hello_of(from)) else {
            if let Some(agent) = &mut self.machines[from].agent {
                agent.router.handle_dial_failed(dial, Reason::from("no answer"), now);
                self.perform(from);
            }
            return;
        };
        self.counter += 2;
        let (link, ids) = (self.counter, [LinkId(self.counter - 1), LinkId(self.counter)]);
        let nonces: [u64; 2] = [self.rng.random(), self.rng.random()];
        self.links.insert(link, Link { ends: [(from, ids[0]), (other, ids[1])], alive: true });
        let ends = [(from, other, Some(dial), Direction::Outbound), (other, from, None, Direction::Inbound)];
        for (end, (me, peer, dial, direction)) in ends.into_iter().enumerate() {
            let Some(mut hello) = self.hello_of(peer) else { continue };
            hello.nonce = nonces[1 - end];
            let up = LinkUp {
                link: ids[end],
                dial,
                direction,
                addr: addr(peer),
                key: self.machines[peer].key,
                nonce: nonces[end],
                hello,
            };
            if let Some(agent) = &mut self.machines[me].agent {
                let mut framer = Framer::new();
                framer.speak(SPOKEN.1);
                agent.links.insert(ids[end], (link, framer));
                agent.router.handle_link_up(up, now);
            }
        }
        self.perform(from);
        self.perform(other);
    }

    fn hello_of(&self, place: Place) -> Option<weave_proto::peer::Hello> {
        self.machines[place].agent.as_ref()?.hello.clone()
    }

    fn receive(&mut self, link: u64, to: Place, bytes: &[u8]) {
        let alive = self.links.get(&link).is_some_and(|link| link.alive);
        let Some(id) = self.end_of(link, to).filter(|_| alive) else { return };
        let now = self.now;
        let mut messages: Vec<Message> = Vec::new();
        if let Some((_, framer)) = self.machines[to].agent.as_mut().and_then(|agent| agent.links.get_mut(&id))
        {
            framer.feed(bytes);
            while let Some(message) =
                framer.poll().unwrap_or_else(|error| panic!("node{to} cannot read: {error}"))
            {
                messages.push(message);
            }
        }
        for message in messages {
            let Some(agent) = &mut self.machines[to].agent else { return };
            agent.router.handle_message(id, message, now);
            self.perform(to);
        }
    }

    /// Performs a peer's outputs in order, one at a time; the fuse may cut the power between any two.
    pub(super) fn perform(&mut self, at: Place) {
        loop {
            let Some(agent) = &mut self.machines[at].agent else { return };
            if agent.fuse == Some(0) {
                self.crash(at);
                return;
            }
            let Some(output) = agent.router.poll_output() else { return };
            if let Some(left) = &mut agent.fuse {
                *left -= 1;
            }
            self.perform_one(at, output);
        }
    }

    fn perform_one(&mut self, at: Place, output: Output) {
        match output {
            Output::Persist(ops) => {
                self.effort.commits += 1;
                self.machines[at].disk.commit(ops);
            }
            Output::Hello(hello) => {
                if let Some(agent) = &mut self.machines[at].agent {
                    agent.hello = Some(hello);
                }
            }
            Output::Send { link, message } => self.send(at, link, &message),
            Output::Dial { dial, addr } => {
                let incarnation = self.machines[at].disk.starts;
                self.effort.dials += 1;
                let delay = self.delay();
                self.schedule(delay, Event::Dialled { from: at, incarnation, dial, to: addr });
            }
            Output::Close { link, refusal } => {
                let Some(id) = self.link_behind(at, link) else { return };
                let reason = Reason { text: refusal.text, refused: Some(refusal.code) };
                if let Some(agent) = &mut self.machines[at].agent {
                    agent.links.remove(&link);
                }
                let noticed_after = self.delay();
                self.kill_link(id, &reason, noticed_after);
            }
            Output::Reply { request, result } => {
                let key = self.machines[at].agent.as_mut().and_then(|agent| agent.waiting.remove(&request));
                if let Some(key) = key {
                    self.answers.push_back((at, key, result));
                }
            }
            Output::Probe(probe) => self.probe(at, probe),
            Output::Distant(distant) => {
                if let Some(agent) = &mut self.machines[at].agent {
                    agent.distant = distant;
                }
            }
            Output::Routed { from, body } => {
                if let Some(agent) = &mut self.machines[at].agent {
                    agent.told.push((from, body));
                }
            }
            Output::Publish(view) => {
                if let Some(agent) = &mut self.machines[at].agent {
                    agent.view = Some(view);
                }
            }
            Output::Rejoin
            | Output::Resolve(_)
            | Output::Offer { .. }
            | Output::Lost(_)
            | Output::Notify(_) => {}
        }
    }

    fn link_behind(&self, at: Place, link: LinkId) -> Option<u64> {
        self.machines[at].agent.as_ref()?.links.get(&link).map(|(id, _)| *id)
    }

    fn send(&mut self, at: Place, link: LinkId, message: &Message) {
        let Some(id) = self.link_behind(at, link) else { return };
        let Some(to) = self.links[&id].ends.iter().map(|&(place, _)| place).find(|&place| place != at) else {
            return;
        };
        let bytes = encode(message, SPOKEN.1).unwrap_or_else(|error| panic!("node{at} cannot say: {error}"));
        let sent = self.effort.sent.entry(Kind::of(message).name()).or_default();
        *sent = (sent.0 + 1, sent.1 + bytes.len() as u64);
        // A link is a stream: what is sent later arrives later.
        let delay = self.stream_delay(id, at);
        self.schedule(delay, Event::Bytes { link: id, to, bytes });
    }

    pub(super) fn delay(&mut self) -> Duration {
        self.rng.random_range(DELAY.0..DELAY.1)
    }

    /// A delay that does not overtake what this end has sent on this link before.
    fn stream_delay(&mut self, link: u64, from: Place) -> Duration {
        let arrives = self.now + self.delay();
        let last = self.in_flight.entry((link, from)).or_insert(arrives);
        *last = arrives.max(*last);
        *last - self.now
    }
}
