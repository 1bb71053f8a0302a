//! A second QUIC connection beside a link, for pods' packets.
//!
//! It goes between the same two sockets with the same certificates, and nothing is said on it: who carries packets is
//! handed the connection and uses its datagrams. Why it is not the link itself, docs/adr/0007 says.
//!
//! Whoever dials it marks it by the first bytes of the connection id that it makes up for its first packet. So the
//! listener knows before TLS does, and offers this connection other limits. The mark is a hint: TLS settles by ALPN what
//! the connection is, and refuses one that does not keep its word.
//!
//! The link's owner is the connection's owner too: it dials it ([`super::DataDoor`]) to a peer that it has a
//! link with, and closes it when the link goes.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{Connection, ConnectionId, Incoming, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use weave_proto::{PeerKey, PeerName};
use weave_topology::Reason;

use super::endpoint;
use super::reason::explain;
use super::tls::{self, SERVER_NAME, Trust};
use crate::identity;

/// What the made-up connection id of such a connection begins with. By chance one in 2^64 of the others does too, and
/// then TLS refuses it and it is dialled anew.
const MARK: [u8; 8] = *b"pod data";

/// Random bytes behind the mark: eight at least must be unpredictable (RFC 9000 section 7.2).
const CHANCE: usize = 12;

/// How such connections are shaped, and who is told of them.
#[derive(Clone, Debug)]
pub struct Data {
    /// Sets the limits; times of silence are those of a link.
    pub tune: fn(&mut TransportConfig),
    /// The longest UDP payload that this peer takes.
    pub max_udp_payload: u16,
    /// Where they go. Unbounded: one peer has few, and strangers none.
    pub events: mpsc::UnboundedSender<DataEvent>,
}

/// What became of a data connection.
#[derive(Debug)]
pub enum DataEvent {
    /// It is there; it ends when this and all its clones are dropped.
    Up {
        /// Who is at the other end.
        peer: PeerName,
        /// Whether this peer dialled it.
        dialled: bool,
        /// The connection.
        connection: Connection,
    },
    /// It could not be had.
    Failed {
        /// With whom.
        peer: PeerName,
        /// Why.
        reason: Reason,
    },
}

/// Whether an attempt says that it is for data.
pub(super) fn is_marked(incoming: &Incoming) -> bool {
    incoming.orig_dst_cid().starts_with(&MARK)
}

/// Lets a marked attempt in, if it is what it says and a peer's. Who is not hears why from TLS.
pub(super) async fn answer(incoming: Incoming, data: Data, trust: Trust) {
    let mut config = endpoint::listening(trust.data_server);
    config.transport_config(transport(&data));
    let addr = endpoint::canonical(incoming.remote_address());
    let connection = match incoming.accept_with(Arc::new(config)) {
        Ok(connecting) => connecting.await,
        Err(error) => Err(error),
    };
    match connection {
        Ok(connection) => {
            if let Some(key) = key_of(&connection) {
                up(&data, identity::name_of(&key), false, connection);
            }
        }
        Err(error) => tracing::debug!(%addr, %error, "a data connection from there came to nothing"),
    }
}

/// Dials `addr`, where the peer with this key is to be.
pub(super) async fn dial(
    dialler: quinn::Endpoint,
    (addr, key): (SocketAddr, PeerKey),
    data: Data,
    trust: Trust,
) {
    let peer = identity::name_of(&key);
    match connect(&dialler, addr, &data, trust).await {
        Ok(connection) if key_of(&connection) == Some(key) => up(&data, peer, true, connection),
        Ok(connection) => {
            connection.close(VarInt::from_u32(0), b"another peer was expected at this address");
            failed(&data, peer, Reason::from(format!("another peer answers at {addr}")));
        }
        Err(reason) => failed(&data, peer, reason),
    }
}

async fn connect(
    dialler: &quinn::Endpoint,
    addr: SocketAddr,
    data: &Data,
    trust: Trust,
) -> Result<Connection, Reason> {
    let mut config = endpoint::dialling(trust.data_client);
    config.transport_config(transport(data)).initial_dst_cid_provider(Arc::new(marked));
    let local = dialler.local_addr().map_err(|error| Reason::from(error.to_string()))?;
    let addr = endpoint::dialable(local, addr).map_err(Reason::from)?;
    let connecting = dialler.connect_with(config, addr, SERVER_NAME);
    let connecting = connecting.map_err(|error| Reason::from(error.to_string()))?;
    connecting.await.map_err(|error| explain(&error, false))
}

fn transport(data: &Data) -> Arc<TransportConfig> {
    let mut config = endpoint::transport();
    (data.tune)(&mut config);
    Arc::new(config)
}

fn marked() -> ConnectionId {
    let mut bytes = [0; MARK.len() + CHANCE];
    let (mark, chance) = bytes.split_at_mut(MARK.len());
    mark.copy_from_slice(&MARK);
    chance.copy_from_slice(&endpoint::chance::<CHANCE>());
    ConnectionId::new(&bytes)
}

fn key_of(connection: &Connection) -> Option<PeerKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::key_of(chain.first()?)
}

fn up(data: &Data, peer: PeerName, dialled: bool, connection: Connection) {
    // Fails only when nobody carries packets any more; the connection then closes by being dropped.
    let _ = data.events.send(DataEvent::Up { peer, dialled, connection });
}

fn failed(data: &Data, peer: PeerName, reason: Reason) {
    let _ = data.events.send(DataEvent::Failed { peer, reason });
}
