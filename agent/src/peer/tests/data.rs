//! Data connections beside links.

use bytes::Bytes;

use super::*;

struct DataPeer {
    peer: Peer,
    data: mpsc::UnboundedReceiver<DataEvent>,
}

impl DataPeer {
    async fn start(text: &str) -> Self {
        let (events, data) = mpsc::unbounded_channel();
        let tune: fn(&mut quinn::TransportConfig) = |config| {
            config.datagram_receive_buffer_size(Some(100_000));
        };
        let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let settings = Settings { listen, data: Some(Data { tune, max_udp_payload: 8972, events }) };
        let identity = Identity::generate(PeerUid(1)).unwrap();
        Self { peer: Peer::with(identity, text, settings).await, data }
    }

    async fn event(&mut self) -> DataEvent {
        timeout(PATIENCE, self.data.recv()).await.expect("an event in time").expect("a running peer")
    }

    async fn up(&mut self) -> (PeerName, bool, quinn::Connection) {
        match self.event().await {
            DataEvent::Up { peer, dialled, connection } => (peer, dialled, connection),
            DataEvent::Failed { reason, .. } => panic!("{reason}"),
        }
    }

    async fn failed(&mut self) -> Reason {
        match self.event().await {
            DataEvent::Failed { reason, .. } => reason,
            DataEvent::Up { peer, .. } => panic!("a connection with {peer}"),
        }
    }
}

#[tokio::test]
async fn a_data_connection_says_who_is_at_its_ends_and_takes_datagrams() {
    let (mut a, mut b) = (DataPeer::start("secret").await, DataPeer::start("secret").await);

    a.peer.net.data_door().open(b.peer.addr(), b.peer.identity.key());
    let ((at_a, a_dialled, a_end), (at_b, b_dialled, b_end)) = (a.up().await, b.up().await);

    assert_eq!((at_a, at_b), (b.peer.identity.name(), a.peer.identity.name()));
    assert!(a_dialled && !b_dialled);
    for (from, to) in [(&a_end, &b_end), (&b_end, &a_end)] {
        from.send_datagram(Bytes::from_static(b"a packet")).unwrap();
        assert_eq!(timeout(PATIENCE, to.read_datagram()).await.unwrap().unwrap(), b"a packet".as_slice());
    }
}

#[tokio::test]
async fn links_are_made_beside_data_connections() {
    let (mut a, mut b) = (DataPeer::start("secret").await, DataPeer::start("secret").await);

    a.peer.net.data_door().open(b.peer.addr(), b.peer.identity.key());
    linked(&mut a.peer, &mut b.peer).await;

    a.up().await;
    b.up().await;
}

#[tokio::test]
async fn another_peer_than_the_expected_one_gets_no_packets() {
    let (mut a, b) = (DataPeer::start("secret").await, DataPeer::start("secret").await);
    let somebody = Identity::generate(PeerUid(1)).unwrap();

    a.peer.net.data_door().open(b.peer.addr(), somebody.key());

    let reason = a.failed().await;
    assert!(reason.text.contains("another peer answers at"), "{reason}");
}

#[tokio::test]
async fn a_stranger_gets_no_data_connection() {
    let (mut a, mut b) = (DataPeer::start("secret one").await, DataPeer::start("secret two").await);

    a.peer.net.data_door().open(b.peer.addr(), b.peer.identity.key());

    let reason = a.failed().await;
    assert!(reason.text.contains("another cluster secret"), "{reason}");
    assert!(b.data.try_recv().is_err());
}

#[tokio::test]
async fn a_peer_that_carries_no_packets_refuses_and_keeps_its_links() {
    let (mut a, mut b) = (DataPeer::start("secret").await, Peer::start("secret").await);
    linked(&mut a.peer, &mut b).await;

    a.peer.net.data_door().open(b.addr(), b.identity.key());

    a.failed().await;
    b.refused().await;
    linked(&mut a.peer, &mut b).await;
}
