//! `make bench`: ours beside the references, in one run.
//!
//! Everything is measured in turns, ours and the reference right after each other, round by round, in changing
//! order, so that a machine that is slow for a while is slow for both. A value is the median of its rounds; a
//! ratio is the median of the rounds' ratios, ours / reference, whatever the unit: for what shall be high, more
//! is better, for what shall be low, less. A budget is a reference that is not measured.
//!
//! The table goes to the screen and to `target/bench.json`.

#![expect(clippy::print_stdout, reason = "a program for people")]

mod attachment;
mod dataplane;
mod rest;
mod rows;
mod tunnels;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use weave_netns::lab::told;
use weave_netns::settings::Settings;

use dataplane::Measurement;
use rows::Row;
use tunnels::Group;

/// What to measure and how often.
#[derive(Debug, Clone)]
struct Plan {
    rounds: usize,
    parts: Vec<Part>,
    output: PathBuf,
}

/// A part of the bench.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// What the machine can do: the hand-made network against the underlay. Needs no agent.
    HandMade,
    /// Ours against the hand-made network, in these ways.
    DataPlane(&'static [Measurement]),
    /// ADD and DEL against the reference plugins.
    Attachment,
    /// The agent at rest against its budgets.
    Rest,
    /// Tunnels in user space against fastdp and against other people's: these rows of them.
    Tunnels(Vec<Group>),
}

const HELP: &str = "\
usage: bench [--rounds N] [--output FILE] [PART…]

parts: handmade   the hand-made network against the underlay (needs no agent; not among the defaults)
       dataplane  TCP, UDP and round trips of ours against the hand-made network; a part of it is
                  dataplane:streams, dataplane:floods or dataplane:trips
       cni        ADD and DEL against Debian's bridge and host-local plugins
       tunnels    sleeve, quic and relay against fastdp, boringtun and wireguard-go; a part of it is
                  tunnels:streams, tunnels:floods, tunnels:trips or tunnels:calls
       rest       memory and processor time of an agent at rest against its budgets";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("The bench failed: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    if std::env::args().skip(1).any(|argument| argument == "--help" || argument == "-h") {
        println!("{HELP}");
        return Ok(());
    }
    let plan = plan(std::env::args().skip(1))?;
    let settings = Settings::read()?;
    let mut rows: Vec<Row> = Vec::new();
    for part in &plan.parts {
        let measured = match part {
            Part::HandMade => dataplane::hand_made(&settings, plan.rounds),
            Part::DataPlane(ways) => dataplane::ours(&settings, plan.rounds, ways),
            Part::Attachment => attachment::measure(&settings, plan.rounds),
            Part::Rest => rest::measure(&settings, plan.rounds),
            Part::Tunnels(groups) => tunnels::measure(&settings, plan.rounds, groups),
        };
        rows.extend(measured.with_context(|| format!("measuring {part:?}"))?);
    }
    println!("{}", rows::table(&rows));
    std::fs::write(&plan.output, rows::json(&rows))
        .with_context(|| format!("writing {}", plan.output.display()))?;
    println!("written to {}", plan.output.display());
    Ok(())
}

fn plan(mut arguments: impl Iterator<Item = String>) -> Result<Plan> {
    let mut plan = Plan { rounds: 7, parts: Vec::new(), output: PathBuf::from("target/bench.json") };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                let count = arguments.next().context("--rounds needs a number")?;
                plan.rounds = count.parse().with_context(|| format!("--rounds {count} is no number"))?;
            }
            "--output" => plan.output = arguments.next().context("--output needs a file")?.into(),
            "handmade" => plan.parts.push(Part::HandMade),
            "dataplane" => plan.parts.push(Part::DataPlane(&Measurement::ALL)),
            "cni" => plan.parts.push(Part::Attachment),
            "rest" => plan.parts.push(Part::Rest),
            "tunnels" => plan.parts.push(Part::Tunnels(Group::ALL.to_vec())),
            other => {
                plan.parts.push(part_of_part(other).with_context(|| format!("what is {other:?}?\n{HELP}"))?)
            }
        }
    }
    if plan.parts.is_empty() {
        let tunnels = Part::Tunnels(Group::ALL.to_vec());
        plan.parts = vec![Part::DataPlane(&Measurement::ALL), tunnels, Part::Attachment, Part::Rest];
    }
    Ok(plan)
}

/// The part that `PART:ROWS` names.
fn part_of_part(argument: &str) -> Option<Part> {
    match argument.split_once(':')? {
        ("dataplane", rows) => Measurement::named(rows).map(Part::DataPlane),
        ("tunnels", rows) => Group::named(rows).map(|group| Part::Tunnels(vec![group])),
        _ => None,
    }
}
