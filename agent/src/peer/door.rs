//! The door: every connection comes in or goes out here, and every link's task belongs to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use quinn::{Connecting, Connection, ConnectionError, Incoming};
use tokio::sync::mpsc;
use weave_proto::PeerKey;
use weave_topology::{DialId, Direction, LinkId, LinkUp, Reason};

use super::admission::{Admission, Verdict};
use super::link::{self, Greeted, HELLO_TIMEOUT, lock};
use super::reason::explain;
use super::tls::{SERVER_NAME, Trust};
use super::{PeerEvent, Shared, data, endpoint};
use crate::task::Group;

/// What the door is asked to do.
pub(super) enum Command {
    /// Try to connect.
    Dial(DialId, SocketAddr),
    /// Try to make a data connection.
    Data(SocketAddr, PeerKey),
    /// Use another trust from here on.
    Trust(Box<Trust>),
    /// Let nobody in, and end when all links have.
    Stop,
}

pub(super) struct Door {
    endpoint: quinn::Endpoint,
    shared: Arc<Shared>,
    trust: Trust,
    commands: mpsc::UnboundedReceiver<Command>,
    admission: Admission,
    handshakes: Arc<AtomicUsize>,
    links: Arc<AtomicU64>,
    tasks: Group<()>,
}

impl Door {
    pub(super) fn new(
        endpoint: quinn::Endpoint,
        shared: Arc<Shared>,
        trust: Trust,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            endpoint,
            shared,
            trust,
            commands,
            admission: Admission::default(),
            handshakes: Arc::default(),
            links: Arc::default(),
            tasks: Group::new("peer link"),
        }
    }

    /// Serves until told to stop, then until the last link has ended.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.on_incoming(incoming),
                    None => break,
                },
                command = self.commands.recv() => match command {
                    Some(Command::Dial(dial, addr)) => self.on_dial(dial, addr),
                    Some(Command::Data(addr, key)) => self.on_data(addr, key),
                    Some(Command::Trust(trust)) => self.trust = *trust,
                    Some(Command::Stop) | None => break,
                },
                Some(()) = self.tasks.next() => {}
            }
        }
        while self.tasks.next().await.is_some() {}
    }

    fn on_incoming(&mut self, incoming: Incoming) {
        let source = incoming.remote_address().ip().to_canonical();
        let under_way = self.handshakes.load(Ordering::Relaxed);
        let validated = incoming.remote_address_validated();
        match self.admission.judge(source, validated, under_way, Instant::now()) {
            Verdict::Admit => {
                let data = self.shared.data.clone().filter(|_| data::is_marked(&incoming));
                match data {
                    Some(data) => {
                        let (under_way, trust) = (UnderWay::new(&self.handshakes), self.trust.clone());
                        self.tasks.spawn(async move {
                            data::answer(incoming, data, trust).await;
                            drop(under_way);
                        });
                    }
                    None => {
                        let attempt = self.attempt(None);
                        self.tasks.spawn(attempt.answer(incoming));
                    }
                }
            }
            // A second Retry is not allowed; whoever is here with a token has proven its address.
            Verdict::Retry => {
                let _ = incoming.retry().map_err(|error| error.into_incoming().ignore());
            }
            Verdict::Ignore => incoming.ignore(),
        }
    }

    fn on_dial(&mut self, dial: DialId, addr: SocketAddr) {
        let config = endpoint::client_config(&self.trust);
        let connecting = self
            .endpoint
            .local_addr()
            .map_err(|error| error.to_string())
            .and_then(|local| endpoint::dialable(local, addr))
            .and_then(|addr| {
                self.endpoint.connect_with(config, addr, SERVER_NAME).map_err(|error| error.to_string())
            });
        let attempt = self.attempt(Some(dial));
        self.tasks.spawn(attempt.dial(connecting));
    }

    fn on_data(&mut self, addr: SocketAddr, key: PeerKey) {
        if let Some(data) = self.shared.data.clone() {
            let (dialler, trust) = (self.endpoint.clone(), self.trust.clone());
            self.tasks.spawn(data::dial(dialler, (addr, key), data, trust));
        }
    }

    fn attempt(&self, dial: Option<DialId>) -> Attempt {
        Attempt {
            shared: Arc::clone(&self.shared),
            links: Arc::clone(&self.links),
            dial,
            _under_way: dial.is_none().then(|| UnderWay::new(&self.handshakes)),
        }
    }
}

/// Counts a stranger's handshake for as long as it lives.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection on its way to become a link.
struct Attempt {
    shared: Arc<Shared>,
    links: Arc<AtomicU64>,
    dial: Option<DialId>,
    _under_way: Option<UnderWay>,
}

impl Attempt {
    async fn answer(self, incoming: Incoming) {
        let addr = endpoint::canonical(incoming.remote_address());
        let greeted = match incoming.accept() {
            Ok(connecting) => self.greet(connecting).await,
            Err(error) => Err(Failure::Handshake(error)),
        };
        match greeted {
            Ok((connection, greeted)) => self.run(&connection, greeted).await,
            // Scanners and forged packets leave attempts that never speak again. That is no event.
            Err(Failure::Handshake(ConnectionError::TimedOut)) => {
                tracing::debug!(%addr, "an inbound attempt fell silent");
            }
            Err(failure) => self.tell(PeerEvent::Refused { addr, reason: failure.into_reason() }).await,
        }
    }

    async fn dial(self, connecting: Result<Connecting, String>) {
        let Some(dial) = self.dial else { return };
        let greeted = match connecting {
            Ok(connecting) => self.greet(connecting).await.map_err(Failure::into_reason),
            Err(text) => Err(Reason::from(text)),
        };
        match greeted {
            Ok((connection, greeted)) => self.run(&connection, greeted).await,
            Err(reason) => self.tell(PeerEvent::DialFailed { dial, reason }).await,
        }
    }

    async fn greet(&self, connecting: Connecting) -> Result<(Connection, Greeted), Failure> {
        let exchange = async {
            let connection = connecting.await.map_err(Failure::Handshake)?;
            let greeted = link::greet(&connection, self.dial.is_some(), &self.shared.hello).await;
            Ok((connection, greeted.map_err(Failure::Greeting)?))
        };
        match tokio::time::timeout(HELLO_TIMEOUT, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Greeting(Reason::from(
                "the other side holds the cluster secret but did not introduce itself within 10 seconds",
            ))),
        }
    }

    /// The link's life from up to down.
    async fn run(self, connection: &Connection, greeted: Greeted) {
        let link = LinkId(self.links.fetch_add(1, Ordering::Relaxed));
        let direction = if self.dial.is_some() { Direction::Outbound } else { Direction::Inbound };
        let Self { shared, dial, _under_way: under_way, .. } = self;
        drop(under_way);
        let up = LinkUp {
            link,
            dial,
            direction,
            addr: link::address(connection),
            key: greeted.key,
            hello: greeted.hello.clone(),
            nonce: greeted.nonce,
        };
        // In the map before the event: whoever hears of the link may use it.
        lock(&shared.links).insert(link, Arc::clone(&greeted.mailbox));
        let entry = Entry { links: &shared.links, link };
        if shared.events.send(PeerEvent::LinkUp(Box::new(up))).await.is_err() {
            return;
        }
        let reason = greeted.talk(link, &shared.events).await;
        drop(entry);
        let _ = shared.events.send(PeerEvent::LinkDown { link, reason }).await;
    }

    async fn tell(&self, event: PeerEvent) {
        // Fails only when nobody listens any more.
        let _ = self.shared.events.send(event).await;
    }
}

/// A link's place in the map, given up however its task ends.
struct Entry<'a> {
    links: &'a std::sync::Mutex<BTreeMap<LinkId, Arc<link::Mailbox>>>,
    link: LinkId,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(self.links).remove(&self.link);
    }
}

/// Where an attempt failed.
enum Failure {
    Handshake(ConnectionError),
    Greeting(Reason),
}

impl Failure {
    fn into_reason(self) -> Reason {
        match self {
            Self::Handshake(error) => explain(&error, false),
            Self::Greeting(reason) => reason,
        }
    }
}
