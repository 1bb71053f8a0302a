//! Peers to talk to, and rude ones.

use super::*;

/// A peer with a test's hands on all its ends.
pub(super) struct Peer {
    pub(super) net: PeerNet,
    pub(super) identity: Identity,
    pub(super) hello: watch::Sender<Hello>,
    pub(super) events: mpsc::Receiver<PeerEvent>,
}

impl Peer {
    pub(super) async fn start(text: &str) -> Self {
        Self::listening(text, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).await
    }

    pub(super) async fn listening(text: &str, listen: SocketAddr) -> Self {
        Self::again(Identity::generate(PeerUid(1)).unwrap(), text, listen).await
    }

    pub(super) async fn again(identity: Identity, text: &str, listen: SocketAddr) -> Self {
        Self::with(identity, text, Settings { listen, data: None }).await
    }

    pub(super) async fn with(identity: Identity, text: &str, settings: Settings) -> Self {
        let (hello, said) = watch::channel(hello_of(&identity));
        let (heard, events) = mpsc::channel(8);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (said, heard) = (said.clone(), heard.clone());
            match PeerNet::bind(settings.clone(), identity.clone(), secrets(text), said, heard).await {
                Ok(net) => return Self { net, identity, hello, events },
                // The socket of a dropped endpoint lives until its driver has noticed.
                Err(BindError::Socket { .. }) if Instant::now() < deadline => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.net.local_addr().unwrap()
    }

    pub(super) async fn event(&mut self) -> PeerEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("a running peer")
    }

    pub(super) async fn link_up(&mut self) -> LinkUp {
        let event = self.event().await;
        let PeerEvent::LinkUp(up) = event else { panic!("expected a link, got {event:?}") };
        *up
    }

    pub(super) async fn link_ups(&mut self, count: usize) -> usize {
        for _ in 0..count {
            self.link_up().await;
        }
        count
    }

    pub(super) async fn link_down(&mut self) -> Reason {
        let event = self.event().await;
        let PeerEvent::LinkDown { reason, .. } = event else {
            panic!("expected a link's end, got {event:?}")
        };
        reason
    }

    pub(super) async fn link_down_of(&mut self, which: LinkId) -> Reason {
        loop {
            let event = self.event().await;
            let PeerEvent::LinkDown { link, reason } = event else {
                panic!("expected a link's end, got {event:?}")
            };
            if link == which {
                return reason;
            }
        }
    }

    pub(super) async fn message(&mut self) -> Message {
        let event = self.event().await;
        let PeerEvent::Message { message, .. } = event else { panic!("expected a message, got {event:?}") };
        message
    }

    pub(super) async fn dial_failed(&mut self) -> Reason {
        let event = self.event().await;
        let PeerEvent::DialFailed { reason, .. } = event else { panic!("expected a failure, got {event:?}") };
        reason
    }

    pub(super) async fn refused(&mut self) -> Reason {
        let event = self.event().await;
        let PeerEvent::Refused { reason, .. } = event else { panic!("expected a refusal, got {event:?}") };
        reason
    }
}

pub(super) async fn linked(a: &mut Peer, b: &mut Peer) -> (LinkId, LinkId) {
    a.net.dial(DialId(1), b.addr());
    (a.link_up().await.link, b.link_up().await.link)
}

/// A member who does not keep to the protocol.
pub(super) struct Rude {
    pub(super) identity: Identity,
    pub(super) connection: quinn::Connection,
    pub(super) send: quinn::SendStream,
    pub(super) _recv: quinn::RecvStream,
    pub(super) _endpoint: quinn::Endpoint,
}

impl Rude {
    pub(super) async fn connect(to: &Peer, text: &str) -> Self {
        let identity = Identity::generate(PeerUid(1)).unwrap();
        let trust = grow(secrets(text), identity.clone()).await.unwrap();
        let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let socket = endpoint::socket(listen).unwrap();
        let endpoint = endpoint::open(socket, &trust, &identity, None).unwrap();
        let connecting = endpoint.connect_with(endpoint::client_config(&trust), to.addr(), tls::SERVER_NAME);
        let connection = connecting.unwrap().await.unwrap();
        let (send, recv) = connection.open_bi().await.unwrap();
        Self { identity, connection, send, _recv: recv, _endpoint: endpoint }
    }

    pub(super) fn hello(&self) -> Message {
        Message::Hello(hello_of(&self.identity))
    }

    pub(super) async fn say(&mut self, message: &Message) {
        self.send.write_all(&codec::encode(message, SPOKEN.1).unwrap()).await.unwrap();
    }

    pub(super) async fn closed_with(&self) -> u32 {
        let error = timeout(PATIENCE, self.connection.closed()).await.expect("closed in time");
        let quinn::ConnectionError::ApplicationClosed(close) = error else { panic!("closed by {error:?}") };
        u32::try_from(VarInt::into_inner(close.error_code)).unwrap()
    }
}

pub(super) fn secrets(text: &str) -> Secrets {
    Secrets::from_lines(text, "a test").unwrap()
}

pub(super) fn hello_of(identity: &Identity) -> Hello {
    Hello {
        lowest: SPOKEN.0,
        highest: SPOKEN.1,
        name: identity.name(),
        uid: identity.uid(),
        instance: 1,
        nickname: Nickname::lossy("a-host"),
        nonce: 0,
        range: None,
        universe: None,
        founders: None,
        features: Features::default(),
    }
}

pub(super) fn digest(ipam: u64) -> Digest {
    let version = RecordVersion(1);
    let name = PeerName::from_bits([2, 0, 0, 0, 0, 9]);
    Digest { records: vec![RecordDigest { name, uid: PeerUid(1), version }], ipam }
}

/// A record of the size that one has in a mesh of a few dozen.
pub(super) fn record(peer: u8, version: u64) -> PeerRecord {
    let link = |other: u8| weave_proto::peer::LinkRecord {
        peer: PeerName::from_bits([2, 0, 0, 0, 1, other]),
        addr: SocketAddr::new(Ipv4Addr::new(10, 0, 0, other).into(), 6783),
        outbound: true,
    };
    PeerRecord {
        name: PeerName::from_bits([2, 0, 0, 0, 0, peer]),
        key: PeerKey([peer; 32]),
        uid: PeerUid(1),
        version: RecordVersion(version),
        nickname: Nickname::lossy("a-host"),
        overlay: None,
        free: 0,
        features: Features::default(),
        links: (0..40).map(link).collect(),
    }
}
