use super::*;

#[test]
fn requests_are_served_in_the_order_of_arrival() {
    let mut queue = Queue::default();
    queue.push(RequestId(7), allocate("a"), start());
    queue.push(RequestId(3), allocate("b"), start());

    assert_eq!(queue.take_allocate().map(|(request, ..)| request), Some(RequestId(7)));
    assert_eq!(queue.take_allocate().map(|(request, ..)| request), Some(RequestId(3)));
    assert_eq!(queue.take_allocate(), None);
}

#[test]
fn only_those_who_wait_for_any_address_are_given_any() {
    let mut queue = Queue::default();
    queue.push(RequestId(1), Pending::Remove { peer: PeerName::from_bits([2; 6]) }, start());

    assert!(!queue.wants_address());
    assert_eq!(queue.take_allocate(), None);
}

#[test]
fn nobody_waits_longer_than_the_patience() {
    let mut queue = Queue::default();
    queue.push(RequestId(1), allocate("a"), start());
    queue.push(RequestId(2), allocate("b"), start() + PATIENCE / 2);

    assert_eq!(queue.deadline(), Some(start() + PATIENCE));
    assert_eq!(queue.take(|waiting| waiting.until <= start() + PATIENCE).len(), 1);
    assert_eq!(queue.deadline(), Some(start() + PATIENCE + PATIENCE / 2));
}

fn allocate(container: &str) -> Pending {
    let key = AttachmentKey { container: container.to_owned(), interface: "eth0".to_owned() };
    Pending::Allocate { key, port: None }
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere, once")]
fn start() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START
}
