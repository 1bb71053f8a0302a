//! From secrets to TLS configurations, and from a certificate to a key.
//!
//! Everything here is the ordinary machinery of rustls: a certificate verifier with a list of roots, on both
//! sides. Two choices make it fit a mesh:
//!
//! * **Any clock will do.** A node without a battery starts in 1970, and a mesh must form before NTP can work.
//!   All certificates are valid from 1970 to 4096. Nothing is lost by it: they are made anew at each start and
//!   what is trusted is decided by the secrets alone.
//! * **No resumption.** A resumed session is not verified again, so it would outlive the secret that let it in;
//!   and a full handshake costs a millisecond between peers that stay connected for months.
//!
//! The server name is `weave` for everybody. Who is at the other end is not a matter of names: the caller takes
//! the Ed25519 key out of the verified certificate with [`key_of`].

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore, crypto::CryptoProvider};
use weave_proto::PeerKey;

use super::secret::Secrets;
use crate::identity::Identity;

/// The name that every certificate carries and every dialler asks for.
pub(super) const SERVER_NAME: &str = "weave";
/// Tells our QUIC from anybody else's on that port. Not a version: that is what the hello is for.
const ALPN: &[u8] = b"weave";
/// A connection for pods' packets beside a link ([`super::data`]).
const DATA_ALPN: &[u8] = b"weave-data";
/// A handshake whose bytes other peers carry ([`super::handshake`]).
pub(super) const MESH_ALPN: &[u8] = b"weave-mesh/1";

/// What comes before the 32 bytes of a raw key in the SubjectPublicKeyInfo of an Ed25519 certificate (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What comes before the 32 bytes of a seed in a PKCS#8 version 1 document (RFC 8410).
const ED25519_PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why there is no TLS configuration. None of these depends on what an operator writes: they mean that the
/// crypto library does not do what it is built for.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The secret could not be stretched.
    #[error("cannot stretch the cluster secret: {0}")]
    Stretch(argon2::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS would not take it.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// All that follows from the secrets: how to dial, how to listen, and whom to believe.
#[derive(Clone)]
pub(super) struct Trust {
    pub(super) client: Arc<QuicClientConfig>,
    pub(super) server: Arc<QuicServerConfig>,
    /// The same for connections that carry pods' packets.
    pub(super) data_client: Arc<QuicClientConfig>,
    pub(super) data_server: Arc<QuicServerConfig>,
    /// The same for handshakes through the mesh.
    pub(super) mesh_client: Arc<rustls::ClientConfig>,
    pub(super) mesh_server: Arc<rustls::ServerConfig>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// Grows the authorities from the secrets and certifies `identity`. Takes about 50 ms a secret.
    pub(super) fn new(secrets: &Secrets, identity: &Identity) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        let mut signer = None;
        for seed in secrets.stretch().map_err(TrustError::Stretch)? {
            let authority = Authority::from_seed(&seed)?;
            roots.add(authority.certificate()?).map_err(tls)?;
            signer.get_or_insert(authority);
        }
        let signer = signer.ok_or_else(|| TrustError::Tls("there is no secret".to_owned()))?;
        Self::with(&Arc::new(roots), &[signer.certify(identity)?], identity)
    }

    fn with(
        roots: &Arc<RootCertStore>,
        chain: &[CertificateDer<'static>],
        identity: &Identity,
    ) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider))
            .build()
            .map_err(tls)?;
        let ends = |provider, alpn| ends(provider, (roots, &verifier), (chain, identity), alpn);
        let (client, server) = ends(Arc::clone(&provider), ALPN)?;
        let (data_client, data_server) = ends(Arc::new(quick_first()), DATA_ALPN)?;
        let (mesh_client, mesh_server) = ends(provider, MESH_ALPN)?;
        Ok(Self {
            mesh_client: Arc::new(mesh_client),
            mesh_server: Arc::new(mesh_server),
            client: Arc::new(QuicClientConfig::try_from(client).map_err(tls)?),
            server: Arc::new(QuicServerConfig::try_from(server).map_err(tls)?),
            data_client: Arc::new(QuicClientConfig::try_from(data_client).map_err(tls)?),
            data_server: Arc::new(QuicServerConfig::try_from(data_server).map_err(tls)?),
            verifier,
        })
    }

    /// Whether a certificate that was once let in would be let in now.
    pub(super) fn believes(&self, certificate: &CertificateDer<'_>) -> bool {
        ServerName::try_from(SERVER_NAME).is_ok_and(|name| {
            self.verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).is_ok()
        })
    }
}

/// How to dial and how to listen with these roots and this certificate.
fn ends(
    provider: Arc<CryptoProvider>,
    (roots, verifier): (&Arc<RootCertStore>, &Arc<WebPkiServerVerifier>),
    (chain, identity): (&[CertificateDer<'static>], &Identity),
    alpn: &[u8],
) -> Result<(rustls::ClientConfig, rustls::ServerConfig), TrustError> {
    let own_key = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8(identity.seed())));

    let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_webpki_verifier(Arc::clone(verifier))
        .with_client_auth_cert(chain.to_vec(), own_key())
        .map_err(tls)?;
    client.alpn_protocols = vec![alpn.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();

    let peers = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider))
        .build()
        .map_err(tls)?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(peers)
        .with_single_cert(chain.to_vec(), own_key())
        .map_err(tls)?;
    server.alpn_protocols = vec![alpn.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((client, server))
}

/// The cipher that costs a pod's packet least comes first: AES-128 takes a tenth less than AES-256, and what it seals
/// are records that are sealed already.
fn quick_first() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// The raw key in a certificate; none if it is no Ed25519 certificate.
pub(super) fn key_of(certificate: &CertificateDer<'_>) -> Option<PeerKey> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let info = parsed.subject_public_key_info();
    let raw = info.as_ref().strip_prefix(&ED25519_SPKI_PREFIX)?;
    Some(PeerKey(<[u8; 32]>::try_from(raw).ok()?))
}

/// The certificate authority that grows from one secret.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    params: CertificateParams,
}

impl Authority {
    fn from_seed(seed: &[u8; 32]) -> Result<Self, TrustError> {
        let key = key_pair(seed)?;
        let mut params = lasting();
        // The name holds the key's fingerprint, so that of several roots the right one is found by name, and a
        // certificate of another secret fails as "unknown issuer", not as a broken signature.
        let fingerprint = crate::identity::name_of(&PeerKey(
            <[u8; 32]>::try_from(key.public_key_raw()).map_err(|_| TrustError::Tls("odd key".to_owned()))?,
        ));
        params.distinguished_name = named(&format!("weave cluster {fingerprint}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self { issuer: Issuer::new(params.clone(), key), params })
    }

    fn certificate(&self) -> Result<CertificateDer<'static>, TrustError> {
        Ok(self.params.self_signed(self.issuer.key())?.der().clone())
    }

    fn certify(&self, identity: &Identity) -> Result<CertificateDer<'static>, TrustError> {
        let mut params = lasting();
        params.subject_alt_names = CertificateParams::new([SERVER_NAME.to_owned()])?.subject_alt_names;
        params.distinguished_name = named(&format!("weave peer {}", identity.name()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&key_pair(identity.seed())?, &self.issuer)?.der().clone())
    }
}

/// A certificate's frame: the same bytes at each start, valid under any clock.
fn lasting() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params.serial_number = Some(SerialNumber::from(1_u64));
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn key_pair(seed: &[u8; 32]) -> Result<KeyPair, TrustError> {
    let document = PrivatePkcs8KeyDer::from(pkcs8(seed));
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&document, &rcgen::PKCS_ED25519)?)
}

fn pkcs8(seed: &[u8; 32]) -> Vec<u8> {
    [&ED25519_PKCS8_PREFIX[..], seed].concat()
}

fn tls(error: impl std::fmt::Display) -> TrustError {
    TrustError::Tls(error.to_string())
}

#[cfg(test)]
mod tests;
