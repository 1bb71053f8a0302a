//! The QUIC endpoint: one UDP socket for dialling and listening, and the constants that shape every connection.
//!
//! One socket for both means that a peer is seen by others at the port it listens on, so the address that a
//! listener sees is one that anybody may dial.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::admission::MAX_HANDSHAKES;
use super::gather;
use super::tls::Trust;
use crate::identity::Identity;
use aws_lc_rs::hmac;
use quinn::{AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, IdleTimeout, TransportConfig, VarInt};

/// How long nothing is sent before a probe is. Together with [`SILENCE`] it bounds how late a dead link is
/// noticed: QUIC's idle clock starts again at the first packet sent after the last one received, so the worst
/// case is a link that dies just after a packet came in: one keep-alive interval, then the silence, 2.9 s in
/// all, which leaves 100 ms of the 3 s for a busy machine. In that silence QUIC repeats the probe after about
/// 30, 90, 200, 450, 900 and 1,800 ms on a local network, so that six lost packets in a row are not yet a dead
/// link.
///
/// One side's probe also restarts the other's clock: an idle link costs about 1.1 probes and as many
/// acknowledgements a second, 90 bytes. At the limit of 200 links that is 18 kB/s and less than 1 % of a core.
const KEEP_ALIVE: Duration = Duration::from_millis(900);
/// How long a link may stay silent after a probe before it is dead. See [`KEEP_ALIVE`].
const SILENCE: Duration = Duration::from_millis(2000);

/// What one link may hold in flight, either way. Gossip is small; the ring of a thousand peers is 2 MB and takes
/// eight round trips with this. Two hundred links that are all stuck hold 100 MB at worst, and next to nothing
/// as long as peers read.
const WINDOW: u32 = 256 * 1024;

/// What an attempt may send before it is accepted. A client's first flight is one or two packets.
const INCOMING_BUFFER: u64 = 16 * 1024;
/// The same for all attempts together.
const INCOMING_BUFFER_TOTAL: u64 = 1024 * 1024;

/// Bytes that may wait in the socket, as the kernel counts them: what pods' packets bring in some milliseconds while the
/// reader has no processor. What does not fit is lost, be it theirs or gossip, and the system's 208 KiB are soon full.
const SOCKET_BUFFER: usize = 16 << 20;

/// Bytes of a connection id. Eight random ones cannot be guessed by somebody who does not see the packets.
const CONNECTION_ID_LEN: usize = 8;

/// Makes an endpoint of a [`socket`].
pub(super) fn open(
    socket: std::net::UdpSocket,
    trust: &Trust,
    identity: &Identity,
    max_udp_payload: Option<u16>,
) -> std::io::Result<quinn::Endpoint> {
    // A peer that was killed and is back has forgotten its connections, but it still knows this key, so it can
    // answer a packet of one of them with a stateless reset that the other side believes: the other side dials
    // again at once instead of waiting for silence.
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &identity.derived("quic stateless reset"));
    let mut config = quinn::EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(|| Box::new(RandomIds));
    if let Some(max) = max_udp_payload {
        config.max_udp_payload_size(max).map_err(std::io::Error::other)?;
    }
    let (runtime, socket) = gather::over(socket)?;
    quinn::Endpoint::new_with_abstract_socket(config, Some(server_config(trust)), socket, runtime)
}

/// How to listen with this trust.
pub(super) fn server_config(trust: &Trust) -> quinn::ServerConfig {
    listening(Arc::clone(&trust.server))
}

/// How to listen with these certificates.
pub(super) fn listening(server: Arc<quinn::crypto::rustls::QuicServerConfig>) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(server);
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0);
    config
        .transport_config(Arc::new(link_transport()))
        .validation_token_config(tokens)
        // An address that changes under a link would leave the topology with one that leads nowhere. Such a link
        // dies and is dialled anew.
        .migration(false)
        .max_incoming(MAX_HANDSHAKES)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    config
}

/// How to dial with this trust.
pub(super) fn client_config(trust: &Trust) -> quinn::ClientConfig {
    dialling(Arc::clone(&trust.client))
}

/// How to dial with these certificates.
pub(super) fn dialling(client: Arc<quinn::crypto::rustls::QuicClientConfig>) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(client);
    config.transport_config(Arc::new(link_transport())).token_store(Arc::new(quinn::NoneTokenStore));
    config
}

/// The address to give to the socket in order to reach `addr`, or why it cannot.
pub(super) fn dialable(local: SocketAddr, addr: SocketAddr) -> Result<SocketAddr, String> {
    match (local, addr.ip()) {
        (SocketAddr::V6(_), IpAddr::V4(v4)) => Ok(SocketAddr::new(v4.to_ipv6_mapped().into(), addr.port())),
        (SocketAddr::V4(_), IpAddr::V6(_)) => Err(format!(
            "{addr} is an IPv6 address, but this agent uses IPv4 alone (it listens on {local}): start it with \
             --host :: to use both"
        )),
        _ => Ok(addr),
    }
}

/// The address as people write it: IPv4 in its own form, also when it came through an IPv6 socket.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// Opens the socket. `[::]` means every address of either family, whatever the system's `bindv6only` says; where the kernel has no
/// IPv6 at all, it means every IPv4 address.
pub(super) fn socket(listen: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

    let everything = listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let family = if listen.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = match socket_with(family, SocketType::DGRAM, flags, None) {
        Err(rustix::io::Errno::AFNOSUPPORT) if everything => {
            return socket(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port()));
        }
        opened => opened?,
    };
    if everything {
        sockopt::set_ipv6_v6only(&fd, false)?;
    }
    // Beyond the system's limit if allowed, else as much as it gives.
    if sockopt::set_socket_recv_buffer_size_force(&fd, SOCKET_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BUFFER)?;
    }
    bind(&fd, &listen)?;
    Ok(std::net::UdpSocket::from(fd))
}

/// What a link has besides: each packet is acknowledged at once. Little is said on it, so there is nothing to gain by
/// waiting for more; and at rest, where a probe would be acknowledged 25 ms later by itself, that is one wake-up less.
fn link_transport() -> TransportConfig {
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(0));
    let mut config = transport();
    config.ack_frequency_config(Some(acknowledgements));
    config
}

/// What every connection has: how silence is noticed, and small windows.
pub(super) fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(silence))))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW));
    config
}

/// Bytes that nobody can foresee.
#[expect(
    clippy::expect_used,
    reason = "the crypto library's generator waits for the system's, it does not fail"
)]
pub(crate) fn chance<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("random numbers");
    bytes
}

/// Connection ids that say nothing. quinn's own carry a mark that is drawn anew at each start, by which packets
/// of an earlier start are told apart and *ignored*; we want them answered with a reset (see [`open`]).
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&chance::<CONNECTION_ID_LEN>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
