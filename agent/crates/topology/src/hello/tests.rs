use weave_proto::peer::{Features, UniverseId};
use weave_proto::{Nickname, PeerName, PeerUid};

use super::*;

#[test]
fn two_fresh_peers_speak_the_highest_common_version() {
    let (mine, theirs) = (hello(1), hello(2));
    assert_eq!(verdict(&mine, &theirs), Ok(WireVersion(5)));
}

#[test]
fn a_version_and_the_one_before_it_interoperate_and_a_gap_does_not() {
    for (mine, theirs, expected) in [
        ((4, 5), (5, 6), Some(5)),
        ((1, 5), (3, 4), Some(4)),
        ((5, 5), (4, 5), Some(5)),
        ((1, 2), (3, 4), None),
        ((4, 3), (3, 4), None),
    ] {
        let mine = Hello { lowest: WireVersion(mine.0), highest: WireVersion(mine.1), ..hello(1) };
        let theirs = Hello { lowest: WireVersion(theirs.0), highest: WireVersion(theirs.1), ..hello(2) };
        match (verdict(&mine, &theirs), expected) {
            (Ok(version), Some(expected)) => assert_eq!(version, WireVersion(expected)),
            (Err(refusal), None) => assert_eq!(refusal.code, RefusalCode::Version),
            (verdict, expected) => panic!("{verdict:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn a_peer_that_reaches_itself_is_told_apart_from_its_own_clone() {
    let mine = hello(1);
    assert_eq!(verdict(&mine, &mine).unwrap_err().code, RefusalCode::Myself);
    let clone = Hello { instance: 77, nickname: Nickname::lossy("clone"), ..hello(1) };
    let refusal = verdict(&mine, &clone).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NameCollision);
    assert!(refusal.text.contains("host1") && refusal.text.contains("clone"), "{}", refusal.text);
}

#[test]
fn a_name_belongs_to_one_key() {
    let mine = hello(1);
    let same_name = agree(End { hello: &mine, key: key(1) }, End { hello: &mine, key: key(9) }, None);
    assert_eq!(same_name.unwrap_err().code, RefusalCode::NameCollision);
    let theirs = hello(2);
    let known_otherwise =
        agree(End { hello: &mine, key: key(1) }, End { hello: &theirs, key: key(2) }, Some(key(3)));
    let refusal = known_otherwise.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NameCollision);
    assert!(refusal.text.contains(&key(2).to_string()) && refusal.text.contains(&key(3).to_string()));
}

#[test]
fn another_range_another_split_and_other_founders_are_refused_in_this_order() {
    let mine = hello(1);
    let theirs = Hello {
        range: Some("10.40.0.0/13".parse().unwrap()),
        universe: Some(UniverseId(2)),
        founders: Some(5),
        ..hello(2)
    };
    let mine = Hello { universe: Some(UniverseId(1)), ..mine };
    assert_eq!(verdict(&mine, &theirs).unwrap_err().code, RefusalCode::Range);
    let theirs = Hello { range: mine.range, ..theirs };
    assert_eq!(verdict(&mine, &theirs).unwrap_err().code, RefusalCode::Universe);
    let theirs = Hello { universe: None, ..theirs };
    assert!(verdict(&mine, &theirs).is_ok(), "a mesh with a split takes in a peer with any idea of founders");
    let mine = Hello { universe: None, ..mine };
    assert_eq!(verdict(&mine, &theirs).unwrap_err().code, RefusalCode::Electorate);
    assert!(verdict(&mine, &Hello { founders: None, range: None, ..theirs }).is_ok());
}

#[test]
fn both_ends_come_to_the_same_words() {
    let mine = Hello { universe: Some(UniverseId(1)), ..hello(1) };
    let others = [
        Hello { range: Some("10.40.0.0/13".parse().unwrap()), ..hello(2) },
        Hello { universe: Some(UniverseId(2)), ..hello(2) },
        Hello { lowest: WireVersion(8), highest: WireVersion(9), ..hello(2) },
    ];
    for theirs in others {
        let here = verdict(&mine, &theirs).unwrap_err();
        assert_eq!(here, verdict(&theirs, &mine).unwrap_err());
        assert!(here.text.contains("host1") && here.text.contains("host2"), "{}", here.text);
    }
    let (one, other) = (hello(1), Hello { founders: Some(7), ..hello(2) });
    let here = verdict(&one, &other).unwrap_err();
    assert_eq!(here, verdict(&other, &one).unwrap_err());
    assert!(here.text.contains('3') && here.text.contains('7'), "{}", here.text);
    let clone = Hello { instance: 77, ..one.clone() };
    assert_eq!(verdict(&one, &clone), verdict(&clone, &one));
}

fn verdict(mine: &Hello, theirs: &Hello) -> Result<WireVersion, Refusal> {
    let key_of = |hello: &Hello| key(hello.name.mac()[5]);
    agree(End { hello: mine, key: key_of(mine) }, End { hello: theirs, key: key_of(theirs) }, None)
}

fn key(number: u8) -> PeerKey {
    PeerKey([number; 32])
}

fn hello(number: u8) -> Hello {
    Hello {
        lowest: WireVersion(4),
        highest: WireVersion(5),
        name: PeerName::from_bits([2, 0, 0, 0, 0, number]),
        uid: PeerUid(1),
        nickname: Nickname::lossy(&format!("host{number}")),
        nonce: 0,
        instance: u64::from(number),
        range: Some("10.32.0.0/12".parse().unwrap()),
        universe: None,
        founders: Some(3),
        features: Features::default(),
    }
}
