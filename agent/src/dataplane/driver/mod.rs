//! Between the brain, which decides by which way each peer is reached, and what sends and receives in user space.
//!
//! ```text
//!   links up, down ──> ┌────────┐ ── sessions, peers ──> engine (sleeve) <── records ──> UDP 6785
//!   offers         <─> │ driver │ ── probes, answers ─> engine, prober  <── frames  ──> weave-vx
//!   probes, table  ──> │        │
//!   ways, answers  <── └────────┘
//! ```
//!
//! Nothing is chosen here but which of several sessions with one peer is sent with ([`sessions`]). What peers ask is
//! answered at once, without the brain.
//!
//! **One task**, owned by whoever runs [`Driver::run`]. It may be cancelled at any `await`: the engine stops with it,
//! and what was to be told is told anew by the next agent. While nothing happens it wakes once a second if there are
//! sessions (an epoch may be due), else never.

mod ends;
mod prober;
mod sessions;
mod word;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weave_overlay::{ForwardingTable, Method, Probe, ProbeAnswer, Via, Way, WayNews};
use weave_proto::PeerName;
use weave_proto::peer::Offer;
use weave_sleeve::header::OVERHEAD;
use weave_sleeve::relay::RELAYED_OVERHEAD;
use weave_topology::LinkId;

pub use self::ends::SEALED_MORE;
use self::ends::{Links, UNDERLAY_LOOK};
use self::prober::{Heard, Prober};
use self::sessions::Sessions;
use self::word::{Kind, WORD_LEN, Word};
use super::sleeve::{Carrier, CountersSnapshot, Engine, Event, Hop, PORT, Peer, SendWith, Source};
use super::tun::Tun;
use crate::net::names;
use crate::peer::LinkKeys;

/// How often epochs and the silence of sessions are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often a new session greets the other end until it is heard.
const GREETING: Duration = Duration::from_millis(200);

/// Events of the engine that may wait. They are about probes and rare changes; what does not fit is a lost probe.
const EVENTS: usize = 1024;

/// What every path over IPv6 takes, and nearly every one over IPv4, less what is added on any way: for want of better.
const SMALLEST: u32 = 1280 - 100;

/// How long the answer to a probe is waited for: longer than anybody who asked does.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What this node's data plane may do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This peer.
    pub name: PeerName,
    /// Where to take records: an address of the machine, or all of them.
    pub host: Option<IpAddr>,
}

/// What the driver is told.
#[derive(Debug)]
pub enum Order {
    /// A link with a peer is up.
    LinkUp {
        /// The link.
        link: LinkId,
        /// Who dialled: this end?
        dialled: bool,
        /// Where the peer is.
        addr: SocketAddr,
        /// Who.
        peer: PeerName,
    },
    /// A link is gone.
    LinkDown {
        /// The link.
        link: LinkId,
        /// Whether the secret that let the peer in is no longer believed.
        withdrawn: bool,
    },
    /// A peer has said how it takes records with the keys of a link.
    Offer {
        /// The link.
        link: LinkId,
        /// Who.
        peer: PeerName,
        /// What it said.
        offer: Offer,
    },
    /// Send this probe.
    Probe(Probe),
    /// Reach peers so.
    Table(ForwardingTable),
}

/// What the driver tells.
#[derive(Debug)]
pub enum Report {
    /// Say this on a link.
    Offer(LinkId, Offer),
    /// Something can be reached, or no longer.
    Way(WayNews),
    /// A probe has come back.
    Answer(ProbeAnswer),
}

/// The tunnels in user space: running, or why they cannot be.
pub struct Tunnel {
    engine: Engine,
    events: mpsc::Receiver<Event>,
    queues: u8,
}

impl Tunnel {
    /// Makes the device and starts the threads.
    ///
    /// # Errors
    /// A sentence that says what is missing and the remedy.
    pub fn start(settings: &Settings) -> Result<Self, String> {
        let tun = Tun::open(names::TUN, queues()).map_err(|error| error.to_string())?;
        let queues = u8::try_from(tun.queues.len()).unwrap_or(1);
        let (sender, events) = mpsc::channel(EVENTS);
        // A full queue is full of probes, which will be repeated.
        let sink = Box::new(move |event| drop(sender.try_send(event)));
        let listen = |host: IpAddr| SocketAddr::new(host, PORT);
        let all = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let host = settings.host.unwrap_or_else(|| if has_ipv6() { all[0] } else { all[1] });
        let engine = Engine::start(settings.name, tun, listen(host), sink).map_err(|error| {
            format!("{error}: is another agent running, or does something else use UDP {PORT}?")
        })?;
        Ok(Self { engine, events, queues })
    }
}

/// Half of the processors, since pods need the others, and not more than have ever been of use.
fn queues() -> u8 {
    const MOST: usize = 4;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u8::try_from((processors / 2).clamp(1, MOST)).unwrap_or(1)
}

fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// See the module's text.
pub struct Driver {
    settings: Settings,
    tunnel: Result<Tunnel, String>,
    keys: LinkKeys,
    orders: mpsc::UnboundedReceiver<Order>,
    reports: mpsc::UnboundedSender<Report>,
    links: Links,
    sessions: Sessions,
    probers: [Prober; 2],
    table: ForwardingTable,
    asked: BTreeMap<u64, (Probe, Instant)>,
    told: BTreeMap<(PeerName, weave_overlay::Carrier), WayNews>,
    given: Vec<Peer>,
    underlay_looked: Instant,
}

/// What ended a wait.
enum Wake {
    Order(Option<Order>),
    Event(Option<Event>),
    Heard(Heard),
    Time,
}

impl Driver {
    /// A driver of `tunnel`, or of the kernel's alone, which says of all others why they cannot be.
    #[must_use]
    pub fn new(
        settings: Settings,
        tunnel: Result<Tunnel, String>,
        keys: LinkKeys,
        orders: mpsc::UnboundedReceiver<Order>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let probers = [names::VXLAN, names::VXLAN6].map(|device| Prober::new(device, settings.name));
        Self {
            settings,
            tunnel,
            keys,
            orders,
            reports,
            links: Links::default(),
            sessions: Sessions::default(),
            probers,
            table: ForwardingTable::default(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            given: Vec::new(),
            underlay_looked: Instant::now(),
        }
    }

    /// Runs until nobody gives orders any more.
    pub async fn run(mut self) {
        loop {
            match self.wait().await {
                Wake::Order(None) => return,
                Wake::Order(Some(order)) => self.obey(order),
                Wake::Event(Some(event)) => self.on_event(event),
                Wake::Event(None) => self.on_device_lost(),
                Wake::Heard(heard) => self.on_frame(heard),
                Wake::Time => self.look(),
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        let pause = match (&self.tunnel, self.sessions.greeting(Instant::now()).is_empty()) {
            (Ok(_), false) => Some(GREETING),
            (Ok(_), true) if self.sessions.is_empty() && self.links.is_empty() => None,
            (Ok(_), true) => Some(LOOK),
            (Err(_), _) => None,
        };
        let [four, six] = &mut self.probers;
        let events = async {
            match &mut self.tunnel {
                Ok(tunnel) => tunnel.events.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        let time = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = self.orders.recv() => Wake::Order(order),
            event = events => Wake::Event(event),
            heard = four.heard() => Wake::Heard(heard),
            heard = six.heard() => Wake::Heard(heard),
            () = time => Wake::Time,
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::LinkUp { link, dialled, addr, peer } => {
                self.links.up(link, peer, dialled, addr);
                self.offer(link);
            }
            Order::LinkDown { link, withdrawn } => {
                self.links.down(link);
                self.sessions.link_down(link, withdrawn, Instant::now());
                self.settle();
            }
            Order::Offer { link, peer, offer } => self.on_offer(link, peer, &offer),
            Order::Probe(probe) => self.probe(probe),
            Order::Table(table) => {
                self.table = table;
                self.settle();
            }
        }
    }

    /// Says on a link how records are taken.
    fn offer(&mut self, link: LinkId) {
        let Ok(tunnel) = &self.tunnel else { return self.settle() };
        if let Some(offer) = self.links.offer(link, tunnel.queues, &self.sessions) {
            self.tell(Report::Offer(link, offer));
        }
    }

    fn on_offer(&mut self, link: LinkId, peer: PeerName, offer: &Offer) {
        let Ok(tunnel) = &self.tunnel else { return };
        let keys = &self.keys;
        let agreed =
            self.links.agree((link, peer), offer, tunnel.queues, |context| keys.export(link, context));
        match agreed {
            Ok(Some((settings, secret))) => {
                let now = Instant::now();
                if self.sessions.contains(settings.index) {
                    tunnel.engine.close_session(settings.index);
                }
                tunnel.engine.open_session(settings, &secret[..], now);
                self.sessions.open(settings.index, (peer, link), settings.remote, now);
                self.greet(settings.index);
                self.settle();
            }
            Ok(None) => {}
            Err(why) => {
                tracing::warn!(%peer, why, "no sealed records can be exchanged");
                let carrier = weave_overlay::Carrier::Direct(Method::Sleeve);
                self.news(WayNews::Down { peer, carrier, why });
            }
        }
    }

    fn greet(&self, index: u32) {
        if let Ok(tunnel) = &self.tunnel {
            let greeting = Word { kind: Kind::Greeting, nonce: 0, len: 0 };
            // Lost or refused, the next one will do.
            let _sent = tunnel.engine.probe(index, &Carrier::Udp, &greeting.to_bytes(), OVERHEAD + WORD_LEN);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Probe { peer, session, from, content, .. } => {
                self.on_word(peer, session, from, &content);
            }
            Event::Roamed { peer, to } => {
                tracing::info!(%peer, %to, "A peer's sealed records come from another address");
            }
            Event::QuicLargest { .. } | Event::QuicLost { .. } => {}
            Event::DeviceLost => self.on_device_lost(),
        }
    }

    /// A word came in a sealed record.
    fn on_word(&mut self, peer: PeerName, session: u32, from: Source, content: &[u8]) {
        let Some(word) = Word::parse(content) else { return };
        match word.kind {
            Kind::Probe => {
                let Ok(tunnel) = &self.tunnel else { return };
                let (carrier, overhead) = match from {
                    Source::Udp(_) => (Carrier::Udp, OVERHEAD),
                    Source::Relay(hop) => (Carrier::Relay(hop), RELAYED_OVERHEAD),
                    Source::Quic(_) => return,
                };
                let answer = Word { kind: Kind::Answer, ..word };
                // A lost answer is a lost probe, which will be repeated.
                let _sent = tunnel.engine.probe(session, &carrier, &answer.to_bytes(), overhead + WORD_LEN);
            }
            Kind::Answer => {
                let is_sealed = |way: Way| way.method.is_sealed();
                self.on_answer(peer, word, is_sealed);
            }
            Kind::Greeting => {}
        }
        self.look();
    }

    /// A word came through the kernel's tunnel.
    fn on_frame(&mut self, heard: Heard) {
        let Heard { from, word } = heard;
        let Some(vtep) = self.table.vteps.iter().find(|vtep| vtep.peer == from) else { return };
        match word.kind {
            Kind::Probe => {
                let answer = Word { kind: Kind::Answer, ..word };
                let sent = prober(&mut self.probers, vtep.underlay).send(from, answer, 0);
                if let Err(error) = sent {
                    tracing::debug!(peer = %from, %error, "a probe of the kernel's tunnel could not be answered");
                }
            }
            Kind::Answer => self.on_answer(from, word, |way| !way.method.is_sealed()),
            Kind::Greeting => {}
        }
    }

    /// Believed only from whom it was asked of, and on a way of the kind that it was asked on.
    fn on_answer(&mut self, peer: PeerName, word: Word, fits: impl Fn(Way) -> bool) {
        let Some((probe, _)) = self.asked.get(&word.nonce) else { return };
        if probe.peer == peer && probe.len == word.len && fits(probe.way) {
            let answer = ProbeAnswer { peer, way: probe.way, nonce: word.nonce, len: word.len };
            self.asked.remove(&word.nonce);
            self.tell(Report::Answer(answer));
        }
    }

    fn probe(&mut self, probe: Probe) {
        let now = Instant::now();
        self.asked.retain(|_, (_, at)| now < *at + ANSWER_PATIENCE);
        let Probe { peer, way, nonce, len } = probe;
        let word = Word { kind: Kind::Probe, nonce, len };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(usize::from(u16::MAX));
        let sent = match (way.method, way.via) {
            (Method::FastDp, _) => self.probe_kernel(peer, word, len),
            (Method::Sleeve, Via::Direct) => self.probe_sealed(peer, &Carrier::Udp, word, len + OVERHEAD),
            (Method::Sleeve | Method::Quic, Via::Relay(hop)) => {
                self.probe_sealed(peer, &Carrier::Relay(hop), word, len + RELAYED_OVERHEAD)
            }
            (Method::Quic, Via::Direct) => false,
        };
        if sent {
            self.asked.insert(nonce, (probe, now));
        }
    }

    fn probe_kernel(&mut self, peer: PeerName, word: Word, len: usize) -> bool {
        let Some(vtep) = self.table.vteps.iter().find(|vtep| vtep.peer == peer) else { return false };
        match prober(&mut self.probers, vtep.underlay).send(peer, word, len) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%peer, %error, "the kernel's tunnel could not be probed");
                false
            }
        }
    }

    fn probe_sealed(&self, peer: PeerName, carrier: &Carrier, word: Word, len: usize) -> bool {
        let (Ok(tunnel), Some((index, _))) = (&self.tunnel, self.sessions.to(peer)) else { return false };
        let shortest =
            WORD_LEN + if matches!(carrier, Carrier::Relay(_)) { RELAYED_OVERHEAD } else { OVERHEAD };
        tunnel.engine.probe(index, carrier, &word.to_bytes(), len.max(shortest))
    }

    /// Looks at what changes without a word: epochs, sessions that are heard or silent, the underlay's MTU.
    fn look(&mut self) {
        let now = Instant::now();
        if let Ok(tunnel) = &self.tunnel {
            // The deadline that it returns is never sooner than the next look matters.
            let _deadline = tunnel.engine.maintain(now);
            for index in self.sessions.look(|index| tunnel.engine.received(index), now) {
                tunnel.engine.close_session(index);
            }
        }
        for index in self.sessions.greeting(now) {
            self.greet(index);
        }
        if now >= self.underlay_looked + UNDERLAY_LOOK {
            self.underlay_looked = now;
            self.links.look_again();
        }
        self.settle();
    }

    /// The device is gone, and with it the engine. Nothing leaks meanwhile: the routes that led to it are gone, too.
    fn on_device_lost(&mut self) {
        tracing::warn!(device = names::TUN, "the device of the sealed tunnels has vanished: making it anew");
        self.sessions.clear();
        self.given.clear();
        // The old one first: it holds the port.
        self.tunnel = Err("the device has vanished".to_owned());
        self.tunnel = Tunnel::start(&self.settings);
        if let Err(why) = &self.tunnel {
            tracing::error!(why, "sealed tunnels are off");
        }
        for link in self.links.ids() {
            self.offer(link);
        }
        self.settle();
    }

    /// Tells the engine and the brain what follows from all that is known, if it is new.
    fn settle(&mut self) {
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
            let largest = session.map(|(_, at)| self.links.largest(at));
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
        use weave_overlay::Carrier as Of;
        let mut ways = Vec::new();
        let absent = self.tunnel.as_ref().err().cloned();
        for peer in self.links.peers().union(&self.sessions.peers()).copied() {
            let session = self.sessions.to(peer).map(|(_, session)| session.remote);
            let why = || match &absent {
                Some(why) => why.clone(),
                None => "the two ends have not agreed on keys yet".to_owned(),
            };
            let largest = session.map(|at| self.links.largest(at.ip()));
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
        for vtep in self.table.vteps.clone() {
            let (peer, carrier) = (vtep.peer, Of::Direct(Method::FastDp));
            ways.push(match prober(&mut self.probers, vtep.underlay).ensure() {
                Ok(()) => {
                    let largest = self.links.largest(vtep.underlay) + SEALED_MORE;
                    WayNews::Up { peer, carrier, largest }
                }
                Err(error) => {
                    let why = format!("the kernel's tunnel cannot be probed: {error}");
                    WayNews::Down { peer, carrier, why }
                }
            });
        }
        let gone = self.told.keys().filter(|(peer, carrier)| {
            *carrier != Of::Direct(Method::FastDp)
                && !self.links.peers().contains(peer)
                && !self.sessions.peers().contains(peer)
        });
        let why = "no session with this peer".to_owned();
        ways.extend(gone.map(|&(peer, carrier)| WayNews::Down { peer, carrier, why: why.clone() }));
        ways
    }

    fn news(&mut self, news: WayNews) {
        let (WayNews::Up { peer, carrier, .. } | WayNews::Down { peer, carrier, .. }) = &news;
        let place = (*peer, *carrier);
        if self.told.get(&place) != Some(&news) {
            self.told.insert(place, news.clone());
            self.tell(Report::Way(news));
        }
    }

    fn tell(&self, report: Report) {
        // Fails only when the agent ends.
        let _ = self.reports.send(report);
    }

    /// What the engine has counted; nothing without one.
    #[must_use]
    pub fn counters(&self) -> CountersSnapshot {
        self.tunnel.as_ref().map(|tunnel| tunnel.engine.counters()).unwrap_or_default()
    }
}

/// The prober of the device towards an address.
fn prober(probers: &mut [Prober; 2], underlay: IpAddr) -> &mut Prober {
    let [four, six] = probers;
    if underlay.is_ipv4() { four } else { six }
}
