//! The simulated network and the peers on it.

mod run;
mod ways;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weave_ipam::{Answer, Mode, Request, RequestError, RequestId};
use weave_overlay::{Method, ProbeAnswer};
use weave_proto::codec::Framer;
use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::{Features, Hello};
use weave_proto::{Cidr, Nickname, PeerKey, PeerName, PeerUid};
use weave_router::{Config, Distant, NodeView, Router};
use weave_topology::{DialId, LinkId, Reason, Target};

use crate::Disk;

/// How long a dead link goes unnoticed: what the real transport promises.
pub const DEATH_NOTICED: Duration = Duration::from_secs(3);

/// A peer's place in the world, kept over restarts.
pub type Place = usize;

/// Something that can happen.
#[derive(Debug, Clone)]
pub enum Step {
    /// A container on this peer wants an address.
    Allocate(Place, String),
    /// A container on this peer is gone.
    Free(Place, String),
    /// Power is cut between two outputs: after this many more of them.
    CrashAfter(Place, usize),
    /// The peer starts, with what its disk holds.
    Start(Place),
    /// The disk is lost; the next start is a new peer's.
    Wipe(Place),
    /// Peers of different groups no longer hear each other.
    Partition(Vec<BTreeSet<Place>>),
    /// Everybody hears everybody again.
    Heal,
    /// Every data plane tells its router that it has everything to reach every peer.
    Equip,
    /// Every data plane tells its router that pods send packets to all peers.
    Talk,
    /// What the first place sends to the second one by this method is lost.
    Cut(Place, Place, Method),
    /// It arrives again.
    Mend(Place, Place, Method),
    /// On the first peer, an operator removes the second one for good.
    Remove(Place, Place),
    /// Nothing happens for a while.
    Wait(Duration),
}

enum Event {
    /// A dial has come to the other end, or to nothing.
    Dialled { from: Place, incarnation: u64, dial: DialId, to: SocketAddr },
    /// Bytes have arrived.
    Bytes { link: u64, to: Place, bytes: Vec<u8> },
    /// A probe has come back.
    Answered { at: Place, incarnation: u64, answer: ProbeAnswer },
    /// An end notices that its link is dead.
    Dead { link: u64, at: Place, reason: Reason },
}

/// A link between two places; each end has its own id for it.
struct Link {
    ends: [(Place, LinkId); 2],
    alive: bool,
}

/// One machine: its disk always, its agent while it runs.
pub struct Machine {
    /// Where it is.
    pub addr: SocketAddr,
    /// What it keeps.
    pub disk: Disk,
    /// The mode and the targets it is started with.
    pub mode: Mode,
    /// Whom it dials.
    pub targets: Vec<Target>,
    key: PeerKey,
    agent: Option<Agent>,
    wiped: u8,
}

struct Agent {
    router: Router,
    hello: Option<Hello>,
    links: BTreeMap<LinkId, (u64, Framer)>,
    waiting: BTreeMap<RequestId, AttachmentKey>,
    fuse: Option<usize>,
    view: Option<NodeView>,
    /// Who is within reach, but without a link.
    distant: Vec<Distant>,
    /// What other data planes have said to this one.
    told: Vec<(PeerName, Vec<u8>)>,
}

/// What the peers of a world have cost each other so far.
#[derive(Debug, Clone, Default)]
pub struct Effort {
    /// Messages and their bytes, by kind.
    pub sent: BTreeMap<&'static str, (u64, u64)>,
    /// Attempts to reach somebody.
    pub dials: u64,
    /// Transactions.
    pub commits: u64,
}

/// Everything there is. Every step is followed by [`crate::invariants::check`].
pub struct World {
    /// What time it is.
    pub now: Instant,
    range: Cidr,
    machines: Vec<Machine>,
    links: BTreeMap<u64, Link>,
    events: BTreeMap<(Instant, u64), Event>,
    groups: Option<Vec<BTreeSet<Place>>>,
    /// What every data plane can do.
    pub features: Features,
    /// From where to where which method carries nothing.
    cut: BTreeSet<(Place, Place, Method)>,
    /// When the last bytes that an end has sent on a link arrive.
    in_flight: BTreeMap<(u64, Place), Instant>,
    counter: u64,
    rng: StdRng,
    /// What has been sent and done so far.
    pub effort: Effort,
    /// Answers that callers got, in order.
    pub answers: VecDeque<(Place, AttachmentKey, Result<Answer, RequestError>)>,
}

impl World {
    /// A world without machines.
    #[must_use]
    pub fn new(range: Cidr, seed: u64) -> Self {
        Self {
            now: Instant::now(),
            range,
            machines: Vec::new(),
            links: BTreeMap::new(),
            events: BTreeMap::new(),
            groups: None,
            features: Features::FASTDP,
            cut: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            counter: 0,
            effort: Effort::default(),
            rng: StdRng::seed_from_u64(seed),
            answers: VecDeque::new(),
        }
    }

    /// `count` machines that all founders know of, each dialling the first one only.
    #[must_use]
    pub fn of(count: usize, founders: u16, seed: u64) -> Self {
        let range = Cidr::new(Ipv4Addr::new(10, 32, 0, 0).into(), 22).unwrap_or_else(|_| unreachable!());
        let mut world = Self::new(range, seed);
        for place in 0..count {
            let targets = if place == 0 { Vec::new() } else { vec![target(0)] };
            world.add(Mode::Consensus { founders: NonZeroU16::new(founders) }, targets);
        }
        world
    }

    /// One more machine, not started.
    pub fn add(&mut self, mode: Mode, targets: Vec<Target>) -> Place {
        let place = self.machines.len();
        self.machines.push(Machine {
            addr: addr(place),
            disk: Disk::default(),
            mode,
            targets,
            key: key(place, 0),
            agent: None,
            wiped: 0,
        });
        place
    }

    /// From its next start on, a machine dials these.
    pub fn retarget(&mut self, place: Place, targets: Vec<Target>) {
        self.machines[place].targets = targets;
    }

    /// What is at a place.
    #[must_use]
    pub fn machine(&self, place: Place) -> &Machine {
        &self.machines[place]
    }

    /// The range that is shared out.
    #[must_use]
    pub const fn range(&self) -> Cidr {
        self.range
    }

    /// Every place.
    pub fn places(&self) -> std::ops::Range<Place> {
        0..self.machines.len()
    }

    /// The router at a place, if its agent runs.
    #[must_use]
    pub fn router(&self, place: Place) -> Option<&Router> {
        self.machines[place].agent.as_ref().map(|agent| &agent.router)
    }

    /// Whether two places hear each other.
    #[must_use]
    pub fn hear(&self, a: Place, b: Place) -> bool {
        self.groups
            .as_ref()
            .is_none_or(|groups| groups.iter().any(|group| group.contains(&a) && group.contains(&b)))
    }

    /// Makes something happen.
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Allocate(at, container) => {
                self.request(at, container, |key| Request::Allocate { key, port: None });
            }
            Step::Free(at, container) => {
                self.request(at, container, |key| Request::Free { key, generation: None });
            }
            Step::CrashAfter(at, outputs) => {
                if let Some(agent) = &mut self.machines[at].agent {
                    agent.fuse = Some(outputs);
                }
                if outputs == 0 {
                    self.crash(at);
                }
            }
            Step::Start(at) => self.start(at),
            Step::Wipe(at) => self.wipe(at),
            Step::Partition(groups) => {
                self.groups = Some(groups);
                self.cut_links("no answer for 3 s");
            }
            Step::Heal => self.groups = None,
            Step::Equip => self.equip(),
            Step::Talk => self.talk(),
            Step::Cut(from, to, method) => {
                self.cut.insert((from, to, method));
            }
            Step::Mend(from, to, method) => {
                self.cut.remove(&(from, to, method));
            }
            Step::Remove(at, peer) => {
                let peer = name(&self.machines[peer].key);
                self.request(at, format!("rm-{peer}"), |_| Request::RemovePeer { peer, force: false });
            }
            Step::Wait(time) => self.run_until(self.now + time),
        }
        crate::invariants::check(self);
    }

    fn request(&mut self, at: Place, container: String, make: impl FnOnce(AttachmentKey) -> Request) {
        self.counter += 1;
        let id = RequestId(self.counter);
        let key = AttachmentKey { container, interface: "eth0".to_owned() };
        let now = self.now;
        let Some(agent) = &mut self.machines[at].agent else { return };
        agent.waiting.insert(id, key.clone());
        agent.router.handle_request(id, make(key), now);
        self.perform(at);
    }

    fn start(&mut self, at: Place) {
        let (range, now, seed) = (self.range, self.now, self.rng.random());
        let machine = &mut self.machines[at];
        if machine.agent.is_some() {
            return;
        }
        machine.disk.starts += 1;
        let me = name(&machine.key);
        let targets = machine.disk.targets.clone().unwrap_or_else(|| machine.targets.clone());
        let founders = match machine.mode {
            Mode::Consensus { founders } => founders.map(NonZeroU16::get),
            Mode::Seed(_) | Mode::Decided(_) | Mode::Observer => None,
        };
        let config = Config {
            topology: weave_topology::Config {
                name: me,
                key: machine.key,
                name_of: name,
                uid: PeerUid(machine.disk.starts),
                nickname: Nickname::lossy(&format!("node{at}")),
                features: self.features,
                targets: targets.clone(),
                discovery: true,
                conn_limit: None,
                port: PORT,
                range: Some(range),
                founders,
                known: machine.disk.known(),
            },
            ipam: weave_ipam::Config {
                me,
                universe: range,
                mode: machine.mode.clone(),
                alone: targets.is_empty(),
            },
            restored: machine.disk.restored(),
            encryption: weave_overlay::Encryption::default(),
            ways: machine.disk.ways(),
        };
        let router =
            Router::new(config, seed, now).unwrap_or_else(|error| panic!("node{at} starts: {error}"));
        machine.agent = Some(Agent {
            router,
            hello: None,
            links: BTreeMap::new(),
            waiting: BTreeMap::new(),
            fuse: None,
            view: None,
            distant: Vec::new(),
            told: Vec::new(),
        });
        self.perform(at);
    }

    fn crash(&mut self, at: Place) {
        self.machines[at].agent = None;
        self.cut_links("no answer for 3 s");
    }

    fn wipe(&mut self, at: Place) {
        self.crash(at);
        let machine = &mut self.machines[at];
        machine.wiped += 1;
        machine.key = key(at, machine.wiped);
        machine.disk = Disk::default();
    }

    /// Links whose ends cannot hear each other, or of which an end is gone, are dead; the other end notices in time.
    fn cut_links(&mut self, why: &str) {
        let dead: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| {
                let [(a, a_id), (b, b_id)] = link.ends;
                let up = |place: Place, id| {
                    self.machines[place].agent.as_ref().is_some_and(|agent| agent.links.contains_key(&id))
                };
                link.alive && !(self.hear(a, b) && up(a, a_id) && up(b, b_id))
            })
            .map(|(&id, _)| id)
            .collect();
        for id in dead {
            self.kill_link(id, &Reason::from(why), DEATH_NOTICED);
        }
    }

    fn kill_link(&mut self, id: u64, reason: &Reason, noticed_after: Duration) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.alive = false;
        let ends = link.ends;
        for (at, _) in ends {
            self.schedule(noticed_after, Event::Dead { link: id, at, reason: reason.clone() });
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.counter += 1;
        self.events.insert((self.now + after, self.counter), event);
    }
}

/// The port that everybody listens on.
const PORT: u16 = 6783;

fn addr(place: Place) -> SocketAddr {
    let last = u8::try_from(place + 1).unwrap_or(u8::MAX);
    (Ipv4Addr::new(192, 0, 2, last), PORT).into()
}

fn target(place: Place) -> Target {
    addr(place).to_string().parse().unwrap_or_else(|_| unreachable!("an address is a target"))
}

/// A key that is nobody else's: by place, and by how often the disk was lost.
fn key(place: Place, wiped: u8) -> PeerKey {
    let mut bytes = [0; 32];
    bytes[0] = 0x02;
    bytes[4] = wiped;
    bytes[5] = u8::try_from(place + 1).unwrap_or(u8::MAX);
    PeerKey(bytes)
}

fn name(key: &PeerKey) -> PeerName {
    PeerName::from_digest(&key.0)
}
