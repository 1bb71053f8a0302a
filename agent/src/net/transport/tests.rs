use super::*;

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + payload.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[test]
fn a_datagram_is_cut_into_its_messages() {
    let mut datagram = message(3, 0, 7, b"abc");
    datagram.extend(message(16, 2, 8, b""));
    let mut seen = Vec::new();
    split(&datagram, &mut |header, payload| seen.push((header.kind, header.sequence, payload.to_vec())));
    assert_eq!(seen, [(3, 7, b"abc".to_vec()), (16, 8, Vec::new())]);
}

#[test]
fn a_message_that_claims_more_than_there_is_ends_the_datagram() {
    let mut datagram = message(3, 0, 7, b"abcd");
    datagram.truncate(18);
    let mut seen = 0;
    split(&datagram, &mut |_, _| seen += 1);
    split(&[1, 0, 0, 0], &mut |_, _| seen += 1);
    split(&[0; 64], &mut |_, _| seen += 1);
    assert_eq!(seen, 0);
}

#[test]
fn the_kernels_own_words_are_part_of_an_error_and_its_number_is_kept() {
    let mut payload = (-17_i32).to_ne_bytes().to_vec();
    payload.extend([0; HEADER]);
    payload.extend(9_u16.to_ne_bytes());
    payload.extend(1_u16.to_ne_bytes());
    payload.extend(b"busy\0");
    let error = acknowledgement(NLM_F_CAPPED | NLM_F_ACK_TLVS, &payload).unwrap_err();
    assert!(error.to_string().ends_with("(busy)"), "{error}");
    assert_eq!(errno(&error), Some(rustix::io::Errno::EXIST));
}

#[test]
fn attributes_without_end_are_left() {
    let mut seen = Vec::new();
    attributes(&[5, 0, 1, 0x80, 9, 0, 0, 0, 200, 0, 2, 0], |kind, value| seen.push((kind, value.to_vec())));
    assert_eq!(seen, [(1, vec![9])]);
    attributes(&[0, 0, 0, 0], |_, _| seen.clear());
    assert_eq!(seen.len(), 1);
}
