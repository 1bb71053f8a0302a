//! Pairs of endpoints in one process, on the loopback.

mod cost;
mod data;
mod lab;
mod relay;

use std::net::Ipv4Addr;
use std::time::Instant;

use lab::{Peer, Rude, digest, hello_of, linked, record, secrets};
use quinn::VarInt;
use relay::Relay;
use tokio::time::timeout;
use weave_proto::codec;
use weave_proto::peer::topology::RecordVersion;
use weave_proto::peer::{Digest, Features, PeerRecord, RecordDigest, SPOKEN, WireVersion};
use weave_proto::{Nickname, PeerKey, PeerName, PeerUid};
use weave_topology::Direction;

use super::*;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How late a dead link may be noticed.
const NOTICED: Duration = Duration::from_millis(3500);

#[tokio::test]
async fn two_peers_link_up_and_know_each_other() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);

    a.net.dial(DialId(7), b.addr());
    let (at_a, at_b) = (a.link_up().await, b.link_up().await);

    assert_eq!(at_a.dial, Some(DialId(7)));
    assert_eq!((at_a.direction, at_b.direction), (Direction::Outbound, Direction::Inbound));
    assert_eq!((at_a.key, at_b.key), (b.identity.key(), a.identity.key()));
    assert_eq!((at_a.hello.name, at_b.hello.name), (b.identity.name(), a.identity.name()));
    assert_eq!((at_a.hello.nonce, at_b.hello.nonce), (at_b.nonce, at_a.nonce), "both know both nonces");
    assert_eq!(at_b.addr, a.addr(), "a peer dials from the port it listens on");
    assert_eq!(at_a.addr, b.addr());
}

#[tokio::test]
async fn messages_go_both_ways() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    let (at_a, at_b) = linked(&mut a, &mut b).await;

    a.net.send(at_a, Message::Topology(vec![record(1, 1)]));
    b.net.send(at_b, Message::Digest(digest(5)));

    assert_eq!(b.message().await, Message::Topology(vec![record(1, 1)]));
    assert_eq!(a.message().await, Message::Digest(digest(5)));
}

#[tokio::test]
async fn another_secret_is_refused_in_clear_words_on_both_sides() {
    let (mut a, mut b) = (Peer::start("secret one").await, Peer::start("secret two").await);

    a.net.dial(DialId(1), b.addr());
    let (failed, refused) = (a.dial_failed().await, b.refused().await);

    assert!(failed.text.contains("the other side holds another cluster secret"), "{failed}");
    assert!(refused.text.contains("the other side holds another cluster secret"), "{refused}");
}

#[tokio::test]
async fn a_listener_that_alone_distrusts_is_understood_too() {
    // The dialler trusts the listener's secret, but signs with one that the listener does not know: with TLS 1.3
    // the dialler is through before it hears that it was refused.
    let (mut a, mut b) = (Peer::start("new\nold").await, Peer::start("old").await);

    a.net.dial(DialId(1), b.addr());
    let (failed, refused) = (a.dial_failed().await, b.refused().await);

    assert!(failed.text.contains("another cluster secret: it does not accept our certificate"), "{failed}");
    assert!(refused.text.contains("another cluster secret: its certificate"), "{refused}");
}

#[tokio::test]
async fn secrets_that_overlap_in_a_rotation_let_peers_in() {
    let (mut a, mut b) = (Peer::start("old\nnew").await, Peer::start("new\nold").await);

    linked(&mut a, &mut b).await;
    linked(&mut b, &mut a).await;
}

#[tokio::test]
async fn a_secret_can_be_changed_without_a_restart() {
    let (mut a, mut b) = (Peer::start("old").await, Peer::start("old").await);
    let (at_a, _) = linked(&mut a, &mut b).await;

    b.net.set_secrets(secrets("old\nnew")).await.unwrap();
    a.net.set_secrets(secrets("old\nnew")).await.unwrap();
    a.net.send(at_a, Message::Digest(digest(1)));
    assert_eq!(b.message().await, Message::Digest(digest(1)), "the link is believed all along");

    b.net.set_secrets(secrets("new")).await.unwrap();
    let reason = a.link_down().await;
    assert!(reason.text.contains("no longer valid"), "{reason}");
    b.link_down().await;
    a.net.set_secrets(secrets("new\nold")).await.unwrap();
    linked(&mut a, &mut b).await;
}

#[tokio::test]
async fn two_dials_at_once_make_two_links_that_both_sides_can_tell_apart() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);

    a.net.dial(DialId(1), b.addr());
    b.net.dial(DialId(2), a.addr());
    let at_a = [a.link_up().await, a.link_up().await];
    let at_b = [b.link_up().await, b.link_up().await];

    for mine in &at_a {
        let its = at_b.iter().find(|its| its.nonce == mine.hello.nonce).unwrap();
        assert_eq!(mine.nonce, its.hello.nonce);
        assert_ne!(mine.direction, its.direction);
        assert_ne!(mine.dial.is_some(), its.dial.is_some());
    }
}

#[tokio::test]
async fn silence_is_noticed_on_both_sides_in_time() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    let relay = Relay::start(b.addr()).await;
    a.net.dial(DialId(1), relay.addr());
    a.link_up().await;
    b.link_up().await;

    let silent_since = Instant::now();
    relay.swallow_everything();
    let (at_a, at_b) = (a.link_down().await, b.link_down().await);

    assert!(silent_since.elapsed() < NOTICED, "noticed after {:?}", silent_since.elapsed());
    assert!(at_a.text.contains("silent"), "{at_a}");
    assert!(at_b.text.contains("silent"), "{at_b}");
}

#[tokio::test]
async fn an_idle_link_stays_up_for_longer_than_a_dead_one() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    let (at_a, _) = linked(&mut a, &mut b).await;

    let heard = timeout(NOTICED * 2, a.events.recv()).await;
    assert!(heard.is_err(), "{heard:?}");
    a.net.send(at_a, Message::Digest(digest(1)));

    assert_eq!(b.message().await, Message::Digest(digest(1)));
}

#[tokio::test]
async fn nobody_there_is_a_clear_failure() {
    let mut a = Peer::start("secret").await;
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();

    let began = Instant::now();
    a.net.dial(DialId(1), silent.local_addr().unwrap());
    let failed = a.dial_failed().await;

    assert!(failed.text.contains("no answer"), "{failed}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_ipv6_target_of_an_ipv4_agent_is_a_clear_failure() {
    let mut a = Peer::start("secret").await;

    a.net.dial(DialId(1), "[::1]:6783".parse().unwrap());
    let failed = a.dial_failed().await;

    assert!(failed.text.contains("uses IPv4 alone"), "{failed}");
}

#[tokio::test]
async fn a_socket_for_both_families_shows_ipv4_peers_as_such() {
    let mut a = Peer::listening("secret", "[::]:0".parse().unwrap()).await;
    let mut b = Peer::start("secret").await;
    let port = a.addr().port();

    a.net.dial(DialId(1), b.addr());
    let (at_a, at_b) = (a.link_up().await, b.link_up().await);
    assert_eq!(at_a.addr, b.addr());
    assert_eq!(at_b.addr, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    b.net.dial(DialId(2), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));

    assert_eq!(a.link_up().await.addr, b.addr());
}

#[tokio::test]
async fn no_common_version_is_refused_in_clear_words_on_both_sides() {
    let mut a = Peer::start("secret").await;
    let mut b = Peer::start("secret").await;
    b.hello.send_modify(|hello| (hello.lowest, hello.highest) = (WireVersion(2), WireVersion(3)));

    a.net.dial(DialId(1), b.addr());
    let (failed, refused) = (a.dial_failed().await, b.refused().await);

    for reason in [failed, refused] {
        assert!(reason.text.contains("no common wire version"), "{reason}");
        assert!(reason.text.contains("speaks 1 to 1") && reason.text.contains("speaks 2 to 3"), "{reason}");
    }
}

#[tokio::test]
async fn a_peer_that_knows_a_later_version_too_speaks_ours() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    b.hello.send_modify(|hello| hello.highest = WireVersion(2));

    let (at_a, at_b) = linked(&mut a, &mut b).await;
    a.net.send(at_a, Message::Digest(digest(1)));
    b.net.send(at_b, Message::Digest(digest(2)));

    assert_eq!(b.message().await, Message::Digest(digest(1)));
    assert_eq!(a.message().await, Message::Digest(digest(2)));
}

#[tokio::test]
async fn a_refusal_arrives_word_for_word_with_its_code() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    let (at_a, _) = linked(&mut a, &mut b).await;

    let refusal = Refusal { code: RefusalCode::Universe, text: "two universes".to_owned() };
    a.net.close(at_a, refusal);
    let (here, there) = (a.link_down().await, b.link_down().await);

    assert_eq!(here.refused, None);
    assert_eq!(here.text, "closed here: two universes");
    assert_eq!(there.refused, Some(RefusalCode::Universe));
    assert_eq!(there.text, "the other side refused: two universes");
}

#[tokio::test]
async fn a_name_that_does_not_belong_to_the_key_is_garbage() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    b.hello.send_modify(|hello| hello.name = PeerName::from_bits([2, 0, 0, 0, 0, 1]));

    a.net.dial(DialId(1), b.addr());
    let failed = a.dial_failed().await;
    // The other side found nothing wrong with our hello, so to it the link was up for a moment.
    b.link_up().await;
    let closed = b.link_down().await;

    assert!(failed.text.contains("02:00:00:00:00:01 under the key of"), "{failed}");
    assert_eq!(closed.refused, Some(RefusalCode::Garbage));
}

#[tokio::test]
async fn garbage_on_a_link_closes_it_as_garbage() {
    let mut a = Peer::start("secret").await;
    let mut rude = Rude::connect(&a, "secret").await;
    rude.say(&rude.hello()).await;
    a.link_up().await;

    rude.send.write_all(&[0xff; 64]).await.unwrap();
    let reason = a.link_down().await;

    assert!(reason.text.contains("cannot be read"), "{reason}");
    assert_eq!(rude.closed_with().await, u32::from(RefusalCode::Garbage));
}

#[tokio::test]
async fn a_message_before_the_hello_and_a_second_hello_are_garbage() {
    let mut a = Peer::start("secret").await;

    let mut hasty = Rude::connect(&a, "secret").await;
    hasty.say(&Message::Want(Vec::new())).await;
    assert!(a.refused().await.text.contains("want message before the hello"));
    assert_eq!(hasty.closed_with().await, u32::from(RefusalCode::Garbage));

    let mut doubled = Rude::connect(&a, "secret").await;
    doubled.say(&doubled.hello()).await;
    a.link_up().await;
    doubled.say(&doubled.hello()).await;
    assert!(a.link_down().await.text.contains("a second hello"));
}

#[tokio::test]
async fn a_frame_of_an_unknown_kind_is_skipped() {
    let mut a = Peer::start("secret").await;
    let mut modern = Rude::connect(&a, "secret").await;
    modern.say(&modern.hello()).await;
    a.link_up().await;

    modern.send.write_all(&[0, 0, 0, 3, 0x7f, 0xff, 1, 2, 3]).await.unwrap();
    modern.say(&Message::Digest(digest(9))).await;

    assert_eq!(a.message().await, Message::Digest(digest(9)));
}

#[tokio::test]
async fn a_peer_that_holds_the_secret_and_says_nothing_is_dropped() {
    let mut a = Peer::start("secret").await;
    let silent = Rude::connect(&a, "secret").await;

    let reason = a.refused().await;

    assert!(reason.text.contains("did not introduce itself"), "{reason}");
    assert!(silent.connection.close_reason().is_some() || silent.closed_with().await == 0);
}

#[tokio::test]
async fn garbage_datagrams_disturb_nobody() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    let (at_a, _) = linked(&mut a, &mut b).await;
    let stranger = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();

    let mut noise: u64 = 42;
    for round in 0..2000_usize {
        let len = [0, 1, 8, 21, 64, 1200, 1400][round % 7];
        let bytes: Vec<u8> = (0..len)
            .map(|index| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let forced = if index == 0 { [0xc0, 0x40, 0xff][round % 3] } else { 0 };
                (noise >> 33).to_le_bytes()[0] | forced
            })
            .collect();
        stranger.send_to(&bytes, b.addr()).unwrap();
    }
    a.net.send(at_a, Message::Digest(digest(1)));

    assert_eq!(b.message().await, Message::Digest(digest(1)));
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_up_nobody_and_gets_the_newest_in_the_end() {
    let mut slow = Peer::start("secret").await;
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    a.net.dial(DialId(1), slow.addr());
    let to_slow = a.link_up().await.link;
    let (to_b, _) = linked(&mut a, &mut b).await;

    // More than fits into all windows and queues on the way, while nobody takes the events at the other end.
    let last = 3000;
    for version in 1..=last {
        a.net.send(to_slow, Message::Topology((0..20).map(|peer| record(peer, version)).collect()));
        if version % 100 == 0 {
            // Let the link's task take its share.
            tokio::task::yield_now().await;
        }
    }
    a.net.send(to_b, Message::Digest(digest(1)));
    assert_eq!(b.message().await, Message::Digest(digest(1)), "others are served");

    slow.link_up().await;
    let mut newest = 0;
    while newest < last {
        let Message::Topology(records) = slow.message().await else { panic!("only topology was sent") };
        newest = records.iter().map(|record| record.version.0).max().unwrap();
    }
}

#[tokio::test]
async fn goodbye_is_told_when_an_agent_stops() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);
    linked(&mut a, &mut b).await;

    a.net.shutdown().await;
    let reason = b.link_down().await;

    assert_eq!(reason.refused, Some(RefusalCode::Goodbye));
    assert!(reason.text.contains("stopping"), "{reason}");
}

#[tokio::test]
async fn a_peer_that_was_killed_and_is_back_is_noticed_before_silence_is() {
    let mut a = Peer::start("secret").await;
    let b = Peer::start("secret").await;
    let (identity, addr) = (b.identity.clone(), b.addr());
    a.net.dial(DialId(1), addr);
    a.link_up().await;

    // Dropping it says nothing on the wire as soon as the endpoint's socket is closed first; a relay makes sure.
    let relay = Relay::start(addr).await;
    a.net.dial(DialId(2), relay.addr());
    let through_relay = a.link_up().await;
    relay.swallow_everything();
    drop(b);
    let back = Peer::again(identity, "secret", addr).await;
    relay.pass_everything();
    let restarted_at = Instant::now();
    let reason = a.link_down_of(through_relay.link).await;

    assert!(reason.text.contains("restarted"), "{reason}");
    assert!(restarted_at.elapsed() < Duration::from_millis(2000), "{:?}", restarted_at.elapsed());
    drop(back);
}

#[tokio::test]
async fn a_peer_that_dials_itself_hears_both_ends() {
    let mut a = Peer::start("secret").await;

    a.net.dial(DialId(1), a.addr());
    let (one, other) = (a.link_up().await, a.link_up().await);

    assert_eq!((one.key, other.key), (a.identity.key(), a.identity.key()));
    assert_ne!(one.direction, other.direction);
}

#[tokio::test]
async fn a_hundred_connections_at_once_are_asked_for_their_address_and_let_in() {
    let (mut a, mut b) = (Peer::start("secret").await, Peer::start("secret").await);

    (0..100).for_each(|number| a.net.dial(DialId(number), b.addr()));
    let up = async { (a.link_ups(100).await, b.link_ups(100).await) };
    let (at_a, at_b) = timeout(PATIENCE * 2, up).await.unwrap();

    assert_eq!((at_a, at_b), (100, 100));
}

#[tokio::test]
async fn a_secret_file_that_changes_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, "old\n").unwrap();
    let (mut a, mut b) = (Peer::start("old").await, Peer::start("new").await);
    let _watch = a.net.watch_secrets(path.clone(), Secrets::from_file(&path).unwrap());

    b.net.dial(DialId(1), a.addr());
    assert!(b.dial_failed().await.text.contains("another cluster secret"));
    a.refused().await;
    // A file that is momentarily of no use changes nothing.
    std::fs::write(&path, "").unwrap();
    std::fs::write(&path, "new\nold\n").unwrap();

    let deadline = Instant::now() + PATIENCE;
    loop {
        b.net.dial(DialId(2), a.addr());
        let event = b.event().await;
        if matches!(event, PeerEvent::LinkUp(_)) {
            break;
        }
        assert!(Instant::now() < deadline, "{event:?}");
        a.event().await;
    }
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let a = Peer::start("secret").await;
    let identity = Identity::generate(PeerUid(1)).unwrap();
    let (_hello, hello) = watch::channel(hello_of(&identity));
    let (events, _heard) = mpsc::channel(1);

    let settings = Settings { listen: a.addr(), data: None };
    let error = PeerNet::bind(settings, identity, secrets("secret"), hello, events).await.err().unwrap();

    assert!(error.to_string().contains("is another agent running"), "{error}");
}
