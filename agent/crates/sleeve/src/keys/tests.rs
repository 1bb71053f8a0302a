use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A key with counter 0 and this nonce, whatever length of associated data: below the wrapper's own types, so that
/// the vectors of the standards can be put in.
fn sealed(suite: Suite, key: &str, nonce: &str, aad: &str, plain: &str) -> Vec<u8> {
    let mut bytes = [0; SECRET_LEN];
    let key = hex(key);
    bytes[..key.len()].copy_from_slice(&key);
    let key = QueueKey::new(suite, &bytes, hex(nonce).try_into().unwrap());
    let mut out = hex(plain);
    let tag = key.key.seal_in_place_separate_tag(key.nonce(0), Aad::from(hex(aad)), &mut out).unwrap();
    out.extend_from_slice(tag.as_ref());
    out
}

const GCM_PLAIN: &str = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
    1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
const GCM_AAD: &str = "feedfacedeadbeeffeedfacedeadbeefabaddad2";

#[test]
fn aes_128_gcm_gives_test_case_4_of_its_specification() {
    let sealed = sealed(
        Suite::Aes128Gcm,
        "feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        GCM_AAD,
        GCM_PLAIN,
    );
    let expected = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e\
        21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091 5bc94fbc3221a5db94fae95ae7121a47";
    assert_eq!(sealed, hex(expected));
}

#[test]
fn aes_256_gcm_gives_test_case_16_of_its_specification() {
    let key = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
    let sealed = sealed(Suite::Aes256Gcm, key, "cafebabefacedbaddecaf888", GCM_AAD, GCM_PLAIN);
    let expected = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
        8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662 76fc6ece0f4e1768cddf8853bb2d551b";
    assert_eq!(sealed, hex(expected));
}

#[test]
fn chacha20_poly1305_gives_the_vector_of_rfc_8439() {
    let plain: String =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
        sunscreen would be it."
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
    let key = "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f";
    let sealed =
        sealed(Suite::ChaCha20Poly1305, key, "070000004041424344454647", "50515253c0c1c2c3c4c5c6c7", &plain);
    let expected = "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6\
        3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36\
        92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc\
        3ff4def08e4b7a9de576d26586cec64b6116 1ae10b594f09e26a7e902ecbd0600691";
    assert_eq!(sealed, hex(expected));
}

#[test]
fn hkdf_gives_test_case_1_of_rfc_5869() {
    let prk = Salt::new(HKDF_SHA256, &hex("000102030405060708090a0b0c")).extract(&[0x0b; 22]);
    let okm: [u8; 42] = expand(&prk, &[&hex("f0f1f2f3f4f5f6f7f8f9")]);
    let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
    assert_eq!(okm.to_vec(), hex(expected));
}

#[test]
fn every_queue_epoch_direction_and_suite_has_a_key_of_its_own() {
    let sealed = |chain: &Chain, queue| {
        let mut out = [0; 4 + TAG_LEN];
        chain.key(queue).seal(0, &[0; HEADER_LEN], b"same", &mut out);
        out
    };
    let first = Chain::first(&[1; 32], Role::Initiator, Suite::Aes128Gcm);
    let all = [
        sealed(&first, 0),
        sealed(&first, 1),
        sealed(&first.next(), 0),
        sealed(&Chain::first(&[1; 32], Role::Responder, Suite::Aes128Gcm), 0),
        sealed(&Chain::first(&[1; 32], Role::Initiator, Suite::Aes256Gcm), 0),
        sealed(&Chain::first(&[2; 32], Role::Initiator, Suite::Aes128Gcm), 0),
    ];
    for (index, one) in all.iter().enumerate() {
        assert!(all[index + 1..].iter().all(|other| one != other));
    }
    assert_eq!(sealed(&first, 0), sealed(&Chain::first(&[1; 32], Role::Initiator, Suite::Aes128Gcm), 0));
}

#[test]
fn what_is_sealed_opens_with_the_same_counter_and_header_only() {
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let key = Chain::first(&[1; 32], Role::Initiator, suite).key(0);
        let (mut sealed, mut plain) = ([0; 5 + TAG_LEN], [0; 5]);
        key.seal(9, &[3; HEADER_LEN], b"hello", &mut sealed);
        assert_eq!(key.open(9, &[3; HEADER_LEN], &sealed, &mut plain), Ok(()));
        assert_eq!(&plain, b"hello");
        assert_eq!(key.open(10, &[3; HEADER_LEN], &sealed, &mut plain), Err(Forged));
        assert_eq!(key.open(9, &[4; HEADER_LEN], &sealed, &mut plain), Err(Forged));
        assert_eq!(key.open(9, &[3; HEADER_LEN], &sealed[..TAG_LEN - 1], &mut []), Err(Forged));
    }
}

#[test]
fn both_ends_agree_on_the_suite_that_suits_the_slower_one() {
    let (fast, slow) = (Suite::offered(true), Suite::offered(false));
    assert_eq!(Suite::agreed(fast, fast), Some(Suite::Aes128Gcm));
    assert_eq!(Suite::agreed(fast, slow), Some(Suite::ChaCha20Poly1305));
    assert_eq!(Suite::agreed(slow, fast), Some(Suite::ChaCha20Poly1305));
    assert_eq!(Suite::agreed(&[Suite::Aes256Gcm], slow), None);
    let crossed = ([Suite::Aes256Gcm, Suite::Aes128Gcm], [Suite::Aes128Gcm, Suite::Aes256Gcm]);
    assert_eq!(Suite::agreed(&crossed.0, &crossed.1), Suite::agreed(&crossed.1, &crossed.0));
}
