//! What the engine and the brain are told: what follows from all that is known, if it is new.

use std::collections::BTreeMap;

use weave_overlay::{Carrier as Of, Method, Via, WayNews};
use weave_proto::PeerName;
use weave_sleeve::header::OVERHEAD;
use weave_sleeve::relay::RELAYED_OVERHEAD;

use super::probes::prober;
use super::underlay::SEALED_MORE;
use super::{Driver, Report};
use crate::dataplane::sleeve::{Carrier, Hop, Peer, SendWith};

/// What every path over IPv6 takes, and nearly every one over IPv4, less what is added on any way: for want of better.
const SMALLEST: u32 = 1280 - 100;

impl Driver {
    /// Tells the engine and the brain what follows from all that is known, if it is new.
    pub(super) fn settle(&mut self) {
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
        let (links, sessions) = (self.links.peers(), self.sessions.peers());
        self.told.retain(|(peer, carrier), _| match carrier {
            Of::Direct(Method::FastDp) => self.table.vteps.iter().any(|vtep| vtep.peer == *peer),
            Of::Direct(Method::Sleeve | Method::Quic) | Of::Relay => {
                links.contains(peer) || sessions.contains(peer)
            }
        });
    }

    fn peers(&mut self) -> Vec<Peer> {
        let mut names = self.sessions.peers();
        names.extend(self.table.paths.iter().map(|path| path.peer));
        let paths: BTreeMap<PeerName, _> = self.table.paths.iter().map(|path| (path.peer, path)).collect();
        let mut peers = Vec::with_capacity(names.len());
        for name in names {
            let path = paths.get(&name);
            let session = self.sessions.to(name).map(|(index, session)| (index, session.remote.ip()));
            let via = path.map_or(Via::Direct, |path| path.way.via);
            let (carrier, hop, overhead) = match via {
                Via::Direct => (Carrier::Udp, session.map(|(session, _)| Hop::Udp { session }), OVERHEAD),
                Via::Relay(hop) => (Carrier::Relay(hop), Some(Hop::Next(hop)), RELAYED_OVERHEAD),
            };
            let largest = session.map(|(_, at)| self.underlay.largest(at));
            let mtu = path.and_then(|path| path.mtu).or(largest).unwrap_or(SMALLEST);
            peers.push(Peer {
                peer: name,
                ranges: path.map(|path| path.ranges.clone()).unwrap_or_default(),
                send_with: session.map(|(session, _)| SendWith { session, carrier }),
                hop,
                record_len: usize::try_from(mtu).unwrap_or(usize::MAX) + overhead,
            });
        }
        peers
    }

    /// What can be said of every way now.
    fn ways(&mut self) -> Vec<WayNews> {
        let mut ways = Vec::new();
        let absent = self.tunnel.as_ref().err().cloned();
        for peer in self.links.peers().union(&self.sessions.peers()).copied() {
            let session = self.sessions.to(peer).map(|(_, session)| session.remote);
            let trouble = self.links.trouble(peer).map(str::to_owned);
            let why = || match absent.as_ref().or(trouble.as_ref()) {
                Some(why) => why.clone(),
                None => "the two ends have not agreed on keys yet".to_owned(),
            };
            let largest = session.map(|at| self.underlay.largest(at.ip()));
            for carrier in [Of::Direct(Method::Sleeve), Of::Relay] {
                ways.push(match largest {
                    Some(largest) if carrier == Of::Relay => {
                        let more = u32::try_from(RELAYED_OVERHEAD - OVERHEAD).unwrap_or(0);
                        WayNews::Up { peer, carrier, largest: largest.saturating_sub(more) }
                    }
                    Some(largest) => WayNews::Up { peer, carrier, largest },
                    None => WayNews::Down { peer, carrier, why: why() },
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
        let (links, sessions) = (self.links.peers(), self.sessions.peers());
        let gone = self.told.keys().filter(|(peer, carrier)| {
            *carrier != Of::Direct(Method::FastDp) && !links.contains(peer) && !sessions.contains(peer)
        });
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
