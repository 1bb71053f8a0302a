//! One link's life.
//!
//! ```text
//!   connecting ---- TLS fails, no answer ----------------------------------> failed
//!       | mutual TLS done
//!   greeting  ----- refused, garbage, no hello within HELLO_TIMEOUT --------> failed
//!       | both hellos read, key and name agree, a version is common
//!      up  ---- LinkUp, then messages both ways ---- closed by either side --> down
//! ```
//!
//! The whole life is one future, run as one task of the group in [`super`]: reading and writing take turns in
//! it, so that the events of one link come in order and its end is one place. It may be cancelled at any
//! `await`: the connection is closed by its drop, and nothing outside depends on what the task would have done
//! next.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, ReadError, RecvStream, SendStream, VarInt, WriteError};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};
use weave_proto::PeerKey;
use weave_proto::codec::{self, Framer};
use weave_proto::peer::{Hello, Message, Refusal, RefusalCode, WireVersion};
use weave_topology::{LinkId, Reason};

use super::outbox::Outbox;
use super::reason::{closed_here, explain, printable, refused};
use super::{PeerEvent, tls};
use crate::identity;

/// From the first packet to both hellos. A healthy peer needs a few round trips; QUIC itself gives up after 3 s
/// of silence; this bounds a peer that keeps the connection alive and says nothing.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a refusal may take to arrive before the connection is closed anyway. The closing packet carries the
/// same text; the frame is the more reliable of the two.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait for the other side's closing packet after it ended its stream.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The most taken from the stream at once, and so the most that is kept before a frame's header is judged.
const READ_SIZE: usize = 16 * 1024;

/// What the secrets of the data plane are exported under (RFC 8446 section 7.5).
pub(super) const EXPORT_LABEL: &[u8] = b"EXPORTER-weave-sleeve";

/// What is waiting for one link: shared by the brain's side and the link's task.
#[derive(Debug)]
pub(super) struct Mailbox {
    outbox: Mutex<Outbox>,
    more: Notify,
    ending: Mutex<Option<Refusal>>,
    end: Notify,
    certificate: CertificateDer<'static>,
    connection: Connection,
}

impl Mailbox {
    fn new(certificate: CertificateDer<'static>, connection: Connection) -> Self {
        Self {
            outbox: Mutex::default(),
            more: Notify::new(),
            ending: Mutex::default(),
            end: Notify::new(),
            certificate,
            connection,
        }
    }

    /// Has `message` sent, as soon as the other side reads.
    pub(super) fn send(&self, message: Message) {
        lock(&self.outbox).push(message);
        self.more.notify_one();
    }

    /// Has the link closed. The first reason given is the one that is told.
    pub(super) fn close(&self, refusal: Refusal) {
        lock(&self.ending).get_or_insert(refusal);
        self.end.notify_one();
    }

    /// What the peer showed to be let in.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    #[cfg(test)]
    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A secret that only the two ends of this connection know, another one for each context.
    pub(super) fn export(&self, context: &[u8]) -> Option<[u8; 32]> {
        let mut secret = [0; 32];
        self.connection.export_keying_material(&mut secret, EXPORT_LABEL, context).ok()?;
        Some(secret)
    }

    async fn closed(&self) -> Refusal {
        loop {
            if let Some(refusal) = lock(&self.ending).clone() {
                return refusal;
            }
            self.end.notified().await;
        }
    }
}

/// A connection on which both sides know whom they talk to.
pub(super) struct Greeted {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    framer: Framer,
    version: WireVersion,
    /// The key that the other side has proven to hold.
    pub(super) key: PeerKey,
    /// What it said.
    pub(super) hello: Hello,
    /// The nonce that we said.
    pub(super) nonce: u64,
    pub(super) mailbox: Arc<Mailbox>,
}

/// How a conversation ends.
enum Ending {
    /// It has ended already.
    Lost(Reason),
    /// We end it and say why.
    Refuse(Refusal),
}

/// Exchanges the hellos on a new connection.
pub(super) async fn greet(
    connection: &Connection,
    dialled: bool,
    hello: &watch::Receiver<Hello>,
) -> Result<Greeted, Reason> {
    let lost = |error| explain(&error, false);
    let (mut send, mut recv) =
        if dialled { connection.open_bi().await } else { connection.accept_bi().await }.map_err(lost)?;
    let nonce = u64::from_ne_bytes(super::endpoint::chance());
    let own = Hello { nonce, ..hello.borrow().clone() };
    let frame = codec::encode(&Message::Hello(own.clone()), own.highest)
        .map_err(|error| Reason::from(format!("cannot introduce this peer: {error}")))?;
    send.write_all(&frame).await.map_err(|error| explain_write(connection, &error, false))?;

    let mut framer = Framer::new();
    let checked = match read(connection, &mut recv, &mut framer, false).await {
        Ok(message) => check(connection, message, &own),
        Err(ending) => Err(ending),
    };
    match checked {
        Ok((certificate, key, theirs, version)) => {
            framer.speak(version);
            Ok(Greeted {
                connection: connection.clone(),
                send,
                recv,
                framer,
                version,
                key,
                hello: theirs,
                nonce: own.nonce,
                mailbox: Arc::new(Mailbox::new(certificate, connection.clone())),
            })
        }
        Err(Ending::Lost(reason)) => {
            connection.close(VarInt::from_u32(0), b"");
            Err(reason)
        }
        Err(Ending::Refuse(refusal)) => {
            farewell(connection, &mut send, &refusal).await;
            Err(closed_here(&refusal))
        }
    }
}

impl Greeted {
    /// Talks until the end, and says why it came.
    pub(super) async fn talk(mut self, link: LinkId, events: &mpsc::Sender<PeerEvent>) -> Reason {
        let mut in_frame = false;
        let mailbox = Arc::clone(&self.mailbox);
        let ending = tokio::select! {
            ending = listen(&self.connection, &mut self.recv, &mut self.framer, (link, events)) => ending,
            ending = speak(&self.connection, &mut self.send, self.version, (&mailbox, &mut in_frame)) => ending,
            refusal = mailbox.closed() => Ending::Refuse(refusal),
        };
        let (skipped, dropped) = (self.framer.skipped(), lock(&mailbox.outbox).dropped());
        if skipped > 0 || dropped > 0 {
            tracing::debug!(skipped, dropped, "messages of unknown kinds skipped, requests dropped");
        }
        match ending {
            Ending::Lost(reason) => {
                self.connection.close(VarInt::from_u32(0), b"");
                reason
            }
            Ending::Refuse(refusal) if in_frame => {
                close(&self.connection, &refusal);
                closed_here(&refusal)
            }
            Ending::Refuse(refusal) => {
                farewell(&self.connection, &mut self.send, &refusal).await;
                closed_here(&refusal)
            }
        }
    }
}

/// The other side's address, as people write it.
pub(super) fn address(connection: &Connection) -> SocketAddr {
    super::endpoint::canonical(connection.remote_address())
}

type Introduction = (CertificateDer<'static>, PeerKey, Hello, WireVersion);

/// Whether the first message introduces the peer that the certificate belongs to.
fn check(connection: &Connection, message: Message, own: &Hello) -> Result<Introduction, Ending> {
    if let Message::Refusal(refusal) = &message {
        return Err(Ending::Lost(refused(refusal)));
    }
    let kind = codec::Kind::of(&message);
    let Message::Hello(theirs) = message else {
        return Err(garbage(&format!("{} before hello", kind.name())));
    };
    let Some((certificate, key)) = certificate_of(connection) else {
        return Err(garbage("a certificate without an Ed25519 key"));
    };
    let name = identity::name_of(&key);
    if name != theirs.name {
        return Err(garbage(&format!("a hello from {} under the key of {name}", theirs.name)));
    }
    match codec::negotiate(own.spoken(), theirs.spoken()) {
        Some(version) => Ok((certificate, key, theirs, version)),
        None => Err(Ending::Refuse(Refusal {
            code: RefusalCode::Version,
            text: format!(
                "no common wire version: {} speaks {} to {}, {} speaks {} to {}; upgrade the older one, one \
                 version at a time",
                own.nickname, own.lowest.0, own.highest.0, theirs.nickname, theirs.lowest.0, theirs.highest.0,
            ),
        })),
    }
}

fn certificate_of(connection: &Connection) -> Option<(CertificateDer<'static>, PeerKey)> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let certificate = chain.into_iter().next()?;
    let key = tls::key_of(&certificate)?;
    Some((certificate, key))
}

/// Passes on what comes in. Waits for the brain when it is busy; then QUIC's flow control holds the other side.
async fn listen(
    connection: &Connection,
    recv: &mut RecvStream,
    framer: &mut Framer,
    (link, events): (LinkId, &mpsc::Sender<PeerEvent>),
) -> Ending {
    loop {
        let message = match read(connection, recv, framer, true).await {
            Ok(Message::Refusal(refusal)) => return Ending::Lost(refused(&refusal)),
            Ok(Message::Hello(_)) => return garbage("a second hello"),
            Ok(message) => message,
            Err(ending) => return ending,
        };
        if events.send(PeerEvent::Message { link, message }).await.is_err() {
            return Ending::Refuse(Refusal { code: RefusalCode::Goodbye, text: String::new() });
        }
    }
}

/// Says what is in the mailbox, and waits for more.
async fn speak(
    connection: &Connection,
    send: &mut SendStream,
    version: WireVersion,
    (mailbox, in_frame): (&Mailbox, &mut bool),
) -> Ending {
    loop {
        let next = lock(&mailbox.outbox).pop();
        let Some(message) = next else {
            mailbox.more.notified().await;
            continue;
        };
        let frame = match codec::encode(&message, version) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%error, "a message could not be sent");
                continue;
            }
        };
        *in_frame = true;
        if let Err(error) = send.write_all(&frame).await {
            return Ending::Lost(explain_write(connection, &error, true));
        }
        *in_frame = false;
    }
}

/// The next message.
async fn read(
    connection: &Connection,
    recv: &mut RecvStream,
    framer: &mut Framer,
    established: bool,
) -> Result<Message, Ending> {
    loop {
        match framer.poll() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => {}
            Err(error) => return Err(garbage(&error.to_string())),
        }
        match recv.read_chunk(READ_SIZE, true).await {
            Ok(Some(chunk)) => framer.feed(&chunk.bytes),
            Err(ReadError::ConnectionLost(error)) => return Err(Ending::Lost(explain(&error, established))),
            Ok(None) | Err(_) => return Err(Ending::Lost(await_close(connection, established).await)),
        }
    }
}

/// The other side has ended its stream: its reason is on the way.
async fn await_close(connection: &Connection, established: bool) -> Reason {
    match tokio::time::timeout(CLOSE_TIMEOUT, connection.closed()).await {
        Ok(error) => explain(&error, established),
        Err(_) => Reason::from("the other side stopped talking without saying why"),
    }
}

fn explain_write(connection: &Connection, error: &WriteError, established: bool) -> Reason {
    match (error, connection.close_reason()) {
        (WriteError::ConnectionLost(error), _) => explain(error, established),
        (_, Some(error)) => explain(&error, established),
        (_, None) => Reason::from("the other side stopped listening without saying why"),
    }
}

fn garbage(what: &str) -> Ending {
    let text = format!("this peer sent something that cannot be read: {}", printable(what));
    Ending::Refuse(Refusal { code: RefusalCode::Garbage, text })
}

/// Says why, and closes once that has arrived.
async fn farewell(connection: &Connection, send: &mut SendStream, refusal: &Refusal) {
    if let Ok(frame) = codec::encode(&Message::Refusal(refusal.clone()), weave_proto::peer::SPOKEN.1) {
        let said = async {
            if send.write_all(&frame).await.is_ok() && send.finish().is_ok() {
                // Resolves when all has been acknowledged. If it fails, the connection is gone already.
                let _ = send.stopped().await;
            }
        };
        // When time runs out, the closing packet has to do.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, said).await;
    }
    close(connection, refusal);
}

fn close(connection: &Connection, refusal: &Refusal) {
    connection.close(VarInt::from_u32(u32::from(refusal.code)), refusal.text.as_bytes());
}

/// The lock's content, also after a panic elsewhere: everything under these locks is whole at any moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
