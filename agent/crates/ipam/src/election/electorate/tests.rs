use weave_proto::peer::ipam::{Accepted, Ballot, Founding, Vote};

use super::*;

#[test]
fn a_candidate_locks_on_the_lowest_names_once_there_are_enough() {
    let mut mesh = Mesh::standing(3, [1, 2]);
    assert_eq!(mesh.next_move(1), Move::Stay);

    mesh.stand(3);
    mesh.stand(4);

    assert_eq!(mesh.next_move(1), Move::Lock(electorate(1, [1, 2, 3])));
    assert_eq!(mesh.next_move(4), Move::Stay);
}

#[test]
fn a_candidate_joins_a_lock_that_it_is_named_in() {
    let mut mesh = Mesh::standing(3, [1, 2, 3, 4]);
    mesh.lock(4, electorate(1, [2, 3, 4]));

    assert_eq!(mesh.next_move(2), Move::Lock(electorate(1, [2, 3, 4])));
    assert_eq!(
        mesh.next_move(1),
        Move::StandAside { attempt: 1 },
        "and leaves it to the others if it is not"
    );
}

#[test]
fn of_two_locks_in_one_attempt_the_lower_names_attract() {
    let mut mesh = Mesh::standing(2, [1, 2, 3]);
    mesh.lock(1, electorate(1, [1, 2]));
    mesh.lock(3, electorate(1, [2, 3]));

    assert_eq!(mesh.next_move(2), Move::Lock(electorate(1, [1, 2])));
    mesh.lock(2, electorate(1, [1, 2]));
    assert_eq!(mesh.next_move(1), Move::Stay);
    assert_eq!(mesh.next_move(3), Move::StandAside { attempt: 2 });
}

#[test]
fn a_complete_lock_is_kept_whatever_else_there_is() {
    let mut mesh = Mesh::standing(2, [1, 2, 3, 4]);
    mesh.lock(3, electorate(1, [3, 4]));
    mesh.lock(4, electorate(1, [3, 4]));
    mesh.lock(1, electorate(2, [1, 2]));

    assert_eq!(mesh.next_move(3), Move::Stay);
}

#[test]
fn an_unfinished_lock_is_left_when_a_member_has_been_away_for_too_long() {
    let mut mesh = Mesh::standing(3, [1, 2, 3, 4]);
    mesh.lock(1, electorate(1, [1, 2, 3]));
    mesh.candidates.remove(&name(3));
    assert_eq!(mesh.next_move(1), Move::Stay);

    mesh.given_up = true;

    assert_eq!(mesh.next_move(1), Move::Lock(electorate(2, [1, 2, 4])));
}

#[test]
fn who_has_accepted_something_stays() {
    let mut mesh = Mesh::standing(3, [1, 2, 3, 4]);
    mesh.lock(1, electorate(1, [1, 2, 3]));
    mesh.accept(1);
    mesh.candidates.remove(&name(2));
    mesh.candidates.remove(&name(3));
    mesh.stand(5);
    mesh.given_up = true;

    assert_eq!(mesh.next_move(1), Move::Stay);
}

#[test]
fn a_dead_electorate_binds_nobody() {
    let mut mesh = Mesh::standing(3, [1, 2, 3, 4]);
    mesh.lock(1, electorate(1, [1, 2, 3]));
    mesh.accept(1);
    mesh.lock(2, electorate(2, [2, 3, 4]));
    mesh.lock(3, electorate(2, [2, 3, 4]));
    mesh.candidates.remove(&name(2));
    mesh.candidates.remove(&name(3));
    mesh.stand(5);
    mesh.stand(6);
    mesh.given_up = true;

    assert!(is_dead(&electorate(1, [1, 2, 3]), &mesh.candidacies));
    assert_eq!(mesh.next_move(1), Move::Lock(electorate(3, [1, 4, 5])));
}

#[test]
fn a_complete_electorate_is_left_when_its_members_have_gone_on() {
    let mut mesh = Mesh::standing(2, [1, 2, 3]);
    mesh.lock(2, electorate(1, [2, 3]));
    mesh.promise(2);
    mesh.lock(3, electorate(2, [1, 3]));

    assert_eq!(mesh.next_move(2), Move::StandAside { attempt: 2 });
}

#[test]
fn an_electorate_is_dead_when_the_members_left_are_no_majority() {
    let mut mesh = Mesh::standing(5, [1, 2, 3, 4, 5]);
    let all = electorate(1, [1, 2, 3, 4, 5]);
    for (member, dead) in [(1, false), (2, false), (3, true)] {
        mesh.lock(member, electorate(2, [1, 2, 3, 4, 6]));
        assert_eq!(is_dead(&all, &mesh.candidacies), dead);
    }
}

#[test]
fn a_lock_does_not_count_while_its_holder_is_leaving_another() {
    let mut mesh = Mesh::standing(2, [1, 2]);
    let lock = electorate(2, [1, 2]);
    mesh.lock(1, lock.clone());
    mesh.lock(2, lock.clone());
    assert!(missing_locks(&lock, &mesh.candidacies).is_empty());

    mesh.candidacy(2).leaving.insert(electorate(1, [2, 3]));

    assert_eq!(missing_locks(&lock, &mesh.candidacies), BTreeSet::from([name(2)]));
}

#[test]
fn the_vote_of_one_member_proves_that_all_had_locked() {
    let mut mesh = Mesh::standing(3, [1, 2, 3]);
    let lock = electorate(1, [1, 2, 3]);
    mesh.lock(1, lock.clone());
    mesh.lock(2, lock.clone());
    mesh.accept(2);

    assert!(missing_locks(&lock, &mesh.candidacies).is_empty());
}

/// What everybody knows, and who can be reached.
struct Mesh {
    expected: u16,
    candidacies: BTreeMap<PeerName, Candidacy>,
    candidates: BTreeSet<PeerName>,
    given_up: bool,
}

impl Mesh {
    fn standing<const N: usize>(expected: u16, peers: [u8; N]) -> Self {
        let mut mesh =
            Self { expected, candidacies: BTreeMap::new(), candidates: BTreeSet::new(), given_up: false };
        peers.into_iter().for_each(|peer| mesh.stand(peer));
        mesh
    }

    fn stand(&mut self, peer: u8) {
        let candidacy = Candidacy {
            version: 1,
            founders: self.expected,
            attempt: 0,
            lock: None,
            leaving: BTreeSet::new(),
            vote: Vote::default(),
        };
        self.candidacies.insert(name(peer), candidacy);
        self.candidates.insert(name(peer));
    }

    fn lock(&mut self, peer: u8, lock: Electorate) {
        let candidacy = self.candidacy(peer);
        candidacy.attempt = lock.attempt;
        candidacy.lock = Some(lock);
    }

    fn promise(&mut self, peer: u8) {
        self.candidacy(peer).vote.promised = Some(Ballot { round: 1, proposer: name(peer) });
    }

    fn accept(&mut self, peer: u8) {
        let ballot = Ballot { round: 1, proposer: name(peer) };
        let value = Founding { founders: BTreeSet::from([name(peer)]), nonce: 0 };
        self.candidacy(peer).vote =
            Vote { promised: Some(ballot), accepted: Some(Accepted { ballot, value }) };
    }

    fn candidacy(&mut self, peer: u8) -> &mut Candidacy {
        self.candidacies.get_mut(&name(peer)).unwrap()
    }

    fn next_move(&self, peer: u8) -> Move {
        let Self { expected, candidacies, candidates, given_up } = self;
        Field { me: name(peer), expected: *expected, candidacies, candidates, given_up: *given_up }
            .next_move()
    }
}

fn electorate<const N: usize>(attempt: u32, members: [u8; N]) -> Electorate {
    Electorate { attempt, members: members.into_iter().map(name).collect() }
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}
