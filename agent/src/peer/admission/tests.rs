use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;

#[test]
fn a_burst_is_let_in_and_then_the_address_must_prove_itself() {
    let (mut door, now) = (Admission::default(), Instant::now());

    let verdicts: Vec<Verdict> = (0..100).map(|_| door.judge(host(1), false, 0, now)).collect();

    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Admit).count(), 64);
    assert_eq!(verdicts[64..], [Verdict::Retry; 36]);
}

#[test]
fn forged_attempts_do_not_use_up_the_budget_of_the_true_owner_of_an_address() {
    let (mut door, now) = (Admission::default(), Instant::now());
    for _ in 0..10_000 {
        door.judge(host(1), false, 0, now);
    }

    assert_eq!(door.judge(host(1), true, 0, now), Verdict::Admit);
}

#[test]
fn a_proven_source_that_goes_on_is_ignored_and_others_are_not() {
    let (mut door, now) = (Admission::default(), Instant::now());
    for _ in 0..64 {
        assert_eq!(door.judge(host(1), true, 0, now), Verdict::Admit);
    }

    assert_eq!(door.judge(host(1), true, 0, now), Verdict::Ignore);
    assert_eq!(door.judge(host(2), true, 0, now), Verdict::Admit);
}

#[test]
fn a_budget_grows_again_with_time() {
    let (mut door, now) = (Admission::default(), Instant::now());
    for _ in 0..64 {
        door.judge(host(1), true, 0, now);
    }

    let later = now + Duration::from_secs(1);
    let admitted = (0..100).filter(|_| door.judge(host(1), true, 0, later) == Verdict::Admit).count();

    assert_eq!(admitted, 16);
}

#[test]
fn under_load_addresses_must_be_proven_and_there_is_an_end() {
    let (mut door, now) = (Admission::default(), Instant::now());

    assert_eq!(door.judge(host(1), false, RETRY_ABOVE, now), Verdict::Retry);
    assert_eq!(door.judge(host(1), true, RETRY_ABOVE, now), Verdict::Admit);
    assert_eq!(door.judge(host(1), true, MAX_HANDSHAKES, now), Verdict::Ignore);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let (mut door, now) = (Admission::default(), Instant::now());
    for number in 0..10_000 {
        assert_eq!(door.judge(host(number), true, 0, now), Verdict::Admit);
    }
    assert_eq!(door.sources.len(), MAX_SOURCES);

    let later = now + Duration::from_secs(60);
    door.judge(host(20_000), true, 0, later);
    assert_eq!(door.sources.len(), 1);
}

fn host(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}
