//! Records, digests and messages for one peer, as they come in.

use std::collections::BTreeSet;
use std::time::Instant;

use weave_proto::peer::topology::MAX_RECORDS;
use weave_proto::peer::{Digest, Directed, Message, PeerRecord, Routed};
use weave_proto::{Nickname, PeerKey, PeerName};

use super::Topology;
use crate::own::Contest;
use crate::peers::{Verdict, flaw};
use crate::{LinkId, Notice, Output, RejectedGossip, gossip};

/// How many collisions of names are told about; each is told once.
const MAX_COLLISIONS: usize = 64;

impl Topology {
    pub(super) fn on_records(
        &mut self,
        link: LinkId,
        from: PeerName,
        records: Vec<PeerRecord>,
        now: Instant,
    ) -> Result<(), RejectedGossip> {
        let mut result = Ok(());
        for record in records {
            let misnamed = (self.name_of)(&record.key) != record.name;
            match flaw(&record).or_else(|| misnamed.then_some("has a name that does not follow from its key"))
            {
                Some(what) => result = Err(RejectedGossip::Malformed { from, about: record.name, what }),
                None if record.name == self.me() => self.on_record_of_me(&record, now),
                None => self.on_record(link, from, record, now),
            }
        }
        result
    }

    pub(super) fn on_record(&mut self, link: LinkId, from: PeerName, record: PeerRecord, now: Instant) {
        let (name, key, nickname) = (record.name, record.key, record.nickname.clone());
        match self.peers.merge(record, now) {
            Verdict::News => {
                if let Some(addr) = self.links.to(name).map(|link| link.addr) {
                    self.peers.locate(name, addr);
                }
                self.forward(name, (link, from));
                self.survey.outdate();
                self.pace.peers_changed = true;
            }
            Verdict::Same | Verdict::Old => {}
            Verdict::Collision(known) => self.on_collision(name, (known, key), nickname),
        }
    }

    /// Tells those neighbours of a record who cannot have it yet: not from its origin, nor from who passed it on.
    pub(super) fn forward(&mut self, about: PeerName, (link, from): (LinkId, PeerName)) {
        for other in self.links_for_news(&[about, from]) {
            if other != link {
                self.gossip.tell(other, about);
            }
        }
    }

    /// The links with those neighbours who do not hear something from one of the `tellers`, who tell all of their own
    /// neighbours. Should one of these be missed all the same, digests find it.
    #[must_use]
    pub fn links_for_news(&self, tellers: &[PeerName]) -> Vec<LinkId> {
        let records = tellers.iter().filter_map(|&teller| self.peers.record(teller));
        let told = records.flat_map(|record| record.links.iter().map(|link| link.peer));
        let informed: BTreeSet<PeerName> = told.chain(tellers.iter().copied()).collect();
        let uninformed = self.links.in_use().filter(|link| !informed.contains(&link.peer()));
        uninformed.map(|link| link.id).collect()
    }

    pub(super) fn on_record_of_me(&mut self, record: &PeerRecord, now: Instant) {
        if record.key != self.key {
            return self.on_collision(self.me(), (self.key, record.key), record.nickname.clone());
        }
        match self.own.contest(record, now) {
            Contest::Ignored => {}
            Contest::Answered => {
                if self.hello.uid != self.own.record().uid {
                    self.hello.uid = self.own.record().uid;
                    self.outputs.push_back(Output::Hello(self.hello.clone()));
                }
                self.tell_all_about_me();
            }
            Contest::GivenUp => {
                let text = format!(
                    "another running agent, on {}, holds this peer's identity {}; stop one of the two, remove its \
                     data directory and start it again, so that it gets an identity of its own",
                    record.nickname,
                    self.me()
                );
                self.beware(text, now);
            }
        }
    }

    pub(super) fn on_collision(
        &mut self,
        name: PeerName,
        (known, claimed): (PeerKey, PeerKey),
        nickname: Nickname,
    ) {
        if self.collisions.len() < MAX_COLLISIONS && self.collisions.insert((name, claimed)) {
            self.outputs.push_back(Output::Notify(Notice::NameCollision { name, known, claimed, nickname }));
        }
    }

    pub(super) fn on_digest(&mut self, link: LinkId, digest: &Digest) {
        let own = self.own.record();
        let record = |name| if name == own.name { Some(own) } else { self.peers.record(name) };
        let ours = self.peers.present().chain([own]);
        let difference = gossip::compare(&digest.records, ours, record);
        for chunk in difference.wanted.chunks(MAX_RECORDS) {
            self.outputs.push_back(Output::Send { link, message: Message::Want(chunk.to_vec()) });
        }
        difference.offered.into_iter().for_each(|name| self.gossip.tell(link, name));
        if digest.ipam != self.ipam_digest {
            self.outputs.push_back(Output::IpamDiffers { link });
        }
    }

    pub(super) fn on_directed(&mut self, directed: Directed) {
        let (me, dst) = (self.me(), directed.dst);
        if directed.src == me {
            tracing::debug!(%dst, "a message of ours has come back in a circle");
        } else if dst == me {
            self.outputs.push_back(Output::Directed(directed));
        } else if let Some(hops_left) = directed.hops_left.checked_sub(1) {
            if let Err(error) = self.route(Directed { hops_left, ..directed }) {
                tracing::debug!(%error, "cannot forward");
            }
        } else {
            tracing::debug!(%dst, src = %directed.src, "a message has used up its hops");
        }
    }

    pub(super) fn on_routed(&mut self, routed: Routed) {
        let (me, dst) = (self.me(), routed.dst);
        if routed.src == me {
            tracing::debug!(%dst, "a message of ours has come back in a circle");
        } else if dst == me {
            self.outputs.push_back(Output::Routed(routed));
        } else if let Some(hops_left) = routed.hops_left.checked_sub(1) {
            if let Err(error) = self.route_tunnel(Routed { hops_left, ..routed }) {
                tracing::debug!(%error, "cannot forward");
            }
        } else {
            tracing::debug!(%dst, src = %routed.src, "a message has used up its hops");
        }
    }

    pub(super) fn tell_all_about_me(&mut self) {
        for link in self.links.in_use() {
            self.gossip.tell(link.id, self.hello.name);
        }
        self.survey.outdate();
        self.pace.peers_changed = true;
    }
}
