//! `weave-net`, the CNI shim; called by the name `weave-ipam` it gives out addresses for other plugins.
//!
//! A container runtime starts this program for every pod, with the verb in the environment and the network's
//! configuration on standard input. It decides nothing. It checks the shape of what it was given ([`mod@env`],
//! [`conf`]), opens the pod's network namespace and a netlink socket inside it ([`netns`]), hands both to the
//! agent over a unix socket ([`agent`]), and prints the agent's answer in the shape that the asked version of the
//! specification prescribes ([`result`]). So upgrading the agent upgrades CNI, and the agent never has to enter a
//! namespace, which would need SYS_ADMIN.
//!
//! One thing it does alone: when the agent cannot answer a DEL, the pod must go all the same. Then it removes
//! the pod's link itself and leaves a note for the agent ([`tombstone`]).
//!
//! It starts in about a millisecond and must: there is no runtime, no HTTP client (which would honour the
//! runtime's proxy variables), no configuration file.

mod agent;
mod conf;
mod delegate;
mod env;
mod ipam;
mod netns;
mod result;
mod tombstone;
mod verbs;

use std::ffi::OsStr;
use std::io::Write;
use std::process::ExitCode;

use serde_json::json;
use weave_proto::local::cni::Refusal;

use crate::conf::VERSIONS;
use crate::env::{Environment, Verb};

/// What a run of the shim prints on standard output: a document, or nothing.
type Printed = Option<serde_json::Value>;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    if arguments.next().is_some_and(|first| first == "--version" || first == "-V") {
        return print(&json!(format!("weave-net {}", env!("CARGO_PKG_VERSION"))));
    }
    let Some(environment) = Environment::read() else { return about() };
    let ipam = std::path::Path::new(&program).file_name() == Some(OsStr::new("weave-ipam"));
    match environment.and_then(|environment| run(&environment, ipam)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(document)) => print(&document),
        Err(failure) => {
            print(&failure.document());
            ExitCode::FAILURE
        }
    }
}

fn run(environment: &Environment, ipam: bool) -> Result<Printed, Failure> {
    // Like the reference library's, this answer does not depend on standard input.
    if environment.verb == Verb::Version {
        let current = VERSIONS[VERSIONS.len() - 1];
        return Ok(Some(json!({ "cniVersion": current, "supportedVersions": VERSIONS })));
    }
    let input = conf::read_input()?;
    let conf = conf::parse(&input)?;
    for hint in conf::hints(&input) {
        // Runtimes keep what plugins say here; one that has closed it does not want to know.
        let _ = writeln!(std::io::stderr().lock(), "weave-net: {hint}");
    }
    let version = conf.version.text();
    let done = if ipam { ipam::run(environment, &conf) } else { verbs::run(environment, &conf, &input) };
    done.map_err(|refusal| Failure { version, refusal })
}

/// An error and the version in whose shape it is printed.
struct Failure {
    version: &'static str,
    refusal: Refusal,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { version: VERSIONS[VERSIONS.len() - 1], refusal }
    }
}

impl Failure {
    fn document(&self) -> serde_json::Value {
        let Refusal { code, msg, details } = &self.refusal;
        let mut document = json!({ "cniVersion": self.version, "code": u32::from(*code), "msg": msg });
        if !details.is_empty() {
            document["details"] = json!(details);
        }
        document
    }
}

/// Prints a document (a bare text without quotes). A reader that has gone away is no reason to fail.
fn print(document: &serde_json::Value) -> ExitCode {
    let text = document.as_str().map_or_else(|| document.to_string(), str::to_owned);
    let written = writeln!(std::io::stdout().lock(), "{text}");
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a person sees who starts the program by hand.
fn about() -> ExitCode {
    let text = format!(
        "weave-net {}: the CNI plugin of the weave network; container runtimes start it.\n\
         CNI versions: {}. As weave-ipam it gives out addresses for other plugins.\n",
        env!("CARGO_PKG_VERSION"),
        VERSIONS.join(", ")
    );
    let written = std::io::stderr().lock().write_all(text.as_bytes());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
