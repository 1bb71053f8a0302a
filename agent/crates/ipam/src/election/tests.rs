use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

#[test]
fn a_single_founder_decides_at_once() {
    let mut election = Election::new(name(1), informed(1), BTreeMap::new());

    let step = step(&mut election, [], start());

    assert_eq!(step.decided.map(|founding| founding.founders), Some(BTreeSet::from([name(1)])));
    assert!(step.changed && step.locked.is_some());
}

#[test]
fn a_step_without_news_changes_nothing() {
    let mut election = Election::new(name(1), informed(2), BTreeMap::new());
    assert!(step(&mut election, [], start()).changed);

    assert_eq!(step(&mut election, [2], start()), Step::default());
}

#[test]
fn an_observer_repeats_what_it_hears_and_says_nothing_itself() {
    let mut observer = Election::new(name(9), Part::Observer, BTreeMap::new());
    let mut candidate = Election::new(name(1), informed(2), BTreeMap::new());
    step(&mut candidate, [9], start());

    assert!(observer.hear(candidate.candidacies().clone()).learns);

    assert_eq!(step(&mut observer, [1], start()), Step::default());
    assert_eq!(observer.candidacies(), candidate.candidacies());
    assert_eq!(observer.waiting_for(&BTreeSet::new()), WaitingFor::Ring);
}

#[test]
fn a_candidate_that_was_not_told_adopts_the_number_of_those_that_were() {
    let mut election = Election::new(name(9), Part::Uninformed, BTreeMap::new());
    step(&mut election, [1], start());
    assert_eq!(election.waiting_for(&BTreeSet::new()), WaitingFor::FounderCount);

    let mut candidate = Election::new(name(1), informed(2), BTreeMap::new());
    step(&mut candidate, [9], start());
    election.hear(candidate.candidacies().clone());

    assert_eq!(election.expected(), Some(2));
    assert_eq!(step(&mut election, [1], start()).locked, Some(BTreeSet::from([name(1), name(9)])));
}

#[test]
fn a_candidate_with_another_number_is_named_and_not_counted() {
    let mut one = Election::new(name(1), informed(2), BTreeMap::new());
    let mut other = Election::new(name(2), informed(3), BTreeMap::new());
    step(&mut one, [2], start());
    step(&mut other, [1], start());

    let heard = one.hear(other.candidacies().clone());

    assert_eq!(heard.differing, BTreeMap::from([(name(2), 3)]));
    assert_eq!(step(&mut one, [2], start()).locked, None);
    let waiting = one.waiting_for(&BTreeSet::from([name(2)]));
    assert_eq!(waiting, WaitingFor::FounderCountsDiffer { ours: 2, peer: name(2), theirs: 3 });
}

#[test]
fn a_peer_whose_store_is_an_old_copy_votes_no_more() {
    let mut election = Election::new(name(1), informed(2), BTreeMap::new());
    step(&mut election, [], start());
    let copy = election.candidacies().clone();
    let mut other = Election::new(name(2), informed(2), copy.clone());
    step(&mut other, [1], start());
    election.hear(other.candidacies().clone());
    step(&mut election, [2], start());

    let mut restored = Election::new(name(1), informed(2), copy);
    assert!(restored.hear(election.candidacies().clone()).forgotten);

    assert_eq!(step(&mut restored, [2], start()), Step::default());
}

#[test]
fn two_founders_agree_by_telling_each_other_what_they_know() {
    let (one, other) = agreed_pair();

    assert_eq!(one.founders, BTreeSet::from([name(1), name(2)]));
    assert_eq!(one, other);
}

#[test]
fn a_voter_that_is_restarted_with_another_number_of_founders_keeps_to_its_vote() {
    let mut one = Election::new(name(1), informed(2), BTreeMap::new());
    let mut other = Election::new(name(2), informed(2), BTreeMap::new());
    until_decided(&mut one, &mut other);

    let restarted = Election::new(name(1), informed(5), one.candidacies().clone());

    assert_eq!(restarted.expected(), Some(2));
}

#[test]
fn candidacies_beyond_what_can_be_told_are_not_taken_in() {
    let mut election = Election::new(name(1), informed(2), BTreeMap::new());
    step(&mut election, [], start());
    let one = election.candidacies()[&name(1)].clone();
    let crowd = (0..=MAX_VOTERS).map(|index| {
        let [high, low] = u16::try_from(index).unwrap().to_be_bytes();
        (PeerName::from_bits([2, 9, 9, 9, high, low]), one.clone())
    });

    assert!(election.hear(crowd.collect()).crowded);

    assert_eq!(election.candidacies().len(), MAX_VOTERS);
}

fn agreed_pair() -> (Founding, Founding) {
    let mut one = Election::new(name(1), informed(2), BTreeMap::new());
    let mut other = Election::new(name(2), informed(2), BTreeMap::new());
    until_decided(&mut one, &mut other)
}

fn until_decided(one: &mut Election, other: &mut Election) -> (Founding, Founding) {
    for _ in 0..20 {
        let (a, b) = (step(one, [2], start()), step(other, [1], start()));
        if let (Some(a), Some(b)) = (a.decided, b.decided) {
            return (a, b);
        }
        one.hear(other.candidacies().clone());
        other.hear(one.candidacies().clone());
    }
    panic!("no decision: {:?}", one.candidacies());
}

fn step<const N: usize>(election: &mut Election, reachable: [u8; N], now: Instant) -> Step {
    let reachable = reachable.into_iter().map(name).collect();
    election.step(&reachable, &mut StdRng::seed_from_u64(1), now)
}

fn informed(founders: u16) -> Part {
    Part::Informed(NonZeroU16::new(founders).unwrap())
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere, once")]
fn start() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START
}
