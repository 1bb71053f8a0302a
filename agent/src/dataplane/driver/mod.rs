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
mod probes;
mod sessions;
mod telling;
mod tunnel;
mod word;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weave_overlay::{ForwardingTable, Method, Probe, ProbeAnswer, WayNews};
use weave_proto::PeerName;
use weave_proto::peer::Offer;
use weave_sleeve::header::OVERHEAD;
use weave_topology::LinkId;

pub use self::ends::SEALED_MORE;
use self::ends::{Links, UNDERLAY_LOOK};
use self::prober::{Heard, Prober};
use self::sessions::Sessions;
pub use self::tunnel::Tunnel;
use self::word::{Kind, WORD_LEN, Word};
use super::sleeve::{Carrier, CountersSnapshot, Event, Peer};
use crate::net::names;
use crate::peer::LinkKeys;

/// How often epochs and the silence of sessions are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often a new session greets the other end until it is heard.
const GREETING: Duration = Duration::from_millis(200);

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

    /// What the engine has counted; nothing without one.
    #[must_use]
    pub fn counters(&self) -> CountersSnapshot {
        self.tunnel.as_ref().map(|tunnel| tunnel.engine.counters()).unwrap_or_default()
    }
}
