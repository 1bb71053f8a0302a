use super::*;

#[test]
fn every_allocation_has_a_larger_generation_than_all_before_it() {
    let mut book = book();
    let first = book.allocate(key("a"), addr("10.0.0.1"), None).generation;
    let renewed = book.renew(&key("a"), None).unwrap().generation;
    book.free(|_| true, start());
    let second = book.allocate(key("a"), addr("10.0.0.2"), None).generation;

    assert!(first < renewed && renewed < second);
}

#[test]
fn generations_go_on_after_a_restart_even_if_nothing_is_left_of_them() {
    let mut before = book();
    before.allocate(key("a"), addr("10.0.0.1"), None);
    let Some(StoreOp::PutGeneration(stored)) =
        before.take_changes().into_iter().rfind(|op| matches!(op, StoreOp::PutGeneration(_)))
    else {
        panic!("a generation is stored with what it was given to");
    };

    let mut after = book();
    after.skip_generations(stored);

    assert!(after.allocate(key("b"), addr("10.0.0.1"), None).generation > stored);
}

#[test]
fn a_key_that_asks_again_keeps_its_address_and_brings_its_port() {
    let mut book = book();
    book.allocate(key("a"), addr("10.0.0.1"), None);

    let renewed = book.renew(&key("a"), Some(plan("vethb"))).unwrap();

    assert_eq!(renewed.address, addr("10.0.0.1"));
    assert_eq!(renewed.port.as_ref().map(|port| port.address), Some(addr("10.0.0.1")));
    assert_eq!(book.renew(&key("a"), None).unwrap().port, renewed.port, "and does not lose it");
    assert_eq!(book.renew(&key("b"), None), None);
}

#[test]
fn what_is_freed_rests_in_the_store_too() {
    let mut book = book();
    book.allocate(key("a"), addr("10.0.0.1"), None);
    book.take_changes();

    book.free(|allocation| allocation.key == key("a"), start());

    assert_eq!(book.space().quarantined(start()), 1);
    let changes = book.take_changes();
    assert!(changes.contains(&StoreOp::DeleteAllocation(key("a"))), "{changes:?}");
    assert!(matches!(changes.last(), Some(StoreOp::PutFreed(freed)) if freed.address == addr("10.0.0.1")));
    book.allocate(key("b"), addr("10.0.0.1"), None);
    assert!(book.take_changes().contains(&StoreOp::DeleteFreed(addr("10.0.0.1"))));
}

#[test]
fn a_restart_begins_the_quarantine_anew() {
    let mut book = Book::new(range());
    let freed =
        vec![Freed { address: addr("10.0.0.2"), order: 9 }, Freed { address: addr("10.0.0.1"), order: 5 }];

    book.restore(vec![Span::from(range())], Vec::new(), freed, start()).unwrap();

    assert_eq!(book.space().quarantined(start()), 2);
    assert_eq!(book.space().oldest(), Some(addr("10.0.0.1")));
    assert_eq!(book.allocate(key("a"), addr("10.0.0.3"), None).generation, 10);
}

#[test]
fn a_store_that_gives_one_address_to_two_is_refused() {
    let allocation =
        |container| Allocation { key: key(container), address: addr("10.0.0.1"), port: None, generation: 1 };
    let own = vec![Span::from(range())];

    let refused =
        Book::new(range()).restore(own, vec![allocation("a"), allocation("b")], Vec::new(), start());

    assert_eq!(refused.unwrap_err().key, key("b"));
}

#[test]
fn a_range_that_is_lost_takes_its_allocations_along() {
    let mut book = book();
    let lost = book.allocate(key("a"), addr("10.0.0.1"), None);
    let kept = book.allocate(key("b"), addr("10.0.0.9"), None);
    let rest = Span::new(addr("10.0.0.8"), addr("10.0.0.15")).unwrap();

    assert_eq!(book.set_own(vec![rest], start()), [lost]);

    assert_eq!(book.allocations().collect::<Vec<_>>(), [&kept]);
    assert_eq!(book.space().quarantined(start()), 0, "a lost address does not rest, it is another's");
    book.check_invariants();
}

#[test]
fn who_holds_a_lost_address_is_remembered_until_the_container_is_gone_or_has_another() {
    let (mut book, now) = (book(), start());
    for (container, address) in [("pod", "10.0.0.5"), ("other", "10.0.0.6"), ("weave:expose", "10.0.0.7")] {
        book.allocate(key(container), addr(address), None);
    }
    assert_eq!(book.set_own(Vec::new(), now).len(), 3);
    let lost = |book: &Book| book.lost().map(|lost| lost.key.container.clone()).collect::<Vec<_>>();
    assert_eq!(lost(&book), ["other", "pod"]);
    let kept = book.lost().cloned().collect::<Vec<_>>();
    let changes = book.take_changes();
    assert!(kept.iter().all(|lost| changes.contains(&StoreOp::PutLost(lost.clone()))), "{changes:?}");

    let mut after = Book::new(range());
    after.restore_lost(kept);
    after.set_own(vec![range().into()], now);
    assert!(
        after.free(|allocation| allocation.key == key("pod"), now).is_empty(),
        "its address is not ours to free"
    );
    after.allocate(key("other"), addr("10.0.0.9"), None);
    assert!(lost(&after).is_empty());
    let changes = after.take_changes();
    for container in ["pod", "other"] {
        assert!(changes.contains(&StoreOp::DeleteLost(key(container))), "{changes:?}");
    }
}

#[test]
fn the_agents_own_keys_are_told_by_their_colon() {
    assert!(is_reserved(&AttachmentKey::expose()));
    assert!(!is_reserved(&key("weave")));
}

fn book() -> Book {
    let mut book = Book::new(range());
    book.set_own(vec![Span::from(range())], start());
    book
}

fn plan(host_interface: &str) -> PortPlan {
    PortPlan {
        host_interface: host_interface.to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
        netns: "/run/netns/a".to_owned(),
        pod: None,
    }
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container: container.to_owned(), interface: "eth0".to_owned() }
}

fn range() -> Cidr {
    "10.0.0.0/28".parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere, once")]
fn start() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START
}
