use super::*;

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container: container.to_owned(), interface: "eth0".to_owned() }
}

#[tokio::test]
async fn one_at_a_time_in_the_order_of_coming_and_nothing_left_behind() {
    let locks = KeyLocks::default();
    let order = Mutex::new(Vec::new());
    let first = locks.lock(&key("a")).await;
    let work = |number: u32| {
        let (locks, order) = (&locks, &order);
        async move {
            let _lock = locks.lock(&key("a")).await;
            order.lock().unwrap().push(number);
        }
    };
    let release = async {
        order.lock().unwrap().push(0);
        drop(first);
    };
    tokio::join!(biased; work(1), work(2), release);
    assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    assert!(locks.is_empty());
}

#[tokio::test]
async fn different_attachments_do_not_wait_for_each_other() {
    let locks = KeyLocks::default();
    let _a = locks.lock(&key("a")).await;
    let _b = locks.lock(&key("b")).await;
    assert_eq!(locks.len(), 2);
}

#[tokio::test]
async fn one_who_stops_waiting_leaves_nothing_behind() {
    let locks = KeyLocks::default();
    let held = locks.lock(&key("a")).await;
    {
        let key = key("a");
        let mut waiting = Box::pin(locks.lock(&key));
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
    drop(held);
    assert!(locks.is_empty());
}
