use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

#[test]
fn the_last_owner_inherits_at_once() {
    let mut reclaim = Reclaim::new(name(1), BTreeMap::new());
    reclaim.ask(name(2), Stance::Asks);

    let step = step(&mut reclaim, &[1, 2], &[]);

    assert_eq!(step.decided, [(name(2), name(1))]);
    assert_eq!(reclaim.heir_of(name(2)), Some(name(1)));
}

#[test]
fn an_heir_listens_for_a_while_before_it_proposes_itself() {
    let mut reclaim = Reclaim::new(name(1), BTreeMap::new());
    reclaim.ask(name(2), Stance::Asks);
    let (owners, reachable) = (names(&[1, 2]), names(&[]));
    let electors = Electors { owners: &owners, reachable: &reachable };
    let mut rng = StdRng::seed_from_u64(1);

    assert_eq!(reclaim.step(electors, &mut rng, start()), Step::default());
    assert_eq!(reclaim.deadline(start()), Some(start() + HEARING));
    assert_eq!(reclaim.step(electors, &mut rng, start() + HEARING).decided, [(name(2), name(1))]);
}

#[test]
fn a_majority_of_the_other_owners_must_acknowledge() {
    let mut heir = Reclaim::new(name(1), BTreeMap::new());
    heir.ask(name(4), Stance::Asks);
    assert_eq!(step(&mut heir, &[1, 2, 3, 4], &[2, 3]).decided, []);

    let mut voter = Reclaim::new(name(2), BTreeMap::new());
    exchange(&mut heir, &mut voter, &[1, 2, 3, 4]);

    assert_eq!(voter.heir_of(name(4)), Some(name(1)));
    assert_eq!(heir.heir_of(name(4)), Some(name(1)));
}

#[test]
fn nobody_acknowledges_the_removal_of_a_peer_it_can_reach() {
    let mut heir = Reclaim::new(name(1), BTreeMap::new());
    heir.ask(name(3), Stance::Asks);
    step(&mut heir, &[1, 2, 3], &[2]);

    let mut voter = Reclaim::new(name(2), BTreeMap::new());
    voter.hear(heir.removals().clone());

    assert_eq!(step(&mut voter, &[1, 2, 3], &[1, 3]), Step::default());
    assert!(step(&mut voter, &[1, 2, 3], &[1]).changed);
}

#[test]
fn a_removal_is_withdrawn_when_its_peer_is_seen_unless_it_is_forced() {
    for (stance, withdrawn) in [(Stance::Asks, vec![name(3)]), (Stance::Insists, Vec::new())] {
        let mut heir = Reclaim::new(name(1), BTreeMap::new());
        heir.ask(name(3), stance);

        assert_eq!(step(&mut heir, &[1, 2, 3], &[2, 3]).withdrawn, withdrawn);
    }
}

#[test]
fn a_proposal_that_leaves_out_an_owner_is_not_acknowledged() {
    let mut heir = Reclaim::new(name(1), BTreeMap::new());
    heir.ask(name(3), Stance::Asks);
    let mut voter = Reclaim::new(name(2), BTreeMap::new());
    // The heir does not know yet that peer 4 owns something.
    for _ in 0..4 {
        step(&mut heir, &[1, 2, 3], &[2]);
        voter.hear(heir.removals().clone());
        step(&mut voter, &[1, 2, 3, 4], &[1]);
        heir.hear(voter.removals().clone());
    }
    assert_eq!(voter.heir_of(name(3)), None);

    // Now it does, and asks again on its own.
    exchange(&mut heir, &mut voter, &[1, 2, 3, 4]);

    assert_eq!(voter.heir_of(name(3)), Some(name(1)));
}

#[test]
fn peers_that_are_given_up_have_no_say_in_each_others_removal() {
    let mut reclaim = Reclaim::new(name(1), BTreeMap::new());
    reclaim.ask(name(2), Stance::Asks);
    assert_eq!(step(&mut reclaim, &[1, 2, 3], &[]).decided, []);
    let missing = WaitingFor::Acknowledgements { missing: 1, unreachable: BTreeSet::from([name(3)]) };
    let (owners, reachable) = (names(&[1, 2, 3]), names(&[]));
    let electors = Electors { owners: &owners, reachable: &reachable };
    assert_eq!(reclaim.waiting_for(name(2), electors), Some(missing));

    reclaim.ask(name(3), Stance::Asks);

    assert_eq!(step(&mut reclaim, &[1, 2, 3], &[]).decided.len(), 2);
}

#[test]
fn inheritance_follows_the_line_and_ends_where_it_goes_in_a_circle() {
    let decided = |removed, heir| (name(removed), Removal::Decided { heir: name(heir) });

    let line = Reclaim::new(name(9), BTreeMap::from([decided(1, 2), decided(2, 3)]));
    assert_eq!(line.heir_of(name(1)), Some(name(3)));
    assert_eq!(line.heir_of(name(3)), None);

    let circle = Reclaim::new(name(9), BTreeMap::from([decided(1, 2), decided(2, 1)]));
    assert!(circle.is_removed(name(1)));
    assert_eq!(circle.heir_of(name(1)), None);
}

#[test]
fn a_decision_outweighs_all_opinions_and_the_same_of_two_decisions_wins_everywhere() {
    let decided = |heir| BTreeMap::from([(name(9), Removal::Decided { heir: name(heir) })]);
    let mut one = Reclaim::new(name(1), BTreeMap::new());
    one.ask(name(9), Stance::Asks);
    let opinions = one.removals().clone();

    assert_eq!(one.hear(decided(2)), (true, false));
    assert_eq!(one.hear(opinions), (false, true));
    assert_eq!(one.hear(decided(3)), (true, false));
    assert_eq!(one.hear(decided(2)), (false, true));
    assert_eq!(one.heir_of(name(9)), Some(name(3)));
}

#[test]
fn a_removed_peer_has_no_opinion_about_itself() {
    let mut heir = Reclaim::new(name(1), BTreeMap::new());
    heir.ask(name(2), Stance::Insists);
    let mut removed = Reclaim::new(name(2), BTreeMap::new());
    removed.hear(heir.removals().clone());

    assert_eq!(step(&mut removed, &[1, 2, 3], &[1, 3]), Step::default());
}

/// Both tell each other what they know until neither learns anything.
fn exchange(one: &mut Reclaim, other: &mut Reclaim, owners: &[u8]) {
    for _ in 0..20 {
        let (me, you) = (one.me.mac()[5], other.me.mac()[5]);
        step(one, owners, &[you]);
        step(other, owners, &[me]);
        let (learned, _) = one.hear(other.removals().clone());
        if !learned && !other.hear(one.removals().clone()).0 {
            return;
        }
    }
    panic!("no end: {:?}", one.removals());
}

fn step(reclaim: &mut Reclaim, owners: &[u8], reachable: &[u8]) -> Step {
    let (owners, reachable) = (names(owners), names(reachable));
    let electors = Electors { owners: &owners, reachable: &reachable };
    // Listens first, acts then.
    let listening = reclaim.step(electors, &mut StdRng::seed_from_u64(1), start());
    let acting = reclaim.step(electors, &mut StdRng::seed_from_u64(1), start() + HEARING);
    Step {
        changed: listening.changed || acting.changed,
        decided: [listening.decided, acting.decided].concat(),
        withdrawn: [listening.withdrawn, acting.withdrawn].concat(),
    }
}

fn names(list: &[u8]) -> BTreeSet<PeerName> {
    list.iter().copied().map(name).collect()
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere, once")]
fn start() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START
}
