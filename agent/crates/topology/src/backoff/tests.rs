use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

#[test]
fn pauses_double_up_to_the_slowest_and_vary() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut backoff = Backoff::default();
    let mut expected = FASTEST;
    for _ in 0..40 {
        let pause = backoff.next(&mut rng);
        assert!(pause >= expected.mul_f64(1.0 - JITTER) && pause <= expected.mul_f64(1.0 + JITTER));
        expected = (expected * 2).min(SLOWEST);
    }
}

#[test]
fn a_reset_starts_again_at_the_fastest() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut backoff = Backoff::default();
    backoff.slowest(&mut rng);
    backoff.reset();
    assert!(backoff.next(&mut rng) <= FASTEST.mul_f64(1.0 + JITTER));
}

#[test]
fn after_a_grave_failure_ordinary_ones_are_paced_slowly_too() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut backoff = Backoff::default();
    backoff.slowest(&mut rng);
    assert!(backoff.next(&mut rng) >= SLOWEST.mul_f64(1.0 - JITTER));
}
