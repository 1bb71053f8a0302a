use std::time::Instant;

use super::lab::*;

/// The part of one processor that the owner may use while nothing happens: a third of the whole agent's budget.
const IDLE_SHARE: f64 = 0.001;
/// How often the owner is seen to wake before its time is reckoned up.
const WAKES: u64 = 4;

#[test]
fn while_nothing_happens_the_owner_sleeps() {
    let Some(_lab) = lab() else { return };
    let (host, _other) = two_hosts();
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = (2..5).map(path).collect();
    apply(&node, wanted);
    // What applying set off is over with the next wake.
    let (_, first) = owner_ran();
    eventually("the owner wakes", || owner_ran().1 > first);
    let (before, started) = (owner_ran(), Instant::now());
    eventually("the owner wakes a few times", || owner_ran().1 >= before.1 + WAKES);
    let used = (owner_ran().0 - before.0) as f64 / started.elapsed().as_nanos() as f64;
    println!("{:.3} % of a processor", used * 100.0);
    assert!(used < IDLE_SHARE, "{used}");
}

/// How many nanoseconds the owner's thread has run, and how many times.
fn owner_ran() -> (u64, u64) {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let owner = tasks
        .map(|task| task.unwrap().path())
        .find(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "weave-net"));
    let statistics = std::fs::read_to_string(owner.unwrap().join("schedstat")).unwrap();
    let mut numbers = statistics.split_whitespace().map(|number| number.parse().unwrap());
    let (ran, _waited, times) = (numbers.next().unwrap(), numbers.next(), numbers.next().unwrap());
    (ran, times)
}
