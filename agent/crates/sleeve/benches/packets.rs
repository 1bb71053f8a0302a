//! What a record costs in time, step by step: `cargo bench -p weave-sleeve --bench packets`. No framework: each step is
//! repeated, the best of several rounds is shown (the others were disturbed), and only figures of one run are to be
//! compared.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench prints, and stops at the first surprise"
)]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod steps;

use std::time::{Duration, Instant};

use steps::Step;

const ROUNDS: usize = 9;
/// How long a round takes, about.
const ROUND: Duration = Duration::from_millis(10);

fn main() {
    for mut step in steps::all() {
        let times = fitting(&mut step);
        let best = (0..ROUNDS).map(|_| round(&mut step, times)).fold(f64::MAX, f64::min) / times as f64;
        let rate = step.bytes as f64 / best / 1e9;
        let rate = if step.bytes == 0 { String::new() } else { format!("{rate:7.2} GB/s") };
        println!("{:40} {:9.1} ns {rate}", step.name, best * 1e9 / step.times as f64);
    }
}

/// How often a step fits a round.
fn fitting(step: &mut Step) -> usize {
    let mut times = 1;
    while round(step, times) < ROUND.as_secs_f64() {
        times *= 2;
    }
    times
}

fn round(step: &mut Step, times: usize) -> f64 {
    let start = Instant::now();
    (0..times).for_each(|_| (step.act)());
    start.elapsed().as_secs_f64()
}
