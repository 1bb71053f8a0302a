//! What the engine and the brain are told: what follows from all that is known, if it is new.

use std::collections::{BTreeMap, BTreeSet};

use weave_overlay::{Carrier as Of, Method, Via, Way, WayNews};
use weave_proto::PeerName;
use weave_sleeve::header::OVERHEAD;
use weave_sleeve::relay::RELAYED_OVERHEAD;

use super::probes::prober;
use super::underlay::SEALED_MORE;
use super::{Driver, Report};
use crate::dataplane::sleeve::{Carrier, Hop, Peer, SendWith};

/// What every path over IPv6 takes, and nearly every one over IPv4, less what is added on any way: for want of better.
pub(super) const SMALLEST: u32 = 1280 - 100;

impl Driver {
    /// Something has changed: [`Self::settle_now`] is due before the next wait.
    pub(super) const fn settle(&mut self) {
        self.unsettled = true;
    }

    /// Tells the engine and the brain what follows from all that is known, if it is new.
    pub(super) fn settle_now(&mut self) {
        let peers = self.peers();
        if let Ok(tunnel) = &self.tunnel
            && peers != self.given
        {
            tunnel.engine.set_peers(peers.clone());
            self.given = peers;
        }
        for news in self.ways() {
            self.news(news);
        }
        // Whoever comes back is told of anew.
        let sealed = self.sealed_peers();
        self.told.retain(|(peer, carrier), _| match carrier {
            Of::Direct(Method::FastDp) => self.table.vteps.iter().any(|vtep| vtep.peer == *peer),
            Of::Direct(Method::Sleeve | Method::Quic) | Of::Relay => sealed.contains(peer),
        });
    }

    fn peers(&mut self) -> Vec<Peer> {
        let mut names = self.sessions.peers();
        names.extend(self.table.paths.iter().map(|path| path.peer));
        names.extend(self.table.forwards.iter().map(|forward| forward.peer));
        let paths: BTreeMap<PeerName, _> = self.table.paths.iter().map(|path| (path.peer, path)).collect();
        let forwards: BTreeMap<PeerName, Way> =
            self.table.forwards.iter().map(|forward| (forward.peer, forward.way)).collect();
        let mut peers = Vec::with_capacity(names.len());
        for name in names {
            let path = paths.get(&name).copied();
            let session = self.sessions.to(name).map(|(index, session)| (index, session.remote));
            let by_quic = |way: Way| way == Way::direct(Method::Quic);
            let (carrier, overhead) = match path.map(|path| path.way) {
                Some(Way { via: Via::Relay(hop), .. }) => (Carrier::Relay(hop), RELAYED_OVERHEAD),
                Some(way) if by_quic(way) => {
                    (self.quic_to(name).cloned().map_or(Carrier::Udp, Carrier::Quic), OVERHEAD)
                }
                Some(_) | None => (Carrier::Udp, OVERHEAD),
            };
            let hop = forwards.get(&name).and_then(|&way| match way.via {
                Via::Relay(hop) => Some(Hop::Next(hop)),
                Via::Direct if by_quic(way) => {
                    let link = self.quic_to(name).cloned()?;
                    session.map(|(session, _)| Hop::Quic { session, link })
                }
                Via::Direct => session.map(|(session, _)| Hop::Udp { session }),
            });
            let largest = session.map(|(_, at)| at.ip()).filter(|at| !at.is_unspecified());
            let largest = largest.map(|at| self.underlay.largest(at));
            let mtu = path.and_then(|path| path.mtu).or(largest).unwrap_or(SMALLEST);
            // A peer that takes nothing by UDP is sent nothing by it, not even for want of better.
            let sendable =
                |&(_, remote): &(u32, std::net::SocketAddr)| carrier != Carrier::Udp || remote.port() != 0;
            let send_with =
                session.filter(sendable).map(|(session, _)| SendWith { session, carrier: carrier.clone() });
            peers.push(Peer {
                peer: name,
                ranges: path.map(|path| path.ranges.clone()).unwrap_or_default(),
                send_with,
                hop,
                record_len: usize::try_from(mtu).unwrap_or(usize::MAX) + overhead,
            });
        }
        peers
    }

    /// Everybody with whom there is a session, or might be.
    fn sealed_peers(&self) -> BTreeSet<PeerName> {
        let mut peers = self.links.peers();
        peers.extend(self.sessions.peers());
        peers.extend(self.far.peers());
        peers
    }

    /// Why a peer cannot be sent sealed records on some way.
    fn why_not(&self, peer: PeerName, has_session: bool) -> String {
        let far = self.far.distant(peer).is_some();
        let trouble = self.far.trouble(peer).filter(|_| far).or_else(|| self.links.trouble(peer));
        match (&self.tunnel, trouble) {
            (Err(why), _) => why.clone(),
            (Ok(_), _) if has_session => {
                "nobody knows where the peer is: there is no link with it".to_owned()
            }
            (Ok(_), Some(trouble)) => trouble.to_owned(),
            (Ok(_), None) if far => "no link: the two ends are agreeing on keys through the mesh".to_owned(),
            (Ok(_), None) => "the two ends have not agreed on keys yet".to_owned(),
        }
    }

    /// What can be said of every way now.
    fn ways(&mut self) -> Vec<WayNews> {
        let mut ways = Vec::new();
        for peer in self.sealed_peers() {
            let session = self.sessions.to(peer).map(|(_, session)| session.remote.ip());
            let direct = session.filter(|at| !at.is_unspecified()).map(|at| self.underlay.largest(at));
            let relayed = session.map(|_| self.largest_relayed(peer, direct));
            if self.quic.is_some() {
                let ready = session.map(drop).ok_or_else(|| self.why_not(peer, false));
                ways.push(self.way_by_quic(peer, ready));
            }
            for (carrier, largest) in [(Of::Direct(Method::Sleeve), direct), (Of::Relay, relayed)] {
                ways.push(match largest {
                    Some(largest) => WayNews::Up { peer, carrier, largest },
                    None => WayNews::Down { peer, carrier, why: self.why_not(peer, session.is_some()) },
                });
            }
        }
        let ready = self.ready();
        for vtep in &self.table.vteps {
            let (peer, carrier) = (vtep.peer, Of::Direct(Method::FastDp));
            let device = usize::from(vtep.underlay.is_ipv6());
            ways.push(match &ready[device] {
                Ok(()) => {
                    let largest = self.underlay.largest(vtep.underlay) + SEALED_MORE;
                    WayNews::Up { peer, carrier, largest }
                }
                Err(error) => {
                    let why = format!("the kernel's tunnel cannot be probed: {error}");
                    WayNews::Down { peer, carrier, why }
                }
            });
        }
        let sealed = self.sealed_peers();
        let gone = self
            .told
            .keys()
            .filter(|(peer, carrier)| *carrier != Of::Direct(Method::FastDp) && !sealed.contains(peer));
        let why = "no session with this peer".to_owned();
        ways.extend(gone.map(|&(peer, carrier)| WayNews::Down { peer, carrier, why: why.clone() }));
        ways
    }

    /// Whether the kernel's tunnels over IPv4 and over IPv6 can be probed, as far as there are peers to probe.
    fn ready(&mut self) -> [std::io::Result<()>; 2] {
        [false, true].map(|six| {
            let vtep = self.table.vteps.iter().find(|vtep| vtep.underlay.is_ipv6() == six);
            vtep.map_or(Ok(()), |vtep| prober(&mut self.probers, vtep.underlay).ensure())
        })
    }

    /// What can be said of the QUIC connection with a peer; `session` is why it has nothing to carry.
    fn way_by_quic(&self, peer: PeerName, session: Result<(), String>) -> WayNews {
        let carrier = Of::Direct(Method::Quic);
        let largest = self.quic_to(peer).map(|link| link.largest().saturating_sub(OVERHEAD));
        match (largest, session) {
            (Some(0), _) => {
                WayNews::Down { peer, carrier, why: "the other end takes no datagrams".to_owned() }
            }
            (Some(largest), Ok(())) => {
                WayNews::Up { peer, carrier, largest: u32::try_from(largest).unwrap_or(u32::MAX) }
            }
            (Some(_), Err(why)) => WayNews::Down { peer, carrier, why },
            (None, _) => WayNews::Down { peer, carrier, why: self.beside.why_not(peer) },
        }
    }

    fn news(&mut self, news: WayNews) {
        let (WayNews::Up { peer, carrier, .. } | WayNews::Down { peer, carrier, .. }) = &news;
        let place = (*peer, *carrier);
        if self.told.get(&place) != Some(&news) {
            self.told.insert(place, news.clone());
            self.tell(Report::Way(news));
        }
    }

    pub(super) fn tell(&self, report: Report) {
        // Fails only when the agent ends.
        let _ = self.reports.send(report);
    }
}
