//! The program `weave`: the agent and the command line that asks it.

use std::process::ExitCode;

use weave_agent::{cli, launch};

fn main() -> ExitCode {
    cli::run(&launch::ThisMachine)
}
