use proptest::prelude::*;

use super::*;

fn peer(number: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, number])
}

/// The cluster at one moment, as one agent sees it.
#[derive(Debug, Clone, Default)]
struct Scene {
    owners: BTreeMap<PeerName, bool>,
    registered: Option<BTreeSet<PeerName>>,
}

impl Scene {
    fn of(owners: &[(u8, bool)], registered: &[u8]) -> Self {
        Self {
            owners: owners.iter().map(|(number, reachable)| (peer(*number), *reachable)).collect(),
            registered: Some(registered.iter().copied().map(peer).collect()),
        }
    }

    fn seen_by(&self, me: u8) -> Facts<'_> {
        Facts { me: peer(me), owners: &self.owners, registered: self.registered.as_ref() }
    }
}

#[test]
fn a_deleted_node_is_removed_after_the_grace_period_and_not_before() {
    let (start, scene) = (Instant::now(), Scene::of(&[(1, true), (2, true), (3, false)], &[1, 2]));
    let mut vigil = Vigil::new(GRACE);
    assert!(vigil.observe(scene.seen_by(1), start).is_empty());
    assert!(vigil.observe(scene.seen_by(1), start + GRACE - Duration::from_secs(1)).is_empty());
    assert_eq!(vigil.deadline(scene.seen_by(1)), Some(start + GRACE));
    assert_eq!(vigil.observe(scene.seen_by(1), start + GRACE), [peer(3)]);
    assert!(vigil.observe(scene.seen_by(1), start + GRACE).is_empty(), "asked for once");
    assert_eq!(vigil.observe(scene.seen_by(1), start + GRACE + AGAIN), [peer(3)], "and again after a while");
}

#[test]
fn the_agents_act_in_turn_and_the_one_that_follows_in_the_circle_of_names_is_first() {
    let (start, scene) =
        (Instant::now(), Scene::of(&[(1, true), (2, false), (3, true), (4, true)], &[1, 3, 4]));
    let acts_after = |me: u8| {
        let mut vigil = Vigil::new(GRACE);
        vigil.observe(scene.seen_by(me), start);
        vigil.deadline(scene.seen_by(me)).map(|at| at - start - GRACE)
    };
    assert_eq!(acts_after(3), Some(Duration::ZERO));
    assert_eq!(acts_after(4), Some(TURN));
    assert_eq!(acts_after(1), Some(TURN * 2));
    assert_eq!(acts_after(9), Some(TURN * 3), "who owns nothing comes last");
}

#[test]
fn a_node_that_comes_back_begins_anew() {
    let start = Instant::now();
    let gone = Scene::of(&[(1, true), (2, false)], &[1]);
    for back in [Scene::of(&[(1, true), (2, false)], &[1, 2]), Scene::of(&[(1, true), (2, true)], &[1])] {
        let mut vigil = Vigil::new(GRACE);
        vigil.observe(gone.seen_by(1), start);
        vigil.observe(back.seen_by(1), start + GRACE / 2);
        assert!(vigil.observe(gone.seen_by(1), start + GRACE).is_empty(), "{back:?}");
        assert_eq!(vigil.gone().collect::<Vec<_>>(), [(peer(2), start + GRACE)]);
    }
}

#[test]
fn nobody_is_removed_on_the_word_of_a_server_that_does_not_answer() {
    let start = Instant::now();
    let known = Scene::of(&[(1, true), (2, false)], &[1]);
    let unknown = Scene { registered: None, ..known.clone() };
    let mut vigil = Vigil::new(GRACE);
    vigil.observe(known.seen_by(1), start);
    assert!(vigil.observe(unknown.seen_by(1), start + GRACE * 2).is_empty());
    assert_eq!(vigil.deadline(unknown.seen_by(1)), None);
    assert_eq!(vigil.observe(known.seen_by(1), start + GRACE * 3), [peer(2)], "but its absence has counted");
}

#[test]
fn a_wiped_node_names_another_peer_so_the_former_one_is_removed() {
    let start = Instant::now();
    let scene = Scene::of(&[(1, true), (2, false), (9, true)], &[1, 9]);
    let mut vigil = Vigil::new(Duration::ZERO);
    assert_eq!(vigil.observe(scene.seen_by(9), start), [peer(2)]);
}

fn scenes() -> impl Strategy<Value = Vec<(u64, Scene)>> {
    let owners = proptest::collection::btree_map(0..5_u8, any::<bool>(), 0..5);
    let registered = proptest::option::weighted(0.8, proptest::collection::btree_set(0..5_u8, 0..5));
    let scene = (owners, registered).prop_map(|(owners, registered)| Scene {
        owners: owners.into_iter().map(|(number, reachable)| (peer(number), reachable)).collect(),
        registered: registered.map(|all| all.into_iter().map(peer).collect()),
    });
    proptest::collection::vec((0..400_u64, scene), 1..40)
}

proptest! {
    /// The reference: for the whole grace period before a removal, every scene showed the peer as an owner without a
    /// path, and none that had the server's word showed it registered.
    #[test]
    fn whoever_is_removed_was_away_for_the_whole_grace_period(story in scenes(), me in 0..5_u8) {
        let (mut now, mut vigil) = (Instant::now(), Vigil::new(GRACE));
        let mut past: Vec<(Instant, Scene)> = Vec::new();
        for (pause, scene) in story {
            now += Duration::from_secs(pause);
            let due = vigil.observe(scene.seen_by(me), now);
            past.push((now, scene.clone()));
            for gone in due {
                prop_assert_ne!(gone, peer(me));
                prop_assert!(scene.registered.as_ref().is_some_and(|all| !all.contains(&gone)));
                let away = |scene: &Scene| scene.owners.get(&gone) == Some(&false)
                    && scene.registered.as_ref().is_none_or(|all| !all.contains(&gone));
                let since = past.iter().rev().take_while(|(_, scene)| away(scene))
                    .filter(|(_, scene)| scene.registered.is_some()).map(|(at, _)| *at).last();
                prop_assert!(since.is_some_and(|since| now >= since + GRACE), "{since:?}");
            }
            if let Some(at) = vigil.deadline(scene.seen_by(me)) {
                prop_assert!(at > now, "what is due was done");
            }
        }
    }

    /// Every death is dealt with: whoever the living are, one of them acts within the grace period and the turns.
    #[test]
    fn some_living_owner_acts_first_and_at_once(owners in proptest::collection::btree_set(1..200_u8, 2..9), dead in 0..9_usize) {
        let owners: Vec<u8> = owners.into_iter().collect();
        let dead = owners[dead % owners.len()];
        let scene = Scene::of(
            &owners.iter().map(|number| (*number, *number != dead)).collect::<Vec<_>>(),
            &owners.iter().copied().filter(|number| *number != dead).collect::<Vec<_>>(),
        );
        let start = Instant::now();
        let first = owners.iter().filter(|number| **number != dead).filter(|me| {
            let mut vigil = Vigil::new(GRACE);
            vigil.observe(scene.seen_by(**me), start);
            vigil.observe(scene.seen_by(**me), start + GRACE) == [peer(dead)]
        });
        prop_assert_eq!(first.count(), 1);
    }
}
