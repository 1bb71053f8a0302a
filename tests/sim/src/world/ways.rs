//! The data planes of the simulated machines: probes, and relays that forward by their own tables.

use weave_overlay::{Carrier, Method, Probe, ProbeAnswer, Via, Way, WayNews};
use weave_proto::PeerName;

use super::{Event, Place, World, name};

/// How many relays a frame may pass.
const MAX_HOPS: usize = 8;

/// What a pod packet may be long.
const LARGEST: u32 = 1400;

impl World {
    /// The way on which a place sends packets for another one's pods.
    #[must_use]
    pub fn way(&self, from: Place, to: Place) -> Option<Way> {
        let peer = self.name_of(to);
        let view = self.machines[from].agent.as_ref()?.view.as_ref()?;
        view.table.paths.iter().find(|path| path.peer == peer).map(|path| path.way)
    }

    /// The places that a packet passes on its way to another one's pods; none if it is lost.
    #[must_use]
    pub fn trace(&self, from: Place, to: Place) -> Option<Vec<Place>> {
        self.carry(from, to, self.way(from, to)?)
    }

    /// Whom a place takes to be within reach, but without a link.
    #[must_use]
    pub fn distant(&self, at: Place) -> Vec<Place> {
        let agent = self.machines[at].agent.as_ref();
        let names = agent.into_iter().flat_map(|agent| &agent.distant);
        names.filter_map(|distant| self.place_of(distant.name)).collect()
    }

    /// Has a place's data plane say something to another one's, through the mesh.
    pub fn say(&mut self, from: Place, to: Place, body: &[u8]) {
        let (to, now) = (self.name_of(to), self.now);
        if let Some(agent) = &mut self.machines[from].agent {
            agent.router.send_routed(to, body.to_vec(), now);
            self.perform(from);
        }
    }

    /// What a place's data plane has been told by others, and by whom, since it was last asked.
    pub fn told(&mut self, at: Place) -> Vec<(Place, Vec<u8>)> {
        let told = self.machines[at].agent.as_mut().map(|agent| std::mem::take(&mut agent.told));
        let told = told.unwrap_or_default().into_iter();
        told.filter_map(|(from, body)| Some((self.place_of(from)?, body))).collect()
    }

    fn name_of(&self, place: Place) -> PeerName {
        name(&self.machines[place].key)
    }

    fn place_of(&self, peer: PeerName) -> Option<Place> {
        self.places().find(|&place| self.name_of(place) == peer)
    }

    pub(super) fn equip(&mut self) {
        let carriers = Method::ALL.map(Carrier::Direct).into_iter().chain([Carrier::Relay]);
        let now = self.now;
        for (at, to, carrier) in self
            .places()
            .flat_map(|at| self.places().map(move |to| (at, to)))
            .flat_map(|(at, to)| carriers.clone().map(move |carrier| (at, to, carrier)))
            .collect::<Vec<_>>()
        {
            let peer = self.name_of(to);
            if let Some(agent) = self.machines[at].agent.as_mut().filter(|_| at != to) {
                agent.router.handle_way(WayNews::Up { peer, carrier, largest: LARGEST }, now);
                self.perform(at);
            }
        }
    }

    pub(super) fn talk(&mut self) {
        let (everybody, now): (Vec<_>, _) = (self.places().map(|to| self.name_of(to)).collect(), self.now);
        for at in self.places() {
            if let Some(agent) = &mut self.machines[at].agent {
                agent.router.handle_traffic(&everybody, now);
                self.perform(at);
            }
        }
    }

    pub(super) fn probe(&mut self, at: Place, probe: Probe) {
        let Some(to) = self.place_of(probe.peer) else { return };
        let Some(passed) = self.carry(at, to, probe.way) else { return };
        let [.., last, _] = passed[..] else { return };
        // The answer goes back to where the probe came from, and on by that place's own table.
        let back = match probe.way.via {
            Via::Direct => self.carry(to, at, probe.way),
            Via::Relay(_) => [Method::Sleeve, Method::Quic]
                .into_iter()
                .find_map(|method| self.carry(to, at, Way::relay(method, self.name_of(last)))),
        };
        if back.is_some() {
            let Probe { peer, way, nonce, len, hasty: _ } = probe;
            let incarnation = self.machines[at].disk.starts;
            let answer = ProbeAnswer { peer, way, nonce, len };
            let trip = self.delay() + self.delay();
            self.schedule(trip, Event::Answered { at, incarnation, answer });
        }
    }

    pub(super) fn answered(&mut self, at: Place, incarnation: u64, answer: ProbeAnswer) {
        let now = self.now;
        if self.machines[at].disk.starts != incarnation {
            return;
        }
        if let Some(agent) = &mut self.machines[at].agent {
            agent.router.handle_probe_answer(answer, now);
            self.perform(at);
        }
    }

    /// The places that a frame passes; none if it is lost.
    fn carry(&self, from: Place, to: Place, way: Way) -> Option<Vec<Place>> {
        let mut passed = vec![from];
        let mut way = way;
        while passed.len() <= MAX_HOPS {
            let at = *passed.last()?;
            let next = match way.via {
                Via::Direct => to,
                Via::Relay(hop) => self.place_of(hop)?,
            };
            // Nobody sends a frame back to where it came from, and its sender does not take it again.
            if passed.first() == Some(&next) || passed.iter().rev().nth(1) == Some(&next) {
                return None;
            }
            let arrives = self.hear(at, next) && !self.cut.contains(&(at, next, way.method));
            let view = self.machines[next].agent.as_ref().filter(|_| arrives)?.view.as_ref()?;
            passed.push(next);
            if next == to {
                return Some(passed);
            }
            let peer = self.name_of(to);
            way = view.table.forwards.iter().find(|forward| forward.peer == peer)?.way;
        }
        None
    }
}
