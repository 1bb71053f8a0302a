//! Between the brain, which decides by which way each peer is reached, and what sends and receives in user space.
//!
//! ```text
//!   links up, down ──> ┌────────┐ ── sessions, peers ──> engine (sleeve) <── records ──> UDP 6785
//!   offers         <─> │ driver │ ── probes, answers ─> engine, prober  <── frames  ──> weave-vx
//!   probes, table  ──> │        │
//!   ways, answers  <── └────────┘
//! ```
//!
//! Peers that no link leads to agree on keys through the mesh ([`far`]): what is said there goes by the brain, too.
//!
//! Nothing is chosen here but which of several sessions with one peer is sent with ([`sessions`]). What peers ask is
//! answered at once, without the brain.
//!
//! **One task**, owned by whoever runs [`Driver::run`]. It may be cancelled at any `await`: the engine stops with it,
//! and what was to be told is told anew by the next agent. While nothing happens it wakes once a second if there are
//! sessions (an epoch may be due) or peers that the kernel may send to ([`traffic`]), else never.

mod beside;
mod counted;
mod ends;
mod far;
mod mesh;
mod prober;
mod probes;
mod quic;
mod sessions;
mod telling;
mod traffic;
mod tunnel;
mod underlay;
mod word;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weave_overlay::{ForwardingTable, Probe, ProbeAnswer, WayNews};
use weave_proto::local::status::SessionStatus;
use weave_proto::peer::Offer;
use weave_proto::{PeerKey, PeerName};
use weave_router::Distant;
use weave_sleeve::header::OVERHEAD;
use weave_topology::LinkId;

use self::beside::Beside;
pub use self::counted::Counted;
use self::counted::Teller;
use self::ends::Links;
use self::far::Far;
use self::prober::{Heard, Prober};
use self::quic::Carried;
pub use self::quic::QuicDoor;
use self::sessions::{GREETING, Sessions};
use self::traffic::{Counts, Seen, Traffic};
pub use self::tunnel::Tunnel;
pub use self::underlay::SEALED_MORE;
use self::underlay::{UNDERLAY_LOOK, Underlay};
use self::word::{Kind, WORD_LEN, Word};
use super::sleeve::{Carrier, Event, PORT, Peer};
use crate::net::{SizeWatch, names};
use crate::peer::{DataEvent, LinkKeys, MeshTrust};

/// How often epochs and the silence of sessions are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How many orders are obeyed before what follows from them is told.
const ORDERS_AT_ONCE: usize = 64;

/// What this node's data plane may do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This peer.
    pub name: PeerName,
    /// Where to take records: an address of the machine, or all of them.
    pub host: Option<IpAddr>,
    /// Whether records are taken by UDP.
    pub by_udp: bool,
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
        /// The key that the peer has proven to hold.
        key: PeerKey,
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
    /// These are all peers without a link with which keys can be agreed on through the mesh.
    Distant(Vec<Distant>),
    /// A peer's data plane has said something to this one through the mesh.
    Routed {
        /// Who, by its own account.
        from: PeerName,
        /// What.
        body: Vec<u8>,
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
    /// Say this to a peer through the mesh.
    Routed(PeerName, Vec<u8>),
    /// Something can be reached, or no longer.
    Way(WayNews),
    /// A probe has come back.
    Answer(ProbeAnswer),
    /// Packets of pods have been sent to these peers of late.
    Traffic(Vec<PeerName>),
    /// This peer fears for packets of its pods to this node's.
    Haste(PeerName),
    /// Packets of others have been sent on to these peers of late.
    Relayed(Vec<PeerName>),
    /// So much was counted so far.
    Counted(Box<Counted>),
}

/// See the module's text.
pub struct Driver {
    settings: Settings,
    tunnel: Result<Tunnel, String>,
    keys: LinkKeys,
    orders: mpsc::UnboundedReceiver<Order>,
    reports: mpsc::UnboundedSender<Report>,
    links: Links,
    far: Far,
    sessions: Sessions,
    /// None where no QUIC connection may carry.
    quic: Option<QuicDoor>,
    beside: Beside<Carried>,
    probers: [Prober; 2],
    table: ForwardingTable,
    asked: BTreeMap<u64, (Probe, Instant)>,
    told: BTreeMap<(PeerName, weave_overlay::Carrier), WayNews>,
    given: Vec<Peer>,
    /// Whether something has changed from which something follows for others.
    unsettled: bool,
    underlay: Underlay,
    underlay_looked: Instant,
    looked: Instant,
    traffic: Traffic,
    teller: Teller,
}

/// What ended a wait.
enum Wake {
    Order(Option<Order>),
    Event(Option<Event>),
    Heard(Heard),
    Size,
    Traffic(Vec<PeerName>),
    Data(Option<DataEvent>),
    Secrets,
    Time,
}

impl Driver {
    /// A driver of `tunnel`, or of the kernel's alone, which says of all others why they cannot be.
    #[must_use]
    pub fn new(
        settings: Settings,
        tunnel: Result<Tunnel, String>,
        (keys, trust, quic): (LinkKeys, MeshTrust, Option<QuicDoor>),
        orders: mpsc::UnboundedReceiver<Order>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let probers = [names::VXLAN, names::VXLAN6].map(|device| Prober::new(device, settings.name));
        let far = Far::new(settings.name, trust);
        Self {
            settings,
            tunnel,
            keys,
            orders,
            reports,
            links: Links::default(),
            far,
            sessions: Sessions::default(),
            quic,
            beside: Beside::default(),
            probers,
            table: ForwardingTable::default(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            given: Vec::new(),
            unsettled: false,
            underlay: Underlay::default(),
            underlay_looked: Instant::now(),
            looked: Instant::now(),
            traffic: Traffic::default(),
            teller: Teller::default(),
        }
    }

    /// Runs until nobody gives orders any more.
    pub async fn run(mut self) {
        let mut sizes = SizeWatch::open()
            .inspect_err(|error| tracing::warn!(%error, "a change of the underlay's MTU is noticed late"))
            .ok();
        loop {
            match self.wait(&mut sizes).await {
                Wake::Order(None) => return,
                Wake::Order(Some(order)) => {
                    self.obey(order);
                    // What follows from all that is known is worked out once for all that has come meanwhile.
                    for _ in 0..ORDERS_AT_ONCE {
                        match self.orders.try_recv() {
                            Ok(order) => self.obey(order),
                            Err(_) => break,
                        }
                    }
                }
                Wake::Event(Some(event)) => self.on_event(event),
                Wake::Event(None) => self.on_device_lost(),
                Wake::Heard(heard) => self.on_frame(heard),
                Wake::Size => {
                    self.underlay.look_again();
                    self.settle();
                }
                Wake::Traffic(peers) => self.on_traffic(peers),
                Wake::Data(event) => self.on_data(event),
                Wake::Secrets => self.on_secrets(),
                Wake::Time => self.look(),
            }
            if std::mem::take(&mut self.unsettled) {
                self.settle_now();
            }
        }
    }

    async fn wait(&mut self, sizes: &mut Option<SizeWatch>) -> Wake {
        // A moment and not a pause: what happens all the time must not put it off.
        let next = self.next_look();
        let [four, six] = &mut self.probers;
        let events = async {
            match &mut self.tunnel {
                Ok(tunnel) => tunnel.event().await,
                Err(_) => std::future::pending().await,
            }
        };
        let data = async {
            match &mut self.quic {
                Some(quic) => quic.events.recv().await,
                None => std::future::pending().await,
            }
        };
        let time = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        let size = async {
            match sizes {
                Some(sizes) => sizes.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = self.orders.recv() => Wake::Order(order),
            event = events => Wake::Event(event),
            heard = four.heard() => Wake::Heard(heard),
            heard = six.heard() => Wake::Heard(heard),
            () = size => Wake::Size,
            peers = self.traffic.heard() => Wake::Traffic(peers),
            event = data => Wake::Data(event),
            () = self.far.changed() => Wake::Secrets,
            () = time => Wake::Time,
        }
    }

    /// When to look next; never while there is nothing to look at.
    fn next_look(&self) -> Option<Instant> {
        let is_idle = self.tunnel.is_err() || (self.sessions.is_empty() && self.links.is_empty());
        if is_idle && self.table.vteps.is_empty() {
            return None;
        }
        let look = self.looked + if self.sessions.are_unheard() { GREETING } else { LOOK };
        let far = self.far.due().filter(|_| self.tunnel.is_ok());
        Some(far.map_or(look, |due| look.min(due)))
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::LinkUp { link, dialled, addr, peer, key } => {
                let now = Instant::now();
                self.beside.link_up(link, peer, beside::Link { addr, key, dialled, since: now });
                self.underlay.look_again_at(addr.ip());
                self.links.up(link, peer, dialled, addr);
                self.links.draw(link, &self.sessions, now);
                self.offer(now);
                self.settle();
            }
            Order::LinkDown { link, withdrawn } => {
                let now = Instant::now();
                self.links.down(link);
                self.sessions.link_down(link, withdrawn, now);
                self.beside.link_down(link, withdrawn, now);
                self.attend_quic(now);
                self.settle();
            }
            Order::Offer { link, peer, offer } => self.on_offer(link, peer, offer),
            Order::Distant(distant) => self.on_distant(distant),
            Order::Routed { from, body } => self.on_routed(from, &body),
            Order::Probe(probe) => self.probe(probe),
            Order::Table(table) => {
                self.table = table;
                self.want_quic(Instant::now());
                self.settle();
            }
        }
    }

    /// Says on links how records are taken, where that is due.
    fn offer(&mut self, now: Instant) {
        let Ok(tunnel) = &self.tunnel else { return };
        for (link, offer) in self.links.offers((tunnel.queues, self.port()), &self.sessions, now) {
            self.tell(Report::Offer(link, offer));
        }
    }

    fn on_offer(&mut self, link: LinkId, peer: PeerName, offer: Offer) {
        match self.links.hear(link, peer, offer) {
            // Said again, so it does not hear this end.
            Some(index) => self.greet(index),
            None => self.agree(link),
        }
    }

    /// Opens the session of a link, if both ends have said their numbers.
    fn agree(&mut self, link: LinkId) {
        let Ok(tunnel) = &self.tunnel else { return };
        let (keys, underlay, now) = (&self.keys, &mut self.underlay, Instant::now());
        let record_len = |remote: SocketAddr| {
            usize::try_from(underlay.largest(remote.ip())).unwrap_or(usize::MAX) + OVERHEAD
        };
        let export = |context: &[u8]| keys.export(link, context);
        if let Some((settings, secret)) = self.links.agree(link, tunnel.queues, (record_len, now), export) {
            if self.sessions.contains(settings.index) {
                tunnel.engine.close_session(settings.index);
            }
            tunnel.engine.open_session(settings, &secret[..], now);
            self.sessions.open(settings.index, (settings.peer, Some(link)), settings.remote, now);
            self.look();
        } else {
            self.settle();
        }
    }

    /// Where this end takes records by UDP: nowhere is 0.
    const fn port(&self) -> u16 {
        if self.settings.by_udp { PORT } else { 0 }
    }

    /// Greets the other end of a session by every way that there is.
    fn greet(&self, index: u32) {
        let (Ok(tunnel), Some(session)) = (&self.tunnel, self.sessions.get(index)) else { return };
        let greeting = Word { kind: Kind::Greeting, hasty: false, nonce: 0, len: 0 }.to_bytes();
        let udp = (session.remote.port() != 0).then_some(Carrier::Udp);
        let quic = self.quic_to(session.peer).cloned().map(Carrier::Quic);
        for carrier in udp.into_iter().chain(quic) {
            // Lost or refused, the next one will do.
            let _sent = tunnel.engine.probe(index, &carrier, &greeting, OVERHEAD + WORD_LEN);
        }
        self.greet_distant(index, session.peer, &greeting);
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Probe { peer, session, from, content, .. } => {
                self.on_word(peer, session, from, &content);
            }
            Event::Roamed { peer, to } => {
                tracing::info!(%peer, %to, "A peer's sealed records come from another address");
            }
            Event::QuicLargest { .. } => self.settle(),
            Event::QuicLost { link, why } => self.on_quic_lost(&link, &why),
            Event::DeviceLost => self.on_device_lost(),
        }
    }

    /// Looks at what changes without a word: epochs, sessions that are heard or silent, the underlay's MTU.
    fn look(&mut self) {
        let now = Instant::now();
        self.looked = now;
        self.look_for_traffic(now);
        self.tell_counted(now);
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
        self.offer(now);
        self.attend_quic(now);
        self.approach(now);
        if now >= self.underlay_looked + UNDERLAY_LOOK {
            self.underlay_looked = now;
            self.underlay.look_again();
        }
        self.settle();
    }

    fn look_for_traffic(&mut self, now: Instant) {
        let engine = self.tunnel.as_ref().ok().map(|tunnel| &tunnel.engine);
        let counts =
            |index| Some(Counts { sealed: engine?.sealed(index)?, relayed: engine?.relayed(index)? });
        let sessions = self.sessions.all().filter_map(|(index, peer)| Some((index, peer, counts(index)?)));
        let Seen { sent, relayed } = self.traffic.look(sessions, !self.table.vteps.is_empty(), now);
        self.on_traffic(sent);
        if !relayed.is_empty() {
            self.tell(Report::Relayed(relayed));
        }
    }

    fn on_traffic(&self, peers: Vec<PeerName>) {
        if !peers.is_empty() {
            self.tell(Report::Traffic(peers));
        }
    }

    /// The device is gone, and with it the engine. Nothing leaks meanwhile: the routes that led to it are gone, too.
    fn on_device_lost(&mut self) {
        tracing::warn!(device = names::TUN, "the device of the sealed tunnels has vanished: making it anew");
        self.sessions.clear();
        self.beside.clear();
        self.given.clear();
        self.far.start_again(Instant::now());
        // The old one first: it holds the port.
        self.tunnel = Err("the device has vanished".to_owned());
        self.tunnel = Tunnel::start(&self.settings);
        if let Err(why) = &self.tunnel {
            tracing::error!(why, "sealed tunnels are off");
        }
        let now = Instant::now();
        for link in self.links.ids() {
            self.links.draw(link, &self.sessions, now);
            self.agree(link);
        }
        self.offer(now);
        self.attend_quic(now);
        self.settle();
    }

    fn tell_counted(&mut self, now: Instant) {
        let Some(engine) = self.tunnel.as_ref().ok().map(|tunnel| &tunnel.engine) else { return };
        if !self.teller.is_due(now) {
            return;
        }
        let of = |peer| {
            let (session, _) = self.sessions.to(peer)?;
            let (sealed_records, opened_records) = (engine.sealed(session)?, engine.received(session)?);
            Some((peer, SessionStatus { sealed_records, opened_records }))
        };
        let sessions = self.sessions.peers().into_iter().filter_map(of).collect();
        let counted = Counted { tunnels: counted::named(&engine.counters()), sessions };
        if let Some(news) = self.teller.news(counted, now) {
            self.tell(Report::Counted(Box::new(news)));
        }
    }
}
