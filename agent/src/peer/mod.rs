//! Links to other peers: QUIC on one UDP socket, mutual TLS from the cluster secret, one control stream each.
//!
//! This room acts and decides nothing about the mesh: it dials where it is told, lets in who holds the secret,
//! checks that a peer's name belongs to its key, and turns bytes into messages. Whether a peer is welcome is for
//! the topology to say.
//!
//! ```text
//!   brain --dial, send, close--> PeerNet --commands--> door --spawns--> link, link, link …
//!   brain <------------------------ PeerEvent (bounded) ---------------------'
//! ```
//!
//! quinn's own tasks send through [`gather`], by fewer calls.
//!
//! Beside the links there are handshakes with peers that no link leads to ([`handshake`]): TLS without a socket.
//!
//! Two promises make the events easy to use: every [`PeerNet::dial`] is answered by exactly one
//! [`PeerEvent::LinkUp`] with that dial's id or one [`PeerEvent::DialFailed`]; and every `LinkUp` is followed,
//! after any number of messages, by exactly one [`PeerEvent::LinkDown`], also when the link was closed from here.
//!
//! **Tasks.** `peer door` accepts and dials; it owns a group `peer link` of one task a connection
//! ([`link`] has a link's life). Both may be cancelled at any `await`: QUIC connections close by being dropped,
//! and the promises above end with the [`PeerNet`] that made them. `secret file`, owned by whoever asked for it,
//! looks at a file now and then; cancelled in the middle of a change, it has changed nothing or all.

mod admission;
mod data;
mod door;
mod endpoint;
mod gather;
mod handshake;
mod link;
mod outbox;
mod reason;
mod secret;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use weave_proto::PeerKey;
use weave_proto::peer::{Hello, Message, Refusal, RefusalCode};
use weave_topology::{DialId, LinkId, LinkUp, Reason};

use crate::identity::Identity;
use crate::task::{self, Task};
pub use data::{Data, DataEvent};
use door::{Command, Door};
pub(crate) use endpoint::chance;
#[cfg(test)]
pub use handshake::MeshSecrets;
pub use handshake::{Handshake, HandshakeError, MeshTrust, Met, Proof};
use link::{Mailbox, lock};
pub use secret::{SecretError, Secrets};
use tls::Trust;
pub use tls::TrustError;

/// The port on which weave has always listened.
pub const DEFAULT_PORT: u16 = 6783;

/// How often a watched secret file is looked at. It is read and compared: that sees every way of changing a file,
/// also Kubernetes' exchange of a symbolic link two folders up, and costs nothing.
pub const SECRETS_INTERVAL: Duration = Duration::from_secs(2);

/// Why a link ends whose secret was taken back.
pub const SECRET_WITHDRAWN: &str = "the cluster secret that this link was made with is no longer valid";

/// How long each half of [`PeerNet::shutdown`] may take: the words, and the closing packets.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// What happened on the network.
#[derive(Debug, Clone)]
pub enum PeerEvent {
    /// A link is there.
    LinkUp(Box<LinkUp>),
    /// A link is gone.
    LinkDown {
        /// The link.
        link: LinkId,
        /// Why.
        reason: Reason,
    },
    /// An attempt to dial came to nothing.
    DialFailed {
        /// The attempt.
        dial: DialId,
        /// Why.
        reason: Reason,
    },
    /// Somebody who dialled this peer was not let in.
    Refused {
        /// Where it came from.
        addr: SocketAddr,
        /// Why.
        reason: Reason,
    },
    /// A peer said something.
    Message {
        /// On which link.
        link: LinkId,
        /// What.
        message: Message,
    },
}

/// What this room is told at the start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen, and where to dial from. `[::]` stands for every address of both families.
    pub listen: SocketAddr,
    /// Who takes connections for pods' packets; without, none are made or let in.
    pub data: Option<Data>,
}

/// Why there is no [`PeerNet`].
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be opened.
    #[error(
        "cannot listen on UDP {listen}: {error}; is another agent running? --port and --host choose another place"
    )]
    Socket {
        /// Where.
        listen: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The work in the background was cut off.
    #[error("the runtime is stopping")]
    Stopping,
}

/// What all parts of this room share.
#[derive(Debug)]
struct Shared {
    links: Mutex<BTreeMap<LinkId, Arc<Mailbox>>>,
    hello: watch::Receiver<Hello>,
    events: mpsc::Sender<PeerEvent>,
    data: Option<Data>,
}

/// What the data plane may take from links: secrets, never what is said on them.
#[derive(Debug, Clone)]
pub struct LinkKeys {
    shared: Arc<Shared>,
}

impl LinkKeys {
    /// A secret that only the two ends of a link know, another one for each context; none if the link is gone.
    #[must_use]
    pub fn export(&self, link: LinkId, context: &[u8]) -> Option<[u8; 32]> {
        lock(&self.shared.links).get(&link)?.export(context)
    }
}

/// Makes connections for pods' packets.
#[derive(Debug, Clone)]
pub struct DataDoor {
    commands: mpsc::UnboundedSender<Command>,
}

impl DataDoor {
    /// Tries to make one with the peer of this key, which has a link at `addr`. Answered by one [`DataEvent`]; nothing
    /// happens if nobody takes such connections.
    pub fn open(&self, addr: SocketAddr, key: PeerKey) {
        // Fails only when the door has been shut, and then there is nothing left to do.
        let _ = self.commands.send(Command::Data(addr, key));
    }
}

/// All links of this peer. Dropping it cuts them; [`shutdown`](Self::shutdown) says goodbye first.
pub struct PeerNet {
    hands: Hands,
    door: Task,
}

/// What it takes to give orders.
#[derive(Clone)]
struct Hands {
    shared: Arc<Shared>,
    identity: Identity,
    endpoint: quinn::Endpoint,
    commands: mpsc::UnboundedSender<Command>,
    trust: Arc<watch::Sender<Trust>>,
}

impl PeerNet {
    /// Opens the socket and starts to listen. `hello` is what this peer says about itself on each new
    /// connection, except for the nonce, which is drawn anew for each. Warns of secrets that are no protection.
    /// Takes about 50 ms a secret.
    ///
    /// # Errors
    /// The socket cannot be opened, or the secrets cannot be used.
    pub async fn bind(
        settings: Settings,
        identity: Identity,
        secrets: Secrets,
        hello: watch::Receiver<Hello>,
        events: mpsc::Sender<PeerEvent>,
    ) -> Result<Self, BindError> {
        let Settings { listen, data } = settings;
        let unusable = |error| BindError::Socket { listen, error };
        // First, so that a taken port is told of at once.
        let socket = endpoint::socket(listen).map_err(unusable)?;
        let trust = grow(secrets, identity.clone()).await?;
        let max_udp_payload = data.as_ref().map(|data| data.max_udp_payload);
        let endpoint = endpoint::open(socket, &trust, &identity, max_udp_payload).map_err(unusable)?;
        let shared = Arc::new(Shared { links: Mutex::default(), hello, events, data });
        // Unbounded, but not without bounds: the topology keeps one attempt a target and waits for its outcome.
        let (commands, inbox) = mpsc::unbounded_channel();
        let door = Door::new(endpoint.clone(), Arc::clone(&shared), trust.clone(), inbox);
        let trust = Arc::new(watch::Sender::new(trust));
        let hands = Hands { shared, identity, endpoint, commands, trust };
        Ok(Self { hands, door: task::spawn("peer door", door.run()) })
    }

    /// Where this peer listens; tells the port when it was left to the system.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.hands.endpoint.local_addr()
    }

    /// The secrets of the links.
    #[must_use]
    pub fn keys(&self) -> LinkKeys {
        LinkKeys { shared: Arc::clone(&self.hands.shared) }
    }

    /// What it takes to agree on keys with peers without a link, as the secrets change.
    #[must_use]
    pub fn mesh_trust(&self) -> MeshTrust {
        MeshTrust::new(self.hands.trust.subscribe())
    }

    /// Tries to connect to `addr`.
    pub fn dial(&self, dial: DialId, addr: SocketAddr) {
        self.hands.command(Command::Dial(dial, addr));
    }

    /// Where connections for pods' packets are made.
    #[must_use]
    pub fn data_door(&self) -> DataDoor {
        DataDoor { commands: self.hands.commands.clone() }
    }

    /// Says `message` on a link. Never waits: what the other side has not read yet is replaced by what is newer.
    /// Nothing happens if the link is gone.
    pub fn send(&self, link: LinkId, message: Message) {
        if let Some(mailbox) = lock(&self.hands.shared.links).get(&link) {
            mailbox.send(message);
        }
    }

    /// Closes a link and tells the other side why. Nothing happens if the link is gone.
    pub fn close(&self, link: LinkId, refusal: Refusal) {
        if let Some(mailbox) = lock(&self.hands.shared.links).get(&link) {
            mailbox.close(refusal);
        }
    }

    /// From here on, uses other secrets. Links to peers whose certificate none of them believes are closed; such
    /// a peer comes back as soon as it signs with one that is.
    ///
    /// # Errors
    /// The secrets cannot be used; nothing has changed then.
    pub async fn set_secrets(&self, secrets: Secrets) -> Result<(), BindError> {
        self.hands.set_secrets(secrets).await
    }

    /// Follows the file that the secrets in use came from, until the task is dropped: what is in it is used
    /// within [`SECRETS_INTERVAL`]. A file that holds no secret or cannot be read changes nothing and is warned
    /// of.
    pub fn watch_secrets(&self, path: PathBuf, in_use: Secrets) -> Task {
        task::spawn("secret file", self.hands.clone().follow(path, in_use))
    }

    /// Says goodbye on all links and closes the socket. No more events come after it. Takes a moment, at most
    /// two seconds.
    pub async fn shutdown(self) {
        let goodbye = Refusal { code: RefusalCode::Goodbye, text: reason::STOPPING.to_owned() };
        let Hands { shared, endpoint, .. } = &self.hands;
        endpoint.set_server_config(None);
        for mailbox in lock(&shared.links).values() {
            mailbox.close(goodbye.clone());
        }
        self.hands.command(Command::Stop);
        // Whoever has not been told when time is up notices from the closing packet, or from the silence.
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.door.finished()).await;
        endpoint.close(u32::from(goodbye.code).into(), goodbye.text.as_bytes());
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, endpoint.wait_idle()).await;
    }
}

impl Hands {
    fn command(&self, command: Command) {
        // Fails only when the door has been shut, and then there is nothing left to do.
        let _ = self.commands.send(command);
    }

    async fn set_secrets(&self, secrets: Secrets) -> Result<(), BindError> {
        let trust = grow(secrets, self.identity.clone()).await?;
        let withdrawn = Refusal { code: RefusalCode::Goodbye, text: SECRET_WITHDRAWN.to_owned() };
        self.endpoint.set_server_config(Some(endpoint::server_config(&trust)));
        for mailbox in lock(&self.shared.links).values() {
            if !trust.believes(mailbox.certificate()) {
                mailbox.close(withdrawn.clone());
            }
        }
        self.trust.send_replace(trust.clone());
        self.command(Command::Trust(Box::new(trust)));
        Ok(())
    }

    async fn follow(self, path: PathBuf, mut in_use: Secrets) {
        let mut warned = None;
        loop {
            tokio::time::sleep(SECRETS_INTERVAL).await;
            let changed = match Secrets::from_file(&path) {
                Ok(found) if found == in_use => Ok(()),
                Ok(found) => match self.set_secrets(found.clone()).await {
                    Ok(()) => {
                        tracing::info!(secrets = ?found, "the cluster secret was changed");
                        in_use = found;
                        Ok(())
                    }
                    Err(error) => Err(error.to_string()),
                },
                Err(error) => Err(error.to_string()),
            };
            // Once for each new trouble, not at each look.
            if let Err(error) = &changed
                && warned.as_ref() != Some(error)
            {
                tracing::warn!(error, "the secrets in use stay as they are");
            }
            warned = changed.err();
        }
    }
}

/// Grows the trust on a thread where it holds nobody up.
async fn grow(secrets: Secrets, identity: Identity) -> Result<Trust, BindError> {
    for warning in secrets.warnings() {
        tracing::warn!("{warning}");
    }
    match tokio::task::spawn_blocking(move || Trust::new(&secrets, &identity)).await {
        Ok(trust) => Ok(trust?),
        Err(_) => Err(BindError::Stopping),
    }
}

#[cfg(test)]
mod tests;
