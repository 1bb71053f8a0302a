use weave_proto::PeerName;
use weave_proto::peer::ipam::Ballot;

use super::*;

#[test]
fn a_voter_promises_the_highest_ballot_it_sees() {
    let mut mine = Vote::default();

    assert!(follow(&mut mine, [&promise(1), &promise(3), &promise(2)].into_iter(), |_| true));

    assert_eq!(mine, promise(3));
}

#[test]
fn a_voter_accepts_what_others_have_accepted() {
    let mut mine = promise(2);

    follow(&mut mine, [&accepted(2, "a")].into_iter(), |_| true);

    assert_eq!(mine, accepted(2, "a"));
}

#[test]
fn a_promise_forbids_lower_ballots() {
    let mut mine = promise(3);

    assert!(!follow(&mut mine, [&accepted(2, "a")].into_iter(), |_| true));

    assert_eq!(mine, promise(3));
}

#[test]
fn a_promise_seen_together_with_a_lower_proposal_comes_first() {
    let mut mine = Vote::default();

    follow(&mut mine, [&accepted(1, "a"), &promise(2)].into_iter(), |_| true);

    assert_eq!(mine, promise(2));
}

#[test]
fn a_voter_may_decline() {
    let mut mine = Vote::default();

    follow(&mut mine, [&accepted(1, "a")].into_iter(), |value| *value != "a");

    assert_eq!(mine.accepted, None);
}

#[test]
fn a_later_proposal_replaces_an_earlier_one_and_never_the_other_way_round() {
    let mut mine = accepted(1, "a");

    follow(&mut mine, [&accepted(2, "b")].into_iter(), |_| true);
    follow(&mut mine, [&accepted(1, "a")].into_iter(), |_| true);

    assert_eq!(mine, accepted(2, "b"));
}

fn promise(round: u32) -> Vote<&'static str> {
    Vote { promised: Some(ballot(round)), accepted: None }
}

fn accepted(round: u32, value: &'static str) -> Vote<&'static str> {
    Vote { promised: Some(ballot(round)), accepted: Some(Accepted { ballot: ballot(round), value }) }
}

fn ballot(round: u32) -> Ballot {
    Ballot { round, proposer: PeerName::from_bits([2, 0, 0, 0, 0, 1]) }
}
