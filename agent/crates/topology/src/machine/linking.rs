//! Connections that become links, and links that end.

use std::fmt::Write as _;
use std::time::Instant;

use weave_proto::peer::{Message, Refusal, RefusalCode, WireVersion};

use super::Topology;
use crate::hello::{End, agree, held_twice};
use crate::links::{Incarnation, Link};
use crate::rejections::Rejection;
use crate::{Direction, LinkId, LinkUp, Notice, Output, Reason, limit};

impl Topology {
    pub(super) fn judge(&self, up: &LinkUp) -> Result<WireVersion, Refusal> {
        let theirs = End { hello: &up.hello, key: up.key };
        let known = self.peers.key(up.hello.name);
        let version = agree(End { hello: &self.hello, key: self.key }, theirs, known)?;
        if let Incarnation::Clash(live) = self.links.incarnation(&up.hello) {
            let mut refusal = held_twice(End { hello: &live.hello, key: live.key }, theirs);
            let _ = write!(refusal.text, " (the other one is at {})", live.addr.ip());
            return Err(refusal);
        }
        if up.direction == Direction::Inbound && self.connector.is_full_for(up.hello.name, self.sight()) {
            return Err(limit::refusal(self.me(), &self.hello.nickname, self.links.count()));
        }
        Ok(version)
    }

    pub(super) fn admit(&mut self, up: LinkUp, version: WireVersion, now: Instant) {
        if matches!(self.links.incarnation(&up.hello), Incarnation::Later) {
            for old in self.links.remove_all(up.hello.name) {
                let text = format!("peer {} has started again", old.peer());
                self.close(&old, Refusal { code: RefusalCode::Duplicate, text });
            }
        }
        let dial = up.dial;
        let link = Link::new(self.me(), up, version, now);
        self.connector.on_link(dial, &link, now);
        self.gossip.tell(link.id, self.me());
        self.gossip.compare_with(link.id);
        self.links.add(link, now);
    }

    /// The other end has greeted us too: the link counts.
    pub(super) fn on_confirmed(&mut self, link: LinkId, is_first: bool) {
        let Some(link) = self.links.by_id(link) else { return };
        self.connector.on_link_confirmed();
        self.rejections.settle(link.addr);
        self.pace.peers_changed |= self.peers.locate(link.peer(), link.addr);
        if is_first {
            let (peer, nickname, addr) = (link.peer(), link.hello.nickname.clone(), link.addr);
            self.outputs.push_back(Output::Notify(Notice::LinkUp { peer, nickname, addr }));
        }
        self.on_links_changed();
    }

    pub(super) fn turn_down(&mut self, up: &LinkUp, refusal: Refusal, now: Instant) {
        self.tell_twins(up, &refusal, now);
        let reason = Reason { text: refusal.text.clone(), refused: Some(refusal.code) };
        let is_news = match (up.direction, up.dial) {
            (Direction::Outbound, Some(dial)) => {
                let notice = self.connector.on_dial_failed(dial, reason, &mut self.rng, now);
                self.outputs.extend(notice);
                false
            }
            (Direction::Outbound | Direction::Inbound, _) => {
                // Whoever dials us from there is not worth dialling either; a person need not read it twice.
                let _already_told = self.connector.on_failure(up.addr, reason, &mut self.rng, now);
                let caller = Some((up.hello.name, up.hello.nickname.clone()));
                refusal.code != RefusalCode::Myself
                    && self.rejections.note(Rejection::new(up.addr, caller, &refusal.text, now))
            }
        };
        if is_news && refusal.code != RefusalCode::Limit {
            let refusal = refusal.clone();
            self.outputs.push_back(Output::Notify(Notice::Refused { addr: up.addr, refusal }));
        }
        self.outputs.push_back(Output::Close { link: up.link, refusal });
    }

    /// Whoever turns away a second holder of an identity sees to it that the first one hears of it too: neither may go
    /// on as if it were the only one.
    fn tell_twins(&mut self, up: &LinkUp, refusal: &Refusal, now: Instant) {
        let theirs = End { hello: &up.hello, key: up.key };
        if refusal.code != RefusalCode::NameCollision {
            return;
        }
        if up.key == self.key {
            self.beware(format!("{} (the other one is at {})", refusal.text, up.addr.ip()), now);
        } else if let Incarnation::Clash(live) = self.links.incarnation(&up.hello)
            && live.key == up.key
            && live.is_confirmed()
        {
            let mut warning = held_twice(End { hello: &live.hello, key: live.key }, theirs);
            let _ = write!(warning.text, " (the other one is at {})", up.addr.ip());
            self.outputs.push_back(Output::Send { link: live.id, message: Message::Warning(warning) });
        }
    }

    pub(super) fn close(&mut self, link: &Link, refusal: Refusal) {
        self.gossip.drop_link(link.id);
        self.outputs.push_back(Output::Close { link: link.id, refusal });
    }

    /// A link was taken out of the table; it may have been the last one with its peer.
    pub(super) fn on_link_gone(&mut self, link: &Link, reason: &Reason, now: Instant) {
        if !link.is_confirmed() {
            let notice = self.connector.on_failure(link.addr, reason.clone(), &mut self.rng, now);
            self.outputs.extend(notice);
            return;
        }
        if self.links.to(link.peer()).is_none() {
            self.connector.on_link_lost(link, reason, &mut self.rng, now);
            let (peer, nickname) = (link.peer(), link.hello.nickname.clone());
            let (addr, text) = (link.addr, reason.text.clone());
            self.outputs.push_back(Output::Notify(Notice::LinkDown { peer, nickname, addr, text }));
        }
        self.on_links_changed();
    }

    pub(super) const fn on_links_changed(&mut self) {
        self.pace.own_changed = true;
        self.pace.links_changed = true;
        self.pace.peers_changed = true;
        self.survey.outdate();
    }

    pub(super) fn shed(&mut self, now: Instant) {
        if self.pace.shed_at.is_none_or(|at| at > now) {
            return;
        }
        self.pace.shed_at = None;
        for peer in self.connector.surplus(self.sight(), now) {
            let refusal = limit::refusal(self.me(), &self.hello.nickname, self.links.count());
            let reason = Reason { text: refusal.text.clone(), refused: Some(refusal.code) };
            for link in self.links.remove_all(peer) {
                self.close(&link, refusal.clone());
                self.on_link_gone(&link, &reason, now);
            }
        }
    }
}
