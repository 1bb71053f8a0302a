//! TLS with a peer that no link leads to, in flights that others carry.
//!
//! ```text
//!   lower name (dialler)                                   higher name
//!   begin: ClientHello ───────────────────────────────────> answer, take
//!   take   <─────────────────── ServerHello … Finished ───── give
//!   give: Certificate … Finished, own offer ──────────────> take: all is proven
//!   take: all is proven <────────────────────── own offer ── give
//! ```
//!
//! The same TLS as on a link: the same certificates and verifier, both ends show theirs, the same exporter. Only the
//! transport is another, and so the ALPN, lest a flight of the one could be taken for one of the other. Those who carry
//! the flights are what a network is to TLS: they may drop, delay and repeat, and can neither read what comes after the
//! hellos nor change anything unnoticed.
//!
//! [`Handshake`] is a machine without I/O: bytes in by [`Handshake::take`], bytes out by [`Handshake::give`].

use std::io::{Read as _, Write as _};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, Connection, ServerConnection};
use tokio::sync::watch;
use weave_proto::PeerKey;
use weave_proto::codec::{self, Framer};
use weave_proto::peer::{Message, Offer, WireVersion};

use super::link::EXPORT_LABEL;
use super::tls::{self, MESH_ALPN, SERVER_NAME, Trust};

/// The layout of what is said inside: part of the ALPN's name.
const VERSION: WireVersion = WireVersion(1);

/// Why a handshake came to nothing, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HandshakeError(String);

impl HandshakeError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }

    /// What an error of TLS means: each end may be the one that finds out that the secrets differ.
    fn tls(error: &rustls::Error) -> Self {
        use rustls::{AlertDescription as Alert, Error};
        const OF_CERTIFICATES: [Alert; 5] = [
            Alert::UnknownCA,
            Alert::BadCertificate,
            Alert::CertificateUnknown,
            Alert::DecryptError,
            Alert::AccessDenied,
        ];
        let ours = matches!(error, Error::InvalidCertificate(_));
        let theirs = matches!(error, Error::AlertReceived(alert) if OF_CERTIFICATES.contains(alert));
        Self(match (ours, theirs) {
            (true, _) => {
                "it holds another cluster secret: its certificate does not come from one of ours; put \
                          the same secret on both nodes"
                    .to_owned()
            }
            (_, true) => "it holds another cluster secret: it does not accept our certificate; put the same \
                          secret on both nodes"
                .to_owned(),
            (false, false) => format!("TLS through the mesh failed: {error}"),
        })
    }

    /// Somebody who holds the secret speaks in the name of another.
    pub(crate) fn other_key() -> Self {
        Self("who answers in its name holds another key".to_owned())
    }
}

/// What it takes to prove oneself to peers without a link, and to have them prove themselves.
#[derive(Clone)]
pub struct MeshTrust {
    trust: watch::Receiver<Trust>,
}

/// What a peer has proven itself by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof(CertificateDer<'static>);

/// One handshake. See the module's docs.
pub struct Handshake {
    tls: Connection,
    own: Offer,
    said: bool,
    framer: Framer,
}

/// What has come out of one: who is at the other end, by proof, and what it offers.
pub struct Met {
    /// The key that the other end holds.
    pub key: PeerKey,
    /// How it takes records.
    pub offer: Offer,
    /// To be held against the secrets again when they change.
    pub proof: Proof,
    tls: Connection,
}

impl MeshTrust {
    pub(super) const fn new(trust: watch::Receiver<Trust>) -> Self {
        Self { trust }
    }

    /// A handshake that this end begins: the first flight can be had from [`Handshake::give`].
    ///
    /// # Errors
    /// TLS refuses.
    pub fn begin(&self, own: Offer) -> Result<Handshake, HandshakeError> {
        let name = ServerName::try_from(SERVER_NAME).map_err(HandshakeError::of)?;
        let config = self.trust.borrow().mesh_client.clone();
        let tls = ClientConnection::new(config, name).map_err(HandshakeError::of)?;
        Ok(Handshake::new(Connection::Client(tls), own))
    }

    /// A handshake that the other end has begun: to be given its first flight.
    ///
    /// # Errors
    /// TLS refuses.
    pub fn answer(&self, own: Offer) -> Result<Handshake, HandshakeError> {
        let config = self.trust.borrow().mesh_server.clone();
        let tls = ServerConnection::new(config).map_err(HandshakeError::of)?;
        Ok(Handshake::new(Connection::Server(tls), own))
    }

    /// Whether what a peer has proven itself by would be believed now.
    #[must_use]
    pub fn believes(&self, proof: &Proof) -> bool {
        self.trust.borrow().believes(&proof.0)
    }

    /// Waits until the secrets have changed. Never returns when nobody can change them any more. May be cancelled.
    pub async fn changed(&mut self) {
        if self.trust.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Handshake {
    fn new(tls: Connection, own: Offer) -> Self {
        let mut framer = Framer::new();
        framer.speak(VERSION);
        Self { tls, own, said: false, framer }
    }

    /// Takes a flight of the other end. When all is proven and said, what has come out of it.
    ///
    /// # Errors
    /// The flight is not what TLS expects, or not from somebody who holds a secret. There may be something to
    /// [`give`](Self::give) nevertheless: it tells the other end why.
    pub fn take(&mut self, flight: &[u8]) -> Result<Option<Offer>, HandshakeError> {
        let mut rest = flight;
        while !rest.is_empty() {
            if self.tls.read_tls(&mut rest).map_err(HandshakeError::of)? == 0 {
                return Err(HandshakeError("the other end has closed".to_owned()));
            }
            let state = self.tls.process_new_packets().map_err(|error| HandshakeError::tls(&error))?;
            let mut said = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut said).map_err(HandshakeError::of)?;
            self.framer.feed(&said);
        }
        if self.tls.is_handshaking() {
            return Ok(None);
        }
        if self.tls.alpn_protocol() != Some(MESH_ALPN) {
            return Err(HandshakeError("the other end speaks something else".to_owned()));
        }
        self.say()?;
        match self.framer.poll().map_err(HandshakeError::of)? {
            None => Ok(None),
            Some(Message::Offer(offer)) => Ok(Some(offer)),
            Some(_) => Err(HandshakeError("the other end says what has no place here".to_owned())),
        }
    }

    /// Says the own offer, once there is somebody who may hear it.
    fn say(&mut self) -> Result<(), HandshakeError> {
        if !std::mem::replace(&mut self.said, true) {
            let frame =
                codec::encode(&Message::Offer(self.own.clone()), VERSION).map_err(HandshakeError::of)?;
            self.tls.writer().write_all(&frame).map_err(HandshakeError::of)?;
        }
        Ok(())
    }

    /// What is to be sent to the other end now; empty if nothing.
    #[must_use]
    pub fn give(&mut self) -> Vec<u8> {
        let mut flight = Vec::new();
        // A vector takes everything.
        while self.tls.wants_write() && self.tls.write_tls(&mut flight).is_ok_and(|written| written > 0) {}
        flight
    }

    /// The own offer of this handshake.
    #[must_use]
    pub const fn own(&self) -> &Offer {
        &self.own
    }

    /// Ends it, after [`take`](Self::take) has had the other's offer. None if the other end has shown no key of a peer.
    #[must_use]
    pub fn meet(self, offer: Offer) -> Option<Met> {
        let certificate = self.tls.peer_certificates()?.first()?.clone().into_owned();
        let key = tls::key_of(&certificate)?;
        Some(Met { key, offer, proof: Proof(certificate), tls: self.tls })
    }
}

impl Met {
    /// A secret that only the two ends know, another one for each context.
    #[must_use]
    pub fn export(&self, context: &[u8]) -> Option<[u8; 32]> {
        self.tls.export_keying_material([0; 32], EXPORT_LABEL, Some(context)).ok()
    }
}

/// Secrets that a test changes, without a network.
#[cfg(test)]
pub struct MeshSecrets(watch::Sender<Trust>);

#[cfg(test)]
impl MeshSecrets {
    /// Secrets, and what follows them.
    pub fn new(secrets: &super::Secrets, identity: &crate::identity::Identity) -> (Self, MeshTrust) {
        let secrets = Self(watch::Sender::new(Trust::new(secrets, identity).unwrap()));
        let trust = secrets.trust();
        (secrets, trust)
    }

    /// One more that follows them.
    pub fn trust(&self) -> MeshTrust {
        MeshTrust::new(self.0.subscribe())
    }

    /// Changes them.
    pub fn change(&self, secrets: &super::Secrets, identity: &crate::identity::Identity) {
        self.0.send_replace(Trust::new(secrets, identity).unwrap());
    }
}

#[cfg(test)]
mod tests;
