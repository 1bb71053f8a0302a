use super::*;
use crate::identity::Identity;
use crate::peer::Secrets;
use weave_proto::PeerUid;

struct End {
    identity: Identity,
    sender: watch::Sender<Trust>,
    trust: MeshTrust,
}

fn end(secrets: &str) -> End {
    let identity = Identity::generate(PeerUid(1)).unwrap();
    let (sender, receiver) = watch::channel(trust(secrets, &identity));
    End { identity, sender, trust: MeshTrust::new(receiver) }
}

fn trust(secrets: &str, identity: &Identity) -> Trust {
    Trust::new(&Secrets::from_lines(secrets, "a test").unwrap(), identity).unwrap()
}

fn offer(index: u32) -> Offer {
    Offer { index, suites: vec![1], queues: 1, port: 6785 }
}

/// The four flights, each of which `meddle` may change on its way.
fn talk(one: &End, other: &End, meddle: impl Fn(usize, &mut Vec<u8>)) -> Result<(Met, Met), HandshakeError> {
    let (mut dials, mut answers) = (one.trust.begin(offer(1))?, other.trust.answer(offer(2))?);
    let mut offers = (None, None);
    for number in 0..4 {
        let (from, to, heard) = if number % 2 == 0 {
            (&mut dials, &mut answers, &mut offers.1)
        } else {
            (&mut answers, &mut dials, &mut offers.0)
        };
        let mut flight = from.give();
        assert!(!flight.is_empty() && flight.len() <= weave_proto::peer::tunnel::MAX_FLIGHT / 2);
        meddle(number, &mut flight);
        *heard = to.take(&flight)?;
    }
    assert!(dials.give().is_empty() && answers.give().is_empty(), "four flights are all");
    let meet = |end: Handshake, offer: Option<Offer>| {
        offer
            .and_then(|offer| end.meet(offer))
            .ok_or_else(|| HandshakeError("no offer, or no key".to_owned()))
    };
    Ok((meet(dials, offers.0)?, meet(answers, offers.1)?))
}

#[test]
fn two_holders_of_the_secret_learn_each_others_keys_and_offers_and_a_secret_of_their_own() {
    let (one, other) = (end("common"), end("common"));
    let (at_one, at_other) = talk(&one, &other, |_, _| {}).unwrap();
    assert_eq!((at_one.key, at_other.key), (other.identity.key(), one.identity.key()));
    assert_eq!((&at_one.offer, &at_other.offer), (&offer(2), &offer(1)));
    assert_eq!(at_one.export(b"context"), at_other.export(b"context"));
    assert_ne!(at_one.export(b"context"), at_one.export(b"another"));
    let (again, _) = talk(&one, &other, |_, _| {}).unwrap();
    assert_ne!(at_one.export(b"context"), again.export(b"context"));
}

#[test]
fn who_holds_another_secret_is_refused_and_told() {
    let (one, other) = (end("common"), end("another"));
    let error = talk(&one, &other, |_, _| {}).map(drop).unwrap_err();
    assert!(error.to_string().contains("another cluster secret"), "{error}");

    let (mut dials, mut answers) =
        (one.trust.begin(offer(1)).unwrap(), other.trust.answer(offer(2)).unwrap());
    answers.take(&dials.give()).unwrap();
    dials.take(&answers.give()).unwrap_err();
    let told = answers.take(&dials.give()).unwrap_err();
    assert!(told.to_string().contains("does not accept our certificate"), "{told}");
}

#[test]
fn no_bit_of_any_flight_can_be_changed_on_its_way() {
    let (one, other) = (end("common"), end("common"));
    for number in 0..4 {
        // Behind the record's header, in the middle and at the end.
        for place in [5, 40, usize::MAX] {
            let changed = talk(&one, &other, |at, flight| {
                if at == number {
                    let last = flight.len() - 1;
                    flight[place.min(last)] ^= 1;
                }
            });
            assert!(changed.is_err(), "flight {number}, byte {place}");
        }
    }
}

#[test]
fn nothing_that_is_said_behind_the_hellos_can_be_read_on_the_way() {
    let (one, other) = (end("common"), end("common"));
    let names = [&one, &other].map(|end| format!("weave peer {}", end.identity.name()));
    talk(&one, &other, |_, flight| {
        for name in &names {
            assert!(!flight.windows(name.len()).any(|window| window == name.as_bytes()));
        }
    })
    .unwrap();
}

#[test]
fn what_a_peer_has_proven_itself_by_is_not_believed_when_its_secret_is_retired() {
    let (one, other) = (end("old\nnew"), end("old"));
    let (at_one, _) = talk(&one, &other, |_, _| {}).unwrap();
    assert!(one.trust.believes(&at_one.proof));
    one.sender.send_replace(trust("new", &one.identity));
    assert!(!one.trust.believes(&at_one.proof));
}

#[test]
fn garbage_is_refused() {
    let one = end("common");
    for garbage in [&b"hello"[..], &[0; 100], &[22, 3, 1, 255, 255]] {
        let _ = one.trust.answer(offer(1)).unwrap().take(garbage).is_err_and(|error| !error.0.is_empty());
    }
    let mut answers = one.trust.answer(offer(1)).unwrap();
    answers.take(&[0; 100]).unwrap_err();
}
