use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

#[test]
fn the_first_by_name_has_its_turn_at_once_and_the_others_later() {
    let now = start();
    let mine = Vote::<u8>::default();

    assert!(Proposer::new().is_due(name(1), &mine, Duration::ZERO, now));
    let mut second = Proposer::new();
    assert!(!second.is_due(name(2), &mine, TURN, now));
    assert_eq!(second.deadline(), Some(now + TURN));
    assert!(second.is_due(name(2), &mine, TURN, now + TURN));
}

#[test]
fn whoever_has_the_highest_ballot_opens_no_other() {
    let mut mine = Vote::<u8>::default();
    open_ballot(&mut mine, name(1));

    assert!(!Proposer::new().is_due(name(1), &mine, Duration::ZERO, start()));
}

#[test]
fn somebody_elses_ballot_is_given_time() {
    let mut proposer = Proposer::new();
    proposer.yield_to_others(&mut StdRng::seed_from_u64(1), start());
    let mine =
        Vote { promised: Some(Ballot { round: 1, proposer: name(2) }), accepted: None::<Accepted<u8>> };

    assert!(!proposer.is_due(name(1), &mine, Duration::ZERO, start() + YIELD - Duration::from_millis(1)));
    assert!(proposer.is_due(name(1), &mine, Duration::ZERO, start() + 2 * YIELD));
}

#[test]
fn each_further_ballot_of_others_is_given_twice_the_time_of_the_one_before() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut proposer = Proposer::new();
    for pause in [YIELD, YIELD * 2, YIELD * 4, LONGEST_YIELD, LONGEST_YIELD, LONGEST_YIELD] {
        proposer.yield_to_others(&mut rng, start());
        let turn = proposer.deadline().unwrap();
        assert!(turn >= start() + pause && turn <= start() + pause * 2, "{:?}", turn - start());
    }
}

#[test]
fn a_proposer_repeats_the_latest_value_that_anybody_has_accepted() {
    let early = Vote { promised: None, accepted: Some(Accepted { ballot: ballot(1, 2), value: 7 }) };
    let late = Vote { promised: None, accepted: Some(Accepted { ballot: ballot(2, 2), value: 8 }) };
    let mut mine = Vote { promised: Some(ballot(3, 1)), accepted: None };

    propose(&mut mine, [&early, &late].into_iter(), |earlier| earlier.copied().unwrap_or(9));

    assert_eq!(mine.accepted, Some(Accepted { ballot: ballot(3, 1), value: 8 }));
}

#[test]
fn a_value_is_chosen_by_a_majority_of_its_electors_in_one_ballot() {
    let electors: BTreeSet<PeerName> = (1..=3).map(name).collect();
    let vote =
        |round| Vote { promised: None, accepted: Some(Accepted { ballot: ballot(round, 1), value: 7_u8 }) };
    let (first, second) = (vote(1), vote(2));

    let outsider = BTreeMap::from([(name(1), &first), (name(9), &first)]);
    assert_eq!(chosen(&outsider, |_| &electors), None);
    let two_ballots = BTreeMap::from([(name(1), &first), (name(2), &second)]);
    assert_eq!(chosen(&two_ballots, |_| &electors), None);
    let agreed = BTreeMap::from([(name(1), &first), (name(2), &first)]);
    assert_eq!(chosen(&agreed, |_| &electors), Some(7));
}

proptest! {
    /// Voters act in any order, each seeing any earlier state of the others, as gossip has it.
    #[test]
    fn once_a_value_is_chosen_no_other_ever_is(
        voters in 1_u8..6,
        acts in prop::collection::vec((0_u8..6, 0_u8..6, prop::bool::weighted(0.2), 0_usize..12), 1..120),
    ) {
        let electors: BTreeSet<PeerName> = (0..voters).map(name).collect();
        let quorum = ballot::majority(electors.len());
        // What each voter has ever said, and what each has heard of each.
        let mut said = vec![vec![Vote::<u8>::default()]; voters.into()];
        let mut heard = vec![vec![0_usize; voters.into()]; voters.into()];
        let mut decided = BTreeSet::new();
        for (me, other, opens, which) in acts {
            let (me, other) = (usize::from(me % voters), usize::from(other % voters));
            heard[me][other] = heard[me][other].max(which.min(said[other].len() - 1));
            let mut mine = said[me].last().unwrap().clone();
            let others: Vec<Vote<u8>> = (0..voters.into()).filter(|index| *index != me)
                .map(|index: usize| said[index][heard[me][index]].clone()).collect();
            let my_name = name(u8::try_from(me).unwrap());
            acceptor::follow(&mut mine, others.iter(), |_| true);
            if opens {
                open_ballot(&mut mine, my_name);
            }
            if has_quorum(&mine, my_name, others.iter(), quorum - 1) {
                let wish = u8::try_from(me).unwrap();
                propose(&mut mine, others.iter(), |earlier| earlier.copied().unwrap_or(wish));
            }
            said[me].push(mine);
            // Everything that was ever said counts: somebody may hear it together.
            let ballots: BTreeSet<_> = said.iter().flatten().filter_map(accepted_ballot).collect();
            for ballot in ballots {
                let in_it = |vote: &&Vote<u8>| accepted_ballot(vote) == Some(ballot);
                let votes: Vec<_> = said.iter().filter_map(|voter| voter.iter().find(in_it)).collect();
                if votes.len() >= quorum {
                    decided.extend(votes.iter().filter_map(|vote| Some(vote.accepted.as_ref()?.value)));
                }
            }
            prop_assert!(decided.len() <= 1, "chosen: {decided:?}");
        }
    }
}

fn ballot(round: u32, proposer: u8) -> Ballot {
    Ballot { round, proposer: name(proposer) }
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere, once")]
fn start() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START
}
