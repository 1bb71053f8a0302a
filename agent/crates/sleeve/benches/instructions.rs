//! What a record costs in instructions, step by step: `make bench-instructions`. Counted by callgrind, so that a busy
//! machine or a slow one shows the same numbers, and a change of a few instructions is seen.
//!
//! Each step runs twice in a process of its own, often and more often; the difference is what the repetitions cost,
//! and what comes before and after them falls out. Valgrind knows no VAES and no AVX-512: the cipher then takes
//! its slower way, and "the cipher alone" says how much of a record that is.
//!
//! A step that takes more than its budget fails the run: somebody has made the packet path longer.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench prints, and stops at the first surprise"
)]
#![expect(clippy::disallowed_methods, reason = "the keys of a session have an age")]

mod steps;

use std::process::{Command, ExitCode};

/// Repetitions of the two runs.
const FEW: usize = 20;
const MANY: usize = 120;

/// The argument by which this program calls itself.
const ONLY: &str = "--only";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, step, times] = arguments.as_slice()
        && first == ONLY
    {
        let mut step = steps::all().remove(step.parse().unwrap());
        (0..times.parse().unwrap()).for_each(|_| (step.act)());
        return ExitCode::SUCCESS;
    }
    let mut all_within = true;
    println!("{:40} {:>12} {:>12} {:>8}", "step", "instructions", "a byte", "budget");
    for (place, step) in steps::all().iter().enumerate() {
        let Some(one) = instructions(place, step.times) else {
            println!("callgrind does not run here: install valgrind");
            return ExitCode::FAILURE;
        };
        let budget = BUDGETS.iter().find(|(name, _)| *name == step.name).unwrap().1;
        all_within &= one <= budget;
        let exceeded = if one <= budget { "" } else { "EXCEEDED" };
        println!("{:40} {one:12} {:>12} {budget:8} {exceeded}", step.name, a_byte(one, step));
    }
    if all_within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Instructions for a byte of payload, where that is the point.
fn a_byte(one: u64, step: &steps::Step) -> String {
    let bytes = step.bytes / step.times;
    if bytes == 0 { String::new() } else { format!("{:.2}", one as f64 / bytes as f64) }
}

/// Instructions that one of a step takes; none if they cannot be counted.
fn instructions(place: usize, times: usize) -> Option<u64> {
    let (few, many) = (collected(place, FEW)?, collected(place, MANY)?);
    Some((many - few) / ((MANY - FEW) * times) as u64)
}

/// Instructions of a whole process.
fn collected(place: usize, times: usize) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args([ONLY, &place.to_string(), &times.to_string()])
        .output()
        .ok()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = told.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

/// What the steps may take: about a tenth more than they did when this was last looked at.
const BUDGETS: [(&str, u64); 13] = [
    ("AES-128: cut and seal a full record", 4750),
    ("AES-128: open and join a full record", 4650),
    ("AES-128: the cipher alone, full record", 4400),
    ("AES-256: cut and seal a full record", 5300),
    ("AES-256: open and join a full record", 5200),
    ("ChaCha20: cut and seal a full record", 10_300),
    ("ChaCha20: open and join a full record", 9850),
    ("an acknowledgement, sealed alone", 2200),
    ("an acknowledgement, in a bundle", 860),
    ("replay window, ask and take", 50),
    ("owner of an address among 1024 ranges", 150),
    ("a relay's hop, a frame", 110),
    ("a session's three epochs of keys", 132_000),
];
