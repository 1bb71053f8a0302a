//! What it costs when many peers start together.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::num::NonZeroU16;
use std::time::Duration;

use weave_ipam::Mode;
use weave_proto::Cidr;
use weave_sim::{Effort, Step, World, invariants};

/// How many start together, each told of all others.
const PEERS: u16 = 24;

/// All peers, just started.
fn started(seed: u64) -> World {
    let range: Cidr = "10.32.0.0/12".parse().expect("a range");
    let mut world = World::new(range, seed);
    for _ in 0..PEERS {
        world.add(Mode::Consensus { founders: NonZeroU16::new(PEERS) }, Vec::new());
    }
    let targets: Vec<_> = world.places().map(|place| world.machine(place).addr.to_string()).collect();
    for place in world.places() {
        let others = targets.iter().enumerate().filter(|(other, _)| *other != place);
        let others = others.map(|(_, target)| target.parse().expect("a target")).collect();
        world.retarget(place, others);
    }
    for place in world.places() {
        world.step(Step::Start(place));
        world.step(Step::Wait(Duration::from_millis(50)));
    }
    world
}

fn total(effort: &Effort) -> (u64, u64) {
    effort.sent.values().fold((0, 0), |sum, sent| (sum.0 + sent.0, sum.1 + sent.1))
}

#[test]
fn two_dozen_peers_that_start_together_settle_within_seconds_and_a_bounded_number_of_messages() {
    for seed in 0..2 {
        let mut world = started(seed);
        let undecided = |world: &World| {
            world.places().any(|place| world.router(place).expect("it runs").ipam().universe_id().is_none())
        };
        let mut waited = Duration::ZERO;
        while undecided(&world) {
            waited += Duration::from_millis(250);
            assert!(waited < Duration::from_secs(5), "no split: {:?}", world.effort);
            world.step(Step::Wait(Duration::from_millis(250)));
        }
        world.step(Step::Wait(Duration::from_secs(10)));
        invariants::rings_agree(&world);
        let pairs = u64::from(PEERS) * u64::from(PEERS - 1);
        let (messages, bytes) = total(&world.effort);
        // Ten thousand of ownership alone, and 29 MB in all, while each change was told at once.
        assert!(messages < 24 * pairs, "{messages} messages: {:?}", world.effort);
        assert!(bytes < 12 << 20, "{bytes} bytes: {:?}", world.effort);
        // A link is made of one attempt, or two that cross; the rest came before the other end had started.
        assert!(world.effort.dials < 2 * pairs, "{:?}", world.effort);
    }
}
