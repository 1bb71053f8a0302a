use weave_proto::{Nickname, PeerUid};

use super::*;
use crate::testing::{key, name, now, record};

#[test]
fn the_first_change_goes_out_at_once_and_the_next_after_a_pause() {
    let (mut own, start) = (own(), now());
    let facts = OwnFacts::default();
    assert!(!own.publish(&facts, Vec::new(), start), "nothing has changed");
    assert!(own.publish(&facts, links(&[2]), start));
    assert!(!own.publish(&facts, links(&[2, 3]), start));
    let due = own.due().unwrap();
    assert_eq!(due, start + PAUSE + 2 * PAUSE_PER_LINK);
    assert!(own.publish(&facts, links(&[2, 3]), due));
    assert_eq!(own.due(), None);
    assert_eq!(own.record().version, RecordVersion(3));
}

#[test]
fn a_change_that_is_taken_back_in_time_is_never_told() {
    let (mut own, start) = (own(), now());
    own.publish(&OwnFacts::default(), links(&[2]), start);
    own.publish(&OwnFacts::default(), links(&[]), start);
    assert!(!own.publish(&OwnFacts::default(), links(&[2]), start));
    assert_eq!(own.due(), None);
}

#[test]
fn a_hint_waits_unless_space_runs_out_or_comes_back() {
    let (mut own, start) = (own(), now());
    let free = |free| OwnFacts { free, ..OwnFacts::default() };
    assert!(own.publish(&free(100), Vec::new(), start));
    assert!(!own.publish(&free(99), Vec::new(), start + PAUSE));
    assert_eq!(own.due(), Some(start + HINT_PAUSE));
    assert!(own.publish(&free(0), Vec::new(), start + PAUSE));
}

#[test]
fn what_an_earlier_incarnation_left_is_outvoted() {
    let mut own = own();
    assert_eq!(own.contest(&record(1, 4, 900, &[]), now()), Contest::Ignored);
    assert_eq!(own.contest(&record(1, 5, 900, &[]), now()), Contest::Answered);
    assert_eq!((own.record().uid, own.record().version), (PeerUid(5), RecordVersion(901)));
    assert_eq!(own.contest(&record(1, 8, 3, &[]), now()), Contest::Answered);
    assert_eq!(own.record().uid, PeerUid(9));
}

#[test]
fn a_living_double_is_recognised_and_no_longer_answered_for_a_while() {
    let (mut own, start) = (own(), now());
    let mut answers = Vec::new();
    for round in 1..50 {
        answers.push(own.contest(&record(1, 5, 1000 * round, &[]), start));
    }
    assert_eq!(answers.iter().filter(|&answer| *answer == Contest::Answered).count(), CONTESTS_TOLERATED);
    assert_eq!(answers.iter().filter(|&answer| *answer == Contest::GivenUp).count(), 1);
    assert_eq!(own.contest(&record(1, 5, 99_999, &[]), start + CONTEST_WINDOW), Contest::Answered);
}

#[test]
fn another_holder_is_news_once_and_forgotten_when_it_has_been_silent() {
    let (mut own, start) = (own(), now());
    assert_eq!(own.twin(start), None);
    assert!(own.beware("there".to_owned(), start));
    assert!(!own.beware("still there".to_owned(), start + CONTEST_WINDOW / 2));
    assert_eq!(own.twin(start + CONTEST_WINDOW), Some("still there"));
    let end = own.twin_fades().unwrap();
    assert_eq!((own.twin(end), end), (None, start + CONTEST_WINDOW * 3 / 2));
    assert!(!own.forget_twin(start + CONTEST_WINDOW) && own.forget_twin(end) && !own.forget_twin(end));
    assert!(own.beware("again".to_owned(), end));
}

#[test]
fn a_record_lists_no_more_links_than_it_may() {
    let mut own = own();
    let link = links(&[2]).remove(0);
    own.publish(&OwnFacts::default(), vec![link; MAX_LINKS + 1], now());
    assert_eq!(own.record().links.len(), MAX_LINKS);
}

fn links(to: &[u8]) -> Vec<LinkRecord> {
    record(1, 1, 1, to).links
}

fn own() -> Own {
    Own::new(&Config {
        name: name(1),
        key: key(1),
        name_of: crate::testing::name_of,
        uid: PeerUid(5),
        nickname: Nickname::lossy("host1"),
        features: weave_proto::peer::Features::default(),
        targets: Vec::new(),
        discovery: true,
        conn_limit: None,
        port: 6783,
        range: None,
        founders: None,
        known: Vec::new(),
    })
}
