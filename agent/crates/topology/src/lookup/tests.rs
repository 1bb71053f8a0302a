use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::testing::{addr, now};

#[test]
fn a_literal_needs_no_lookup() {
    let mut lookups = Lookups::new(6783);
    lookups.add("192.0.2.1".parse().unwrap(), now());
    assert_eq!(lookups.next_timeout(), None);
    assert_eq!(lookups.addresses().collect::<Vec<_>>(), [addr(1)]);
}

#[test]
fn a_name_is_looked_up_at_once_and_again() {
    let (mut lookups, mut rng, start, target) = one_name();
    assert_eq!(lookups.on_timeout(&mut rng, start), [Output::Resolve(target.clone())]);
    assert!(lookups.on_timeout(&mut rng, start).is_empty(), "one question at a time");
    assert_eq!(lookups.on_resolved(&target, Ok(vec![addr(1), addr(1)]), &mut rng, start), None);
    assert_eq!(lookups.addresses().collect::<Vec<_>>(), [addr(1)]);
    let again = lookups.next_timeout().unwrap();
    assert!(again > start + REFRESH / 2);
    assert_eq!(lookups.on_timeout(&mut rng, again), [Output::Resolve(target.clone())]);
    lookups.on_resolved(&target, Ok(vec![addr(2)]), &mut rng, again);
    assert_eq!(lookups.addresses().collect::<Vec<_>>(), [addr(2)], "the node has moved");
}

#[test]
fn a_failed_lookup_keeps_the_addresses_is_told_once_and_asked_again() {
    let (mut lookups, mut rng, start, target) = one_name();
    lookups.on_resolved(&target, Ok(vec![addr(1)]), &mut rng, start);
    let failed = |lookups: &mut Lookups, rng: &mut StdRng| {
        lookups.on_resolved(&target, Err("no such host".to_owned()), rng, start)
    };
    assert!(failed(&mut lookups, &mut rng).is_some());
    assert!(failed(&mut lookups, &mut rng).is_none());
    assert_eq!(lookups.addresses().count(), 1);
    assert!(lookups.next_timeout().unwrap() > start);
    assert_eq!(lookups.troubles().count(), 1);
    lookups.on_resolved(&target, Ok(Vec::new()), &mut rng, start);
    assert_eq!(lookups.addresses().count(), 1, "no address is a failure too");
}

#[test]
fn a_resolver_that_never_answers_is_asked_again() {
    let (mut lookups, mut rng, start, target) = one_name();
    lookups.on_timeout(&mut rng, start);
    assert_eq!(lookups.next_timeout(), Some(start + PATIENCE));
    let told = lookups.on_timeout(&mut rng, start + PATIENCE);
    assert!(matches!(told[..], [Output::Notify(Notice::Unresolved { .. })]));
    let again = lookups.next_timeout().unwrap();
    assert_eq!(lookups.on_timeout(&mut rng, again), [Output::Resolve(target)]);
}

#[test]
fn an_answer_for_a_forgotten_target_is_passed_over() {
    let (mut lookups, mut rng, start, target) = one_name();
    lookups.retain(|_| false);
    assert_eq!(lookups.on_resolved(&target, Ok(vec![addr(1)]), &mut rng, start), None);
    assert_eq!(lookups.addresses().count(), 0);
}

fn one_name() -> (Lookups, StdRng, Instant, Target) {
    let (start, target) = (now(), "node".parse::<Target>().unwrap());
    let mut lookups = Lookups::new(6783);
    lookups.add(target.clone(), start);
    (lookups, StdRng::seed_from_u64(1), start, target)
}
