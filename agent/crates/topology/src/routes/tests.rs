use proptest::prelude::*;

use super::*;
use crate::testing::{name, record};

const PEERS: u8 = 12;

proptest! {
    #[test]
    fn each_hop_brings_a_message_one_step_nearer(
        links in prop::collection::btree_set((0..PEERS, 0..PEERS), 0..40),
    ) {
        let links: BTreeSet<(u8, u8)> = links.into_iter().filter(|(a, b)| a != b).collect();
        let routes: Vec<Routes> = (0..PEERS).map(|me| Routes::new(name(me), &graph(me, &links))).collect();
        for (from, to) in (0..PEERS).flat_map(|from| (0..PEERS).map(move |to| (from, to))) {
            let reached = routes[usize::from(from)].to(name(to));
            prop_assert_eq!(reached.map(|hop| hop.distance), distance(from, to, &links).filter(|&d| d > 0));
            if let Some(hop) = reached {
                prop_assert!(linked(&links, name(from), hop.via));
                let rest = distance(hop.via.mac()[5], to, &links);
                prop_assert_eq!(rest, Some(hop.distance - 1));
            }
        }
    }
}

#[test]
fn a_link_that_one_end_alone_reports_does_not_count() {
    let records = [record(1, 1, 1, &[2]), record(2, 1, 1, &[1, 3]), record(3, 1, 1, &[])];
    let graph = Graph::new(name(9), &BTreeSet::from([name(1)]), records.iter());
    let routes = Routes::new(name(9), &graph);
    assert_eq!(routes.to(name(2)), Some(Hop { via: name(1), distance: 2 }));
    assert_eq!(routes.to(name(3)), None);
    assert!(graph.has(name(1), name(9)), "our own links need no second witness");
}

#[test]
fn what_others_still_say_about_our_lost_links_does_not_count() {
    let records = [record(1, 1, 1, &[9]), record(9, 1, 1, &[1])];
    let routes = Routes::new(name(9), &Graph::new(name(9), &BTreeSet::new(), records.iter()));
    assert!(!routes.reach(name(1)));
    assert_eq!(routes.reached().count(), 0);
}

fn linked(links: &BTreeSet<(u8, u8)>, one: PeerName, other: PeerName) -> bool {
    let (one, other) = (one.mac()[5], other.mac()[5]);
    links.contains(&(one, other)) || links.contains(&(other, one))
}

fn graph(me: u8, links: &BTreeSet<(u8, u8)>) -> Graph {
    let neighbours =
        |of: u8| -> Vec<u8> { (0..PEERS).filter(|&other| linked(links, name(of), name(other))).collect() };
    let records: Vec<PeerRecord> = (0..PEERS).map(|peer| record(peer, 1, 1, &neighbours(peer))).collect();
    let mine = neighbours(me).into_iter().map(name).collect();
    Graph::new(name(me), &mine, records.iter())
}

/// The slow and obvious way: who is within 0, 1, 2, … steps?
fn distance(from: u8, to: u8, links: &BTreeSet<(u8, u8)>) -> Option<usize> {
    let mut within = BTreeSet::from([from]);
    for steps in 0..=usize::from(PEERS) {
        if within.contains(&to) {
            return Some(steps);
        }
        let reached: Vec<u8> =
            (0..PEERS).filter(|&next| within.iter().any(|&at| linked(links, name(at), name(next)))).collect();
        within.extend(reached);
    }
    None
}
