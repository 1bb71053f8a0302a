use rand::SeedableRng;
use rand::rngs::StdRng;
use weave_proto::Span;

use super::*;
use crate::space::QUARANTINE;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_donor_gives_about_half_of_its_free_space() {
    assert_eq!(gift(&owning("10.0.0.0/24"), Want::Share, start()), Some("10.0.0.128/26".parse().unwrap()));
}

#[test]
fn a_donor_without_free_space_denies_and_gives_a_resting_address_only_in_need() {
    let mut space = owning("10.0.0.0/30");
    for last in [1, 2] {
        space.take([10, 0, 0, last].into());
    }
    space.release([10, 0, 0, 2].into(), 1, start());

    assert_eq!(gift(&space, Want::Share, start()), None);
    assert_eq!(gift(&space, Want::Leftover, start()), Some("10.0.0.2/32".parse().unwrap()));
    assert_eq!(gift(&space, Want::Share, start() + QUARANTINE), Some("10.0.0.2/32".parse().unwrap()));
}

#[test]
fn a_balancing_gift_never_turns_the_tables() {
    let space = owning("10.0.0.0/24");
    for owned in 0..=256_u64 {
        if let Some(block) = gift(&space, Want::Balance { owned }, start()) {
            assert!(256 - block.len() >= u128::from(owned) + block.len(), "{owned}");
        } else {
            assert!(owned > 253, "{owned}");
        }
    }
}

#[test]
fn a_donor_in_use_gives_nothing_for_balance() {
    let mut space = owning("10.0.0.0/28");
    (1..=9).for_each(|last| {
        space.take([10, 0, 0, last].into());
    });

    assert_eq!(gift(&space, Want::Balance { owned: 0 }, start()), None);
    assert!(gift(&space, Want::Share, start()).is_some());
}

#[test]
fn who_needs_space_asks_those_with_most_first_and_each_once() {
    let mut seeker = Seeker::default();
    let mesh = Mesh::new(&[(1, 100, 5), (2, 100, 50), (3, 100, 0)]);

    let mut asked = Vec::new();
    for _ in 0..2 {
        let (donor, token) = mesh.asks(&mut seeker, Want::Share, start());
        asked.push(donor);
        assert_eq!(mesh.next(&mut seeker, start()), Quest::Wait, "one answer is awaited at a time");
        assert!(seeker.on_denied(donor, token, start()));
    }

    assert_eq!(asked, [name(2), name(1)]);
}

#[test]
fn when_all_have_denied_own_quarantine_comes_first_and_leftovers_second() {
    let mut seeker = Seeker::default();
    let mut mesh = Mesh::new(&[(1, 100, 5), (2, 100, 0)]);
    mesh.has_resting = true;
    let (donor, token) = mesh.asks(&mut seeker, Want::Share, start());
    seeker.on_denied(donor, token, start());
    assert_eq!(mesh.next(&mut seeker, start()), Quest::CutQuarantine);

    mesh.has_resting = false;
    for expected in [1, 2] {
        let (donor, token) = mesh.asks(&mut seeker, Want::Leftover, start());
        assert_eq!(donor, name(expected));
        seeker.on_denied(donor, token, start());
    }
    assert_eq!(mesh.next(&mut seeker, start()), Quest::Wait);
    assert_eq!(seeker.deadline(), Some(start() + ROUND_PAUSE));
    mesh.asks(&mut seeker, Want::Share, start() + ROUND_PAUSE);
}

#[test]
fn a_donor_that_does_not_answer_is_passed_over() {
    let mut seeker = Seeker::default();
    let mesh = Mesh::new(&[(1, 100, 5), (2, 100, 50)]);
    mesh.asks(&mut seeker, Want::Share, start());

    let (donor, _) = mesh.asks(&mut seeker, Want::Share, start() + ANSWER_PATIENCE);

    assert_eq!(donor, name(1));
}

#[test]
fn an_answer_to_another_question_is_none() {
    let mut seeker = Seeker::default();
    let mesh = Mesh::new(&[(1, 100, 5)]);
    let (donor, token) = mesh.asks(&mut seeker, Want::Share, start());

    assert!(!seeker.on_denied(donor, token.wrapping_add(1), start()));
    assert!(!seeker.on_denied(name(9), token, start()));
    assert_eq!(seeker.asked(), Some(name(1)));
}

#[test]
fn uneven_shares_are_balanced_at_leisure_with_the_largest_owner() {
    let mut seeker = Seeker::default();
    let mesh = Mesh { need: false, owned: 10, ..Mesh::new(&[(1, 21, 5), (2, 90, 5), (3, 20, 20)]) };
    assert_eq!(mesh.next(&mut seeker, start()), Quest::Wait);

    let due = seeker.deadline().unwrap();
    assert!(due >= start() + BALANCE_DELAY && due <= start() + 2 * BALANCE_DELAY);
    let (donor, token) = mesh.asks(&mut seeker, Want::Balance { owned: 10 }, due);
    assert_eq!(donor, name(2));

    seeker.on_denied(donor, token, due);
    assert_eq!(mesh.next(&mut seeker, due), Quest::Wait);
    let next = seeker.deadline().unwrap();
    let (donor, token) = mesh.asks(&mut seeker, Want::Balance { owned: 10 }, next);
    assert_eq!(donor, name(1), "who has denied is left in peace for a while");
    seeker.on_denied(donor, token, due);
    assert_eq!(mesh.next(&mut seeker, due + SECOND), Quest::Wait);
    assert!(seeker.deadline().unwrap() >= due + BALANCE_RETRY);
}

#[test]
fn even_shares_leave_everybody_in_peace() {
    let mut seeker = Seeker::default();
    let mesh = Mesh { need: false, owned: 10, ..Mesh::new(&[(1, 20, 5), (2, 5, 5)]) };

    assert_eq!(mesh.next(&mut seeker, start()), Quest::Wait);
    assert_eq!(seeker.deadline(), None);
}

#[test]
fn need_does_not_wait_for_the_answer_to_a_wish_for_balance() {
    let mut seeker = Seeker::default();
    let mut mesh = Mesh { need: false, owned: 10, ..Mesh::new(&[(1, 90, 5)]) };
    mesh.next(&mut seeker, start());
    let due = seeker.deadline().unwrap();
    mesh.asks(&mut seeker, Want::Balance { owned: 10 }, due);

    mesh.need = true;

    mesh.asks(&mut seeker, Want::Share, due);
}

struct Mesh {
    donors: BTreeMap<PeerName, Donor>,
    owned: u128,
    need: bool,
    has_resting: bool,
}

impl Mesh {
    /// Donors by name, size and hint; somebody waits for an address.
    fn new(donors: &[(u8, u128, u64)]) -> Self {
        let donors = donors.iter().map(|&(peer, owned, free)| (name(peer), Donor { owned, free })).collect();
        Self { donors, owned: 0, need: true, has_resting: false }
    }

    fn next(&self, seeker: &mut Seeker, now: Instant) -> Quest {
        let Self { donors, owned, need, has_resting } = self;
        let market = Market { donors, owned: *owned, need: *need, has_resting: *has_resting };
        seeker.next(&market, &mut StdRng::seed_from_u64(1), now)
    }

    fn asks(&self, seeker: &mut Seeker, wanted: Want, now: Instant) -> (PeerName, u64) {
        let quest = self.next(seeker, now);
        let Quest::Ask { donor, token, want } = quest else { panic!("asks nobody: {quest:?}") };
        assert_eq!(want, wanted);
        (donor, token)
    }
}

fn owning(range: &str) -> Space {
    let range: Cidr = range.parse().unwrap();
    let mut space = Space::new(range);
    space.set_own(vec![Span::from(range)]);
    space
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere, once")]
fn start() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START
}
