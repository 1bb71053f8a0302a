use std::time::Duration;

use super::*;
use weave_proto::PeerUid;

#[test]
fn the_same_secret_grows_the_same_authority_to_the_byte() {
    let one = Authority::from_seed(&[1; 32]).unwrap().certificate().unwrap();
    let same = Authority::from_seed(&[1; 32]).unwrap().certificate().unwrap();
    let other = Authority::from_seed(&[2; 32]).unwrap().certificate().unwrap();

    assert_eq!(one, same);
    assert_ne!(one, other);
}

#[test]
fn the_key_in_a_certificate_is_the_one_that_was_certified() {
    let identity = Identity::generate(PeerUid(1)).unwrap();
    let certificate = Authority::from_seed(&[1; 32]).unwrap().certify(&identity).unwrap();

    assert_eq!(key_of(&certificate), Some(identity.key()));
    assert_eq!(key_of(&CertificateDer::from(vec![0x30, 0x00])), None);
}

#[test]
fn certificates_are_believed_under_any_clock() {
    let identity = Identity::generate(PeerUid(1)).unwrap();
    let authority = Authority::from_seed(&[1; 32]).unwrap();
    let certificate = authority.certify(&identity).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().unwrap()).unwrap();
    let trust = Trust::with(&Arc::new(roots), std::slice::from_ref(&certificate), &identity).unwrap();

    let year = 31_556_952;
    for seconds in [0, year, 56 * year, 68 * year, 136 * year, 2000 * year] {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        trust.verifier.verify_server_cert(&certificate, &[], &name, &[], now).unwrap();
    }
}

#[test]
fn a_certificate_of_another_secret_is_not_believed() {
    let identity = Identity::generate(PeerUid(1)).unwrap();
    let trust = Trust::new(&Secrets::from_lines("one\ntwo", "a test").unwrap(), &identity).unwrap();
    let seeds = Secrets::from_lines("two\nthree", "a test").unwrap().stretch().unwrap();
    let certified = |seed| Authority::from_seed(seed).unwrap().certify(&identity).unwrap();

    assert!(trust.believes(&certified(&seeds[0])));
    assert!(!trust.believes(&certified(&seeds[1])));
}

#[test]
fn the_quick_cipher_comes_first_and_none_is_left_out() {
    let suites = |provider: &CryptoProvider| -> Vec<_> {
        provider.cipher_suites.iter().map(rustls::SupportedCipherSuite::suite).collect()
    };
    let (quick, all) = (suites(&quick_first()), suites(&rustls::crypto::aws_lc_rs::default_provider()));
    assert_eq!(quick.first(), Some(&CipherSuite::TLS13_AES_128_GCM_SHA256));
    assert!(quick.len() == all.len() && all.iter().all(|suite| quick.contains(suite)));
}
